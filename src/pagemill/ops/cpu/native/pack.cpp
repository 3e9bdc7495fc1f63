// From rows to the tiles of group_linear.h (codes, scales and offsets) and half_linear.h.
#include "pack.h"

#include <algorithm>
#include <cstring>

namespace pagemill {
namespace {

void copy_halves(const uint16_t* from, int64_t channel, int64_t channels, int64_t groups,
                 int64_t group, uint8_t* to) {
  uint16_t halves[kChannels] = {};
  for (int64_t c = 0; c < channels; c++) halves[c] = from[(channel + c) * groups + group];
  std::memcpy(to, halves, sizeof halves);
}

// One block's codes; channels beyond the matrix stay zero, and so do their scales.
void pack_codes(const uint8_t* const* rows, int64_t channels, int bits, uint8_t* to) {
  for (int64_t c = 0; c < channels; c++)
    for (int i = 0; i < kGroup; i++) {
      int quad = i / 4, within = i % 4;
      if (bits == 8)
        to[quad * 64 + c * 4 + within] = rows[c][i];
      else
        to[quad / 2 * 64 + c * 4 + within] |= uint8_t((rows[c][i] & 15) << quad % 2 * 4);
    }
}

}  // namespace

void pack(const PackArgs& a, const Matrix& m, uint8_t* out) {
  const int64_t groups = m.groups(), tiles = m.tiles();
  std::memset(out, 0, size_t(tiles * m.tile_bytes()));
#pragma omp parallel for
  for (int64_t t = 0; t < tiles; t++) {
    int64_t channel = t * kChannels, channels = std::min<int64_t>(kChannels, m.outs - channel);
    for (int64_t g = 0; g < groups; g++) {
      uint8_t* block = out + t * m.tile_bytes() + g * m.block_bytes();
      copy_halves(a.scales, channel, channels, groups, g, block);
      block += 2 * kChannels;
      if (m.offsets) {
        copy_halves(a.offsets, channel, channels, groups, g, block);
        block += 2 * kChannels;
      }
      const uint8_t* rows[kChannels];
      for (int64_t c = 0; c < channels; c++)
        rows[c] = a.codes + ((channel + c) * groups + g) * kGroup;
      pack_codes(rows, channels, m.bits, block);
    }
  }
}

void pack_half(const uint16_t* weights, int64_t first, int64_t rows, const Matrix& m,
               uint8_t* out) {
  const int64_t last = first + rows;
#pragma omp parallel for
  for (int64_t t = first / kHalfChannels; t < (last + kHalfChannels - 1) / kHalfChannels; t++) {
    uint8_t* tile = out + t * m.tile_bytes();
    int64_t begin = std::max(first, t * kHalfChannels);
    int64_t end = std::min(last, (t + 1) * kHalfChannels);
    for (int64_t i = 0; i < m.in; i += 2)
      for (int64_t row = begin; row < end; row++) {
        const uint16_t* from = weights + (row - first) * m.in + i;
        uint16_t pair[2] = {from[0], i + 1 < m.in ? from[1] : uint16_t(0)};
        std::memcpy(tile + (i / 2 * kHalfChannels + row % kHalfChannels) * 4, pair, sizeof pair);
      }
  }
}

}  // namespace pagemill
