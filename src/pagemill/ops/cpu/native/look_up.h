// Rows of packed matrices as float32: a vocabulary's matrix serves as the embedding as well.
#pragma once

#include "group_linear.h"
#include "kernels.h"
#include "simd.h"

namespace pagemill::PAGEMILL_ISA {

// Row `c` of a tile of bfloat16 weights.
inline void read_half_row(const Matrix& m, const uint8_t* tile, int64_t c, float* out) {
  for (int64_t i = 0; i < m.in; i++) {
    BFloat16 value;
    std::memcpy(&value, tile + (i / 2 * kHalfChannels + c) * 4 + i % 2 * 2, sizeof value);
    out[i] = to_float(value);
  }
}

// Row `c` of a tile of weights in 4 or 8 bits.
inline void read_group_row(const Matrix& m, const uint8_t* tile, int64_t c, float* out) {
  for (int64_t g = 0; g < m.groups(); g++) {
    const uint8_t* block = tile + g * m.block_bytes();
    const Float16* scales = reinterpret_cast<const Float16*>(block);
    float scale = to_float(scales[c]);
    float offset = m.offsets ? to_float(scales[kChannels + c]) : m.bits == 4 ? kMiddle * scale : 0;
    const uint8_t* codes = block + m.scale_bytes();
    int64_t first = g * kGroup, count = std::min<int64_t>(kGroup, m.in - first);
    for (int64_t i = 0; i < count; i++)
      out[first + i] = scale * float(code_at(codes, m.bits, int(c), int(i))) + offset;
  }
}

inline void look_up(const LookUpArgs& a) {
  const Matrix& m = a.matrix;
#pragma omp parallel for if (a.rows > 8)
  for (int64_t r = 0; r < a.rows; r++) {
    const uint8_t* tile = m.packed + a.ids[r] / m.channels() * m.tile_bytes();
    int64_t c = a.ids[r] % m.channels();
    float* out = a.out + r * m.in;
    m.half() ? read_half_row(m, tile, c, out) : read_group_row(m, tile, c, out);
  }
}

}  // namespace pagemill::PAGEMILL_ISA
