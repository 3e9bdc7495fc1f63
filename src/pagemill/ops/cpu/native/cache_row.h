// Where keys and values lie in the pages of a layer, and how they are written.
//
// A page is a block of one head: block_size rows of head_dim elements. Int8 codes have a float
// scale for each row behind all rows of the page, so that either is read as whole vectors.
#pragma once

#include <cstring>
#include <type_traits>

#include "activations.h"
#include "simd.h"

namespace pagemill::PAGEMILL_ISA {

template <typename C>
constexpr bool kScaled = std::is_same_v<C, Int8>;

// Of a row and its scale.
template <typename C>
constexpr int64_t row_bytes(int64_t dim) {
  return dim * int64_t(sizeof(C)) + (kScaled<C> ? int64_t(sizeof(float)) : 0);
}

constexpr float kSmallestTop = 1e-30f;  // a row of less is zero: its inverse might be infinite

template <typename C>
inline void store_row(const float* x, int64_t size, C* out) {
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) store(out + i, load(x + i));
  for (; i < size; i++) from_float(x[i], out + i);
}

// Rounds a row symmetrically, its greatest element to 127; returns the scale.
inline float round_to_codes(const float* x, int64_t size, Int8* out) {
  VecF tops{};
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) tops = max(tops, abs(load(x + i)));
  float top = max(tops);
  for (; i < size; i++) top = std::max(top, std::abs(x[i]));
  const float inverse = top > kSmallestTop ? kActivationTop / top : 0.0f;
  for (i = 0; i + kLanes <= size; i += kLanes)
    store_bytes(&out[i].code, nearest(load(x + i) * inverse));
  for (; i < size; i++) out[i].code = int8_t(nearest(broadcast(x[i] * inverse))[0]);
  return top / kActivationTop;
}

template <typename C>
struct PageShape {
  int64_t block_size, dim;

  int64_t bytes() const { return block_size * row_bytes<C>(dim); }

  // Elements between two pages.
  int64_t stride() const { return bytes() / int64_t(sizeof(C)); }

  const C* row(const void* pages, int64_t page, int64_t offset) const {
    return static_cast<const C*>(pages) + page * stride() + offset * dim;
  }

  // The scale of a row, as bytes: any head size is allowed, so it may lie anywhere.
  const char* scale(const void* pages, int64_t page, int64_t offset) const {
    static_assert(kScaled<C>);
    const char* first = static_cast<const char*>(pages) + page * stride() + block_size * dim;
    return first + offset * int64_t(sizeof(float));
  }

  void write(const float* x, C* pages, int64_t page, int64_t offset) const {
    C* to = pages + page * stride() + offset * dim;
    if constexpr (kScaled<C>) {
      const float unit = round_to_codes(x, dim, to);
      std::memcpy(const_cast<char*>(scale(pages, page, offset)), &unit, sizeof unit);
    } else {
      store_row(x, dim, to);
    }
  }
};

}  // namespace pagemill::PAGEMILL_ISA
