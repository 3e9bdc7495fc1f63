// Activations as int8 by groups of 32 inputs: what matrices in few bits are multiplied with.
//
// Byte instructions multiply unsigned by signed, so weights are shifted by 128 to be unsigned and
// the products' sums start from what that adds too much: -128 times the sum of the activations.
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
  int8_t* values;  // [rows, groups * 32]
  float* scale;    // [rows, groups]: of one unit
  int32_t* sum;    // [rows, groups]: of the group's values, times kShift
  int64_t groups;

  int64_t stride() const { return groups * kGroup; }
};

// Room for `rows` rows of `size` inputs.
inline Activations activations(Workspace& workspace, Workspace::Place place, int64_t rows,
                               int64_t size) {
  int64_t groups = (size + kGroup - 1) / kGroup, count = rows * groups;
  auto* memory = workspace.get<char>(place, count * (kGroup + 2 * sizeof(float)));
  float* scales = reinterpret_cast<float*>(memory + count * kGroup);
  auto* sums = reinterpret_cast<int32_t*>(scales + count);
  return {reinterpret_cast<int8_t*>(memory), scales, sums, groups};
}

// kGroup floats -> int8 with their scale and shifted sum.
inline void quantize_group(const float* x, int8_t* out, float* scale, int32_t* sum_shifted) {
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
    store_bytes(out + i, rounded);
  }
  *scale = top / kActivationTop;
  *sum_shifted = kShift * sum(totals);
}

// A row of `size` elements: `vector(i)` gives kLanes of them from i on, `scalar(i)` one.
template <typename Vector, typename Scalar>
void quantize_row(const Activations& a, int64_t row, int64_t size, Vector vector, Scalar scalar) {
  float group[kGroup];
  for (int64_t g = 0; g < a.groups; g++) {
    const int64_t first = g * kGroup, at = row * a.groups + g;
    if (first + kGroup <= size)
      for (int i = 0; i < kGroup; i += kLanes) store(group + i, vector(first + i));
    else
      for (int i = 0; i < kGroup; i++) group[i] = first + i < size ? scalar(first + i) : 0.0f;
    quantize_group(group, a.values + at * kGroup, a.scale + at, a.sum + at);
  }
}

template <typename T>
void quantize_row(const Activations& a, int64_t row, int64_t size, const T* x) {
  quantize_row(
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

// RMSNorm of rows [rows, size], quantised. To be called by all threads of a region.
inline void norm_quantize(const float* x, const float* weight, float eps, int64_t rows,
                          int64_t size, const Activations& out) {
#pragma omp for
  for (int64_t r = 0; r < rows; r++) {
    const float* row = x + r * size;
    const float inverse = inverse_rms(row, size, eps);
    quantize_row(
        out, r, size, [=](int64_t i) { return load(row + i) * inverse * load(weight + i); },
        [=](int64_t i) { return row[i] * inverse * weight[i]; });
  }
}

}  // namespace pagemill::PAGEMILL_ISA
