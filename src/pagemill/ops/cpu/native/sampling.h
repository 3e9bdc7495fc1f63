// Tokens from logits, a row at a time: the greatest, or drawn after temperature, min-p, top-k and
// top-p. See sampling/sampler.py for what each means; a token is where the running weight, in the
// order of the vocabulary, passes the row's number (inverse transform sampling).
//
// Rows are cut into chunks. Their greatest logits say which chunks a filter leaves empty, and bound
// the k-th greatest logit, so that no row is ever sorted.
#pragma once

#include <omp.h>

#include <algorithm>
#include <cfloat>
#include <cmath>

#include "kernels.h"
#include "simd.h"

namespace pagemill::PAGEMILL_ISA {

constexpr int64_t kChunk = 64;
constexpr float kWeightless = 87.0f;  // distances from here on have no weight
constexpr int kDigitBits = 11, kDigits = 1 << kDigitBits;
constexpr float kStepsPerUnit = 131072.0f;  // resolution of the distances that top-p tells apart
constexpr int kMaxCode = (1 << (2 * kDigitBits)) - 1;

template <typename T>
int64_t greatest(const T* x, int64_t width) {
  VecF best = broadcast(-INFINITY);
  VecI at, index;
  for (int l = 0; l < kLanes; l++) at[l] = index[l] = l;
  int64_t i = 0;
  for (; i + kLanes <= width; i += kLanes, index += kLanes) {
    VecF v = load(x + i);
    VecI better = v > best;
    best = better ? v : best;
    at = better ? index : at;
  }
  float top = -INFINITY;
  int64_t place = 0;
  for (int l = 0; l < kLanes && i; l++)
    if (best[l] > top || (best[l] == top && at[l] < place)) top = best[l], place = at[l];
  for (; i < width; i++)
    if (to_float(x[i]) > top) top = to_float(x[i]), place = i;
  return place;
}

// What a row needs for a while; all but the last have kChunk entries a chunk, -inf behind the row.
struct DrawScratch {
  float* scaled;   // logits divided by the temperature
  float* weights;  // exp(-distance) of those that are kept, 0 of the others
  float* tops;     // [chunks] the greatest of `scaled`
  double* sums;    // [chunks] of `weights`

  static int64_t bytes(int64_t width) {
    int64_t chunks = (width + kChunk - 1) / kChunk;
    return chunks * (2 * kChunk * sizeof(float) + sizeof(double) + sizeof(double));
  }

  DrawScratch(char* memory, int64_t width) {
    int64_t chunks = (width + kChunk - 1) / kChunk;
    sums = reinterpret_cast<double*>(memory);
    scaled = reinterpret_cast<float*>(sums + chunks);
    weights = scaled + chunks * kChunk;
    tops = weights + chunks * kChunk;
  }
};

class Drawing {
 public:
  Drawing(const DrawScratch& scratch, int64_t width)
      : s_(scratch), width_(width), chunks_((width + kChunk - 1) / kChunk) {}

  template <typename T>
  void scale(const T* x, float temperature) {
    for (int64_t i = width_; i < chunks_ * kChunk; i++) s_.scaled[i] = -INFINITY;
    float top = -FLT_MAX;  // a row may hold nothing but -inf, which is no number to subtract from
    for (int64_t c = 0; c < chunks_; c++) {
      float* to = s_.scaled + c * kChunk;
      const int64_t count = std::min(kChunk, width_ - c * kChunk);
      VecF tops = broadcast(-INFINITY);
      int64_t i = 0;
      for (; i + kLanes <= count; i += kLanes) {
        VecF v = load(x + c * kChunk + i) / temperature;
        store(to + i, v);
        tops = pagemill::PAGEMILL_ISA::max(tops, v);
      }
      float chunk_top = max(tops);
      for (; i < count; i++) {
        to[i] = to_float(x[c * kChunk + i]) / temperature;
        chunk_top = std::max(chunk_top, to[i]);
      }
      s_.tops[c] = chunk_top;
      top = std::max(top, chunk_top);
    }
    top_ = top;
  }

  // The distance of the k-th nearest token, 0 < k < width. The k-th greatest of the chunks' tops
  // is at least k tokens away from the top, so only what is no farther needs to be looked at.
  float top_k_limit(int64_t k) {
    float least = -INFINITY;
    float* found = s_.weights;  // not in use yet
    if (k <= chunks_) {
      std::copy_n(s_.tops, chunks_, found);
      std::nth_element(found, found + k - 1, found + chunks_, std::greater<float>());
      least = found[k - 1];
    }
    int64_t count = 0;
    for (int64_t c = 0; c < chunks_; c++) {
      if (!(s_.tops[c] >= least)) continue;
      for (int64_t i = c * kChunk; i < std::min(width_, (c + 1) * kChunk); i++)
        if (s_.scaled[i] >= least) found[count++] = s_.scaled[i];
    }
    if (count < k) return INFINITY;  // some are no numbers
    std::nth_element(found, found + k - 1, found + count, std::greater<float>());
    return top_ - found[k - 1];
  }

