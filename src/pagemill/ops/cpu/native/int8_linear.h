// Products with int8 weights (one scale per output channel) and 14-bit activations (one scale per
// row). Without VNNI, 16-bit multiply-adds are as fast as 8-bit ones, which need two instructions
// to reach int32; so the activations keep the wider type, and a row's result does not depend on
// the other rows.
//
// Weights are packed [channels / 16][inputs / 2][16 channels][2 inputs]. A lane adds kSpan / 2
// pairs of at most 2 * 127 * 8191, which int32 holds; spans are summed in float.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "kernels.h"
#include "simd.h"

namespace pagemill::PAGEMILL_ISA {

constexpr int kChannels = 16;        // output channels in a packed tile
constexpr int kRowBlock = 6;         // rows that share one pass over a tile
constexpr int64_t kSpan = 2048;      // inputs summed in int32
constexpr float kActivationTop = 8191.0f;

// `out` has an even length; an odd input's last element is zero.
template <typename T>
float quantize_row(const T* x, int64_t size, int16_t* out) {
  VecF tops{};
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) {
    VecF v = load(x + i);
    tops = max(tops, max(v, -v));
  }
  float top = max(tops);
  for (; i < size; i++) top = std::max(top, std::fabs(to_float(x[i])));
  float inverse = top > 0 ? kActivationTop / top : 0.0f;
  for (i = 0; i < size; i++) out[i] = int16_t(std::nearbyint(to_float(x[i]) * inverse));
  if (size % 2) out[size] = 0;
  return top / kActivationTop;
}

#if defined(__AVX512BW__)

struct TileSum {
  __m512i channels = _mm512_setzero_si512();
  void add(__m512i weights, int32_t pair) {
    channels = _mm512_add_epi32(channels, _mm512_madd_epi16(weights, _mm512_set1_epi32(pair)));
  }
  void store(float* out) const { _mm512_storeu_ps(out, _mm512_cvtepi32_ps(channels)); }
};
using TileWeights = __m512i;
inline TileWeights load_weights(const int8_t* w) {
  return _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(w)));
}

#elif defined(__AVX2__)

struct TileWeights {
  __m256i low, high;
};
inline TileWeights load_weights(const int8_t* w) {
  auto half = [w](int i) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(w) + i); };
  return {_mm256_cvtepi8_epi16(half(0)), _mm256_cvtepi8_epi16(half(1))};
}
struct TileSum {
  __m256i low = _mm256_setzero_si256(), high = _mm256_setzero_si256();
  void add(const TileWeights& w, int32_t pair) {
    __m256i x = _mm256_set1_epi32(pair);
    low = _mm256_add_epi32(low, _mm256_madd_epi16(w.low, x));
    high = _mm256_add_epi32(high, _mm256_madd_epi16(w.high, x));
  }
  void store(float* out) const {
    _mm256_storeu_ps(out, _mm256_cvtepi32_ps(low));
    _mm256_storeu_ps(out + 8, _mm256_cvtepi32_ps(high));
  }
};

#else

using TileWeights = const int8_t*;
inline TileWeights load_weights(const int8_t* w) { return w; }
struct TileSum {
  int32_t channels[kChannels] = {};
  void add(TileWeights w, int32_t pair) {
    int16_t x[2];
    std::memcpy(x, &pair, sizeof pair);
    for (int c = 0; c < kChannels; c++) channels[c] += w[2 * c] * x[0] + w[2 * c + 1] * x[1];
  }
  void store(float* out) const {
    for (int c = 0; c < kChannels; c++) out[c] = float(channels[c]);
  }
};

#endif

// kRows rows of `x` (stride in elements) times one packed tile -> out[kRows][kChannels].
template <int kRows>
void tile_product(const int8_t* tile, const int16_t* x, int64_t stride, float* out) {
  std::fill_n(out, kRows * kChannels, 0.0f);
  for (int64_t begin = 0; begin < stride; begin += kSpan) {
    int64_t end = std::min(stride, begin + kSpan);
    TileSum sums[kRows];
    for (int64_t i = begin; i < end; i += 2) {
      TileWeights weights = load_weights(tile + i * kChannels);
      for (int r = 0; r < kRows; r++) {
        int32_t pair;
        std::memcpy(&pair, x + r * stride + i, sizeof pair);
        sums[r].add(weights, pair);
      }
    }
    for (int r = 0; r < kRows; r++) {
      float span[kChannels];
      sums[r].store(span);
      for (int c = 0; c < kChannels; c++) out[r * kChannels + c] += span[c];
    }
  }
}

inline void tile_rows(int rows, const int8_t* tile, const int16_t* x, int64_t stride, float* out) {
  switch (rows) {
    case 1: return tile_product<1>(tile, x, stride, out);
    case 2: return tile_product<2>(tile, x, stride, out);
    case 3: return tile_product<3>(tile, x, stride, out);
    case 4: return tile_product<4>(tile, x, stride, out);
    case 5: return tile_product<5>(tile, x, stride, out);
    default: return tile_product<kRowBlock>(tile, x, stride, out);
  }
}

template <typename T>
void store_tile(const Int8LinearArgs& a, int64_t row, int rows, int64_t channel,
                const float* scales, const float* sums) {
  int64_t channels = std::min<int64_t>(kChannels, a.outs - channel);
  for (int r = 0; r < rows; r++) {
    T* out = static_cast<T*>(a.out) + (row + r) * a.outs + channel;
    for (int64_t c = 0; c < channels; c++) {
      float y = sums[r * kChannels + c] * scales[row + r] * a.scale[channel + c];
      from_float(a.bias ? y + a.bias[channel + c] : y, out + c);
    }
  }
}

template <typename T>
void int8_linear(const Int8LinearArgs& a) {
  const int64_t stride = (a.in + 1) / 2 * 2, tiles = (a.outs + kChannels - 1) / kChannels;
  std::vector<int16_t> values(a.rows * stride);
  std::vector<float> scales(a.rows);
#pragma omp parallel
  {
#pragma omp for
    for (int64_t r = 0; r < a.rows; r++)
      scales[r] =
          quantize_row(static_cast<const T*>(a.x) + r * a.in, a.in, values.data() + r * stride);
#pragma omp for
    for (int64_t t = 0; t < tiles; t++) {
      float sums[kRowBlock * kChannels];
      for (int64_t r = 0; r < a.rows; r += kRowBlock) {
        int rows = int(std::min<int64_t>(kRowBlock, a.rows - r));
        tile_rows(rows, a.weight + t * stride * kChannels, values.data() + r * stride, stride,
                  sums);
        store_tile<T>(a, r, rows, t * kChannels, scales.data(), sums);
      }
    }
  }
}

}  // namespace pagemill::PAGEMILL_ISA
