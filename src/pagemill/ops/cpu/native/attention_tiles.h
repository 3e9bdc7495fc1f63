// The two ways of attention over a tile of keys, with the online softmax of Milakov and
// Gimelshein (arXiv:1805.02867), so that no score matrix is ever held.
//
// Wide: up to kWide queries lie across the lanes, scores are [key][query], and no lane ever needs
// another one. Narrow, for a few: head dimensions lie across the lanes, keys are read as they are.
#pragma once

#include <algorithm>
#include <cmath>

#include "simd.h"

namespace pagemill::PAGEMILL_ISA {

constexpr int kKeys = 32;     // keys in a tile
constexpr int kWide = 32;     // query heads x query tokens in a tile
constexpr int kNarrow = 12;   // up to so many the narrow way is faster
constexpr int kMaxHeadDim = 256;
constexpr float kMasked = -1e30f;
constexpr int kWideVectors = kWide / kLanes;
constexpr int kWideRows = kLanes == 16 ? 8 : kLanes == 8 ? 3 : 1;  // rows of C in registers

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
  float rows[kKeys * kMaxHeadDim]; // keys or values as float
  float scores[kKeys * kWide];     // [key][query]
  float top[kWide], total[kWide];

  void start(int dim) {
    std::fill_n(out, dim * kWide, 0.0f);
    std::fill_n(top, kWide, kMasked);
    std::fill_n(total, kWide, 0.0f);
  }

  template <typename T>
  void widen(const T* const* from, int count, int dim) {
    for (int j = 0; j < count; j++) {
      int i = 0;
      for (; i + kLanes <= dim; i += kLanes) store(rows + j * dim + i, load(from[j] + i));
      for (; i < dim; i++) rows[j * dim + i] = to_float(from[j][i]);
    }
  }

  template <typename T>
  void score(const T* const* keys, int count, int dim, float cap) {
    widen(keys, count, dim);
    wide_product<false>(rows, dim, 1, count, dim, q, scores);
    if (cap > 0)
      for (int i = 0; i < count * kWide; i += kLanes)
        store(scores + i, cap_scores(load(scores + i), cap));
  }

  void mask(int query, Span span, int count) {
    for (int j = 0; j < count; j++)
      if (j < span.begin || j >= span.end) scores[j * kWide + query] = kMasked;
  }

  // Scores -> weights relative to the running maximum; rescales what was summed before.
  void softmax(int count, int dim) {
    for (int v = 0; v < kWide; v += kLanes) {
      VecF before = load(top + v), now = before;
      for (int j = 0; j < count; j++) now = max(now, load(scores + j * kWide + v));
      VecF sums{};
      for (int j = 0; j < count; j++) {
        VecF x = load(scores + j * kWide + v);
        VecF weight = x <= kMasked ? VecF{} : exp(x - now);
        store(scores + j * kWide + v, weight);
        sums += weight;
      }
      VecF rescale = before <= kMasked ? VecF{} : exp(before - now);
      store(top + v, now);
      store(total + v, load(total + v) * rescale + sums);
      for (int i = 0; i < dim; i++)
        store(out + i * kWide + v, load(out + i * kWide + v) * rescale);
    }
  }

  template <typename T>
  void add_values(const T* const* values, int count, int dim) {
    widen(values, count, dim);
    wide_product<true>(rows, 1, dim, dim, count, scores, out);
  }
};

// scores[r][j] = q[r] . keys[j] for kRows queries and kAtOnce keys, whose sums hide each other's
// latency.
template <int kRows, int kAtOnce, typename T>
inline void dot_some_keys(const float* q, const T* const* keys, int dim, float* scores) {
  const int whole = dim / kLanes * kLanes;
  VecF acc[kRows][kAtOnce];
  for (int r = 0; r < kRows; r++)
    for (int j = 0; j < kAtOnce; j++) acc[r][j] = VecF{};
  for (int i = 0; i < whole; i += kLanes) {
    VecF key[kAtOnce];
    for (int j = 0; j < kAtOnce; j++) key[j] = load(keys[j] + i);
    for (int r = 0; r < kRows; r++) {
      VecF query = load(q + r * dim + i);
      for (int j = 0; j < kAtOnce; j++) acc[r][j] += query * key[j];
    }
  }
  for (int r = 0; r < kRows; r++) {
    float* out = scores + r * kKeys;
    if constexpr (kAtOnce == 4)
      sum_four(acc[r], out);
    else
      for (int j = 0; j < kAtOnce; j++) out[j] = sum(acc[r][j]);
    for (int i = whole; i < dim; i++)
      for (int j = 0; j < kAtOnce; j++) out[j] += q[r * dim + i] * to_float(keys[j][i]);
  }
}

