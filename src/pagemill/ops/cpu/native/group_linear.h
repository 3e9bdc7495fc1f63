// Products with weights in 4 or 8 bits, a scale (and an offset) for each group of 32 inputs.
//
// Packed as tiles of 16 output channels; a tile holds a block for each group:
//   scales    16 float16
//   offsets   16 float16, where the matrix has them
//   codes     8 quads of inputs x 16 channels x 4 inputs; in 4 bits the low halves of 64 bytes are
//             one quad and the high halves the next
// A weight is scale * code + offset; codes of 4 bits without offsets stand for code - 8.
#pragma once

#include <algorithm>

#include "activations.h"
#include "coarse_linear.h"
#include "group_dot.h"
#include "kernels.h"
#include "simd.h"
#include "team.h"

namespace pagemill::PAGEMILL_ISA {

// kRows rows from `row` on times one tile -> out[kRows][kChannels].
template <int kRows, int kBits, bool kOffsets>
void tile_product(const uint8_t* block, const Activations& x, int64_t row, float* out) {
  constexpr int kScaleBytes = kChannels * 2;
  constexpr float kPerUnit = 1.0f / kUnit<kBits, kOffsets>, kPerShift = 1.0f / kShift;
  VecF acc[kRows][kVectors];
  for (int r = 0; r < kRows; r++)
    for (int v = 0; v < kVectors; v++) acc[r][v] = VecF{};
  const int8_t* values = x.values + row * x.stride();
  const float* x_scale = x.scale + row * x.groups;
  const int32_t* x_sum = x.sum + row * x.groups;
  for (int64_t g = 0; g < x.groups; g++) {
    prefetch_ahead(block, kScaleBytes * (kOffsets ? 2 : 1) + kChannels * kGroup * kBits / 8);
    const Float16* scales = reinterpret_cast<const Float16*>(block);
    block += kScaleBytes;
    const Float16* offsets = reinterpret_cast<const Float16*>(block);
    if (kOffsets) block += kScaleBytes;
    VecI sums[kRows][kVectors];
    for (int r = 0; r < kRows; r++)
      for (int v = 0; v < kVectors; v++)
        sums[r][v] = starts<kBits, kOffsets>(x_sum[r * x.groups + g]);
    dot_group<kRows, kBits, kOffsets>(block, values + g * kGroup, x.stride(), sums);
    block += kChannels * kGroup * kBits / 8;
    for (int v = 0; v < kVectors; v++) {
      VecF scale = load(scales + v * kLanes) * kPerUnit;
      VecF offset = kOffsets ? load(offsets + v * kLanes) * kPerShift : VecF{};
      for (int r = 0; r < kRows; r++) {
        const int64_t at = r * x.groups + g;
        VecF dot = __builtin_convertvector(sums[r][v], VecF);
        if (kOffsets)
          acc[r][v] += (dot * scale + offset * to_floats(x_sum[at])) * x_scale[at];
        else
          acc[r][v] += dot * (scale * x_scale[at]);
      }
    }
  }
  for (int r = 0; r < kRows; r++)
    for (int v = 0; v < kVectors; v++) store(out + r * kChannels + v * kLanes, acc[r][v]);
}

template <int kBits, bool kOffsets, int kRows = kRowBlock>
void tile_rows(int rows, const uint8_t* tile, const Activations& x, int64_t row, float* out) {
  if constexpr (kRows > 1)
    if (rows < kRows) return tile_rows<kBits, kOffsets, kRows - 1>(rows, tile, x, row, out);
  tile_product<kRows, kBits, kOffsets>(tile, x, row, out);
}

// Up to kRowBlock rows times tile `t` of the matrix -> out[rows][kChannels], without bias.
inline void multiply_tile(const Matrix& m, int64_t t, int rows, const Activations& x, int64_t row,
                          float* out) {
  const uint8_t* tile = m.packed + t * m.tile_bytes();
  if (m.bits == 4)
    m.offsets ? tile_rows<4, true>(rows, tile, x, row, out)
              : tile_rows<4, false>(rows, tile, x, row, out);
  else
    m.offsets ? tile_rows<8, true>(rows, tile, x, row, out)
              : tile_rows<8, false>(rows, tile, x, row, out);
}

template <typename X>
constexpr int kRows = kRowBlock;

// The rows in equal parts whose activations stay in the second-level cache while all tiles pass
// over them: threads share out parts and tiles, and a small last part would leave one without work.
template <typename X>
int64_t rows_at_once(int64_t rows, const X& x) {
  constexpr int64_t kBytes = 128 * 1024;
  int64_t fitting = std::max<int64_t>(kRows<X>, kBytes / x.row_bytes());
  return ceil_div(rows, ceil_div(rows, fitting));
}

// Calls work(unit, first row, rows) for all blocks of rows and units; then finish(), by one thread.
template <typename X, typename Work, typename Finish = Nothing>
void for_units(Team& team, int64_t units, int64_t rows, const X& x, Work work,
               Finish finish = {}) {
  const int64_t part = rows_at_once(rows, x), parts = ceil_div(rows, part);
  const auto unit = [&](int64_t i) {
    int64_t first = i / units * part, end = std::min(rows, first + part);
    // Blocks of about the same size: few rows leave an instruction's latency uncovered.
    int64_t step = ceil_div(end - first, ceil_div(end - first, kRows<X>));
    for (int64_t r = first; r < end; r += step)
      work(i % units, r, int(std::min<int64_t>(step, end - r)));
  };
  team.share(parts * units, unit, finish);
}

// store(row, channel, count, values) gets what each tile yields, with the bias.
template <typename X, typename Store, typename Finish = Nothing>
void multiply(Team& team, const Matrix& m, const X& x, int64_t rows, Store store,
              Finish finish = {}) {
  if constexpr (kCanBeCoarse<X>)
    if (is_coarse(m, x, rows)) return multiply_coarse(team, m, x, rows, store, finish);
  const auto tile = [&](int64_t t, int64_t row, int count) {
    float sums[kRows<X> * X::kTile];
    multiply_tile(m, t, count, x, row, sums);
    int64_t channel = t * X::kTile;
    int channels = int(std::min<int64_t>(X::kTile, m.outs - channel));
    for (int r = 0; r < count; r++) {
      float* values = sums + r * X::kTile;
      if (m.bias)
        for (int c = 0; c < channels; c++) values[c] += m.bias[channel + c];
      store(row + r, channel, channels, values);
    }
  };
  for_units(team, m.tiles(), rows, x, tile, finish);
}

// T: type of inputs and outputs, X: how the inputs are rounded.
template <typename T, typename X>
void linear(const GroupLinearArgs& a) {
  X x = X::make(*a.workspace, Workspace::kActivations, a.rows, a.matrix.in);
  TeamState state;
#pragma omp parallel
  {
    Team team(state);
    team.share(a.rows, [&](int64_t r) {
      round_row(x, r, a.matrix.in, static_cast<const T*>(a.x) + r * a.matrix.in);
    });
    T* out = static_cast<T*>(a.out);
    const auto write = [&](int64_t r, int64_t channel, int count, const float* values) {
      for (int c = 0; c < count; c++) from_float(values[c], out + r * a.matrix.outs + channel + c);
    };
    multiply(team, a.matrix, x, a.rows, write);
  }
}

}  // namespace pagemill::PAGEMILL_ISA
