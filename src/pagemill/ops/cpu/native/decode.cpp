#include "decode.h"

#include <algorithm>

namespace pagemill {
namespace {

uint64_t mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

// Bit for bit sampling/random.py, which names the source: SplitMix64 as a counter.
double uniform(int64_t seed, int64_t index) {
  constexpr uint64_t kGamma = 0x9E3779B97F4A7C15u;
  uint64_t bits = mix(mix(uint64_t(seed) + kGamma) + uint64_t(index) * kGamma);
  return double(bits >> 11) * 0x1p-53;
}

void look_up_row(const SamplingColumns& from, int64_t slot, int64_t index, int64_t rows,
                 int64_t row, const SamplingOut& out) {
  const float* columns[] = {from.temperature, from.top_k, from.top_p, from.min_p};
  for (int i = 0; i < 4; i++) out.columns[i * rows + row] = columns[i][slot * from.stride];
  out.uniform[row] = uniform(from.seeds[slot], index);
}

}  // namespace

void look_up_sampling(const SamplingColumns& from, const int64_t* slots, const int64_t* index,
                      int64_t rows, const SamplingOut& out) {
  for (int64_t r = 0; r < rows; r++) look_up_row(from, slots[r], index[r], rows, r, out);
}

void decode_inputs(const SlotTable& table, const int64_t* slots, int64_t rows, int64_t block_size,
                   const DecodeOut& out) {
  const int64_t spare = table.slots - 1;
  int64_t *ids = out.longs, *positions = ids + rows, *mapping = positions + rows;
  for (int64_t r = 0; r < rows; r++) {
    const int64_t slot = slots[r], position = table.length[slot], block = position / block_size;
    const int32_t* blocks = table.block_table + slot * table.table_width;
    ids[r] = table.next_input[slot * table.input_stride];
    positions[r] = position;
    mapping[r] = slot == spare ? -1 : blocks[block] * block_size + position % block_size;
    out.seq_lens[r] = int32_t(position + 1);
    std::copy_n(blocks, block + 1, out.block_table + r * table.table_width);
    look_up_row(table.sampling, slot, position + 1, rows, r, out.sampling);
    if (slot == spare) out.sampling.columns[r] = 0.0f;
  }
}

void decode_advance(const SlotTable& table, const int64_t* slots, const int64_t* tokens,
                    int64_t rows, int32_t* out) {
  for (int64_t r = 0; r < rows; r++) {
    out[r] = int32_t(tokens[r]);
    if (slots[r] == table.slots - 1) continue;
    table.length[slots[r]]++;
    table.next_input[slots[r] * table.input_stride] = tokens[r];
  }
}

}  // namespace pagemill