template <int kRows, typename T>
void dot_keys(const float* q, const T* const* keys, int count, int dim, float* scores) {
  constexpr int kAtOnce = kRows < 4 ? 4 : 2;
  int j = 0;
  for (; j + kAtOnce <= count; j += kAtOnce)
    dot_some_keys<kRows, kAtOnce>(q, keys + j, dim, scores + j);
  for (; j < count; j++) dot_some_keys<kRows, 1>(q, keys + j, dim, scores + j);
}

// out[r] += sum of weights[r][j] * rows[j], for kRows queries, kVecs vectors of dimensions.
template <int kRows, int kVecs, typename T>
inline void add_weighted(const float* weights, const T* const* rows, int count, int at, int dim,
                         float* out) {
  VecF acc[kRows][kVecs];
  for (int r = 0; r < kRows; r++)
    for (int v = 0; v < kVecs; v++) acc[r][v] = load(out + r * dim + at + v * kLanes);
  for (int j = 0; j < count; j++)
    for (int v = 0; v < kVecs; v++) {
      VecF value = load(rows[j] + at + v * kLanes);
      for (int r = 0; r < kRows; r++) acc[r][v] += weights[r * kKeys + j] * value;
    }
  for (int r = 0; r < kRows; r++)
    for (int v = 0; v < kVecs; v++) store(out + r * dim + at + v * kLanes, acc[r][v]);
}

template <int kRows, typename T>
void add_values(const float* weights, const T* const* rows, int count, int dim, float* out) {
  constexpr int kVecs = kRows < 4 ? 4 : 2;
  int i = 0;
  for (; i + kVecs * kLanes <= dim; i += kVecs * kLanes)
    add_weighted<kRows, kVecs>(weights, rows, count, i, dim, out);
  for (; i + kLanes <= dim; i += kLanes)
    add_weighted<kRows, 1>(weights, rows, count, i, dim, out);
  for (; i < dim; i++)
    for (int r = 0; r < kRows; r++)
      for (int j = 0; j < count; j++)
        out[r * dim + i] += weights[r * kKeys + j] * to_float(rows[j][i]);
}

struct NarrowTile {
  float q[kNarrow * kMaxHeadDim];
  float out[kNarrow * kMaxHeadDim];
  float scores[kNarrow * kKeys];
  float top[kNarrow], total[kNarrow];

  void start(int rows, int dim) {
    std::fill_n(out, rows * dim, 0.0f);
    std::fill_n(top, rows, kMasked);
    std::fill_n(total, rows, 0.0f);
  }

  // Calls work<n>(first row) for blocks of n rows, n up to 4.
  template <typename Work>
  static void by_fours(int rows, Work work) {
    for (int r = 0; r < rows; r += 4) switch (std::min(4, rows - r)) {
        case 1: work(r, std::integral_constant<int, 1>{}); break;
        case 2: work(r, std::integral_constant<int, 2>{}); break;
        case 3: work(r, std::integral_constant<int, 3>{}); break;
        default: work(r, std::integral_constant<int, 4>{});
      }
  }

  template <typename T>
  void score(const T* const* keys, int rows, int count, int dim) {
    by_fours(rows, [&](int r, auto n) {
      dot_keys<n.value>(q + r * dim, keys, count, dim, scores + r * kKeys);
    });
  }

  // Of one query; keys outside of the span get no weight.
  void softmax(int r, Span span, float cap, int dim) {
    float* row = scores + r * kKeys;
    std::fill(row, row + span.begin, kMasked);
    std::fill(row + span.end, row + kKeys, kMasked);
    VecF tops = broadcast(top[r]);
    for (int j = 0; j < kKeys; j += kLanes) {
      VecF x = load(row + j);
      if (cap > 0) store(row + j, x = x <= kMasked ? x : cap_scores(x, cap));
      tops = pagemill::PAGEMILL_ISA::max(tops, x);
    }
    float now = pagemill::PAGEMILL_ISA::max(tops);
    VecF sums{};
    for (int j = 0; j < kKeys; j += kLanes) {
      VecF x = load(row + j);
      VecF weight = x <= kMasked ? VecF{} : exp(x - now);
      store(row + j, weight);
      sums += weight;
    }
    float rescale = top[r] <= kMasked ? 0.0f : std::exp(top[r] - now);
    total[r] = total[r] * rescale + sum(sums);
    top[r] = now;
    if (rescale != 1.0f)
      for (int i = 0; i < dim; i++) out[r * dim + i] *= rescale;
  }

  template <typename T>
  void add(const T* const* values, int rows, int count, int dim) {
    by_fours(rows, [&](int r, auto n) {
      add_values<n.value>(scores + r * kKeys, values, count, dim, out + r * dim);
    });
  }
};

}  // namespace pagemill::PAGEMILL_ISA
