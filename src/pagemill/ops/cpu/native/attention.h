// Paged attention over mixed rows: decode and chunked prefill in one call.
//
// A work item is a tile of one row's queries and one key-value head, or all of them where a few
// queries read many keys: their cached rows lie side by side in a page. Of very many keys an item
// reads a part. Keys are read in tiles through the block table.
#pragma once

#include <algorithm>
#include <cstring>
#include <vector>

#include "activations.h"
#include "attention_codes.h"
#include "attention_tiles.h"
#include "attention_work.h"
#include "kernels.h"
#include "simd.h"

namespace pagemill::PAGEMILL_ISA {

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

// Floats in a row of sums of the narrow way with a cache of type C.
template <typename C>
int row_of_sums(const AttentionShape& shape) {
  return ProductsOf<C>::Type::padded(int(shape.head_dim));
}

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
        group_(int(shape.heads / shape.kv_heads)),
        width_(row_of_sums<C>(shape)),
        pages_{cache.block_size, shape.head_dim} {}

  // Returns the item to run next.
  const Item* run(const Item& item, WorkList& work) {
    rows_ = item.num_queries * group_;
    first_token_ = step_.query_start[item.row] + item.first_query;
    first_position_ = first_position(item);
    if (rows_ <= Products::kMost) return run_narrow(item, work);
    run_wide(item);
    return work.take();
  }

 private:
  using Products = typename ProductsOf<C>::Type;

  const Item* run_narrow(const Item& item, WorkList& work) {
    const Item* after = nullptr;
    const int queries = item.num_kv_heads * rows_;
    narrow_.start(queries, dim_, width_);
    for (int h = 0; h < item.num_kv_heads; h++)
      for (int r = 0; r < rows_; r++) {
        const Q* query = query_row(item.kv_head + h, r);
        float* to = narrow_.q.data() + (h * rows_ + r) * dim_;
        for (int i = 0; i < dim_; i++) to[i] = to_float(query[i]) * shape_.scale;
      }
    products_.start(narrow_.q.data(), queries, dim_);
    for_tiles(item, kNarrowKeys, [&](int64_t key, bool last) {
      if (last) after = work.take();
      last ? look_ahead(after) : look_ahead(item, key + kNarrowKeys);
      for (int h = 0; h < item.num_kv_heads; h++) add_tile(item, h, key);
    });
    if (item.split < 0 || merge(item, work))
      for (int h = 0; h < item.num_kv_heads; h++) write_narrow(h, item.kv_head + h);
    return after;
  }

  // Leaves the part's results for the thread that comes to the last part, and returns whether this
  // is the one. It then has the results of all parts, added up in their order, whoever computed
  // them: with the weights of the online softmax (arXiv:1805.02867), as in flash decoding.
  bool merge(const Item& item, WorkList& work) {
    const int queries = item.num_kv_heads * rows_;
    const Partial own = work.partial(item.split, item.part, queries, width_);
    std::copy_n(narrow_.top.data(), queries, own.top);
    std::copy_n(narrow_.total.data(), queries, own.total);
    std::copy_n(narrow_.out.data(), queries * width_, own.out);
    if (!work.finish(item.split)) return false;
    narrow_.clear(queries, width_);
    for (int part = 0; part < work.parts(item.split); part++)
      narrow_.merge(work.partial(item.split, part, queries, width_), queries, width_);
    return true;
  }

  // The tile's part in the results of the item's head h.
  void add_tile(const Item& item, int h, int64_t key) {
    const int first = h * rows_, count = tile_.count;
    const int64_t offset = h * pages_.stride();
    if constexpr (kScaled<C>) find_scales(item, h, key);
    products_.score(tile_, offset, first, rows_, narrow_.scores, ahead_);
    for (int r = 0; r < rows_; r++)
      narrow_.softmax(first + r, narrow_.scores + r * kNarrowKeys, span(r, key, count),
                      shape_.soft_cap, width_);
    float* out = narrow_.out.data() + first * width_;
    products_.add(tile_, offset, rows_, narrow_.scores, out, ahead_);
  }

  void write_narrow(int h, int64_t kv_head) {
    for (int r = 0; r < rows_; r++) {
      int query = h * rows_ + r;
      float* out = narrow_.out.data() + query * width_;
      Products::in_order(out, width_);
      const float factor = 1.0f / narrow_.total[query];
      for (int i = 0; i < dim_; i++) out[i] *= factor;
      output_.write(first_token_ + r / group_, head(kv_head, r), out);
    }
  }

