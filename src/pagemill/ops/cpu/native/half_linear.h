// Products with bfloat16 weights, packed as tiles of 32 output channels:
//   pairs of inputs x 32 channels x 2 inputs
// Sums are float32. A row's sums do not depend on the rows beside it: inputs are always taken in
// the same order.
#pragma once

#include "group_linear.h"
#include "kernels.h"
#include "simd.h"

namespace pagemill::PAGEMILL_ISA {

// Activations beside bfloat16 weights: rounded to that type where the instruction set multiplies
// it, else float32. Inputs beyond the row's end are zero.
struct Halves {
  static constexpr int kTile = kHalfChannels;
#if defined(__AVX512BF16__)
  using Value = BFloat16;
#else
  using Value = float;
#endif

  Value* values;  // [rows, groups * 32]
  int64_t groups;

  int64_t stride() const { return groups * kGroup; }
  int64_t row_bytes() const { return stride() * int64_t(sizeof(Value)); }

  static Halves make(Workspace& workspace, Workspace::Place place, int64_t rows, int64_t size) {
    int64_t groups = (size + kGroup - 1) / kGroup;
    return {workspace.get<Value>(place, rows * groups * kGroup), groups};
  }

  void put(int64_t row, int64_t group, const float* x) const {
    Value* to = values + row * stride() + group * kGroup;
    for (int i = 0; i < kGroup; i += kLanes) store(to + i, load(x + i));
  }
};

constexpr int kPairBytes = kHalfChannels * 4;  // of a tile, for each pair of inputs
constexpr int kAheadBytes = 4096;              // weights are fetched so long before their use
constexpr int kPartVectors = 2;                // of output channels, summed at once

#if defined(__AVX512BF16__)

template <>
constexpr int kRows<Halves> = 12;

// acc += a pair of inputs of each row, from `x` on, times their weights.
template <int kCount>
inline void add_pair(const uint8_t* weights, const BFloat16* x, int64_t stride,
                     VecF (&acc)[kCount][kPartVectors]) {
  __m512bh w[kPartVectors];
  for (int v = 0; v < kPartVectors; v++)
    w[v] = __m512bh(_mm512_loadu_si512(weights + v * sizeof(__m512i)));
  for (int r = 0; r < kCount; r++) {
    int32_t pair;
    std::memcpy(&pair, x + r * stride, sizeof pair);
    __m512bh both = __m512bh(_mm512_set1_epi32(pair));
    for (int v = 0; v < kPartVectors; v++)
      acc[r][v] = VecF(_mm512_dpbf16_ps(__m512(acc[r][v]), w[v], both));
  }
}

#else

template <>
constexpr int kRows<Halves> = kLanes == 16 ? 12 : 4;

template <int kCount>
inline void add_pair(const uint8_t* weights, const float* x, int64_t stride,
                     VecF (&acc)[kCount][kPartVectors]) {
  VecF first[kPartVectors], second[kPartVectors];
  for (int v = 0; v < kPartVectors; v++) {
    VecU both;
    std::memcpy(&both, weights + v * sizeof both, sizeof both);
    first[v] = reinterpret_cast<VecF>(both << 16);
    second[v] = reinterpret_cast<VecF>(both & 0xffff0000u);
  }
  for (int r = 0; r < kCount; r++)
    for (int v = 0; v < kPartVectors; v++)
      acc[r][v] += first[v] * x[r * stride] + second[v] * x[r * stride + 1];
}

#endif

// kCount rows from `row` on times one tile -> out[kCount][kTile].
template <int kCount>
void half_product(const uint8_t* tile, const Halves& x, int64_t row, float* out) {
  const int64_t stride = x.stride();
  for (int part = 0; part < Halves::kTile; part += kPartVectors * kLanes) {
    const uint8_t* weights = tile + part * 4;
    const Halves::Value* values = x.values + row * stride;
    VecF acc[kCount][kPartVectors] = {};
    for (int64_t i = 0; i < stride; i += 2, weights += kPairBytes) {
      if (kCount > 2) {  // with fewer products between two loads the processor looks ahead itself
        __builtin_prefetch(weights + kAheadBytes);
        __builtin_prefetch(weights + kAheadBytes + kPairBytes / 2);
      }
      add_pair<kCount>(weights, values + i, stride, acc);
    }
    for (int r = 0; r < kCount; r++)
      for (int v = 0; v < kPartVectors; v++)
        store(out + r * Halves::kTile + part + v * kLanes, acc[r][v]);
  }
}

template <int kCount = kRows<Halves>>
void half_rows(int rows, const uint8_t* tile, const Halves& x, int64_t row, float* out) {
  if constexpr (kCount > 1)
    if (rows < kCount) return half_rows<kCount - 1>(rows, tile, x, row, out);
  half_product<kCount>(tile, x, row, out);
}

// Up to kRows rows times tile `t` of the matrix -> out[rows][kTile], without bias.
inline void multiply_tile(const Matrix& m, int64_t t, int rows, const Halves& x, int64_t row,
                          float* out) {
  half_rows(rows, m.packed + t * m.tile_bytes(), x, row, out);
}

template <typename T>
void packed_linear(const GroupLinearArgs& a) {
  a.matrix.half() ? linear<T, Halves>(a) : linear<T, Activations>(a);
}

}  // namespace pagemill::PAGEMILL_ISA
