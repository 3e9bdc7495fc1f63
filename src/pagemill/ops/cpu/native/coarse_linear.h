// Products of many rows with weights in 4 or 8 bits, in coarser codes (AVX-512 VNNI).
//
// A group's own scale and offset cost three vector operations beside its eight products. With many
// rows it is cheaper to turn the weights of a unit of work into bytes first, with one scale for a
// channel's chunk of groups:
//   weight = unit * (byte - 128), unit = the chunk's largest weight / 127
// The bytes live in the first-level cache while all rows pass over them; no memory is spent.
// Activations stay as they are, by groups of 32: coarser ones cost far more accuracy.
#pragma once

#include <algorithm>

#include "activations.h"
#include "group_dot.h"
#include "kernels.h"
#include "simd.h"
#include "team.h"

namespace pagemill::PAGEMILL_ISA {

template <typename X>
constexpr bool kCanBeCoarse = false;

#if defined(__AVX512VNNI__)

template <>
constexpr bool kCanBeCoarse<Activations> = true;

constexpr int kChunkGroups = 6;  // groups of inputs that share a unit
constexpr int kPassChunks = 3;   // chunks in the first-level cache while the rows pass
constexpr int kPassGroups = kPassChunks * kChunkGroups;
constexpr int kPairTiles = 2;  // tiles at once: an activation that is loaded serves both
constexpr int kPairChannels = kPairTiles * kChannels;
constexpr int kCoarseBlock = 7;     // rows at once
constexpr int64_t kPartRows = 256;  // at most, for one conversion of weights
constexpr int64_t kLeastRows = 32;  // for which threads without work are given some

// Rows below which converting weights costs more than it saves.
inline int64_t coarse_from(const Matrix& m) { return m.bits == 4 ? 24 : 64; }

// Bytes of up to kPassGroups groups of a pair of tiles, quads of inputs as in group_linear.h.
struct Pass {
  alignas(64) uint8_t codes[kPairTiles][kPassGroups * kQuads * 64];
  VecF unit[kPairTiles][kPassChunks];
};

// A group's sum starts at the bits of this float, of whose last place integers are the units, and
// is read as a float: 2^20 more than 2^23, since a group's products sum up to at most 2^19. What
// that adds to a chunk's scaled sum is its `excess`.
constexpr float kStart = 9437184.0f;
constexpr int32_t kStartBits = 0x4b100000;

// Fills x.start and x.excess.
inline void prepare_coarse(Team& team, const Activations& x, int64_t rows) {
  const int64_t chunks = ceil_div(x.groups, kChunkGroups);
  team.share(rows, [&](int64_t r) {
    for (int64_t i = r * x.groups; i < (r + 1) * x.groups; i++) x.start[i] = x.sum[i] + kStartBits;
    for (int64_t c = 0; c < chunks; c++) {
      float total = 0;
      for (int64_t g = c * kChunkGroups; g < std::min(x.groups, (c + 1) * kChunkGroups); g++)
        total += x.scale[r * x.groups + g];
      x.excess[r * chunks + c] = total * kStart;
    }
  });
}

// Sums of a unit of work.
using PartSums = float[kPartRows * kPairChannels];

// The low halves of the lanes, twice in each lane.
inline __m512i twice(VecI v) {
  return _mm512_mask_blend_epi16(0xaaaaaaaa, __m512i(v), _mm512_slli_epi32(__m512i(v), 16));
}

// A group's weights of 16 channels, weight = scale * code + offset.
template <int kBits, bool kOffsets>
struct Block {
  static constexpr int kScaleBytes = kChannels * (kOffsets ? 4 : 2);
  static constexpr int kBytes = kScaleBytes + kChannels * kGroup * kBits / 8;

  VecF scale, offset;

  explicit Block(const uint8_t* block) {
    const Float16* halves = reinterpret_cast<const Float16*>(block);
    scale = load(halves);
    offset = kOffsets ? load(halves + kChannels) : kBits == 4 ? scale * kMiddle : VecF{};
  }

  // What no weight exceeds.
  VecF top() const {
    using pagemill::PAGEMILL_ISA::max;
    if (kBits == 4) return max(abs(offset), abs(offset + scale * 15.0f));
    return abs(scale) * 128.0f + abs(offset);
  }
};

// Codes -> bytes: code * scale + offset in 16 bits, of which the upper eight are taken. Even and
// odd bytes apart, with 8 bits of fraction; the scale of 8-bit codes is at most 1, in 15 bits.
template <int kBits>
struct Widening {
  __m512i scale, offset;

  __m512i bytes(__m512i even, __m512i odd) const {
    if constexpr (kBits == 4) {
      even = _mm512_mullo_epi16(even, scale);
      odd = _mm512_mullo_epi16(odd, scale);
    } else {
      even = _mm512_mulhrs_epi16(even, scale);
      odd = _mm512_mulhrs_epi16(odd, scale);
    }
    even = _mm512_srli_epi16(_mm512_add_epi16(even, offset), 8);
    odd = _mm512_add_epi16(odd, offset);
    constexpr int kOrAnd = 0xf8;  // first | (second & third)
    return _mm512_ternarylogic_epi32(even, odd, _mm512_set1_epi16(-256), kOrAnd);
  }