  void run_wide(const Item& item) {
    wide_.start(dim_);
    for (int r = 0; r < kWide; r++) {
      const Q* query = query_row(item.kv_head, std::min(r, rows_ - 1));  // lanes beyond: the last
      for (int i = 0; i < dim_; i++) wide_.q[i * kWide + r] = to_float(query[i]) * shape_.scale;
    }
    for_tiles(item, kWideKeys, [&](int64_t key, bool) {
      const int count = tile_.count;
      if constexpr (kScaled<C>) find_scales(item, 0, key);
      wide_.score(tile_, dim_, shape_.soft_cap);
      for (int r = 0; r < rows_; r++) {
        Span seen = span(r, key, count);
        if (seen.begin > 0 || seen.end < count) wide_.mask(r, seen, count);
      }
      wide_.softmax(count, dim_);
      wide_.add_values(tile_, dim_);
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
    return position(step_, item.row, item.first_query);
  }

  // Calls work(first key, whether it is the last tile) for each tile.
  template <typename Work>
  void for_tiles(const Item& item, int size, Work work) {
    for (int64_t key = item.begin; key < item.end; key += size) {
      find_rows(item, key, int(std::min<int64_t>(size, item.end - key)));
      work(key, key + size >= item.end);
    }
  }

  void look_ahead(const Item* item) {
    ahead_.clear();
    if (item != nullptr) look_ahead(*item, item->begin);
  }

  // The tile from `key` on is to be fetched meanwhile.
  void look_ahead(const Item& item, int64_t key) {
    const int32_t* table = step_.block_table + item.row * step_.table_stride;
    const int64_t end = std::min<int64_t>(key + kNarrowKeys, item.end);
    ahead_.clear();
    for (const void* pool : {cache_.k, cache_.v})
      for (int64_t block = key / cache_.block_size; block * cache_.block_size < end; block++) {
        int64_t page = int64_t(table[block]) * shape_.kv_heads + item.kv_head;
        ahead_.add(pages_.row(pool, page, 0), item.num_kv_heads * pages_.bytes());
      }
  }

  // Where the cached rows of a tile lie; the last one again where four are not whole.
  void find_rows(const Item& item, int64_t key, int count) {
    tile_.count = count;
    for_pages(item, 0, key, [&](int64_t page, int64_t offset, int first, int end) {
      const C* keys = pages_.row(cache_.k, page, offset);
      const C* values = pages_.row(cache_.v, page, offset);
      for (int j = first; j < end; j++) {
        tile_.keys[j] = keys + (j - first) * dim_;
        tile_.values[j] = values + (j - first) * dim_;
      }
    });
    for (int j = count; j % kFour != 0; j++) {
      tile_.keys[j] = tile_.keys[count - 1];
      tile_.values[j] = tile_.values[count - 1];
    }
  }

  // Those of the item's head h.
  void find_scales(const Item& item, int h, int64_t key) {
    for_pages(item, h, key, [&](int64_t page, int64_t offset, int first, int end) {
      const size_t bytes = (end - first) * sizeof(float);
      std::memcpy(tile_.key_scales + first, pages_.scale(cache_.k, page, offset), bytes);
      std::memcpy(tile_.value_scales + first, pages_.scale(cache_.v, page, offset), bytes);
    });
  }

  // Calls work(page of head h, its first row, the tile's keys there: first, end).
  template <typename Work>
  void for_pages(const Item& item, int h, int64_t key, Work work) const {
    const int32_t* table = step_.block_table + item.row * step_.table_stride;
    int64_t block = key / cache_.block_size, offset = key % cache_.block_size;
    for (int first = 0; first < tile_.count;) {
      int64_t page = int64_t(table[block++]) * shape_.kv_heads + item.kv_head + h;
      int end = int(std::min<int64_t>(tile_.count, first + cache_.block_size - offset));
      work(page, offset, first, end);
      first = end;
      offset = 0;
    }
  }

  const AttentionShape& shape_;
  const StepArgs& step_;
  const CacheArgs& cache_;
  const Q* queries_;
  const Output& output_;
  const int dim_, group_, width_;  // width_: floats in a row of sums
  const PageShape<C> pages_;
  int rows_ = 0;
  int64_t first_token_ = 0, first_position_ = 0;
  KeyTile<C> tile_;
  Stream ahead_;
  NarrowTile narrow_;
  WideTile wide_;
  Products products_;
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
  WorkList work(a.shape, a.step, row_of_sums<C>(a.shape));
  std::vector<float> partials(work.partial_floats());
  work.keep_partials(partials.data());
  PlainOutput<Q> output{static_cast<Q*>(a.out), a.shape.heads, a.shape.head_dim};
#pragma omp parallel
  attend<Q, C>(a.shape, a.step, a.cache, work, static_cast<const Q*>(a.q), output);
}

}  // namespace pagemill::PAGEMILL_ISA
