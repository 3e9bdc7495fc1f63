// Scores and weighted sums out of int8 codes by vpdpbusd, which adds up products of four unsigned
// and four signed bytes in each lane: 64 products an instruction, where floats have 16.
//
// Queries and weights are split into two bytes each, so that they keep 16 bits and only what is in
// the cache is rounded to 8. Keys are turned so that 16 of them lie across the lanes, four
// dimensions in each; values so that dimensions do, four keys in each.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "attention_tiles.h"
#include "cache_row.h"
#include "simd.h"

namespace pagemill::PAGEMILL_ISA {

#if defined(__AVX512VNNI__)
constexpr int kSegment = 64;  // dimensions of a vector of codes

// The products of the narrow way, see FloatProducts; faster than the wide one for any number.
class CodeProducts {
 public:
  static constexpr int kMost = kWide;

  static int padded(int dim) { return (dim + kSegment - 1) / kSegment * kSegment; }

  // Takes `queries` rows of floats [query, dim].
  void start(const float* q, int queries, int dim) {
    dim_ = dim;
    quads_ = (dim + 3) / 4;
    queries_.assign(size_t(queries) * 2 * row_bytes(), 0);
    units_.resize(queries);
    offsets_.resize(queries);
    for (int r = 0; r < queries; r++) round_query(q + int64_t(r) * dim, r);
  }

  // scores[r][key] = query first + r times a key, for `rows` queries and all keys of the tile.
  void score(const KeyTile<Int8>& tile, int64_t offset, int first, int rows, float* scores,
             Stream& ahead) {
    const int groups = (tile.count + kLanes - 1) / kLanes;
    for (int g = 0; g < groups; g++) turn_keys(tile, offset, g, ahead);
    by_fours(rows, [&](int r, auto n) {
      float* to = scores + r * kNarrowKeys;
      int g = 0;
      for (; g + 4 <= groups; g += 4) dot<n.value, 4>(tile, first + r, g, to, ahead);
      for (; g + 2 <= groups; g += 2) dot<n.value, 2>(tile, first + r, g, to, ahead);
      for (; g < groups; g++) dot<n.value, 1>(tile, first + r, g, to, ahead);
    });
  }

  // out[r] += sum of weights[r][key] * value, for `rows` queries; rows of `out` are padded and their
  // dimensions in the order that `in_order` undoes.
  void add(const KeyTile<Int8>& tile, int64_t offset, int rows, const float* weights, float* out,
           Stream& ahead) {
    const int fours = (tile.count + kFour - 1) / kFour, size = padded(dim_);
    for (int f = 0; f < fours; f++) {
      turn_values(tile, offset, f);
      ahead.fetch(2 * Stream::kLine);
    }
    by_fours(rows, [&](int r, auto n) {
      float units[n.value];
      for (int i = 0; i < n.value; i++)
        units[i] = round_weights(weights + (r + i) * kNarrowKeys, tile, i);
      for (int s = 0; s < size / kSegment; s++)
        add_segment<n.value>(s, fours, units, out + int64_t(r) * size, size, ahead);
    });
  }

  // A row of sums, its dimensions in order.
  static void in_order(float* out, int dim) {
    for (int s = 0; s < dim; s += kSegment) {
      __m512 v[4];
      for (int t = 0; t < 4; t++) v[t] = _mm512_loadu_ps(out + s + t * kLanes);
      __m512 low01 = _mm512_shuffle_f32x4(v[0], v[1], 0x44);
      __m512 low23 = _mm512_shuffle_f32x4(v[2], v[3], 0x44);
      __m512 high01 = _mm512_shuffle_f32x4(v[0], v[1], 0xee);
      __m512 high23 = _mm512_shuffle_f32x4(v[2], v[3], 0xee);
      _mm512_storeu_ps(out + s, _mm512_shuffle_f32x4(low01, low23, 0x88));
      _mm512_storeu_ps(out + s + kLanes, _mm512_shuffle_f32x4(low01, low23, 0xdd));
      _mm512_storeu_ps(out + s + 2 * kLanes, _mm512_shuffle_f32x4(high01, high23, 0x88));
      _mm512_storeu_ps(out + s + 3 * kLanes, _mm512_shuffle_f32x4(high01, high23, 0xdd));
    }
  }