  void group(const uint8_t* codes, uint8_t* out) const {
    const auto* from = reinterpret_cast<const __m512i*>(codes);
    auto* to = reinterpret_cast<__m512i*>(out);
    const __m512i low = _mm512_set1_epi16(15), top = _mm512_set1_epi16(-256);
#pragma GCC unroll 4
    for (int q = 0; q < kQuads; q += 8 / kBits) {
      __m512i both = _mm512_loadu_si512(from++);
      if constexpr (kBits == 4) {
        _mm512_store_si512(to++, bytes(_mm512_and_si512(both, low),
                                       _mm512_and_si512(_mm512_srli_epi16(both, 8), low)));
        _mm512_store_si512(to++, bytes(_mm512_and_si512(_mm512_srli_epi16(both, 4), low),
                                       _mm512_srli_epi16(both, 12)));
      } else {
        _mm512_store_si512(to++, bytes(_mm512_slli_epi16(both, 8), _mm512_and_si512(both, top)));
      }
    }
  }
};

// `groups` blocks of a tile -> its part of one chunk.
template <int kBits, bool kOffsets>
void widen(const uint8_t* blocks, int groups, uint8_t* codes, VecF& unit) {
  using B = Block<kBits, kOffsets>;
  constexpr float kByteTop = 127.0f, kFraction = 256.0f, kScaleUnit = kBits == 4 ? 256 : 32768;
  VecF top{};
  for (int g = 0; g < groups; g++)
    top = pagemill::PAGEMILL_ISA::max(top, B(blocks + g * B::kBytes).top());
  unit = top * (1.0f / kByteTop);
  const VecF inverse = top > 0 ? kByteTop / top : VecF{};
  for (int g = 0; g < groups; g++) {
    const uint8_t* at = blocks + g * B::kBytes;
    prefetch_ahead(at, B::kBytes);
    const B block(at);
    const VecI offset = nearest(block.offset * inverse * kFraction) - kShift * 256 + 128;
    const Widening<kBits> widening{twice(nearest(block.scale * inverse * kScaleUnit)),
                                   twice(offset)};
    widening.group(at + B::kScaleBytes, codes + g * kQuads * 64);
  }
}

inline void widen_chunk(const Matrix& m, int64_t tile, int64_t first, int groups, uint8_t* codes,
                        VecF& unit) {
  const uint8_t* blocks = m.packed + tile * m.tile_bytes() + first * m.block_bytes();
  if (m.bits == 4)
    m.offsets ? widen<4, true>(blocks, groups, codes, unit)
              : widen<4, false>(blocks, groups, codes, unit);
  else
    m.offsets ? widen<8, true>(blocks, groups, codes, unit)
              : widen<8, false>(blocks, groups, codes, unit);
}

// Groups from `first` on of a tile -> its part `t` of a pass.
inline void widen_tile(const Matrix& m, int64_t tile, int64_t first, int groups, int t,
                       Pass& pass) {
  for (int g = 0; g < groups; g += kChunkGroups)
    widen_chunk(m, tile, first + g, std::min(kChunkGroups, groups - g),
                pass.codes[t] + g * kQuads * 64, pass.unit[t][g / kChunkGroups]);
}

// acc = one chunk's codes times its groups of kRows rows, plus the excess.
template <int kRows, int kTiles>
inline void chunk_product(const uint8_t* (&codes)[kTiles], int groups, const int8_t* values,
                          int64_t stride, const float* scale, const int32_t* start,
                          int64_t row_groups, VecF (&acc)[kRows][kTiles]) {
  for (int r = 0; r < kRows; r++)
    for (int t = 0; t < kTiles; t++) acc[r][t] = VecF{};
  for (int g = 0; g < groups; g++, values += kGroup) {
    VecI dot[kRows][kTiles];
    for (int r = 0; r < kRows; r++)
      for (int t = 0; t < kTiles; t++) dot[r][t] = VecI{} + start[r * row_groups + g];
#pragma GCC unroll 8
    for (int q = 0; q < kQuads; q++) {
      __m512i w[kTiles];
      for (int t = 0; t < kTiles; t++) w[t] = _mm512_load_si512(codes[t] + q * 64);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; r++) {
        __m512i four = _mm512_set1_epi32(four_inputs(values + r * stride + q * 4));
        for (int t = 0; t < kTiles; t++)
          dot[r][t] = VecI(_mm512_dpbusd_epi32(__m512i(dot[r][t]), w[t], four));
      }
    }
    for (int t = 0; t < kTiles; t++) codes[t] += kQuads * 64;
    for (int r = 0; r < kRows; r++)
      for (int t = 0; t < kTiles; t++)
        acc[r][t] += reinterpret_cast<VecF>(dot[r][t]) * scale[r * row_groups + g];
  }
}

