// The two ways of attention over a tile of keys, with the online softmax of Milakov and
// Gimelshein (arXiv:1805.02867), so that no score matrix is ever held.
//
// Wide: up to kWide queries lie across the lanes, scores are [key][query], and no lane ever needs
// another one. Narrow, for a few: head dimensions lie across the lanes, keys are read as they are.
#pragma once

#include <algorithm>
#include <cmath>
#include <type_traits>
#include <vector>

#include "cache_row.h"
#include "simd.h"

namespace pagemill::PAGEMILL_ISA {

constexpr int kWideKeys = 32;     // keys in a tile of the wide way: it stays in the first cache
constexpr int kNarrowKeys = 64;   // and of the narrow way, which reads each key once
constexpr int kFour = 4;          // keys are taken by so many: tiles are padded to whole ones
constexpr int kWide = 32;         // query heads x query tokens in a tile
constexpr int kNarrow = 12;       // up to so many the narrow way is faster
constexpr int kMaxHeadDim = 256;
constexpr float kMasked = -1e30f;
constexpr int kWideVectors = kWide / kLanes;
constexpr int kWideRows = kLanes == 16 ? 8 : kLanes == 8 ? 3 : 1;  // rows of C in registers

// Where the cached rows of some keys lie, and the scales of those of one head if they have any.
template <typename C>
struct KeyTile {
  int count;
  const C* keys[kNarrowKeys];
  const C* values[kNarrowKeys];
  float key_scales[kScaled<C> ? kNarrowKeys : 1];
  float value_scales[kScaled<C> ? kNarrowKeys : 1];
};

// Memory to be read soon, fetched into the second cache bit by bit in the order of its addresses.
// Reading it only where it is needed, 2 KB of one head after the other, leaves the hardware's own
// prefetching without a stream to follow and reaches half of the memory's speed or less.
class Stream {
 public:
  static constexpr int kLine = 64;

  void clear() { count_ = run_ = 0; }

  void add(const void* memory, int64_t bytes) {
    const char* at = static_cast<const char*>(memory);
    if (count_ > 0 && runs_[count_ - 1].end == at)
      runs_[count_ - 1].end += bytes;
    else
      runs_[count_++] = {at, at + bytes};
  }

  void fetch(int64_t bytes = kLine) {
    for (; bytes > 0 && run_ < count_; bytes -= kLine) {
      Run& run = runs_[run_];
      __builtin_prefetch(run.at, 0, 2);
      run.at += kLine;
      if (run.at >= run.end) run_++;
    }
  }

 private:
  struct Run {
    const char *at, *end;
  };
  Run runs_[2 * (kNarrowKeys + 1)];
  int count_ = 0, run_ = 0;
};

// Which of a tile's keys a query at `position` sees: first visible and first invisible one.
struct Span {
  int begin, end;
};

inline Span visible(int64_t position, int64_t key, int count, int64_t window) {
  int64_t end = std::min<int64_t>(count, position + 1 - key);
  int64_t begin = window ? std::max<int64_t>(0, position - window + 1 - key) : 0;
  int last = int(std::max<int64_t>(end, 0));
  return {int(std::min<int64_t>(begin, last)), last};
}

inline VecF cap_scores(VecF x, float cap) { return cap * tanh(x / cap); }

// C[m, lane] (+)= sum over k of a[m * by_row + k * by_depth] * b[k, lane].
template <int kRows, bool kAdd>
inline void lanes_product(const float* a, int64_t by_row, int64_t by_depth, int depth,
                          const float* b, float* c) {
  VecF acc[kRows][kWideVectors];
  for (int r = 0; r < kRows; r++)
    for (int v = 0; v < kWideVectors; v++) acc[r][v] = VecF{};
  for (int k = 0; k < depth; k++) {
    VecF lanes[kWideVectors];
    for (int v = 0; v < kWideVectors; v++) lanes[v] = load(b + k * kWide + v * kLanes);
    for (int r = 0; r < kRows; r++)
      for (int v = 0; v < kWideVectors; v++) acc[r][v] += a[r * by_row + k * by_depth] * lanes[v];
  }
  for (int r = 0; r < kRows; r++)
    for (int v = 0; v < kWideVectors; v++) {
      float* to = c + r * kWide + v * kLanes;
      store(to, kAdd ? load(to) + acc[r][v] : acc[r][v]);
    }
}

template <bool kAdd>
void wide_product(const float* a, int64_t by_row, int64_t by_depth, int rows, int depth,
                  const float* b, float* c) {
  int r = 0;
  for (; r + kWideRows <= rows; r += kWideRows)
    lanes_product<kWideRows, kAdd>(a + r * by_row, by_row, by_depth, depth, b, c + r * kWide);
  for (; r < rows; r++)
    lanes_product<1, kAdd>(a + r * by_row, by_row, by_depth, depth, b, c + r * kWide);
}

struct WideTile {
  float q[kMaxHeadDim * kWide];    // [dim][query]
  float out[kMaxHeadDim * kWide];  // [dim][query]
  float rows[kWideKeys * kMaxHeadDim];  // keys or values as float
  float scores[kWideKeys * kWide];     // [key][query]
  float top[kWide], total[kWide];

