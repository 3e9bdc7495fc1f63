// The work of an attention call: items, which threads take one by one.
#pragma once

#include <omp.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <vector>

#include "attention_tiles.h"
#include "kernels.h"

namespace pagemill::PAGEMILL_ISA {

// A row's keys are split where few queries read more than this: into equal parts, by their number
// alone, so that results depend on neither threads nor other rows.
constexpr int64_t kPartKeys = 512;

struct Item {
  int32_t row, kv_head, num_kv_heads, first_query, num_queries;
  int32_t begin, end;   // keys
  int32_t split, part;  // split -1: all keys that the queries see
};

// The position of a query of a row.
inline int64_t position(const StepArgs& step, int64_t row, int64_t query) {
  return step.seq_lens[row] - (step.query_start[row + 1] - step.query_start[row]) + query;
}

class WorkList {
 public:
  // `width`: floats in a query's sums of values. If partial_floats() is not 0, keep_partials is
  // to be called before anything is taken.
  WorkList(const AttentionShape& shape, const StepArgs& step, int width)
      : shape_(shape), step_(step), width_(width), group_(int32_t(shape.heads / shape.kv_heads)) {
    int64_t parts = 0;
    for (int64_t r = 0; r < step.rows; r++) parts += few(r) ? parts_of(r) : 1;
    const int threads = omp_get_max_threads();
    const bool enough = parts >= 2 * threads || parts % threads == 0;
    for (int32_t r = 0; r < step.rows; r++) few(r) ? add_few(r, enough) : add_tiles(r);
    left_.reset(new std::atomic<int32_t>[splits_.size()]);
    for (size_t s = 0; s < splits_.size(); s++) left_[s] = splits_[s].parts;
  }

  int64_t size() const { return int64_t(items_.size()); }

  // Null after the last one.
  const Item* take() {
    size_t i = taken_.fetch_add(1, std::memory_order_relaxed);
    return i < items_.size() ? &items_[i] : nullptr;
  }

  int64_t partial_floats() const { return partial_floats_; }
  void keep_partials(float* memory) { partials_ = memory; }

  int parts(int split) const { return splits_[split].parts; }

  Partial partial(int split, int part, int queries, int width) const {
    float* top = partials_ + splits_[split].first + int64_t(part) * queries * (width + 2);
    return {top, top + queries, top + 2 * queries};
  }

  // Whether all parts are there now, after this one.
  bool finish(int split) { return left_[split].fetch_sub(1, std::memory_order_acq_rel) == 1; }

 private:
  struct Split {
    int32_t parts;
    int64_t first;  // float of its partial results
  };

  int32_t queries(int64_t row) const {
    return step_.query_start[row + 1] - step_.query_start[row];
  }

  bool few(int64_t row) const { return queries(row) * group_ <= kNarrow; }

  // The first key that a query or one behind it sees.
  int64_t first_key(int64_t row, int64_t query) const {
    if (shape_.window == 0) return 0;
    return std::max<int64_t>(0, position(step_, row, query) - shape_.window + 1);
  }

  int64_t parts_of(int64_t row) const {
    const int64_t keys = step_.seq_lens[row] - first_key(row, 0);
    return std::max<int64_t>(1, (keys + kPartKeys - 1) / kPartKeys);
  }

  // All queries in each item, with all heads if there are enough of such.
  void add_few(int32_t row, bool enough) {
    const int32_t heads = int32_t(shape_.kv_heads), each = enough ? heads : 1;
    const int32_t count = queries(row), parts = int32_t(parts_of(row));
    if (count == 0) return;
    const int64_t first = first_key(row, 0), end = step_.seq_lens[row];
    const int64_t size = (end - first + parts * kNarrowKeys - 1) / (parts * kNarrowKeys) * kNarrowKeys;
    for (int32_t h = 0; h < heads; h += each) {
      const int32_t split = parts > 1 ? add_split(parts, each * count * group_) : -1;
      for (int32_t p = 0; p < parts; p++) {
        const int64_t begin = std::min(first + p * size, end);
        items_.push_back({row, h, each, 0, count, int32_t(begin),
                          int32_t(std::min(begin + size, end)), split, p});
      }
    }
  }

  int32_t add_split(int32_t parts, int32_t queries) {
    splits_.push_back({parts, partial_floats_});
    partial_floats_ += int64_t(parts) * queries * (width_ + 2);
    return int32_t(splits_.size()) - 1;
  }

  // Tiles of queries, the longest first.
  void add_tiles(int32_t row) {
    const int32_t tile = std::max<int32_t>(1, kWide / group_), count = queries(row);
    for (int32_t first = (count + tile - 1) / tile * tile - tile; first >= 0; first -= tile) {
      const int32_t some = std::min(tile, count - first);
      const int32_t end = int32_t(position(step_, row, first)) + some;
      for (int32_t h = 0; h < int32_t(shape_.kv_heads); h++)
        items_.push_back({row, h, 1, first, some, int32_t(first_key(row, first)), end, -1, 0});
    }
  }

  const AttentionShape& shape_;
  const StepArgs& step_;
  const int width_;
  const int32_t group_;
  std::vector<Item> items_;
  std::vector<Split> splits_;
  std::unique_ptr<std::atomic<int32_t>[]> left_;  // parts to come, of each split
  int64_t partial_floats_ = 0;
  float* partials_ = nullptr;
  std::atomic<size_t> taken_{0};
};

}  // namespace pagemill::PAGEMILL_ISA
