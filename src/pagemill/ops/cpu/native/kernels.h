// The table of kernels that one instruction set provides. See ops/reference.py for what each does.
#pragma once

#include <cstdint>

namespace pagemill {

enum class Type : int { kFloat32 = 0, kBFloat16 = 1 };
enum class Gate : int { kSilu = 0, kGeluTanh = 1 };

struct NormArgs {
  const void* x;       // [rows, size]
  void* residual;      // [rows, size], or null: no residual
  const float* weight; // [size]
  void* out;           // [rows, size]
  int64_t rows, size;
  int64_t x_stride;    // elements between rows of x
  float eps;
};

struct GateArgs {
  const void* x; // [rows, 2 size]
  void* out;     // [rows, size]
  int64_t rows, size;
  Gate gate;
};

struct RopeCacheArgs {
  const void* qkv; // [tokens, (heads + 2 kv_heads) head_dim]
  void* q;         // [tokens, heads, head_dim]
  void* k_cache;   // [blocks, kv_heads, block_size, head_dim]
  void* v_cache;
  const int64_t* positions;    // [tokens]
  const int64_t* slot_mapping; // [tokens], -1: do not write
  const float* cos_sin;        // [max_position, head_dim]: cosines, then sines
  const float* q_norm;         // [head_dim] or null
  const float* k_norm;
  int64_t tokens, heads, kv_heads, head_dim, block_size;
  float eps;
};

struct AttentionArgs {
  const void* q; // [tokens, heads, head_dim]
  void* out;     // as q
  const void* k_cache;
  const void* v_cache;
  const int32_t* block_table; // [rows, table_stride]
  const int32_t* query_start; // [rows + 1]
  const int32_t* seq_lens;    // [rows]
  int64_t rows, heads, kv_heads, head_dim, block_size, table_stride;
  float scale, soft_cap; // soft_cap 0: none
  int64_t window;        // 0: none
};

struct Int8LinearArgs {
  const void* x;        // [rows, in]
  const int8_t* weight; // packed, see int8_linear.h
  const float* scale;   // [out]
  const float* bias;    // [out] or null
  void* out;            // [rows, out]
  int64_t rows, in, outs;
};

struct Kernels {
  const char* name;
  void (*rms_norm)(Type, const NormArgs&);
  void (*gate_mul)(Type, const GateArgs&);
  void (*rope_cache)(Type, const RopeCacheArgs&);
  void (*attention)(Type, const AttentionArgs&);
  void (*int8_linear)(Type, const Int8LinearArgs&);
};

}  // namespace pagemill
