// Paged attention over mixed rows: decode and chunked prefill in one call.
//
// A work item is one key-value head of one row and a tile of its queries. Its keys are read in
// tiles of kKeys through the block table, with the online softmax of Milakov and Gimelshein
// (arXiv:1805.02867), so no score matrix is ever held.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels.h"
#include "simd.h"

namespace pagemill::PAGEMILL_ISA {

constexpr int kKeys = 32;      // keys in a tile
constexpr int kQueryRows = 32; // query heads x query tokens in a tile
constexpr int kMaxHeadDim = 256;
constexpr int kDirectRows = 8;

struct Item {
  int32_t row, kv_head, first_query, num_queries;
};

// Per-thread working memory of one item.
struct Scratch {
  float q[kQueryRows * kMaxHeadDim];
  float out[kQueryRows * kMaxHeadDim];
  float k[kMaxHeadDim * kKeys]; // transposed: [head_dim, kKeys]
  float scores[kQueryRows * kKeys];
  float top[kQueryRows], total[kQueryRows];
};

// C[m, n] = A[m, depth] B[depth, n], n a multiple of kLanes; four rows by two vectors at once.
inline void small_product(int m, int n, int depth, const float* a, int lda, const float* b, int ldb,
                          float* c, int ldc) {
  for (int i = 0; i < m; i += 4) {
    int rows = std::min(4, m - i);
    for (int j = 0; j < n; j += 2 * kLanes) {
      bool wide = j + kLanes < n;
      VecF acc[4][2] = {};
      for (int d = 0; d < depth; d++) {
        VecF left = load(b + d * ldb + j);
        VecF right = wide ? load(b + d * ldb + j + kLanes) : left;
        for (int r = 0; r < 4; r++) {
          float x = a[(i + std::min(r, rows - 1)) * lda + d];
          acc[r][0] += x * left;
          acc[r][1] += x * right;
        }
      }
      for (int r = 0; r < rows; r++) {
        store(c + (i + r) * ldc + j, acc[r][0]);
        if (wide) store(c + (i + r) * ldc + j + kLanes, acc[r][1]);
      }
    }
  }
}

// out[r] += sum of weights[r][j] * rows[j], for up to four r; `size` is a multiple of kLanes.
template <int kRows, typename T>
void add_weighted(const float* weights, const T* const* rows, int count, int size, float* out,
                  int stride) {
  for (int i = 0; i < size; i += kLanes) {
    VecF acc[kRows];
    for (int r = 0; r < kRows; r++) acc[r] = load(out + r * stride + i);
    for (int j = 0; j < count; j++) {
      VecF value = load(rows[j] + i);
      for (int r = 0; r < kRows; r++) acc[r] += weights[r * kKeys + j] * value;
    }
    for (int r = 0; r < kRows; r++) store(out + r * stride + i, acc[r]);
  }
}

template <typename T>
class Worker {
 public:
  explicit Worker(const AttentionArgs& args)
      : a_(args),
        d_(int(args.head_dim)),
        stride_((d_ + kLanes - 1) / kLanes * kLanes),
        group_(int(args.heads / args.kv_heads)) {}

  void run(const Item& item) {
    rows_ = item.num_queries * group_;
    int64_t query_begin = a_.query_start[item.row];
    int64_t query_len = a_.query_start[item.row + 1] - query_begin;
    first_position_ = a_.seq_lens[item.row] - query_len + item.first_query;
    load_queries(item, query_begin + item.first_query);
    std::fill_n(s_.out, rows_ * stride_, 0.0f);
    std::fill_n(s_.top, rows_, -INFINITY);
    std::fill_n(s_.total, rows_, 0.0f);
    int64_t end = first_position_ + item.num_queries;
    int64_t begin = a_.window ? std::max<int64_t>(0, first_position_ - a_.window + 1) : 0;
    for (int64_t key = begin; key < end; key += kKeys) {
      int count = int(std::min<int64_t>(kKeys, end - key));
      find_rows(item, key, count);
      score(key, count);
      add_values(count);
    }
    write(item, query_begin + item.first_query);
  }

 private:
  // Row r of the tile is query r / group, head r % group; the scale is applied here once.
  void load_queries(const Item& item, int64_t token) {
    const T* q = static_cast<const T*>(a_.q);
    for (int r = 0; r < rows_; r++) {
      int64_t head = item.kv_head * group_ + r % group_;
      const T* from = q + ((token + r / group_) * a_.heads + head) * d_;
      for (int i = 0; i < d_; i++) s_.q[r * d_ + i] = to_float(from[i]) * a_.scale;
    }
  }

  // Where the cached rows of a tile lie. Those past `count` repeat the last; they are masked.
  void find_rows(const Item& item, int64_t key, int count) {
    const int32_t* table = a_.block_table + item.row * a_.table_stride;
    for (int j = 0; j < kKeys; j++) {
      int64_t at = key + std::min(j, count - 1);
      int64_t block = table[at / a_.block_size], offset = at % a_.block_size;
      int64_t first = ((block * a_.kv_heads + item.kv_head) * a_.block_size + offset) * d_;
      keys_[j] = static_cast<const T*>(a_.k_cache) + first;
      values_[j] = static_cast<const T*>(a_.v_cache) + first;
    }
  }