  // The weights of all tokens up to a distance; what they add up to.
  double weigh(float limit) {
    double total = 0;
    for (int64_t c = 0; c < chunks_; c++) {
      VecF sums{};
      if (top_ - s_.tops[c] <= limit) {
        for (int64_t i = c * kChunk; i < (c + 1) * kChunk; i += kLanes) {
          VecF distance = top_ - load(s_.scaled + i);
          VecI kept = (distance <= limit) & (distance < kWeightless);
          VecF weight = kept ? exp(-distance) : VecF{};
          store(s_.weights + i, weight);
          sums += weight;
        }
      }
      s_.sums[c] = sum(sums);
      total += s_.sums[c];
    }
    return total;
  }

  // The distance up to which weights add up to `target`, less than their total. A radix search of
  // two digits over distances in fixed point, among those near enough to matter.
  float top_p_limit(double target) {
    float near = 2;
    while (near < 64 && within(near) < target) near *= 2;
    double before = 0;
    const int high = find(near, -1, target, &before);
    const int low = find(near, high, target, &before);
    const int code = (high << kDigitBits) + low;
    return code >= kMaxCode ? INFINITY : std::nextafter(float(code + 1) / kStepsPerUnit, 0.0f);
  }

  // Where the running weight passes `number` of the total > 0.
  int64_t pick(double number, double total) const {
    const double target = number * total;
    double before = 0;
    int64_t chunk = -1;
    for (int64_t c = 0; c < chunks_; c++) {
      if (s_.sums[c] <= 0) continue;
      if (chunk >= 0) before += s_.sums[chunk];
      chunk = c;
      if (before + s_.sums[c] > target) break;
    }
    // Weights of a chunk may add up to something else than the vectors did: go by the share.
    const float* weights = s_.weights + chunk * kChunk;
    double all = 0, running = 0;
    for (int64_t i = 0; i < kChunk; i++) all += weights[i];
    const double wanted = (target - before) / s_.sums[chunk] * all;
    int64_t place = 0;
    for (int64_t i = 0; i < kChunk; i++) {
      if (weights[i] <= 0) continue;
      place = i;
      running += weights[i];
      if (running > wanted) break;
    }
    return chunk * kChunk + place;
  }

 private:
  // The weight up to a distance.
  double within(float near) const {
    double total = 0;
    for (int64_t c = 0; c < chunks_; c++) {
      if (s_.sums[c] <= 0 || top_ - s_.tops[c] > near) continue;
      VecF sums{};
      for (int64_t i = c * kChunk; i < (c + 1) * kChunk; i += kLanes)
        sums += top_ - load(s_.scaled + i) <= near ? load(s_.weights + i) : VecF{};
      total += sum(sums);
    }
    return total;
  }

  // The first digit at which weights reach `target`; `before` becomes the sum in front of it. The
  // high digit for `high` -1, else the low one of distances with that high digit.
  int find(float near, int high, double target, double* before) const {
    double by_digit[kDigits] = {};
    for (int64_t c = 0; c < chunks_; c++) {
      if (s_.sums[c] <= 0 || top_ - s_.tops[c] > near) continue;
      for (int64_t i = c * kChunk; i < (c + 1) * kChunk; i++) {
        if (s_.weights[i] <= 0) continue;
        int code = int(std::min((top_ - s_.scaled[i]) * kStepsPerUnit, float(kMaxCode)));
        if (high < 0)
          by_digit[code >> kDigitBits] += s_.weights[i];
        else if (code >> kDigitBits == high)
          by_digit[code & (kDigits - 1)] += s_.weights[i];
      }
    }
    for (int digit = 0; digit < kDigits - 1; digit++) {
      if (*before + by_digit[digit] >= target) return digit;
      *before += by_digit[digit];
    }
    return kDigits - 1;
  }

  DrawScratch s_;
  int64_t width_, chunks_;
  float top_ = 0;
};

template <typename T>
int64_t draw_row(const SampleArgs& a, int64_t row, char* memory) {
  const T* x = static_cast<const T*>(a.logits) + row * a.stride;
  const float temperature = a.temperature[row];
  if (!(temperature > 0)) return greatest(x, a.width);
  Drawing drawing(DrawScratch(memory, a.width), a.width);
  drawing.scale(x, temperature);
  float limit = a.min_p[row] > 0 ? -std::log(a.min_p[row]) : INFINITY;
  const int64_t k = int64_t(a.top_k[row]);
  if (0 < k && k < a.width) limit = std::min(limit, drawing.top_k_limit(k));
  double total = drawing.weigh(limit);
  if (a.top_p[row] < 1 && total > 0)
    total = drawing.weigh(std::min(limit, drawing.top_p_limit(total * double(a.top_p[row]))));
  return total > 0 ? drawing.pick(a.uniform[row], total) : greatest(x, a.width);
}

template <typename T>
void sample(const SampleArgs& a) {
  const int64_t bytes = (DrawScratch::bytes(a.width) + 63) / 64 * 64;
  char* memory = a.workspace->get<char>(Workspace::kDrawing, bytes * omp_get_max_threads());
#pragma omp parallel for schedule(dynamic) if (a.rows > 1)
  for (int64_t r = 0; r < a.rows; r++)
    a.tokens[r] = draw_row<T>(a, r, memory + bytes * omp_get_thread_num());
}

template <typename T>
void argmax(const ArgmaxArgs& a) {
#pragma omp parallel for if (a.rows > 1)
  for (int64_t r = 0; r < a.rows; r++)
    a.tokens[r] = greatest(static_cast<const T*>(a.logits) + r * a.stride, a.width);
}

}  // namespace pagemill::PAGEMILL_ISA
