// Paged attention over mixed rows: decode and chunked prefill in one call.
//
// A work item is a tile of one row's queries and one key-value head, or all of them where a few
// queries read many keys: their cached rows lie side by side in a page. Keys are read in tiles
// through the block table.
#pragma once

#include <omp.h>

#include <algorithm>
#include <atomic>
#include <vector>

#include "activations.h"
#include "attention_tiles.h"
#include "kernels.h"
#include "simd.h"

namespace pagemill::PAGEMILL_ISA {

struct Item {
  int32_t row, kv_head, num_kv_heads, first_query, num_queries;
};

// The items of a step, which its threads take one by one, the longest of a row first.
class WorkList {
 public:
  WorkList(const AttentionShape& shape, const StepArgs& step) {
    const int32_t group = int32_t(shape.heads / shape.kv_heads), heads = int32_t(shape.kv_heads);
    const int32_t tile = std::max<int32_t>(1, kWide / group);
    const int threads = omp_get_max_threads();
    const bool enough = step.rows >= 2 * threads || step.rows % threads == 0;
    for (int32_t r = 0; r < step.rows; r++) {
      int32_t queries = step.query_start[r + 1] - step.query_start[r];
      int32_t each = enough && queries * group <= kNarrow ? heads : 1;
      for (int32_t first = (queries + tile - 1) / tile * tile - tile; first >= 0; first -= tile)
        for (int32_t h = 0; h < heads; h += each)
          items_.push_back({r, h, each, first, std::min(tile, queries - first)});
    }
  }

  int64_t size() const { return int64_t(items_.size()); }

  // Null after the last one.
  const Item* take() {
    size_t i = taken_.fetch_add(1, std::memory_order_relaxed);
    return i < items_.size() ? &items_[i] : nullptr;
  }

 private:
  std::vector<Item> items_;
  std::atomic<size_t> taken_{0};
};

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

  // Returns the item to run next.
  const Item* run(const Item& item, WorkList& work) {
    rows_ = item.num_queries * group_;
    first_token_ = step_.query_start[item.row] + item.first_query;
    first_position_ = first_position(item);
    if (rows_ <= kNarrow) return run_narrow(item, work);
    run_wide(item);
    return work.take();
  }

 private:
  const Item* run_narrow(const Item& item, WorkList& work) {
    const Item* after = nullptr;
    narrow_.start(item.num_kv_heads * rows_, dim_);
    for (int h = 0; h < item.num_kv_heads; h++)
      for (int r = 0; r < rows_; r++) {
        const Q* query = query_row(item.kv_head + h, r);
        float* to = narrow_.q.data() + (h * rows_ + r) * dim_;
        for (int i = 0; i < dim_; i++) to[i] = to_float(query[i]) * shape_.scale;
      }
    for_tiles(item, kNarrowKeys, [&](int64_t key, const KeyTile<C>& tile, bool last) {
      if (last) after = work.take();
      last ? look_ahead(after) : look_ahead(item, key + kNarrowKeys);
      for (int h = 0; h < item.num_kv_heads; h++) add_tile(h, key, tile);
    });
    for (int h = 0; h < item.num_kv_heads; h++) write_narrow(h, item.kv_head + h);
    return after;
  }

  // A tile's part in the results of the item's head h.
  void add_tile(int h, int64_t key, const KeyTile<C>& tile) {
    const int first = h * rows_;
    const int64_t offset = h * cache_.block_size * dim_;
    narrow_.score(tile, offset, first, rows_, dim_, ahead_);
    for (int r = 0; r < rows_; r++)
      narrow_.softmax(first + r, narrow_.scores + r * kNarrowKeys, span(r, key, tile.count),
                      tile.count, shape_.soft_cap, dim_);
    narrow_.add(tile, offset, first, rows_, dim_, ahead_);
  }

  void write_narrow(int h, int64_t kv_head) {
    for (int r = 0; r < rows_; r++) {
      int query = h * rows_ + r;
      float* out = narrow_.out.data() + query * dim_;
      for (int i = 0; i < dim_; i++) out[i] /= narrow_.total[query];
      output_.write(first_token_ + r / group_, head(kv_head, r), out);
    }
  }

  void run_wide(const Item& item) {
    wide_.start(dim_);
    for (int r = 0; r < kWide; r++) {
      const Q* query = query_row(item.kv_head, std::min(r, rows_ - 1));  // lanes beyond: the last
      for (int i = 0; i < dim_; i++) wide_.q[i * kWide + r] = to_float(query[i]) * shape_.scale;
    }
    for_tiles(item, kWideKeys, [&](int64_t key, const KeyTile<C>& tile, bool) {
      const int count = tile.count;
      wide_.score(tile.keys, count, dim_, shape_.soft_cap);
      for (int r = 0; r < rows_; r++) {
        Span seen = span(r, key, count);
        if (seen.begin > 0 || seen.end < count) wide_.mask(r, seen, count);
      }
      wide_.softmax(count, dim_);
      wide_.add_values(tile.values, count, dim_);
    });
    wide_.divide(dim_);
    float values[kMaxHeadDim];
    for (int r = 0; r < rows_; r++) {
      for (int i = 0; i < dim_; i++) values[i] = wide_.out[i * kWide + r];
      output_.write(first_token_ + r / group_, head(item.kv_head, r), values);
    }
  }