  // For few queries the dot products are taken from the cache as it lies; for many it pays to
  // transpose the keys once.
  void multiply_keys() {
    if (rows_ > kDirectRows) {
      transpose();
      small_product(rows_, kKeys, d_, s_.q, d_, s_.k, kKeys, s_.scores, kKeys);
      return;
    }
    const int whole = d_ / kLanes * kLanes;
    for (int j = 0; j < kKeys; j++)
      for (int r = 0; r < rows_; r++) {
        VecF products{};
        for (int i = 0; i < whole; i += kLanes)
          products += load(s_.q + r * d_ + i) * load(keys_[j] + i);
        float dot = sum(products);
        for (int i = whole; i < d_; i++) dot += s_.q[r * d_ + i] * to_float(keys_[j][i]);
        s_.scores[r * kKeys + j] = dot;
      }
  }

  void transpose() {
    for (int j = 0; j < kKeys; j += 8)
      for (int i = 0; i < d_; i++)
        for (int c = 0; c < 8; c++) s_.k[i * kKeys + j + c] = to_float(keys_[j + c][i]);
  }

  void add_values(int count) {
    const int whole = d_ / kLanes * kLanes;
    for (int r = 0; r < rows_; r += 4) {
      const float* weights = s_.scores + r * kKeys;
      float* out = s_.out + r * stride_;
      switch (std::min(4, rows_ - r)) {
        case 1: add_weighted<1>(weights, values_, count, whole, out, stride_); break;
        case 2: add_weighted<2>(weights, values_, count, whole, out, stride_); break;
        case 3: add_weighted<3>(weights, values_, count, whole, out, stride_); break;
        default: add_weighted<4>(weights, values_, count, whole, out, stride_);
      }
    }
    for (int r = 0; whole < d_ && r < rows_; r++)
      for (int j = 0; j < count; j++)
        for (int i = whole; i < d_; i++)
          s_.out[r * stride_ + i] += s_.scores[r * kKeys + j] * to_float(values_[j][i]);
  }

  // Scores of a tile -> weights relative to the running maximum; rescales what was summed before.
  void score(int64_t key, int count) {
    multiply_keys();
    for (int r = 0; r < rows_; r++) {
      float* row = s_.scores + r * kKeys;
      if (a_.soft_cap > 0)
        for (int j = 0; j < kKeys; j += kLanes)
          store(row + j, a_.soft_cap * tanh(load(row + j) / a_.soft_cap));
      mask(row, first_position_ + r / group_, key, count);
      softmax(row, r);
    }
  }

  void mask(float* row, int64_t position, int64_t key, int count) const {
    for (int j = 0; j < kKeys; j++) {
      bool past = key + j > position || j >= count;
      bool outside = a_.window && key + j <= position - a_.window;
      if (past || outside) row[j] = -INFINITY;
    }
  }

  void softmax(float* row, int r) {
    VecF tops = load(row);
    for (int j = kLanes; j < kKeys; j += kLanes) tops = max(tops, load(row + j));
    float top = std::max(s_.top[r], max(tops));
    if (top == -INFINITY) {  // no key of this tile is visible
      std::fill_n(row, kKeys, 0.0f);
      return;
    }
    VecF totals{};
    for (int j = 0; j < kKeys; j += kLanes) {
      VecF x = load(row + j);
      VecF weight = x == -INFINITY ? VecF{} : exp(x - top);
      store(row + j, weight);
      totals += weight;
    }
    float rescale = s_.top[r] == -INFINITY ? 0.0f : std::exp(s_.top[r] - top);
    s_.total[r] = s_.total[r] * rescale + sum(totals);
    s_.top[r] = top;
    if (rescale != 1.0f)
      for (int i = 0; i < d_; i++) s_.out[r * stride_ + i] *= rescale;
  }

  void write(const Item& item, int64_t token) {
    T* out = static_cast<T*>(a_.out);
    for (int r = 0; r < rows_; r++) {
      int64_t head = item.kv_head * group_ + r % group_;
      T* to = out + ((token + r / group_) * a_.heads + head) * d_;
      float inverse = 1.0f / s_.total[r];
      for (int i = 0; i < d_; i++) from_float(s_.out[r * stride_ + i] * inverse, to + i);
    }
  }

  const AttentionArgs& a_;
  const int d_;
  const int stride_;  // of out: d_ padded to whole vectors
  const int group_;
  int rows_ = 0;
  int64_t first_position_ = 0;
  const T* keys_[kKeys];
  const T* values_[kKeys];
  Scratch s_;
};

inline std::vector<Item> work_items(const AttentionArgs& a) {
  int32_t tile = std::max<int32_t>(1, kQueryRows / int32_t(a.heads / a.kv_heads));
  std::vector<Item> items;
  for (int32_t r = 0; r < a.rows; r++) {
    int32_t queries = a.query_start[r + 1] - a.query_start[r];
    for (int32_t first = 0; first < queries; first += tile)
      for (int32_t h = 0; h < a.kv_heads; h++)
        items.push_back({r, h, first, std::min(tile, queries - first)});
  }
  return items;
}

template <typename T>
void attention(const AttentionArgs& a) {
  std::vector<Item> items = work_items(a);
#pragma omp parallel
  {
    Worker<T> worker(a);
#pragma omp for schedule(dynamic)
    for (size_t i = 0; i < items.size(); i++) worker.run(items[i]);
  }
}

}  // namespace pagemill::PAGEMILL_ISA
