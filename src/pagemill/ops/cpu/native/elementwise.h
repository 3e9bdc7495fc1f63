// Norms, gates, rotary embedding with the cache write: one pass over the rows each.
#pragma once

#include <cmath>

#include "cache_row.h"
#include "kernels.h"
#include "simd.h"

namespace pagemill::PAGEMILL_ISA {

// Rows below this many elements in all are not worth waking a second thread.
constexpr int64_t kParallelElements = 32 * 1024;

template <typename T>
void norm_row(const T* x, T* residual, const float* weight, T* out, int64_t size, float eps) {
  VecF squares{};
  float tail = 0;
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) {
    VecF v = load(x + i);
    if (residual) {
      v += load(residual + i);
      store(residual + i, v);
      v = load(residual + i);  // as rounded: the sum that the next layer will read
    }
    squares += v * v;
  }
  for (; i < size; i++) {
    float v = to_float(x[i]);
    if (residual) {
      from_float(v + to_float(residual[i]), residual + i);
      v = to_float(residual[i]);
    }
    tail += v * v;
  }
  const T* source = residual ? residual : x;
  float inverse = 1.0f / std::sqrt((sum(squares) + tail) / float(size) + eps);
  for (i = 0; i + kLanes <= size; i += kLanes)
    store(out + i, load(source + i) * inverse * load(weight + i));
  for (; i < size; i++) from_float(to_float(source[i]) * inverse * weight[i], out + i);
}

template <typename T>
void rms_norm(const NormArgs& a) {
#pragma omp parallel for if (a.rows * a.size > kParallelElements)
  for (int64_t r = 0; r < a.rows; r++) {
    T* residual = a.residual ? static_cast<T*>(a.residual) + r * a.size : nullptr;
    norm_row(static_cast<const T*>(a.x) + r * a.x_stride, residual, a.weight,
             static_cast<T*>(a.out) + r * a.size, a.size, a.eps);
  }
}

inline VecF gate(VecF x, Gate kind) {
  if (kind == Gate::kSilu) return x / (1.0f + exp(-x));
  VecF inner = 0.7978845608f * (x + 0.044715f * x * x * x);
  return 0.5f * x * (1.0f + tanh(inner));
}

template <typename T>
void gate_row(const T* x, T* out, int64_t size, Gate kind) {
  const T* up = x + size;
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) store(out + i, gate(load(x + i), kind) * load(up + i));
  for (; i < size; i++) {
    VecF v = gate(broadcast(to_float(x[i])), kind);
    from_float(v[0] * to_float(up[i]), out + i);
  }
}

template <typename T>
void gate_mul(const GateArgs& a) {
#pragma omp parallel for if (a.rows * a.size > kParallelElements / 4)
  for (int64_t r = 0; r < a.rows; r++)
    gate_row(static_cast<const T*>(a.x) + 2 * r * a.size, static_cast<T*>(a.out) + r * a.size,
             a.size, a.gate);
}

// Rotates one head, the two halves of which are the pairs ("neox" order); `head` is float scratch.
inline void rotate(float* head, const float* cos_sin, int64_t head_dim) {
  int64_t half = head_dim / 2;
  for (int64_t i = 0; i < half; i++) {
    float c = cos_sin[i], s = cos_sin[half + i], a = head[i], b = head[half + i];
    head[i] = a * c - b * s;
    head[half + i] = b * c + a * s;
  }
}

// A head as float, normed and rotated where there is something to do it with.
template <typename T>
void rope_head(const T* x, float* head, const float* norm, const float* cos_sin, int64_t head_dim,
               float eps) {
  for (int64_t i = 0; i < head_dim; i++) head[i] = to_float(x[i]);
  if (norm) norm_row<float>(head, nullptr, norm, head, head_dim, eps);
  if (cos_sin) rotate(head, cos_sin, head_dim);
}

template <typename T, typename C>
void rope_cache_token(const RopeCacheArgs& a, int64_t token) {
  const int64_t d = a.shape.head_dim, kv_heads = a.shape.kv_heads;
  const T* row = static_cast<const T*>(a.qkv) + token * (a.shape.heads + 2 * kv_heads) * d;
  const float* cos_sin = a.rope.cos_sin + a.step.positions[token] * d;
  T* q = static_cast<T*>(a.q) + token * a.shape.heads * d;
  float head[512];
  for (int64_t h = 0; h < a.shape.heads; h++) {
    rope_head(row + h * d, head, a.rope.q_norm, cos_sin, d, a.rope.eps);
    store_row(head, d, q + h * d);
  }
  int64_t slot = a.step.slot_mapping[token];
  if (slot < 0) return;
  const T* k = row + a.shape.heads * d;
  const T* v = k + kv_heads * d;
  int64_t block = slot / a.cache.block_size, offset = slot % a.cache.block_size;
  const PageShape<C> pages{a.cache.block_size, d};
  for (int64_t h = 0; h < kv_heads; h++) {
    rope_head(k + h * d, head, a.rope.k_norm, cos_sin, d, a.rope.eps);
    pages.write(head, static_cast<C*>(a.cache.k), block * kv_heads + h, offset);
    rope_head<T>(v + h * d, head, nullptr, nullptr, d, 0.0f);
    pages.write(head, static_cast<C*>(a.cache.v), block * kv_heads + h, offset);
  }
}

template <typename T, typename C>
void rope_cache(const RopeCacheArgs& a) {
  int64_t elements = a.step.tokens * (a.shape.heads + a.shape.kv_heads) * a.shape.head_dim;
#pragma omp parallel for if (elements > kParallelElements)
  for (int64_t t = 0; t < a.step.tokens; t++) rope_cache_token<T, C>(a, t);
}

}  // namespace pagemill::PAGEMILL_ISA