// sums[kRows][kPairChannels] += kRows rows from `row` on, groups from `first` on, times a pass.
template <int kRows, int kTiles>
void pass_product(const Pass& pass, int groups, const Activations& x, int64_t row, int64_t first,
                  float* sums) {
  const uint8_t* codes[kTiles];
  for (int t = 0; t < kTiles; t++) codes[t] = pass.codes[t];
  const int64_t start = row * x.groups + first, chunks = ceil_div(x.groups, kChunkGroups);
  for (int g = 0; g < groups; g += kChunkGroups) {
    VecF acc[kRows][kTiles];
    chunk_product<kRows, kTiles>(codes, std::min(kChunkGroups, groups - g),
                                 x.values + (start + g) * kGroup, x.stride(), x.scale + start + g,
                                 x.start + start + g, x.groups, acc);
    const float* excess = x.excess + row * chunks + (first + g) / kChunkGroups;
    for (int r = 0; r < kRows; r++)
      for (int t = 0; t < kTiles; t++) {
        float* to = sums + r * kPairChannels + t * kChannels;
        const VecF sum = acc[r][t] - excess[r * chunks];
        store(to, load(to) + sum * pass.unit[t][g / kChunkGroups]);
      }
  }
}

template <int kTiles, int kRows = kCoarseBlock>
void pass_rows(int rows, const Pass& pass, int groups, const Activations& x, int64_t row,
               int64_t first, float* sums) {
  if constexpr (kRows > 1)
    if (rows < kRows)
      return pass_rows<kTiles, kRows - 1>(rows, pass, groups, x, row, first, sums);
  pass_product<kRows, kTiles>(pass, groups, x, row, first, sums);
}

// Rows of a part times tiles `tile` and, with `both`, the next -> sums[rows][kPairChannels].
inline void multiply_pair(const Matrix& m, int64_t tile, bool both, const Activations& x,
                          int64_t row, int64_t rows, float* sums) {
  Pass pass;
  std::fill_n(sums, rows * kPairChannels, 0.0f);
  const int64_t blocks = ceil_div(rows, kCoarseBlock);
  for (int64_t first = 0; first < x.groups; first += kPassGroups) {
    const int groups = int(std::min<int64_t>(kPassGroups, x.groups - first));
    for (int t = 0; t < (both ? 2 : 1); t++) widen_tile(m, tile + t, first, groups, t, pass);
    for (int64_t b = 0; b < blocks; b++) {
      // Of about the same size: few rows leave an instruction's latency uncovered.
      const int64_t r = rows * b / blocks, count = rows * (b + 1) / blocks - r;
      float* to = sums + r * kPairChannels;
      both ? pass_rows<2>(int(count), pass, groups, x, row + r, first, to)
           : pass_rows<1>(int(count), pass, groups, x, row + r, first, to);
    }
  }
}

inline bool is_coarse(const Matrix& m, const Activations&, int64_t rows) {
  return m.coarse && rows >= coarse_from(m);
}

// Calls work(unit, first row, rows) for all parts of the rows and units; then finish(), by one
// thread.
template <typename Work, typename Finish = Nothing>
void for_parts(Team& team, int64_t units, int64_t rows, Work work, Finish finish = {}) {
  // As few parts as possible, since each converts all weights, but work for every thread.
  const int64_t shares = ceil_div(2 * omp_get_num_threads(), units);
  const int64_t parts = std::max(ceil_div(rows, kPartRows), std::min(shares, rows / kLeastRows));
  const auto unit = [&](int64_t i) {
    const int64_t part = i / units, first = rows * part / parts;
    work(i % units, first, rows * (part + 1) / parts - first);
  };
  team.share(parts * units, unit, finish);
}

// As `multiply`; store gets up to kPairChannels values at once.
template <typename Store, typename Finish>
void multiply_coarse(Team& team, const Matrix& m, const Activations& x, int64_t rows, Store store,
                     Finish finish) {
  prepare_coarse(team, x, rows);
  const auto part = [&](int64_t pair, int64_t row, int64_t count) {
    PartSums sums;
    const int64_t tile = pair * kPairTiles, channel = tile * kChannels;
    multiply_pair(m, tile, tile + 1 < m.tiles(), x, row, count, sums);
    const int channels = int(std::min<int64_t>(kPairChannels, m.outs - channel));
    for (int64_t r = 0; r < count; r++) {
      float* values = sums + r * kPairChannels;
      if (m.bias)
        for (int c = 0; c < channels; c++) values[c] += m.bias[channel + c];
      store(row + r, channel, channels, values);
    }
  };
  for_parts(team, ceil_div(m.tiles(), kPairTiles), rows, part, finish);
}

#endif

}  // namespace pagemill::PAGEMILL_ISA
