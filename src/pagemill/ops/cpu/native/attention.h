// Paged attention over mixed rows: decode and chunked prefill in one call.
//
// A work item is one key-value head of one row and a tile of its queries. Its keys are read in
// tiles of kKeys through the block table.
#pragma once

#include <algorithm>
#include <type_traits>
#include <vector>

#include "activations.h"
#include "attention_tiles.h"
#include "kernels.h"
#include "simd.h"

namespace pagemill::PAGEMILL_ISA {

struct Item {
  int32_t row, kv_head, first_query, num_queries;
};

inline std::vector<Item> work_items(const AttentionShape& shape, const StepArgs& step) {
  int32_t tile = std::max<int32_t>(1, kWide / int32_t(shape.heads / shape.kv_heads));
  std::vector<Item> items;
  for (int32_t r = 0; r < step.rows; r++) {
    int32_t queries = step.query_start[r + 1] - step.query_start[r];
    for (int32_t first = 0; first < queries; first += tile)
      for (int32_t h = 0; h < shape.kv_heads; h++)
        items.push_back({r, h, first, std::min(tile, queries - first)});
  }
  return items;
}

// Writes heads [tokens, heads, head_dim] of type T.
template <typename T>
struct PlainOutput {
  T* out;
  int64_t heads, dim;

  void write(int64_t token, int64_t head, const float* values) const {
    T* to = out + (token * heads + head) * dim;
    for (int64_t i = 0; i < dim; i++) from_float(values[i], to + i);
  }
};

// Writes heads as activations of kind X; head_dim is a multiple of kGroup.
template <typename X>
struct RoundedOutput {
  X out;
  int64_t dim;

  void write(int64_t token, int64_t head, const float* values) const {
    for (int64_t i = 0; i < dim; i += kGroup) out.put(token, (head * dim + i) / kGroup, values + i);
  }
};

// One thread's working memory and way through items. Q: type of queries, C: of the cache.
template <typename Q, typename C, typename Output>
class Worker {
 public:
  Worker(const AttentionShape& shape, const StepArgs& step, const CacheArgs& cache, const Q* q,
         const Output& output)
      : shape_(shape),
        step_(step),
        cache_(cache),
        queries_(q),
        output_(output),
        dim_(int(shape.head_dim)),
        group_(int(shape.heads / shape.kv_heads)) {}

  void run(const Item& item) {
    rows_ = item.num_queries * group_;
    first_token_ = step_.query_start[item.row] + item.first_query;
    int64_t length = step_.query_start[item.row + 1] - step_.query_start[item.row];
    first_position_ = step_.seq_lens[item.row] - length + item.first_query;
    rows_ <= kNarrow ? run_narrow(item) : run_wide(item);
  }

 private:
  void run_narrow(const Item& item) {
    narrow_.start(rows_, dim_);
    for (int r = 0; r < rows_; r++)
      for (int i = 0; i < dim_; i++) narrow_.q[r * dim_ + i] = query(item, r, i);
    for_tiles(item, [&](int64_t key, int count) {
      narrow_.score(keys_, rows_, count, dim_);
      for (int r = 0; r < rows_; r++)
        narrow_.softmax(r, span(r, key, count), shape_.soft_cap, dim_);
      narrow_.add(values_, rows_, count, dim_);
    });
    for (int r = 0; r < rows_; r++) {
      float* out = narrow_.out + r * dim_;
      for (int i = 0; i < dim_; i++) out[i] /= narrow_.total[r];
      output_.write(first_token_ + r / group_, head(item, r), out);
    }
  }

  void run_wide(const Item& item) {
    wide_.start(dim_);
    for (int i = 0; i < dim_; i++)
      for (int r = 0; r < kWide; r++)
        wide_.q[i * kWide + r] = r < rows_ ? query(item, r, i) : 0.0f;
    for_tiles(item, [&](int64_t key, int count) {
      wide_.score(keys_, count, dim_, shape_.soft_cap);
      for (int r = 0; r < rows_; r++) {
        Span seen = span(r, key, count);
        if (seen.begin > 0 || seen.end < count) wide_.mask(r, seen, count);
      }
      wide_.softmax(count, dim_);
      wide_.add_values(values_, count, dim_);
    });
    float values[kMaxHeadDim];
    for (int r = 0; r < rows_; r++) {
      for (int i = 0; i < dim_; i++) values[i] = wide_.out[i * kWide + r] / wide_.total[r];
      output_.write(first_token_ + r / group_, head(item, r), values);
    }
  }

  // Row r of a tile is query token r / group, head r % group of the key-value head.
  int64_t head(const Item& item, int r) const { return item.kv_head * group_ + r % group_; }

  float query(const Item& item, int r, int i) const {
    int64_t token = first_token_ + r / group_;
    return to_float(queries_[(token * shape_.heads + head(item, r)) * dim_ + i]) * shape_.scale;
  }

  Span span(int r, int64_t key, int count) const {
    return visible(first_position_ + r / group_, key, count, shape_.window);
  }

  template <typename Work>
  void for_tiles(const Item& item, Work work) {
    int64_t end = first_position_ + item.num_queries;
    int64_t begin = shape_.window ? std::max<int64_t>(0, first_position_ - shape_.window + 1) : 0;
    for (int64_t key = begin; key < end; key += kKeys) {
      int count = int(std::min<int64_t>(kKeys, end - key));
      find_rows(item, key, count);
      work(key, count);
    }
  }

  // Where the cached rows of a tile lie.
  void find_rows(const Item& item, int64_t key, int count) {
    const int32_t* table = step_.block_table + item.row * step_.table_stride;
    int64_t block = key / cache_.block_size, offset = key % cache_.block_size;
    for (int j = 0; j < count;) {
      int64_t page = int64_t(table[block++]) * shape_.kv_heads + item.kv_head;
      int64_t first = page * cache_.block_size * dim_;
      for (; offset < cache_.block_size && j < count; offset++, j++) {
        keys_[j] = static_cast<const C*>(cache_.k) + first + offset * dim_;
        values_[j] = static_cast<const C*>(cache_.v) + first + offset * dim_;
      }
      offset = 0;
    }
  }

  const AttentionShape& shape_;
  const StepArgs& step_;
  const CacheArgs& cache_;
  const Q* queries_;
  const Output& output_;
  const int dim_, group_;
  int rows_ = 0;
  int64_t first_token_ = 0, first_position_ = 0;
  const C* keys_[kKeys];
  const C* values_[kKeys];
  NarrowTile narrow_;
  WideTile wide_;
};

// To be called by all threads of a region, with the same items.
template <typename Q, typename C, typename Output>
void attend(const AttentionShape& shape, const StepArgs& step, const CacheArgs& cache,
            const std::vector<Item>& items, const Q* q, const Output& output) {
  Worker<Q, C, Output> worker(shape, step, cache, q, output);
#pragma omp for schedule(dynamic)
  for (size_t i = 0; i < items.size(); i++) worker.run(items[i]);
}

template <typename Q, typename C>
void attention(const AttentionArgs& a) {
  std::vector<Item> items = work_items(a.shape, a.step);
  PlainOutput<Q> output{static_cast<Q*>(a.out), a.shape.heads, a.shape.head_dim};
#pragma omp parallel
  attend<Q, C>(a.shape, a.step, a.cache, items, static_cast<const Q*>(a.q), output);
}

}  // namespace pagemill::PAGEMILL_ISA
