// Whole decoder layers in one call: the threads meet between their parts, nothing else does.
//
// X is the kind of activations that the layers' matrices are multiplied with, see activations.h.
#pragma once

#include <deque>

#include "activations.h"
#include "attention.h"
#include "elementwise.h"
#include "half_linear.h"
#include "kernels.h"
#include "team.h"

namespace pagemill::PAGEMILL_ISA {

// What is between the parts of a layer. Layers of one kind have the same places.
template <typename X>
struct LayerMemory {
  X normed, attended, gated;
  float *qkv, *q, *heads;

  static LayerMemory make(const LayerArgs& a, int64_t tokens, Workspace& memory) {
    using W = Workspace;
    return {X::make(memory, W::kHidden, tokens, a.qkv.in),
            X::make(memory, W::kHeads, tokens, a.o.in),
            X::make(memory, W::kGated, tokens, a.down.in),
            memory.get<float>(W::kProjected, tokens * std::max(a.qkv.outs, a.qkv.in)),
            memory.get<float>(W::kQueries, tokens * a.o.in),
            memory.get<float>(W::kFloats, tokens * a.o.in)};
  }
};

struct Norm {
  const float* weight;  // [hidden], null: none
  float eps;
};

inline void add_to(float* to, const float* values, int count) {
  int c = 0;
  for (; c + kLanes <= count; c += kLanes) store(to + c, load(to + c) + load(values + c));
  for (; c < count; c++) to[c] += values[c];
}

// A layer, as one of the threads computes it with the others.
template <typename X, typename C>
class LayerThread {
 public:
  LayerThread(Team& team, const LayerArgs& a, const StepArgs& step, const CacheArgs& cache,
              WorkList& work, float* residual, Workspace& memory)
      : team_(team),
        a_(a),
        step_(step),
        cache_(cache),
        work_(work),
        residual_(residual),
        m_(LayerMemory<X>::make(a, step.tokens, memory)),
        tokens_(step.tokens),
        hidden_(a.qkv.in) {}

  // The input norm, which the layer before computes for all others.
  void begin() {
    team_.share(tokens_, [&](int64_t t) { norm({a_.input_norm, a_.eps}, t); });
  }

  // `next`: what the layer behind it begins with, nothing behind the last.
  void run(const Norm& next) {
    project();
    attend_heads();
    add_product(a_.o, m_.attended, a_.after_attention, {a_.mlp_norm, a_.eps});
    gated_product();
    add_product(a_.down, m_.gated, a_.after_mlp, next);
  }

 private:
  // Of so few tokens one thread does what follows a product sooner than all would meet again.
  static constexpr int64_t kFew = 2;

  // part(finish), then each(token).
  template <typename Part, typename Each>
  void then(Part part, Each each) {
    if (tokens_ > kFew) {
      part(Nothing{});
      team_.share(tokens_, each);
      return;
    }
    part([&] {
      for (int64_t t = 0; t < tokens_; t++) each(t);
    });
  }

  void norm(const Norm& norm, int64_t token) {
    norm_round(residual_, norm.weight, norm.eps, token, hidden_, m_.normed);
  }

  // Queries, keys and values, rotated; keys and values go to the cache.
  void project() {
    const RopeCacheArgs rope{m_.qkv, m_.q, a_.shape, step_, cache_, a_.rope};
    const auto store = [&](int64_t row, int64_t channel, int count, const float* v) {
      std::copy_n(v, count, m_.qkv + row * a_.qkv.outs + channel);
    };
    then([&](auto finish) { multiply(team_, a_.qkv, m_.normed, tokens_, store, finish); },
         [&](int64_t t) { rope_cache_token<float, C>(rope, t); });
  }

  void attend_heads() {
    const int64_t dim = a_.shape.head_dim, size = a_.o.in;
    if (dim % kGroup == 0) {
      RoundedOutput<X> output{m_.attended, dim};
      team_.meet(work_.size(), attend<float, C>(a_.shape, step_, cache_, work_, m_.q, output));
      return;
    }
    PlainOutput<float> output{m_.heads, a_.shape.heads, dim};
    team_.meet(work_.size(), attend<float, C>(a_.shape, step_, cache_, work_, m_.q, output));
    team_.share(tokens_, [&](int64_t t) { round_row(m_.attended, t, size, m_.heads + t * size); });
  }

  // residual += the product, or its norm where `after` is not null; then the next norm, if any.
  void add_product(const Matrix& m, const X& x, const float* after, const Norm& next) {
    float* target = after ? m_.qkv : residual_;
    const auto store = [&](int64_t row, int64_t channel, int count, const float* values) {
      float* to = target + row * hidden_ + channel;
      after ? void(std::copy_n(values, count, to)) : add_to(to, values, count);
    };
    const auto part = [&](auto finish) { multiply(team_, m, x, tokens_, store, finish); };
    if (!after && !next.weight) return part(Nothing{});
    then(part, [&](int64_t t) {
      if (after) add_normed(after, t);
      if (next.weight) norm(next, t);
    });
  }

