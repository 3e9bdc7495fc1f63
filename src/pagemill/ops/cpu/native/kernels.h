// The table of kernels that one instruction set provides. See ops/reference.py for what each does.
#pragma once

#include <cstdint>

#include "workspace.h"

namespace pagemill {

constexpr int kGroup = 32;     // inputs that share a scale
constexpr int kChannels = 16;  // output channels in a packed tile
constexpr int kHalfChannels = 32;  // the same of bfloat16 weights
constexpr int kHalfBits = 16;

enum class Type : int { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2, kInt8 = 3 };
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

// A step's rows, packed: row i owns tokens query_start[i] to query_start[i + 1].
struct StepArgs {
  const int64_t* positions;    // [tokens]
  const int64_t* slot_mapping; // [tokens], -1: do not write
  const int32_t* block_table;  // [rows, table_stride]
  const int32_t* query_start;  // [rows + 1]
  const int32_t* seq_lens;     // [rows]
  int64_t rows, tokens, table_stride;
};

// The pages of one layer, [blocks, kv_heads, block_size, head_dim] each. Int8 ones hold codes, and
// behind those of a block and head a float scale for each token: see ops/int8_cache.py.
struct CacheArgs {
  void* k;
  void* v;
  Type type;
  int64_t block_size;
};

struct AttentionShape {
  int64_t heads, kv_heads, head_dim;
  float scale, soft_cap; // soft_cap 0: none
  int64_t window;        // 0: none
};

struct RopeArgs {
  const float* cos_sin; // [max_position, head_dim]: cosines, then sines
  const float* q_norm;  // [head_dim] or null
  const float* k_norm;
  float eps;
};

struct RopeCacheArgs {
  const void* qkv; // [tokens, (heads + 2 kv_heads) head_dim]
  void* q;         // [tokens, heads, head_dim]
  AttentionShape shape;
  StepArgs step;
  CacheArgs cache;
  RopeArgs rope;
};

struct AttentionArgs {
  const void* q; // [tokens, heads, head_dim]
  void* out;     // as q
  AttentionShape shape;
  StepArgs step;
  CacheArgs cache;
};

// Weights of 4 or 8 bits, see group_linear.h for their layout, or bfloat16, see half_linear.h.
struct Matrix {
  const uint8_t* packed;
  const float* bias; // [outs] or null
  int64_t in, outs;
  int bits;
  bool offsets;
  bool coarse; // products of many rows may take coarser codes, see coarse_linear.h

  bool half() const { return bits == kHalfBits; }
  int64_t channels() const { return half() ? kHalfChannels : kChannels; }
  int64_t tiles() const { return (outs + channels() - 1) / channels(); }
  int64_t groups() const { return (in + kGroup - 1) / kGroup; }
  int64_t scale_bytes() const { return half() ? 0 : kChannels * (offsets ? 4 : 2); }
  int64_t block_bytes() const { return scale_bytes() + channels() * kGroup * bits / 8; }
  int64_t tile_bytes() const { return groups() * block_bytes(); }
};

struct GroupLinearArgs {
  const void* x; // [rows, in]
  void* out;     // [rows, outs]
  int64_t rows;
  Matrix matrix;
  Workspace* workspace;
};

struct LookUpArgs {
  const int64_t* ids; // [rows]
  float* out;         // [rows, in]
  int64_t rows;
  Matrix matrix;
};

struct ArgmaxArgs {
  const void* logits; // [rows, width]
  int64_t stride;     // elements between rows
  int64_t rows, width;
  int64_t* tokens; // [rows]
};

struct SampleArgs {
  const void* logits; // [rows, width]
  int64_t stride;
  int64_t rows, width;
  const float* temperature; // [rows] each; 0: greedy
  const float* top_k;       // 0 or the width: off
  const float* top_p;       // 1: off
  const float* min_p;       // 0: off
  const double* uniform;    // in [0, 1]
  int64_t* tokens;          // [rows]
  Workspace* workspace;
};

// A pre-norm decoder layer; the norms behind attention and MLP are Gemma's, null elsewhere.
struct LayerArgs {
  Matrix qkv, o, gate_up, down;
  const float* input_norm; // [hidden] each
  const float* after_attention;
  const float* mlp_norm;
  const float* after_mlp;
  float eps;
  Gate gate;
  AttentionShape shape;
  RopeArgs rope;
};

// Layers that follow each other, each with its step and cache.
struct LayersRun {
  const LayerArgs* const* layers;
  const StepArgs* const* steps;
  const CacheArgs* const* caches;
  int64_t count;
  float* residual; // [tokens, hidden]
  Workspace* workspace;
};

struct Kernels {
  const char* name;
  void (*rms_norm)(Type, const NormArgs&);
  void (*gate_mul)(Type, const GateArgs&);
  void (*rope_cache)(Type, const RopeCacheArgs&);
  void (*attention)(Type, const AttentionArgs&);
  void (*group_linear)(Type, const GroupLinearArgs&);
  void (*look_up)(const LookUpArgs&);
  void (*layers)(const LayersRun&);
  void (*argmax)(Type, const ArgmaxArgs&);
  void (*sample)(Type, const SampleArgs&);
};

}  // namespace pagemill
