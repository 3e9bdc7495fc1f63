// Packing of weights, done once when a model is loaded.
#pragma once

#include "kernels.h"

namespace pagemill {

struct PackArgs {
  const uint8_t* codes;    // [outs, groups * kGroup]: 0 to 15 in 4 bits, else int8
  const uint16_t* scales;  // float16 [outs, groups]
  const uint16_t* offsets; // float16 [outs, groups], where the matrix has offsets
};

// Fills the ceil(outs / kChannels) tiles of a matrix.
void pack(const PackArgs& args, const Matrix& matrix, uint8_t* out);

// Writes bfloat16 rows [rows, in] into the (zeroed) tiles of a matrix, from its row `first` on.
void pack_half(const uint16_t* weights, int64_t first, int64_t rows, const Matrix& matrix,
               uint8_t* out);

}  // namespace pagemill