  void start(int dim) {
    std::fill_n(out, dim * kWide, 0.0f);
    std::fill_n(top, kWide, kMasked);
    std::fill_n(total, kWide, 0.0f);
  }

  template <typename T>
  void widen(const T* const* from, const float* scales, int count, int dim) {
    for (int j = 0; j < count; j++) {
      const float scale = kScaled<T> ? scales[j] : 1.0f;
      int i = 0;
      for (; i + kLanes <= dim; i += kLanes) {
        VecF x = load(from[j] + i);
        store(rows + j * dim + i, kScaled<T> ? x * scale : x);
      }
      for (; i < dim; i++) rows[j * dim + i] = to_float(from[j][i]) * scale;
    }
  }

  template <typename T>
  void score(const KeyTile<T>& tile, int dim, float cap) {
    const int count = tile.count;
    widen(tile.keys, tile.key_scales, count, dim);
    wide_product<false>(rows, dim, 1, count, dim, q, scores);
    if (cap > 0)
      for (int i = 0; i < count * kWide; i += kLanes)
        store(scores + i, cap_scores(load(scores + i), cap));
  }

  void mask(int query, Span span, int count) {
    for (int j = 0; j < span.begin; j++) scores[j * kWide + query] = kMasked;
    for (int j = span.end; j < count; j++) scores[j * kWide + query] = kMasked;
  }

  // Scores -> weights relative to the running maximum; rescales what was summed before.
  void softmax(int count, int dim) {
    for (int v = 0; v < kWide; v += kLanes) {
      VecF before = load(top + v), now = before;
      for (int j = 0; j < count; j++)
        now = pagemill::PAGEMILL_ISA::max(now, load(scores + j * kWide + v));
      VecF sums{};
      for (int j = 0; j < count; j++) {
        VecF x = load(scores + j * kWide + v);
        VecF weight = x <= kMasked ? VecF{} : exp(x - now);
        store(scores + j * kWide + v, weight);
        sums += weight;
      }
      if (pagemill::PAGEMILL_ISA::max(now - before) > 0) rescale(v, now, dim);
      store(total + v, load(total + v) + sums);
    }
  }

  // The vector v of queries has a new maximum.
  void rescale(int v, VecF now, int dim) {
    VecF before = load(top + v), factor = before <= kMasked ? VecF{} : exp(before - now);
    store(top + v, now);
    store(total + v, load(total + v) * factor);
    for (int i = 0; i < dim; i++) store(out + i * kWide + v, load(out + i * kWide + v) * factor);
  }

  void divide(int dim) {
    for (int v = 0; v < kWide; v += kLanes) {
      VecF factor = 1.0f / load(total + v);
      for (int i = 0; i < dim; i++) store(out + i * kWide + v, load(out + i * kWide + v) * factor);
    }
  }