 private:
  static constexpr float kWeightTop = 65535.0f;
  static constexpr int kKeyBytes = 4 * kNarrowKeys;  // of a quad of dimensions

  int row_bytes() const { return 4 * quads_; }
  const int8_t* query(int row, int part) const {
    return queries_.data() + (size_t(row) * 2 + part) * row_bytes();
  }

  // As high * 256 + low.
  void round_query(const float* q, int row) {
    VecF tops{};
    for (int i = 0; i < dim_; i += kLanes) tops = max(tops, abs(load_some(q + i, dim_ - i)));
    const float top = max(tops), inverse = top > kSmallestTop ? kActivationTop / top : 0.0f;
    int8_t* high = queries_.data() + size_t(row) * 2 * row_bytes();
    VecI sums{};
    for (int i = 0; i < dim_; i += kLanes) {
      VecF scaled = load_some(q + i, dim_ - i) * inverse;
      VecI whole = nearest(scaled);
      VecF rest = (scaled - __builtin_convertvector(whole, VecF)) * 256.0f;
      VecI part = nearest(min(rest, broadcast(kActivationTop)));
      store_some(high + i, whole, row_bytes() - i);
      store_some(high + row_bytes() + i, part, row_bytes() - i);
      sums += whole * 256 + part;
    }
    units_[row] = top / kActivationTop / 256.0f;
    offsets_[row] = kShift * _mm512_reduce_add_epi32(__m512i(sums));
  }

  static __mmask16 first_lanes(int count) {
    return count >= kLanes ? __mmask16(0xffff) : __mmask16((1u << count) - 1);
  }

  // The first `count` lanes of a vector; those behind it are 0, or not written.
  static VecF load_some(const float* p, int count) {
    return VecF(_mm512_maskz_loadu_ps(first_lanes(count), p));
  }
  static void store_some(int8_t* p, VecI v, int count) {
    _mm512_mask_cvtepi32_storeu_epi8(p, first_lanes(count), __m512i(v));
  }

  // Keys 16 g to 16 g + 15, the last one again beyond the end; codes are shifted to be unsigned.
  void turn_keys(const KeyTile<Int8>& tile, int64_t offset, int g, Stream& ahead) {
    const Int8* rows[kLanes];
    for (int j = 0; j < kLanes; j++)
      rows[j] = tile.keys[std::min(g * kLanes + j, tile.count - 1)] + offset;
    uint8_t* to = keys_ + g * kLanes * 4;
    int i = 0;
    for (; i + 16 <= dim_; i += 16) {
      turn_chunk(rows, i, 4, to, [](const Int8* p) { return load_chunk(p); });
      ahead.fetch(2 * Stream::kLine);
    }
    if (i < dim_) {
      const __mmask16 mask = __mmask16((1u << (dim_ - i)) - 1);
      turn_chunk(rows, i, quads_ - i / 4, to,
                 [mask](const Int8* p) { return _mm_maskz_loadu_epi8(mask, p); });
    }
  }

  static __m128i load_chunk(const Int8* p) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  }