  void add_normed(const float* weight, int64_t token) {
    const float* row = m_.qkv + token * hidden_;
    float* to = residual_ + token * hidden_;
    const float inverse = inverse_rms(row, hidden_, a_.eps);
    for (int64_t i = 0; i < hidden_; i++) to[i] += row[i] * inverse * weight[i];
  }

  // gate_up's two halves times x, activated, multiplied and rounded: units of 32 outputs.
  void gated_product() {
    if constexpr (kCanBeCoarse<X>)
      if (is_coarse(a_.gate_up, m_.normed, tokens_)) return gated_coarse();
    constexpr int kTile = X::kTile, kTiles = kGroup / kTile;  // of gate, and of up, in one unit
    const Matrix& m = a_.gate_up;
    const int64_t half = m.outs / 2 / kTile;  // tiles of each half
    for_units(team_, half / kTiles, tokens_, m_.normed, [&](int64_t unit, int64_t row, int count) {
      float sums[2][kTiles][kRows<X> * kTile];
      for (int part = 0; part < 2; part++)
        for (int t = 0; t < kTiles; t++) {
          const int64_t tile = part * half + unit * kTiles + t;
          multiply_tile(m, tile, count, m_.normed, row, sums[part][t]);
        }
      for (int r = 0; r < count; r++) {
        float values[kGroup];
        for (int i = 0; i < kGroup; i += kLanes) {
          int64_t at = r * kTile + i % kTile;
          VecF gates = load(sums[0][i / kTile] + at), ups = load(sums[1][i / kTile] + at);
          store(values + i, gate(gates, a_.gate) * ups);
        }
        m_.gated.put(row + r, unit, values);
      }
    });
  }

#if defined(__AVX512VNNI__)
  void gated_coarse() {
    static_assert(kPairChannels == kGroup);
    const Matrix& m = a_.gate_up;
    const int64_t half = m.outs / 2 / kChannels;
    prepare_coarse(team_, m_.normed, tokens_);
    for_parts(team_, half / kPairTiles, tokens_, [&](int64_t unit, int64_t row, int64_t count) {
      PartSums gates, ups;
      multiply_pair(m, unit * kPairTiles, true, m_.normed, row, count, gates);
      multiply_pair(m, half + unit * kPairTiles, true, m_.normed, row, count, ups);
      for (int64_t r = 0; r < count; r++) {
        float values[kGroup];
        for (int i = 0; i < kGroup; i += kLanes) {
          const int64_t at = r * kPairChannels + i;
          store(values + i, gate(load(gates + at), a_.gate) * load(ups + at));
        }
        m_.gated.put(row + r, unit, values);
      }
    });
  }
#else
  void gated_coarse();  // never called
#endif

  Team& team_;
  const LayerArgs& a_;
  const StepArgs& step_;
  const CacheArgs& cache_;
  WorkList& work_;
  float* residual_;
  LayerMemory<X> m_;
  const int64_t tokens_, hidden_;
};

// Layers with activations of one kind and caches of one type.
template <typename X, typename C>
void run_layers(const LayersRun& run) {
  std::deque<WorkList> work;
  int64_t partial_floats = 0;
  for (int64_t i = 0; i < run.count; i++) {
    const AttentionShape& shape = run.layers[i]->shape;
    work.emplace_back(shape, *run.steps[i], row_of_sums<C>(shape));
    partial_floats = std::max(partial_floats, work.back().partial_floats());
    // The working memory grows now: the threads only look up where it is.
    LayerMemory<X>::make(*run.layers[i], run.steps[i]->tokens, *run.workspace);
  }
  // One after the other, so that layers can share the place.
  float* partials = run.workspace->get<float>(Workspace::kPartials, partial_floats);
  for (WorkList& list : work) list.keep_partials(partials);
  TeamState state;
#pragma omp parallel
  {
    Team team(state);
    for (int64_t i = 0; i < run.count; i++) {
      LayerThread<X, C> layer(team, *run.layers[i], *run.steps[i], *run.caches[i], work[i],
                              run.residual, *run.workspace);
      if (i == 0) layer.begin();
      const LayerArgs* next = i + 1 < run.count ? run.layers[i + 1] : nullptr;
      layer.run(next ? Norm{next->input_norm, next->eps} : Norm{});
    }
  }
}

template <typename X>
void run_layers(const LayersRun& run) {
  switch (run.caches[0]->type) {
    case Type::kInt8: return run_layers<X, Int8>(run);
    case Type::kFloat16: return run_layers<X, Float16>(run);
    default: return run_layers<X, float>(run);
  }
}

inline void layers(const LayersRun& run) {
  const auto differ = [&](int64_t i, int64_t j) {
    return run.layers[i]->qkv.half() != run.layers[j]->qkv.half() ||
           run.caches[i]->type != run.caches[j]->type;
  };
  for (int64_t first = 0, end; first < run.count; first = end) {
    for (end = first + 1; end < run.count && !differ(first, end);) end++;
    const LayersRun part{run.layers + first, run.steps + first,  run.caches + first,
                         end - first,        run.residual,       run.workspace};
    run.layers[first]->qkv.half() ? run_layers<Halves>(part) : run_layers<Activations>(part);
  }
}

}  // namespace pagemill::PAGEMILL_ISA
