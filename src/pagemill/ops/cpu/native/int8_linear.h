// Products of a few rows with int8 weights (per-channel scale).
//
// For few rows the weights' bytes are the cost, so the activations keep 14 bits (one scale per
// row). A lane adds kSpan / 8 products of at most 127 * 8191, which int32 holds exactly; spans are
// summed in float.
#pragma once

#include <cmath>
#include <vector>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "kernels.h"
#include "simd.h"

namespace pagemill::PAGEMILL_ISA {

constexpr int kMaxRows = 8;
constexpr int64_t kSpan = 2048;  // inputs summed in int32 before the float sum takes over

struct QuantizedRow {
  std::vector<int16_t> values;
  float scale;
};

template <typename T>
QuantizedRow quantize_row(const T* x, int64_t size) {
  float top = 0;
  for (int64_t i = 0; i < size; i++) top = std::max(top, std::fabs(to_float(x[i])));
  QuantizedRow row{std::vector<int16_t>(size), top / 8191.0f};
  float inverse = top > 0 ? 8191.0f / top : 0.0f;
  for (int64_t i = 0; i < size; i++)
    row.values[i] = int16_t(std::lrint(to_float(x[i]) * inverse));
  return row;
}

#if defined(__AVX2__)

inline float sum_int32(__m256i v) {
  alignas(32) int32_t lanes[8];
  _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), v);
  int64_t total = 0;
  for (int32_t lane : lanes) total += lane;
  return float(total);
}

// One output channel for kRows rows at once: every weight byte is read and widened once.
template <int kRows>
void dot_rows(const int8_t* w, const int16_t* const* x, int64_t size, float* out) {
  float totals[kRows] = {};
  for (int64_t begin = 0; begin < size; begin += kSpan) {
    int64_t end = std::min(size, begin + kSpan), i = begin;
    __m256i acc[kRows] = {};
    for (; i + 16 <= end; i += 16) {
      __m256i weight =
          _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(w + i)));
      for (int r = 0; r < kRows; r++) {
        __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x[r] + i));
        acc[r] = _mm256_add_epi32(acc[r], _mm256_madd_epi16(weight, v));
      }
    }
    for (int r = 0; r < kRows; r++) {
      totals[r] += sum_int32(acc[r]);
      for (int64_t t = i; t < end; t++) totals[r] += float(int32_t(w[t]) * x[r][t]);
    }
  }
  for (int r = 0; r < kRows; r++) out[r] = totals[r];
}

#else

template <int kRows>
void dot_rows(const int8_t* w, const int16_t* const* x, int64_t size, float* out) {
  for (int r = 0; r < kRows; r++) {
    int64_t total = 0;
    for (int64_t i = 0; i < size; i++) total += int32_t(w[i]) * x[r][i];
    out[r] = float(total);
  }
}

#endif

inline void dot_any(int rows, const int8_t* w, const int16_t* const* x, int64_t size, float* out) {
  switch (rows) {
    case 1: return dot_rows<1>(w, x, size, out);
    case 2: return dot_rows<2>(w, x, size, out);
    case 3: return dot_rows<3>(w, x, size, out);
    case 4: return dot_rows<4>(w, x, size, out);
    case 5: return dot_rows<5>(w, x, size, out);
    case 6: return dot_rows<6>(w, x, size, out);
    case 7: return dot_rows<7>(w, x, size, out);
    default: return dot_rows<8>(w, x, size, out);
  }
}

template <typename T>
void int8_linear(const Int8LinearArgs& a) {
  std::vector<QuantizedRow> rows;
  const int16_t* values[kMaxRows];
  for (int64_t r = 0; r < a.rows; r++)
    rows.push_back(quantize_row(static_cast<const T*>(a.x) + r * a.in, a.in));
  for (int64_t r = 0; r < a.rows; r++) values[r] = rows[r].values.data();
  T* out = static_cast<T*>(a.out);
#pragma omp parallel for schedule(static)
  for (int64_t o = 0; o < a.outs; o++) {
    float dots[kMaxRows];
    dot_any(int(a.rows), a.weight + o * a.in, values, a.in, dots);
    for (int64_t r = 0; r < a.rows; r++) {
      float y = dots[r] * rows[r].scale * a.scale[o] + (a.bias ? a.bias[o] : 0.0f);
      from_float(y, out + r * a.outs + o);
    }
  }
}

}  // namespace pagemill::PAGEMILL_ISA