  // 16 dimensions of 16 keys; of them `quads` quads are kept.
  template <typename Load>
  static void turn_chunk(const Int8* const* rows, int i, int quads, uint8_t* to, Load load) {
    __m512i z[4];  // keys k, k + 4, k + 8, k + 12 in a quarter each
    for (int k = 0; k < 4; k++) {
      z[k] = _mm512_castsi128_si512(load(rows[k] + i));
      z[k] = _mm512_mask_broadcast_i32x4(z[k], 0x00f0, load(rows[k + 4] + i));
      z[k] = _mm512_mask_broadcast_i32x4(z[k], 0x0f00, load(rows[k + 8] + i));
      z[k] = _mm512_mask_broadcast_i32x4(z[k], 0xf000, load(rows[k + 12] + i));
    }
    __m512i low01 = _mm512_unpacklo_epi32(z[0], z[1]), high01 = _mm512_unpackhi_epi32(z[0], z[1]);
    __m512i low23 = _mm512_unpacklo_epi32(z[2], z[3]), high23 = _mm512_unpackhi_epi32(z[2], z[3]);
    const __m512i turned[4] = {
        _mm512_unpacklo_epi64(low01, low23), _mm512_unpackhi_epi64(low01, low23),
        _mm512_unpacklo_epi64(high01, high23), _mm512_unpackhi_epi64(high01, high23)};
    const __m512i shift = _mm512_set1_epi8(-128);
    for (int q = 0; q < quads; q++)
      _mm512_store_si512(to + (i / 4 + q) * kKeyBytes, _mm512_xor_si512(turned[q], shift));
  }

  // kRows queries and 16 kGroups keys.
  template <int kRows, int kGroups>
  void dot(const KeyTile<Int8>& tile, int row, int g, float* scores, Stream& ahead) const {
    __m512i acc[kRows][kGroups];
    for (int r = 0; r < kRows; r++)
      for (int v = 0; v < kGroups; v++) acc[r][v] = _mm512_setzero_si512();
    for (int part = 0; part < 2; part++) {
      for (int q = 0; q < quads_; q++) {
        ahead.fetch();
        __m512i keys[kGroups];
        for (int v = 0; v < kGroups; v++)
          keys[v] = _mm512_load_si512(keys_ + q * kKeyBytes + (g + v) * 64);
        for (int r = 0; r < kRows; r++) {
          const __m512i four = broadcast_four(query(row + r, part) + 4 * q);
          for (int v = 0; v < kGroups; v++)
            acc[r][v] = _mm512_dpbusd_epi32(acc[r][v], keys[v], four);
        }
      }
      if (part == 0)
        for (int r = 0; r < kRows; r++)
          for (int v = 0; v < kGroups; v++) acc[r][v] = _mm512_slli_epi32(acc[r][v], 8);
    }
    for (int r = 0; r < kRows; r++)
      for (int v = 0; v < kGroups; v++) {
        const int key = (g + v) * kLanes;
        __m512i whole = _mm512_add_epi32(acc[r][v], _mm512_set1_epi32(offsets_[row + r]));
        VecF scaled = VecF(_mm512_cvtepi32_ps(whole)) * units_[row + r];
        store(scores + r * kNarrowKeys + key, scaled * load(tile.key_scales + key));
      }
  }

  template <typename Byte>
  static __m512i broadcast_four(const Byte* p) {
    int32_t four;
    std::memcpy(&four, p, sizeof four);
    return _mm512_set1_epi32(four);
  }

  // Four keys from 4 f on; those beyond the end are the last one again, with weight 0.
  void turn_values(const KeyTile<Int8>& tile, int64_t offset, int f) {
    const Int8* const* rows = tile.values + f * kFour;
    int8_t* to = values_ + int64_t(f) * 4 * padded(dim_);
    for (int i = 0; i < dim_; i += kSegment, to += 4 * kSegment) {
      const int left = std::min(kSegment, dim_ - i);
      const __mmask64 mask = left == kSegment ? ~__mmask64{0} : (__mmask64{1} << left) - 1;
      __m512i v[4];
      for (int j = 0; j < 4; j++) v[j] = _mm512_maskz_loadu_epi8(mask, rows[j] + offset + i);
      __m512i low01 = _mm512_unpacklo_epi8(v[0], v[1]), high01 = _mm512_unpackhi_epi8(v[0], v[1]);
      __m512i low23 = _mm512_unpacklo_epi8(v[2], v[3]), high23 = _mm512_unpackhi_epi8(v[2], v[3]);
      _mm512_store_si512(to, _mm512_unpacklo_epi16(low01, low23));
      _mm512_store_si512(to + 64, _mm512_unpackhi_epi16(low01, low23));
      _mm512_store_si512(to + 128, _mm512_unpacklo_epi16(high01, high23));
      _mm512_store_si512(to + 192, _mm512_unpackhi_epi16(high01, high23));
    }
  }

