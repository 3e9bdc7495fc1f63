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

constexpr float kMiddle = -8.0f;

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Weights come from memory, once a step, and a block's products fill the processor's window, so
// that of itself it would look no more than two blocks ahead.
constexpr int64_t kAhead = 12 * 1024;

inline void prefetch_ahead(const uint8_t* block, int bytes) {
  constexpr int kLine = 64;
  for (int i = 0; i < bytes; i += kLine) __builtin_prefetch(block + kAhead + i, 0, 2);
}

inline int32_t four_inputs(const int8_t* x) {
  int32_t four;
  std::memcpy(&four, x, sizeof four);
  return four;
}

// The code of input i of a block's channel c.
inline int code_at(const uint8_t* codes, int bits, int c, int i) {
  const int quad = i / 4, at = c * 4 + i % 4;
  if (bits == 8) return int8_t(codes[quad * 64 + at]);
  const uint8_t both = codes[quad / 2 * 64 + at];
  return quad % 2 ? both >> 4 : both & 15;
}

inline VecF to_floats(int32_t x) { return __builtin_convertvector(VecI{} + x, VecF); }

// Keeps the compiler from summing in another order, for which it would spill every product.
template <typename Vec>
inline void keep(Vec& v) {
#if defined(__AVX2__)
  asm("" : "+x"(v));
#endif
}

// In dot_group the sums are given as starts(): what the products as multiplied lack or exceed.

#if defined(__AVX512VNNI__)

constexpr int kRowBlock = 8;

// Codes without offsets stand for code - 8: multiplied as 16 * code, they are shifted by 128.
template <int kBits, bool kOffsets>
constexpr float kUnit = kBits == 4 && !kOffsets ? 16.0f : 1.0f;

template <int kBits, bool kOffsets>
inline VecI starts(int32_t shifted_sum) {
  return kBits == 4 && kOffsets ? VecI{} : VecI{} + shifted_sum;
}

template <int kRows>
inline void add_quad(__m512i w, const int8_t* x, int64_t stride, VecI (&sums)[kRows][kVectors]) {
#pragma GCC unroll 8
  for (int r = 0; r < kRows; r++) {
    __m512i four = _mm512_set1_epi32(four_inputs(x + r * stride));
    sums[r][0] = VecI(_mm512_dpbusd_epi32(__m512i(sums[r][0]), w, four));
  }
}

template <int kRows, int kBits, bool kOffsets>
inline void dot_group(const uint8_t* codes, const int8_t* x, int64_t stride,
                      VecI (&sums)[kRows][kVectors]) {
  const __m512i low = _mm512_set1_epi8(15), high = _mm512_set1_epi8(-16);
  const __m512i top = _mm512_set1_epi8(-128);
#pragma GCC unroll 4
  for (int q = 0; q < kQuads; q += 2, x += 8) {
    if constexpr (kBits == 8) {
      const auto* at = reinterpret_cast<const __m512i*>(codes) + q;
      add_quad<kRows>(_mm512_xor_si512(_mm512_loadu_si512(at), top), x, stride, sums);
      add_quad<kRows>(_mm512_xor_si512(_mm512_loadu_si512(at + 1), top), x + 4, stride, sums);
    } else {
      __m512i w = _mm512_loadu_si512(reinterpret_cast<const __m512i*>(codes) + q / 2);
      __m512i first = kOffsets ? w : _mm512_slli_epi16(w, 4);
      __m512i second = kOffsets ? _mm512_srli_epi16(w, 4) : w;
      add_quad<kRows>(_mm512_and_si512(first, kOffsets ? low : high), x, stride, sums);
      add_quad<kRows>(_mm512_and_si512(second, kOffsets ? low : high), x + 4, stride, sums);
    }
  }
}

#elif defined(__AVX2__)

constexpr int kRowBlock = 4;

template <int kBits, bool kOffsets>
constexpr float kUnit = 1.0f;

template <int kBits, bool kOffsets>
inline VecI starts(int32_t shifted_sum) {
  return kBits == 4 && !kOffsets ? VecI{} + shifted_sum / 16 : VecI{};
}

// One quad of inputs times channels 0 to 7 and 8 to 15, in int16.
template <int kRows>
inline void add_pairs(__m256i first, __m256i second, const int8_t* x, int64_t stride,
                      __m256i (&acc)[kRows][2]) {
  for (int r = 0; r < kRows; r++) {
    __m256i four = _mm256_set1_epi32(four_inputs(x + r * stride));
    acc[r][0] = _mm256_add_epi16(acc[r][0], _mm256_maddubs_epi16(first, four));
    acc[r][1] = _mm256_add_epi16(acc[r][1], _mm256_maddubs_epi16(second, four));
    keep(acc[r][0]);
    keep(acc[r][1]);
  }
}

template <int kRows>
inline void dot_four_bits(const uint8_t* codes, const int8_t* x, int64_t stride,
                          VecI (&sums)[kRows][kVectors]) {
  const __m256i low = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
  __m256i acc[kRows][2];
  for (int r = 0; r < kRows; r++) acc[r][0] = acc[r][1] = _mm256_setzero_si256();
#pragma GCC unroll 4
  for (int q = 0; q < kQuads; q += 2) {
    __m256i w[2];
    for (int v = 0; v < 2; v++) {
      w[v] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes) + q + v);
      keep(w[v]);
    }
    add_pairs<kRows>(_mm256_and_si256(w[0], low), _mm256_and_si256(w[1], low), x + 4 * q, stride,
                     acc);
    add_pairs<kRows>(_mm256_and_si256(_mm256_srli_epi16(w[0], 4), low),
                     _mm256_and_si256(_mm256_srli_epi16(w[1], 4), low), x + 4 * q + 4, stride,
                     acc);
  }
  for (int r = 0; r < kRows; r++)
    for (int v = 0; v < 2; v++) sums[r][v] += VecI(_mm256_madd_epi16(acc[r][v], ones));
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
    for (int v = 0; v < 2; v++) sums[r][v] += VecI(acc[r][v]);
}

template <int kRows, int kBits, bool kOffsets>
inline void dot_group(const uint8_t* codes, const int8_t* x, int64_t stride,
                      VecI (&sums)[kRows][kVectors]) {
  if constexpr (kBits == 4)
    dot_four_bits<kRows>(codes, x, stride, sums);
  else
    dot_eight_bits<kRows>(codes, x, stride, sums);
}

#else

constexpr int kRowBlock = 2;

template <int kBits, bool kOffsets>
constexpr float kUnit = 1.0f;

template <int kBits, bool kOffsets>
inline VecI starts(int32_t shifted_sum) {
  return kBits == 4 && !kOffsets ? VecI{} + shifted_sum / 16 : VecI{};
}

template <int kRows, int kBits, bool kOffsets>
inline void dot_group(const uint8_t* codes, const int8_t* x, int64_t stride,
                      VecI (&sums)[kRows][kVectors]) {
  for (int r = 0; r < kRows; r++)
    for (int c = 0; c < kChannels; c++) {
      int32_t total = 0;
      for (int i = 0; i < kGroup; i++) total += code_at(codes, kBits, c, i) * x[r * stride + i];
      sums[r][c / kLanes][c % kLanes] += total;
    }
}

#endif

}  // namespace pagemill::PAGEMILL_ISA
