// Products of one group of 32 inputs with 16 output channels, in integers: the inner loop.
//
// Weights of 4 bits are codes 0 to 15: eight products of pairs with int8 fit into int16
// (8 * 2 * 15 * 127 = 30480), so AVX2 widens to int32 once a group. Weights of 8 bits are signed.
#pragma once

#include "kernels.h"
#include "simd.h"

namespace pagemill::PAGEMILL_ISA {

constexpr int kVectors = kChannels / kLanes;  // of a tile's channels
constexpr int kQuads = kGroup / 4;            // inputs are taken by fours

inline int32_t four_inputs(const int8_t* x) {
  int32_t four;
  std::memcpy(&four, x, sizeof four);
  return four;
}

// Keeps the compiler from summing in another order, for which it would spill every product.
template <typename Vec>
inline void keep(Vec& v) {
#if defined(__AVX2__)
  asm("" : "+x"(v));
#endif
}

#if defined(__AVX512VNNI__)

constexpr int kRowBlock = 8;

template <int kBits>
inline __m512i quad_weights(const uint8_t* codes, int quad) {
  if constexpr (kBits == 4) {
    __m256i w = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes) + quad);
    __m512i both = _mm512_inserti64x4(_mm512_castsi256_si512(w), _mm256_srli_epi16(w, 4), 1);
    return _mm512_and_si512(both, _mm512_set1_epi8(15));
  } else {
    __m512i w = _mm512_loadu_si512(reinterpret_cast<const __m512i*>(codes) + quad);
    return _mm512_xor_si512(w, _mm512_set1_epi8(-128));  // plus 128: see kShift
  }
}

// The instruction multiplies unsigned by signed bytes; 128 times the group's sum goes off later.
template <int kBits>
constexpr float kShift = kBits == 8 ? -128.0f : 0.0f;

template <int kRows, int kBits>
inline void dot_group(const uint8_t* codes, const int8_t* x, int64_t stride,
                      VecI (&sums)[kRows][kVectors]) {
  __m512i acc[kRows];
  for (int r = 0; r < kRows; r++) acc[r] = _mm512_setzero_si512();
  for (int q = 0; q < kQuads; q++) {
    __m512i w = quad_weights<kBits>(codes, q);
    for (int r = 0; r < kRows; r++)
      acc[r] = _mm512_dpbusd_epi32(acc[r], w, _mm512_set1_epi32(four_inputs(x + r * stride + 4 * q)));
  }
  for (int r = 0; r < kRows; r++) sums[r][0] = VecI(acc[r]);
}

#elif defined(__AVX2__)

constexpr int kRowBlock = 4;

template <int kBits>
constexpr float kShift = 0.0f;

template <int kRows>
inline void dot_four_bits(const uint8_t* codes, const int8_t* x, int64_t stride,
                          VecI (&sums)[kRows][kVectors]) {
  const __m256i low = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
  __m256i acc[kRows][2];
  for (int r = 0; r < kRows; r++) acc[r][0] = acc[r][1] = _mm256_setzero_si256();
#pragma GCC unroll 8
  for (int q = 0; q < kQuads; q++) {
    __m256i w = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes) + q);
    keep(w);
    __m256i first = _mm256_and_si256(w, low);
    __m256i second = _mm256_and_si256(_mm256_srli_epi16(w, 4), low);
    for (int r = 0; r < kRows; r++) {
      __m256i four = _mm256_set1_epi32(four_inputs(x + r * stride + 4 * q));
      acc[r][0] = _mm256_add_epi16(acc[r][0], _mm256_maddubs_epi16(first, four));
      acc[r][1] = _mm256_add_epi16(acc[r][1], _mm256_maddubs_epi16(second, four));
      keep(acc[r][0]);
      keep(acc[r][1]);
    }
  }
  for (int r = 0; r < kRows; r++)
    for (int v = 0; v < 2; v++) sums[r][v] = VecI(_mm256_madd_epi16(acc[r][v], ones));
}

// |w| times x with the sign of w: unsigned times signed, at most 2 * 128 * 127 a pair.
template <int kRows>
inline void dot_eight_bits(const uint8_t* codes, const int8_t* x, int64_t stride,
                           VecI (&sums)[kRows][kVectors]) {
  const __m256i ones = _mm256_set1_epi16(1);
  __m256i acc[kRows][2];
  for (int r = 0; r < kRows; r++) acc[r][0] = acc[r][1] = _mm256_setzero_si256();
#pragma GCC unroll 8
  for (int q = 0; q < kQuads; q++) {
    __m256i w[2], size[2];
    for (int v = 0; v < 2; v++) {
      w[v] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes) + 2 * q + v);
      keep(w[v]);
      size[v] = _mm256_abs_epi8(w[v]);
    }
    for (int r = 0; r < kRows; r++) {
      __m256i four = _mm256_set1_epi32(four_inputs(x + r * stride + 4 * q));
      for (int v = 0; v < 2; v++) {
        __m256i pairs = _mm256_maddubs_epi16(size[v], _mm256_sign_epi8(four, w[v]));
        acc[r][v] = _mm256_add_epi32(acc[r][v], _mm256_madd_epi16(pairs, ones));
        keep(acc[r][v]);
      }
    }
  }
  for (int r = 0; r < kRows; r++)
    for (int v = 0; v < 2; v++) sums[r][v] = VecI(acc[r][v]);
}

template <int kRows, int kBits>
inline void dot_group(const uint8_t* codes, const int8_t* x, int64_t stride,
                      VecI (&sums)[kRows][kVectors]) {
  if constexpr (kBits == 4)
    dot_four_bits<kRows>(codes, x, stride, sums);
  else
    dot_eight_bits<kRows>(codes, x, stride, sums);
}

#else

constexpr int kRowBlock = 2;

template <int kBits>
constexpr float kShift = 0.0f;

// The weight of input 4 q + i of channel c.
template <int kBits>
inline int weight_at(const uint8_t* codes, int q, int c, int i) {
  if constexpr (kBits == 8) return int8_t(codes[q * 64 + c * 4 + i]);
  uint8_t both = codes[q * 32 + c % 8 * 4 + i];
  return c < 8 ? both & 15 : both >> 4;
}

template <int kRows, int kBits>
inline void dot_group(const uint8_t* codes, const int8_t* x, int64_t stride,
                      VecI (&sums)[kRows][kVectors]) {
  for (int r = 0; r < kRows; r++)
    for (int c = 0; c < kChannels; c++) {
      int32_t total = 0;
      for (int q = 0; q < kQuads; q++)
        for (int i = 0; i < 4; i++)
          total += weight_at<kBits>(codes, q, c, i) * x[r * stride + 4 * q + i];
      sums[r][c / kLanes][c % kLanes] = total;
    }
}

#endif

}  // namespace pagemill::PAGEMILL_ISA