  template <typename T>
  void add_values(const KeyTile<T>& tile, int dim) {
    widen(tile.values, tile.value_scales, tile.count, dim);
    wide_product<true>(rows, 1, dim, dim, tile.count, scores, out);
  }
};

// The products of kRows queries and kCount keys, lane by lane, over whole vectors of dimensions.
template <int kRows, int kCount, typename T>
inline void dot_lanes(const float* q, const T* const* keys, int64_t offset, int dim,
                      VecF (&acc)[kRows][kCount]) {
  for (int r = 0; r < kRows; r++)
    for (int j = 0; j < kCount; j++) acc[r][j] = VecF{};
  for (int i = 0; i + kLanes <= dim; i += kLanes) {
    VecF key[kCount];
    for (int j = 0; j < kCount; j++) key[j] = load(keys[j] + offset + i);
    for (int r = 0; r < kRows; r++) {
      VecF query = load(q + r * dim + i);
      for (int j = 0; j < kCount; j++) acc[r][j] += query * key[j];
    }
  }
}

// scores[r][j] = q[r] . keys[j] for kRows queries and four keys, whose sums hide each other's
// latency; by twos where the registers do not hold all of them.
template <int kRows, typename T>
inline void dot_four_keys(const float* q, const T* const* keys, int64_t offset, int dim,
                          float* scores) {
  if constexpr (kRows < 4 || kLanes == 16) {
    VecF acc[kRows][kFour];
    dot_lanes(q, keys, offset, dim, acc);
    for (int r = 0; r < kRows; r++) sum_four(acc[r], scores + r * kNarrowKeys);
  } else {
    VecF low[kRows][2], high[kRows][2];
    dot_lanes(q, keys, offset, dim, low);
    dot_lanes(q, keys + 2, offset, dim, high);
    for (int r = 0; r < kRows; r++) {
      VecF acc[kFour] = {low[r][0], low[r][1], high[r][0], high[r][1]};
      sum_four(acc, scores + r * kNarrowKeys);
    }
  }
  for (int i = dim / kLanes * kLanes; i < dim; i++)
    for (int r = 0; r < kRows; r++)
      for (int j = 0; j < kFour; j++)
        scores[r * kNarrowKeys + j] += q[r * dim + i] * to_float(keys[j][offset + i]);
}

// out[r] += sum of weights[r][j] * rows[j], for kRows queries, kVecs vectors of dimensions.
template <int kRows, int kVecs, typename T>
inline void add_weighted(const float* weights, const T* const* rows, int64_t offset, int count,
                         int dim, float* out) {
  VecF acc[kRows][kVecs];
  for (int r = 0; r < kRows; r++)
    for (int v = 0; v < kVecs; v++) acc[r][v] = load(out + r * dim + v * kLanes);
  for (int j = 0; j < count; j++)
    for (int v = 0; v < kVecs; v++) {
      VecF value = load(rows[j] + offset + v * kLanes);
      for (int r = 0; r < kRows; r++) acc[r][v] += weights[r * kNarrowKeys + j] * value;
    }
  for (int r = 0; r < kRows; r++)
    for (int v = 0; v < kVecs; v++) store(out + r * dim + v * kLanes, acc[r][v]);
}

template <int kRows, typename T>
void add_values(const float* weights, const T* const* rows, int64_t offset, int count, int dim,
                float* out) {
  constexpr int kVecs = kRows < 4 || kLanes == 16 ? 4 : 2;
  int i = 0;
  for (; i + kVecs * kLanes <= dim; i += kVecs * kLanes)
    add_weighted<kRows, kVecs>(weights, rows, offset + i, count, dim, out + i);
  for (; i + kLanes <= dim; i += kLanes)
    add_weighted<kRows, 1>(weights, rows, offset + i, count, dim, out + i);
  for (; i < dim; i++)
    for (int r = 0; r < kRows; r++)
      for (int j = 0; j < count; j++)
        out[r * dim + i] += weights[r * kNarrowKeys + j] * to_float(rows[j][offset + i]);
}

// Calls work<n>(first row) for blocks of n rows, n up to 4.
template <typename Work>
void by_fours(int rows, Work work) {
  for (int r = 0; r < rows; r += 4) switch (std::min(4, rows - r)) {
      case 1: work(r, std::integral_constant<int, 1>{}); break;
      case 2: work(r, std::integral_constant<int, 2>{}); break;
      case 3: work(r, std::integral_constant<int, 3>{}); break;
      default: work(r, std::integral_constant<int, 4>{});
    }
}

// The products of the narrow way, in float. The cached rows of a head lie `offset` elements behind
// those that a tile names; `first` is the head's first query.
template <typename C>
class FloatProducts {
 public:
  static constexpr int kMost = kNarrow;  // queries of a head

  // Floats in a row of sums, and its dimensions in order.
  static int padded(int dim) { return dim; }
  static void in_order(float*, int) {}

  // Takes rows of floats [query, dim], which must stay.
  void start(const float* q, int, int dim) {
    queries_ = q;
    dim_ = dim;
  }

