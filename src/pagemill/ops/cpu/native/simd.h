// Portable vectors (GCC/Clang vector extensions): one source, as wide as the target allows.
//
// Everything here lives in a namespace named after the instruction set, because the same file is
// compiled several times and the linker must not merge the copies.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace pagemill::PAGEMILL_ISA {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

using VecF = float __attribute__((vector_size(kLanes * 4)));
using VecI = int32_t __attribute__((vector_size(kLanes * 4)));
using VecU = uint32_t __attribute__((vector_size(kLanes * 4)));
using VecH = uint16_t __attribute__((vector_size(kLanes * 2)));

struct BFloat16 {
  uint16_t bits;
};

struct Float16 {
  uint16_t bits;
};

inline VecF broadcast(float x) { return x - VecF{}; }

inline VecF load(const float* p) {
  VecF v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

inline VecF load(const BFloat16* p) {
  VecH half;
  std::memcpy(&half, p, sizeof half);
  return reinterpret_cast<VecF>(__builtin_convertvector(half, VecU) << 16);
}

inline void store(float* p, VecF v) { std::memcpy(p, &v, sizeof v); }

// Rounds to nearest, ties to even. NaN payloads are not preserved.
inline void store(BFloat16* p, VecF v) {
#if defined(__AVX512BF16__)
  __m256bh half = _mm512_cvtneps_pbh(__m512(v));
#else
  VecU bits = reinterpret_cast<VecU>(v);
  bits += 0x7fffu + ((bits >> 16) & 1u);
  VecH half = __builtin_convertvector(bits >> 16, VecH);
#endif
  std::memcpy(p, &half, sizeof half);
}

inline float to_float(float x) { return x; }

inline float to_float(BFloat16 x) {
  uint32_t bits = uint32_t(x.bits) << 16;
  float f;
  std::memcpy(&f, &bits, sizeof f);
  return f;
}

inline void from_float(float x, float* out) { *out = x; }

inline void from_float(float x, BFloat16* out) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  out->bits = uint16_t((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// A code of a row that has a scale.
struct Int8 {
  int8_t code;
};

inline float to_float(Int8 x) { return float(x.code); }

inline VecF load(const Int8* p) {
#if defined(__AVX512F__)
  __m128i codes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return VecF(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(codes)));
#elif defined(__AVX2__)
  __m128i codes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  return VecF(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(codes)));
#else
  VecF v;
  for (int i = 0; i < kLanes; i++) v[i] = float(p[i].code);
  return v;
#endif
}

// IEEE half precision by hand, for targets without an instruction and for single elements.
inline float to_float(Float16 x) {
  uint32_t sign = uint32_t(x.bits & 0x8000u) << 16, rest = x.bits & 0x7fffu;
  if (rest < 0x400u) {  // zero or subnormal: rest * 2^-24
    float f = float(rest) * 5.9604644775390625e-8f;
    return sign ? -f : f;
  }
  uint32_t bits = rest >= 0x7c00u ? sign | 0x7f800000u | ((rest & 0x3ffu) << 13)
                                  : sign | ((rest << 13) + 0x38000000u);
  float f;
  std::memcpy(&f, &bits, sizeof f);
  return f;
}

constexpr float kFloat16Top = 65504.0f;

// Rounds to nearest, ties to even; what is too large becomes the largest number.
inline void from_float(float x, Float16* out) {
  uint32_t bits;
  x = x > kFloat16Top ? kFloat16Top : x < -kFloat16Top ? -kFloat16Top : x;
  std::memcpy(&bits, &x, sizeof bits);
  uint16_t sign = uint16_t((bits >> 16) & 0x8000u);
  bits &= 0x7fffffffu;
  if (bits < 0x38800000u) {  // below 2^-14: a subnormal
    float magnitude;
    std::memcpy(&magnitude, &bits, sizeof magnitude);
    out->bits = uint16_t(sign | uint16_t(std::nearbyint(magnitude * 16777216.0f)));
    return;
  }
  bits += 0xfffu + ((bits >> 13) & 1u);
  out->bits = uint16_t(sign | uint16_t((bits - 0x38000000u) >> 13));
}

#if defined(__AVX512F__)
inline VecF load(const Float16* p) {
  return VecF(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
}
inline void store_half(Float16* p, VecF v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(__m512(v), 0));
}
#elif defined(__AVX2__)
inline VecF load(const Float16* p) {
  return VecF(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}
inline void store_half(Float16* p, VecF v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(__m256(v), 0));
}
#else
inline VecF load(const Float16* p) {
  VecF v;
  for (int i = 0; i < kLanes; i++) v[i] = to_float(p[i]);
  return v;
}
inline void store_half(Float16* p, VecF v) {
  for (int i = 0; i < kLanes; i++) from_float(v[i], p + i);
}
#endif

// Of two of which one is NaN, the second. GCC makes a comparison and a blend of `a > b ? a : b`.
#if defined(__AVX512F__)
inline VecF max(VecF a, VecF b) { return VecF(_mm512_max_ps(__m512(a), __m512(b))); }
inline VecF min(VecF a, VecF b) { return VecF(_mm512_min_ps(__m512(a), __m512(b))); }
#elif defined(__AVX2__)
inline VecF max(VecF a, VecF b) { return VecF(_mm256_max_ps(__m256(a), __m256(b))); }
inline VecF min(VecF a, VecF b) { return VecF(_mm256_min_ps(__m256(a), __m256(b))); }
#else
inline VecF max(VecF a, VecF b) { return a > b ? a : b; }
inline VecF min(VecF a, VecF b) { return a < b ? a : b; }
#endif
inline VecF abs(VecF v) { return max(v, -v); }

using Vec4 = float __attribute__((vector_size(16)));
using Vec4I = int32_t __attribute__((vector_size(16)));

// Folds four lanes into one. Shuffles take constants: GCC builds any other index in memory.
template <typename Fold>
inline float fold_four(Vec4 v, Fold fold) {
  v = fold(v, __builtin_shuffle(v, Vec4I{2, 3, 0, 1}));
  return fold(v, __builtin_shuffle(v, Vec4I{1, 0, 3, 2}))[0];
}

#if defined(__AVX512F__)
inline float sum(VecF v) { return _mm512_reduce_add_ps(__m512(v)); }
inline float max(VecF v) { return _mm512_reduce_max_ps(__m512(v)); }
#else
template <typename Fold>
inline float fold_lanes(VecF v, Fold fold) {
#if defined(__AVX2__)
  Vec4 low = Vec4(_mm256_castps256_ps128(__m256(v)));
  return fold_four(fold(low, Vec4(_mm256_extractf128_ps(__m256(v), 1))), fold);
#else
  return fold_four(v, fold);
#endif
}

inline float sum(VecF v) {
  return fold_lanes(v, [](Vec4 a, Vec4 b) { return a + b; });
}

inline float max(VecF v) {
  return fold_lanes(v, [](Vec4 a, Vec4 b) { return a > b ? a : b; });
}
#endif

// The sums of four vectors -> out[4].
inline void sum_four(const VecF* v, float* out) {
#if defined(__AVX512F__)
  // Within each quarter of the lanes: pairs of lanes, then of pairs; then the quarters.
  __m512 a = __m512(v[0]), b = __m512(v[1]), c = __m512(v[2]), d = __m512(v[3]);
  __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
  __m512 fours = _mm512_add_ps(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));
  __m256 halves = _mm256_add_ps(_mm512_castps512_ps256(fours), _mm512_extractf32x8_ps(fours, 1));
  __m128 low = _mm256_castps256_ps128(halves), high = _mm256_extractf128_ps(halves, 1);
  _mm_storeu_ps(out, _mm_add_ps(low, high));
#elif defined(__AVX2__)
  __m256 pairs = _mm256_hadd_ps(__m256(v[0]), __m256(v[1]));
  __m256 fours = _mm256_hadd_ps(pairs, _mm256_hadd_ps(__m256(v[2]), __m256(v[3])));
  _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(fours), _mm256_extractf128_ps(fours, 1)));
