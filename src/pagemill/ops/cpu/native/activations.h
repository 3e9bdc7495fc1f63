// Activations as int8 by groups of 32 inputs: what matrices in few bits are multiplied with.
//
// Byte instructions multiply unsigned by signed, so weights are shifted by 128 to be unsigned and
// the products' sums start from what that adds too much: -128 times the sum of the activations.
//
// Layers are written for any kind of activations X (see half_linear.h for the other one) with
//   X::kTile                    output channels of a packed tile
//   make(workspace, place, rows, size)
//   put(row, group, values)     kGroup floats, rounded
//   row_bytes()
// and functions multiply_tile(matrix, tile, rows, x, row, sums), for up to kRows<X> rows at once.
#pragma once

#include <algorithm>
#include <cmath>

#include "kernels.h"
#include "simd.h"

namespace pagemill::PAGEMILL_ISA {

constexpr float kActivationTop = 127.0f;
constexpr int32_t kShift = -128;

// Rows of `groups` groups; inputs beyond the row's end are zero.
struct Activations {
  static constexpr int kTile = kChannels;

  int8_t* values;  // [rows, groups * 32]
  float* scale;    // [rows, groups]: of one unit
  int32_t* sum;    // [rows, groups]: of the group's values, times kShift
  int32_t* start;  // [rows, groups] and
  float* excess;   // [rows, chunks]: of products of many rows, see coarse_linear.h
  int64_t groups;

  int64_t stride() const { return groups * kGroup; }
  int64_t row_bytes() const { return stride(); }

  // Room for `rows` rows of `size` inputs.
  static Activations make(Workspace& workspace, Workspace::Place place, int64_t rows,
                          int64_t size) {
    int64_t groups = (size + kGroup - 1) / kGroup, count = rows * groups;
    auto* memory = workspace.get<char>(place, count * (kGroup + 4 * sizeof(float)));
    float* scales = reinterpret_cast<float*>(memory + count * kGroup);
    auto* sums = reinterpret_cast<int32_t*>(scales + count);
    float* excess = scales + 3 * count;
    return {reinterpret_cast<int8_t*>(memory), scales, sums, sums + count, excess, groups};
  }

  inline void put(int64_t row, int64_t group, const float* x) const;
};

// The lanes -> out[kLanes]; they lie within -128 to 127.
inline void store_bytes(int8_t* out, VecI v) {
#if defined(__AVX512F__)
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm512_cvtepi32_epi8(__m512i(v)));
#elif defined(__AVX2__)
  __m256i all = __m256i(v);
  __m128i pairs = _mm_packs_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(out), _mm_packs_epi16(pairs, pairs));
#else
  for (int l = 0; l < kLanes; l++) out[l] = int8_t(v[l]);
#endif
}

// The nearest integers, ties to even, of numbers below 2^22.
inline VecI nearest(VecF x) {
  // Adding 1.5 * 2^23 leaves them in the low bits.
  return reinterpret_cast<VecI>(x + 12582912.0f) - 0x4b400000;
}

// kGroup floats -> int8 with their scale and shifted sum.
inline void quantize_group(const float* x, int8_t* out, float* scale, int32_t* shifted_sum) {
  VecF tops{};
  for (int i = 0; i < kGroup; i += kLanes) tops = pagemill::PAGEMILL_ISA::max(tops, abs(load(x + i)));
  float top = max(tops);
  float inverse = top > 0 ? kActivationTop / top : 0.0f;
  VecI totals{};
  for (int i = 0; i < kGroup; i += kLanes) {
    VecI rounded = nearest(load(x + i) * inverse);
    totals += rounded;
    store_bytes(out + i, rounded);
  }
  *scale = top / kActivationTop;
  *shifted_sum = kShift * int32_t(pagemill::PAGEMILL_ISA::sum(__builtin_convertvector(totals, VecF)));
}

inline void Activations::put(int64_t row, int64_t group, const float* x) const {
  int64_t at = row * groups + group;
  quantize_group(x, values + at * kGroup, scale + at, sum + at);
}

// A row of `size` elements: `vector(i)` gives kLanes of them from i on, `scalar(i)` one.
template <typename X, typename Vector, typename Scalar>
void round_row(const X& a, int64_t row, int64_t size, Vector vector, Scalar scalar) {
  float group[kGroup];
  for (int64_t g = 0; g < a.groups; g++) {
    const int64_t first = g * kGroup;
    if (first + kGroup <= size)
      for (int i = 0; i < kGroup; i += kLanes) store(group + i, vector(first + i));
    else
      for (int i = 0; i < kGroup; i++) group[i] = first + i < size ? scalar(first + i) : 0.0f;
    a.put(row, g, group);
  }
}

template <typename X, typename T>
void round_row(const X& a, int64_t row, int64_t size, const T* x) {
  round_row(
      a, row, size, [x](int64_t i) { return load(x + i); },
      [x](int64_t i) { return to_float(x[i]); });
}

inline float inverse_rms(const float* x, int64_t size, float eps) {
  VecF squares{};
  float tail = 0;
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) squares += load(x + i) * load(x + i);
  for (; i < size; i++) tail += x[i] * x[i];
  return 1.0f / std::sqrt((sum(squares) + tail) / float(size) + eps);
}

// RMSNorm of row `r` of x [rows, size], rounded.
template <typename X>
void norm_round(const float* x, const float* weight, float eps, int64_t r, int64_t size,
                const X& out) {
  const float* row = x + r * size;
  float inverse = inverse_rms(row, size, eps);
  round_row(
      out, r, size, [=](int64_t i) { return load(row + i) * inverse * load(weight + i); },
      [=](int64_t i) { return row[i] * inverse * weight[i]; });
}

}  // namespace pagemill::PAGEMILL_ISA