  // scores[r][key] = query first + r times a key, for `rows` queries and all keys of the tile.
  void score(const KeyTile<C>& tile, int64_t offset, int first, int rows, float* scores,
             Stream& ahead) const {
    by_fours(rows, [&](int r, auto n) {
      for (int j = 0; j < tile.count; j += kFour) {
        if (r == 0) ahead.fetch(kFour * row_bytes<C>(dim_));
        dot_four_keys<n.value>(queries_ + int64_t(first + r) * dim_, tile.keys + j, offset, dim_,
                               scores + r * kNarrowKeys + j);
      }
    });
    if constexpr (kScaled<C>) scale_rows(scores, rows, tile.key_scales, tile.count);
  }

  // out[r] += sum of weights[r][key] * value; the weights are lost.
  void add(const KeyTile<C>& tile, int64_t offset, int rows, float* weights, float* out,
           Stream& ahead) const {
    constexpr int kSome = 16;  // keys between two looks ahead
    if constexpr (kScaled<C>) scale_rows(weights, rows, tile.value_scales, tile.count);
    by_fours(rows, [&](int r, auto n) {
      for (int j = 0; j < tile.count; j += kSome) {
        int count = std::min(kSome, tile.count - j);
        if (r == 0) ahead.fetch(count * row_bytes<C>(dim_));
        add_values<n.value>(weights + r * kNarrowKeys + j, tile.values + j, offset, count, dim_,
                            out + int64_t(r) * dim_);
      }
    });
  }

 private:
  static void scale_rows(float* x, int rows, const float* scales, int count) {
    for (int r = 0; r < rows; r++)
      for (int j = 0; j < count; j += kLanes)
        store(x + r * kNarrowKeys + j, load(x + r * kNarrowKeys + j) * load(scales + j));
  }

  const float* queries_ = nullptr;
  int dim_ = 0;
};

// Which products the narrow way takes with a cache of type C.
template <typename C>
struct ProductsOf {
  using Type = FloatProducts<C>;
};

// What some queries have of a part of their keys.
struct Partial {
  float *top, *total;  // [query]
  float* out;          // [query, width]
};

// Queries of several key-value heads, and their softmax over the keys so far.
struct NarrowTile {
  std::vector<float> q;           // [query, dim]
  std::vector<float> out;         // [query, width]
  std::vector<float> top, total;  // [query]
  float scores[kWide * kNarrowKeys];  // of one head

  // `width`: floats in a row of sums, at least dim.
  void start(int queries, int dim, int width) {
    q.resize(queries * dim);
    clear(queries, width);
  }

  void clear(int queries, int width) {
    out.assign(queries * width, 0.0f);
    top.assign(queries, kMasked);
    total.assign(queries, 0.0f);
  }

  // Of one query, whose scores are `row`; keys outside of the span get no weight.
  void softmax(int query, float* row, Span span, float cap, int width) {
    constexpr int end = kNarrowKeys;  // a constant, so that all of them are in flight at once
    std::fill(row, row + span.begin, kMasked);
    std::fill(row + span.end, row + end, kMasked);
    const float before = top[query];
    VecF tops = broadcast(before);
    for (int j = 0; j < end; j += kLanes) {
      VecF x = load(row + j);
      if (cap > 0) store(row + j, x = x <= kMasked ? x : cap_scores(x, cap));
      tops = pagemill::PAGEMILL_ISA::max(tops, x);
    }
    const float now = pagemill::PAGEMILL_ISA::max(tops);
    if (now != before) rescale(query, now, width);
    VecF sums{};
    for (int j = 0; j < end; j += kLanes) {
      VecF x = load(row + j);
      VecF weight = x <= kMasked ? VecF{} : exp(x - now);
      store(row + j, weight);
      sums += weight;
    }
    total[query] += sum(sums);
  }

  // Adds the results of other keys, all queries'.
  void merge(const Partial& part, int queries, int width) {
    for (int r = 0; r < queries; r++) {
      if (part.top[r] > top[r]) rescale(r, part.top[r], width);
      const float factor = weight(part.top[r], top[r]);
      total[r] += part.total[r] * factor;
      for (int i = 0; i < width; i++) out[r * width + i] += part.out[r * width + i] * factor;
    }
  }

 private:
  // Of what was summed relative to the maximum `before`; 0 if that was nothing.
  static float weight(float before, float now) {
    return before <= kMasked ? 0.0f : exp(broadcast(before - now))[0];
  }

  // The query has a new maximum.
  void rescale(int query, float now, int width) {
    const float factor = weight(top[query], now);
    top[query] = now;
    total[query] *= factor;
    for (int i = 0; i < width; i++) out[query * width + i] *= factor;
  }
};

}  // namespace pagemill::PAGEMILL_ISA
