// A whole decoder layer in one call: the threads meet between its parts, nothing else does.
//
// X is the kind of activations that the layer's matrices are multiplied with, see activations.h.
#pragma once

#include "activations.h"
#include "attention.h"
#include "elementwise.h"
#include "half_linear.h"
#include "kernels.h"

namespace pagemill::PAGEMILL_ISA {

#if defined(__AVX512VNNI__)

inline void gated_coarse(const Matrix& m, const Activations& x, int64_t rows, Gate kind,
                         const Activations& out) {
  static_assert(kPairChannels == kGroup);
  prepare_coarse(x, rows);
  const int64_t half = m.outs / 2 / kChannels;
  for_parts(half / kPairTiles, rows, [&](int64_t unit, int64_t row, int64_t count) {
    PartSums gates, ups;
    multiply_pair(m, unit * kPairTiles, true, x, row, count, gates);
    multiply_pair(m, half + unit * kPairTiles, true, x, row, count, ups);
    for (int64_t r = 0; r < count; r++) {
      float values[kGroup];
      for (int i = 0; i < kGroup; i += kLanes) {
        const int64_t at = r * kPairChannels + i;
        store(values + i, gate(load(gates + at), kind) * load(ups + at));
      }
      out.put(row + r, unit, values);
    }
  });
}

#endif

// gate_up's two halves times x, activated, multiplied and rounded: units of 32 outputs.
template <typename X>
void gated_product(const Matrix& m, const X& x, int64_t rows, Gate kind, const X& out) {
  if constexpr (kCanBeCoarse<X>)
    if (is_coarse(m, x, rows)) return gated_coarse(m, x, rows, kind, out);
  constexpr int kTile = X::kTile, kTiles = kGroup / kTile;  // tiles of gate, and of up, in one unit
  const int64_t half = m.outs / 2 / kTile;                  // tiles of each half
  for_units(half / kTiles, rows, x, [&](int64_t unit, int64_t row, int count) {
    float sums[2][kTiles][kRows<X> * kTile];
    for (int part = 0; part < 2; part++)
      for (int t = 0; t < kTiles; t++)
        multiply_tile(m, part * half + unit * kTiles + t, count, x, row, sums[part][t]);
    for (int r = 0; r < count; r++) {
      float values[kGroup];
      for (int i = 0; i < kGroup; i += kLanes) {
        int64_t at = r * kTile + i % kTile;
        VecF a = load(sums[0][i / kTile] + at), b = load(sums[1][i / kTile] + at);
        store(values + i, gate(a, kind) * b);
      }
      out.put(row + r, unit, values);
    }
  });
}

inline void add_to(float* to, const float* values, int count) {
  int c = 0;
  for (; c + kLanes <= count; c += kLanes) store(to + c, load(to + c) + load(values + c));
  for (; c < count; c++) to[c] += values[c];
}

// residual += the product, or its norm where `after` is not null.
template <typename X>
void add_product(const Matrix& m, const X& x, const LayerArgs& a, const LayerRun& run,
                 const float* after, float* projected) {
  const int64_t rows = run.step.tokens, size = m.outs;
  float* target = after ? projected : run.residual;
  multiply(m, x, rows, [&](int64_t row, int64_t channel, int count, const float* values) {
    float* to = target + row * size + channel;
    if (after)
      std::copy_n(values, count, to);
    else
      add_to(to, values, count);
  });
  if (!after) return;
#pragma omp for
  for (int64_t r = 0; r < rows; r++) {
    const float* row = projected + r * size;
    float inverse = inverse_rms(row, size, a.eps);
    for (int64_t i = 0; i < size; i++) run.residual[r * size + i] += row[i] * inverse * after[i];
  }
}

template <typename X, typename C>
void attend_heads(const LayerArgs& a, const LayerRun& run, WorkList& work,
                  const float* q, float* heads, const X& out) {
  if (a.shape.head_dim % kGroup == 0) {
    RoundedOutput<X> output{out, a.shape.head_dim};
    attend<float, C>(a.shape, run.step, run.cache, work, q, output);
    return;
  }
  PlainOutput<float> output{heads, a.shape.heads, a.shape.head_dim};
  attend<float, C>(a.shape, run.step, run.cache, work, q, output);
  const int64_t size = a.o.in;
#pragma omp for
  for (int64_t r = 0; r < run.step.tokens; r++)
    round_row(out, r, size, heads + r * size);
}

template <typename X, typename C>
void run_layer(const LayerArgs& a, const LayerRun& run) {
  using W = Workspace;
  const int64_t tokens = run.step.tokens, hidden = a.qkv.in;
  X normed = X::make(*run.workspace, W::kHidden, tokens, hidden);
  X attended = X::make(*run.workspace, W::kHeads, tokens, a.o.in);
  X gated = X::make(*run.workspace, W::kGated, tokens, a.down.in);
  float* qkv = run.workspace->get<float>(W::kProjected, tokens * std::max(a.qkv.outs, hidden));
  float* q = run.workspace->get<float>(W::kQueries, tokens * a.o.in);
  float* heads = run.workspace->get<float>(W::kFloats, tokens * a.o.in);
  WorkList work(a.shape, run.step, row_of_sums<C>(a.shape));
  work.keep_partials(run.workspace->get<float>(W::kPartials, work.partial_floats()));
  const RopeCacheArgs rope{qkv, q, a.shape, run.step, run.cache, a.rope};
#pragma omp parallel
  {
    norm_round(run.residual, a.input_norm, a.eps, tokens, hidden, normed);
    multiply(a.qkv, normed, tokens, [&](int64_t row, int64_t channel, int count, const float* v) {
      std::copy_n(v, count, qkv + row * a.qkv.outs + channel);
    });
#pragma omp for
    for (int64_t t = 0; t < tokens; t++) rope_cache_token<float, C>(rope, t);
    attend_heads<X, C>(a, run, work, q, heads, attended);
    add_product(a.o, attended, a, run, a.after_attention, qkv);
    norm_round(run.residual, a.mlp_norm, a.eps, tokens, hidden, normed);
    gated_product(a.gate_up, normed, tokens, a.gate, gated);
    add_product(a.down, gated, a, run, a.after_mlp, qkv);
  }
}

template <typename X>
void run_layer(const LayerArgs& a, const LayerRun& run) {
  switch (run.cache.type) {
    case Type::kInt8: return run_layer<X, Int8>(a, run);
    case Type::kFloat16: return run_layer<X, Float16>(a, run);
    default: return run_layer<X, float>(a, run);
  }
}

inline void layer(const LayerArgs& a, const LayerRun& run) {
  a.qkv.half() ? run_layer<Halves>(a, run) : run_layer<Activations>(a, run);
}

}  // namespace pagemill::PAGEMILL_ISA
