// Activations as int8 by groups of 32 inputs: what matrices in few bits are multiplied with.
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

// Rows of `groups` groups; inputs beyond the row's end are zero.
struct Activations {
  static constexpr int kTile = kChannels;

  int8_t* values;  // [rows, groups * 32]
  float* scale;    // [rows, groups]: of one unit
  float* sum;      // [rows, groups]: of the group, as rounded
  int64_t groups;

  int64_t stride() const { return groups * kGroup; }
  int64_t row_bytes() const { return stride(); }

  // Room for `rows` rows of `size` inputs.
  static Activations make(Workspace& workspace, Workspace::Place place, int64_t rows,
                          int64_t size) {
    int64_t groups = (size + kGroup - 1) / kGroup, count = rows * groups;
    auto* memory = workspace.get<char>(place, count * (kGroup + 2 * sizeof(float)));
    float* scales = reinterpret_cast<float*>(memory + count * kGroup);
    return {reinterpret_cast<int8_t*>(memory), scales, scales + count, groups};
  }

  inline void put(int64_t row, int64_t group, const float* x) const;
};

// kGroup floats -> int8 with their scale and sum.
inline void quantize_group(const float* x, int8_t* out, float* scale, float* sum) {
  VecF tops{};
  for (int i = 0; i < kGroup; i += kLanes) tops = pagemill::PAGEMILL_ISA::max(tops, abs(load(x + i)));
  float top = max(tops);
  float inverse = top > 0 ? kActivationTop / top : 0.0f;
  VecI totals{};
  for (int i = 0; i < kGroup; i += kLanes) {
    VecF scaled = load(x + i) * inverse;
    // Adding 1.5 * 2^23 leaves the nearest integer, ties to even, in the low bits.
    VecI rounded = reinterpret_cast<VecI>(scaled + 12582912.0f) - 0x4b400000;
    totals += rounded;
    for (int l = 0; l < kLanes; l++) out[i + l] = int8_t(rounded[l]);
  }
  int32_t total = 0;
  for (int l = 0; l < kLanes; l++) total += totals[l];
  *scale = top / kActivationTop;
  *sum = *scale * float(total);
}

inline void Activations::put(int64_t row, int64_t group, const float* x) const {
  int64_t at = row * groups + group;
  quantize_group(x, values + at * kGroup, scale + at, sum + at);
}

// A row of `size` elements; `value(i)` is called in order.
template <typename X, typename Value>
void round_row(const X& a, int64_t row, int64_t size, Value value) {
  float group[kGroup];
  for (int64_t g = 0; g < a.groups; g++) {
    int64_t first = g * kGroup;
    for (int i = 0; i < kGroup; i++) group[i] = first + i < size ? value(first + i) : 0.0f;
    a.put(row, g, group);
  }
}

inline float inverse_rms(const float* x, int64_t size, float eps) {
  VecF squares{};
  float tail = 0;
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) squares += load(x + i) * load(x + i);
  for (; i < size; i++) tail += x[i] * x[i];
  return 1.0f / std::sqrt((sum(squares) + tail) / float(size) + eps);
}

// RMSNorm of rows [rows, size], rounded. To be called by all threads of a region.
template <typename X>
void norm_round(const float* x, const float* weight, float eps, int64_t rows, int64_t size,
                const X& out) {
#pragma omp for
  for (int64_t r = 0; r < rows; r++) {
    const float* row = x + r * size;
    float inverse = inverse_rms(row, size, eps);
    round_row(out, r, size, [&](int64_t i) { return row[i] * inverse * weight[i]; });
  }
}

}  // namespace pagemill::PAGEMILL_ISA