  // Row r of a tile is query token r / group, head r % group of the key-value head.
  int64_t head(int64_t kv_head, int r) const { return kv_head * group_ + r % group_; }

  const Q* query_row(int64_t kv_head, int r) const {
    int64_t token = first_token_ + r / group_;
    return queries_ + (token * shape_.heads + head(kv_head, r)) * dim_;
  }

  Span span(int r, int64_t key, int count) const {
    return visible(first_position_ + r / group_, key, count, shape_.window);
  }

  int64_t first_position(const Item& item) const {
    int64_t queries = step_.query_start[item.row + 1] - step_.query_start[item.row];
    return step_.seq_lens[item.row] - queries + item.first_query;
  }

  // The first key that any query of the item sees, and the one behind the last.
  int64_t first_key(const Item& item) const {
    if (shape_.window == 0) return 0;
    return std::max<int64_t>(0, first_position(item) - shape_.window + 1);
  }

  int64_t last_key(const Item& item) const { return first_position(item) + item.num_queries; }

  // Calls work(first key, tile, whether it is the last).
  template <typename Work>
  void for_tiles(const Item& item, int size, Work work) {
    const int64_t end = last_key(item);
    for (int64_t key = first_key(item); key < end; key += size) {
      find_rows(item, key, int(std::min<int64_t>(size, end - key)), tile_);
      work(key, tile_, key + size >= end);
    }
  }

  void look_ahead(const Item* item) {
    ahead_.clear();
    if (item != nullptr) look_ahead(*item, first_key(*item));
  }

  // The tile from `key` on is to be fetched meanwhile.
  void look_ahead(const Item& item, int64_t key) {
    const int32_t* table = step_.block_table + item.row * step_.table_stride;
    const int64_t end = std::min<int64_t>(key + kNarrowKeys, last_key(item));
    const int64_t head_bytes = cache_.block_size * dim_ * int64_t(sizeof(C));
    ahead_.clear();
    for (const void* pool : {cache_.k, cache_.v})
      for (int64_t block = key / cache_.block_size; block * cache_.block_size < end; block++) {
        int64_t page = int64_t(table[block]) * shape_.kv_heads + item.kv_head;
        ahead_.add(static_cast<const char*>(pool) + page * head_bytes,
                   item.num_kv_heads * head_bytes);
      }
  }

  // Where the cached rows of a tile lie; the last one again where four are not whole.
  void find_rows(const Item& item, int64_t key, int count, KeyTile<C>& tile) {
    const int32_t* table = step_.block_table + item.row * step_.table_stride;
    int64_t block = key / cache_.block_size, offset = key % cache_.block_size;
    tile.count = count;
    for (int j = 0; j < count;) {
      int64_t page = int64_t(table[block++]) * shape_.kv_heads + item.kv_head;
      int64_t first = page * cache_.block_size * dim_;
      for (; offset < cache_.block_size && j < count; offset++, j++) {
        tile.keys[j] = static_cast<const C*>(cache_.k) + first + offset * dim_;
        tile.values[j] = static_cast<const C*>(cache_.v) + first + offset * dim_;
      }
      offset = 0;
    }
    for (int j = count; j % kFour != 0; j++) {
      tile.keys[j] = tile.keys[count - 1];
      tile.values[j] = tile.values[count - 1];
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
  KeyTile<C> tile_;
  Stream ahead_;
  NarrowTile narrow_;
  WideTile wide_;
};

// To be called by all threads of a region, with the same work; how many items this one has done.
template <typename Q, typename C, typename Output>
int64_t attend(const AttentionShape& shape, const StepArgs& step, const CacheArgs& cache,
            WorkList& work, const Q* q, const Output& output) {
  Worker<Q, C, Output> worker(shape, step, cache, q, output);
  const Item* item = work.take();
  int64_t count = 0;
  for (; item != nullptr; count++) item = worker.run(*item, work);
  return count;
}

template <typename Q, typename C>
void attention(const AttentionArgs& a) {
  WorkList work(a.shape, a.step);
  PlainOutput<Q> output{static_cast<Q*>(a.out), a.shape.heads, a.shape.head_dim};
#pragma omp parallel
  attend<Q, C>(a.shape, a.step, a.cache, work, static_cast<const Q*>(a.q), output);
}

}  // namespace pagemill::PAGEMILL_ISA