#else
  for (int j = 0; j < 4; j++) out[j] = sum(v[j]);
#endif
}

// Beyond the type's range: the largest number.
inline void store(Float16* p, VecF v) {
  store_half(p, max(min(v, broadcast(kFloat16Top)), broadcast(-kFloat16Top)));
}

// e^x to about 2 units in the last place: range reduction by ln 2 in two parts (Cody and Waite,
// 1980), then a polynomial of degree 6 on [-ln 2 / 2, ln 2 / 2]. Below -87 the result is 0 or tiny.
inline VecF exp(VecF x) {
  x = max(min(x, broadcast(88.0f)), broadcast(-87.0f));
  // Adding 1.5 * 2^23 leaves the nearest integer in the low bits, which the shift below keeps.
  VecF shifted = x * 1.44269504088896f + 12582912.0f;
  VecF whole = shifted - 12582912.0f;
  VecF r = x - whole * 0.693359375f;
  r = r + whole * 2.12194440e-4f;
  VecF p = broadcast(1.0f / 720);
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  VecI exponent = reinterpret_cast<VecI>(shifted) << 23;
  return reinterpret_cast<VecF>(reinterpret_cast<VecI>(p) + exponent);
}

// tanh by the exponential; exact enough where |x| is not tiny, and odd by construction.
inline VecF tanh(VecF x) {
  VecF e = exp(2.0f * x);
  return 1.0f - 2.0f / (e + 1.0f);
}

}  // namespace pagemill::PAGEMILL_ISA
