// What a step of resident rows does around the model: look its inputs up by slot, and move on.
#pragma once

#include <cstdint>

namespace pagemill {

// How slots sample: columns of one table, `stride` floats from slot to slot.
struct SamplingColumns {
  const float* temperature;
  const float* top_k;
  const float* top_p;
  const float* min_p;
  const int64_t* seeds;
  int64_t stride;
};

// What is remembered of each slot. The last one is spare: its rows write nowhere and are greedy.
struct SlotTable {
  int64_t* length;            // [slots] tokens in the cache
  int64_t* next_input;        // [slots, input_stride]
  const int32_t* block_table; // [slots, table_width]
  int64_t slots, input_stride, table_width;
  SamplingColumns sampling;
};

// The fields of SamplingRows of ops/sampling.py, [rows] each.
struct SamplingOut {
  float* columns;  // [4, rows]: temperature, top-k, top-p, min-p
  double* uniform;
};

// The fields of DecodeInputs of ops/decode.py.
struct DecodeOut {
  int64_t* longs;       // [3, rows]: ids, positions, places in the cache
  int32_t* seq_lens;    // [rows]
  int32_t* block_table; // [rows, table_width], set as far as the row reaches
  SamplingOut sampling;
};

void look_up_sampling(const SamplingColumns& from, const int64_t* slots, const int64_t* index,
                      int64_t rows, const SamplingOut& out);
void decode_inputs(const SlotTable& table, const int64_t* slots, int64_t rows, int64_t block_size,
                   const DecodeOut& out);
void decode_advance(const SlotTable& table, const int64_t* slots, const int64_t* tokens,
                    int64_t rows, int32_t* out);

}  // namespace pagemill