  // A query's weights times the scales of values, as high * 256 + low of the returned unit.
  float round_weights(const float* weights, const KeyTile<Int8>& tile, int row) {
    constexpr int kVectors = kNarrowKeys / kLanes;
    const int vectors = (tile.count + kLanes - 1) / kLanes;
    VecF scaled[kVectors], tops{};
    for (int v = 0; v < vectors; v++) {
      const int key = v * kLanes;
      scaled[v] = load(weights + key) * load_some(tile.value_scales + key, tile.count - key);
      tops = max(tops, scaled[v]);
    }
    const float top = max(tops), inverse = top > kSmallestTop ? kWeightTop / top : 0.0f;
    for (int v = 0; v < vectors; v++) {
      const __m512i codes = _mm512_cvtps_epi32(__m512(scaled[v] * inverse));
      auto* to = reinterpret_cast<__m128i*>(weights_[row] + v * kLanes);
      _mm_store_si128(to, _mm512_cvtepi32_epi8(_mm512_srli_epi32(codes, 8)));
      _mm_store_si128(to + kNarrowKeys / 16, _mm512_cvtepi32_epi8(codes));
    }
    return top / kWeightTop;
  }

  // 64 dimensions of kRows queries.
  template <int kRows>
  void add_segment(int segment, int fours, const float* units, float* out, int size,
                   Stream& ahead) const {
    __m512i acc[kRows][4];
    for (int r = 0; r < kRows; r++)
      for (int v = 0; v < 4; v++) acc[r][v] = _mm512_setzero_si512();
    for (int part = 0; part < 2; part++) {
      for (int f = 0; f < fours; f++) {
        ahead.fetch();
        __m512i values[4];
        for (int v = 0; v < 4; v++)
          values[v] = _mm512_load_si512(values_ + 4 * (int64_t(f) * size + segment * kSegment) + 64 * v);
        for (int r = 0; r < kRows; r++) {
          const __m512i four = broadcast_four(weights_[r] + part * kNarrowKeys + 4 * f);
          for (int v = 0; v < 4; v++) acc[r][v] = _mm512_dpbusd_epi32(acc[r][v], four, values[v]);
        }
      }
      if (part == 0)
        for (int r = 0; r < kRows; r++)
          for (int v = 0; v < 4; v++) acc[r][v] = _mm512_slli_epi32(acc[r][v], 8);
    }
    for (int r = 0; r < kRows; r++)
      for (int v = 0; v < 4; v++) {
        float* to = out + int64_t(r) * size + segment * kSegment + v * kLanes;
        store(to, load(to) + VecF(_mm512_cvtepi32_ps(acc[r][v])) * units[r]);
      }
  }

  int dim_ = 0, quads_ = 0;
  std::vector<int8_t> queries_;  // [query, high and low, row_bytes]
  std::vector<float> units_;     // [query]
  std::vector<int32_t> offsets_; // [query]: what unsigned keys add too much, negative
  alignas(64) uint8_t keys_[kMaxHeadDim * kNarrowKeys];   // [quad, key, 4 dimensions]
  alignas(64) int8_t values_[kMaxHeadDim * kNarrowKeys];  // [four keys, dimension, 4 keys]
  alignas(64) uint8_t weights_[4][2 * kNarrowKeys];       // high, then low bytes of four queries
};

template <>
struct ProductsOf<Int8> {
  using Type = CodeProducts;
};
#endif

}  // namespace pagemill::PAGEMILL_ISA
