// The Python module. Addresses come as integers: torch's own dlpack export costs more than most
// of these kernels on a small batch. The callers in ops/cpu check shapes, types and strides, and
// keep the tensors alive whose addresses these objects hold.
#include <nanobind/nanobind.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <vector>

#include "decode.h"
#include "kernels.h"
#include "pack.h"

namespace nb = nanobind;
using namespace pagemill;

namespace pagemill {
namespace baseline {
const Kernels& kernels();
}
namespace avx2 {
const Kernels& kernels();
}
namespace avx512 {
const Kernels& kernels();
}
namespace avx512bf16 {
const Kernels& kernels();
}
}  // namespace pagemill

namespace {

// What this processor can run, the best first.
std::vector<const Kernels*> supported() {
  std::vector<const Kernels*> tables;
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")) {
    if (__builtin_cpu_supports("avx512bf16")) tables.push_back(&avx512bf16::kernels());
    tables.push_back(&avx512::kernels());
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
      __builtin_cpu_supports("f16c"))
    tables.push_back(&avx2::kernels());
#endif
  tables.push_back(&baseline::kernels());
  return tables;
}

// The best, or what the environment names: a means to test and time the others.
const Kernels& select() {
  const char* asked = std::getenv("PAGEMILL_CPU_ISA");
  for (const Kernels* table : supported())
    if (!asked || std::string(asked) == table->name) return *table;
  throw std::invalid_argument("PAGEMILL_CPU_ISA names no instruction set of this processor: " +
                              std::string(asked));
}

const Kernels& chosen() {
  static const Kernels& table = select();
  return table;
}

// For steps of some rows with weights in bfloat16. Intel's cores start a product of bfloat16 pairs in
// every other cycle, but two of floats in each, so widened weights are faster where several rows
// share the widening. AMD's start as many of either.
const Kernels& for_halves(int64_t rows) {
#if defined(__x86_64__)
  constexpr int64_t kSeveral = 16;
  static const bool floats = !std::getenv("PAGEMILL_CPU_ISA") && __builtin_cpu_is("intel") &&
                             &chosen() == &avx512bf16::kernels();
  if (floats && rows >= kSeveral) return avx512::kernels();
#endif
  return chosen();
}

template <typename T>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

void rms_norm(int type, uintptr_t x, uintptr_t residual, uintptr_t weight, uintptr_t out,
              int64_t rows, int64_t size, int64_t x_stride, float eps) {
  chosen().rms_norm(Type(type), {at<void>(x), at<void>(residual), at<float>(weight), at<void>(out),
                                 rows, size, x_stride, eps});
}

void gate_mul(int type, uintptr_t x, uintptr_t out, int64_t rows, int64_t size, int gate) {
  chosen().gate_mul(Type(type), {at<void>(x), at<void>(out), rows, size, Gate(gate)});
}

void rope_cache(int type, uintptr_t qkv, uintptr_t q, const AttentionShape& shape,
                const StepArgs& step, const CacheArgs& cache, const RopeArgs& rope) {
  chosen().rope_cache(Type(type), {at<void>(qkv), at<void>(q), shape, step, cache, rope});
}

void attention(int type, uintptr_t q, uintptr_t out, const AttentionShape& shape,
               const StepArgs& step, const CacheArgs& cache) {
  chosen().attention(Type(type), {at<void>(q), at<void>(out), shape, step, cache});
}

void group_linear(int type, uintptr_t x, uintptr_t out, int64_t rows, const Matrix& matrix,
                  Workspace& workspace) {
  const Kernels& kernels = matrix.half() ? for_halves(rows) : chosen();
  kernels.group_linear(Type(type), {at<void>(x), at<void>(out), rows, matrix, &workspace});
}

void pack_matrix(const Matrix& matrix, uintptr_t codes, uintptr_t scales, uintptr_t offsets,
                 uintptr_t out) {
  pack({at<uint8_t>(codes), at<uint16_t>(scales), at<uint16_t>(offsets)}, matrix,
       at<uint8_t>(out));
}

void pack_half_rows(const Matrix& matrix, uintptr_t weights, int64_t first, int64_t rows,
                    uintptr_t out) {
  pack_half(at<uint16_t>(weights), first, rows, matrix, at<uint8_t>(out));
}

// So few rows take some microseconds: giving the interpreter's lock away for them would cost as much
// as another thread then keeps it.
constexpr int64_t kFewRows = 8;

void look_up(const Matrix& matrix, uintptr_t ids, int64_t rows, uintptr_t out) {
  auto inside = [&](int64_t id) { return 0 <= id && id < matrix.outs; };
  if (!std::all_of(at<int64_t>(ids), at<int64_t>(ids) + rows, inside))
    throw std::out_of_range("a row beyond the matrix");
  LookUpArgs args{at<int64_t>(ids), at<float>(out), rows, matrix};
  if (rows <= kFewRows) return chosen().look_up(args);
  nb::gil_scoped_release without_lock;
  chosen().look_up(args);
}

void run_layers(const std::vector<const LayerArgs*>& layers, uintptr_t residual,
                const std::vector<const StepArgs*>& steps,
                const std::vector<const CacheArgs*>& caches, Workspace& workspace) {
  if (steps.size() != layers.size() || caches.size() != layers.size())
    throw std::invalid_argument("a step and a cache for each layer");
  if (layers.empty()) return;
  const Kernels& kernels = layers[0]->qkv.half() ? for_halves(steps[0]->tokens) : chosen();
  kernels.layers({layers.data(), steps.data(), caches.data(), int64_t(layers.size()),
                  at<float>(residual), &workspace});
}

void argmax(int type, uintptr_t logits, int64_t stride, int64_t rows, int64_t width,
            uintptr_t tokens) {
  chosen().argmax(Type(type), {at<void>(logits), stride, rows, width, at<int64_t>(tokens)});
}

void sample(int type, uintptr_t logits, int64_t stride, int64_t rows, int64_t width,
            uintptr_t temperature, uintptr_t top_k, uintptr_t top_p, uintptr_t min_p,
            uintptr_t uniform, uintptr_t tokens, Workspace& workspace) {
  chosen().sample(Type(type), {at<void>(logits), stride, rows, width, at<float>(temperature),
                               at<float>(top_k), at<float>(top_p), at<float>(min_p),
                               at<double>(uniform), at<int64_t>(tokens), &workspace});
}

void sampling_rows(const SamplingColumns& from, uintptr_t slots, uintptr_t index, int64_t rows,
                   uintptr_t columns, uintptr_t uniform) {
  look_up_sampling(from, at<int64_t>(slots), at<int64_t>(index), rows,
                   {at<float>(columns), at<double>(uniform)});
}

void step_inputs(const SlotTable& table, uintptr_t slots, int64_t rows, int64_t block_size,
                 uintptr_t longs, uintptr_t seq_lens, uintptr_t block_table, uintptr_t columns,
                 uintptr_t uniform) {
  decode_inputs(table, at<int64_t>(slots), rows, block_size,
                {at<int64_t>(longs), at<int32_t>(seq_lens), at<int32_t>(block_table),
                 {at<float>(columns), at<double>(uniform)}});
}

void step_advance(const SlotTable& table, uintptr_t slots, uintptr_t tokens, int64_t rows,
                  uintptr_t out) {
  decode_advance(table, at<int64_t>(slots), at<int64_t>(tokens), rows, at<int32_t>(out));
}

void bind_values(nb::module_& m) {
  nb::class_<Workspace>(m, "Workspace").def(nb::init<>());
  nb::class_<Matrix>(m, "Matrix")
      .def("__init__",
           [](Matrix* self, uintptr_t packed, uintptr_t bias, int64_t in, int64_t outs, int bits,
              bool offsets, bool coarse) {
             new (self) Matrix{at<uint8_t>(packed), at<float>(bias), in, outs, bits, offsets,
                               coarse};
           })
      .def("packed_bytes",
           [](const Matrix& m) { return m.tiles() * m.tile_bytes(); });
  nb::class_<AttentionShape>(m, "AttentionShape")
      .def("__init__", [](AttentionShape* self, int64_t heads, int64_t kv_heads, int64_t head_dim,
                          float scale, float soft_cap, int64_t window) {
        new (self) AttentionShape{heads, kv_heads, head_dim, scale, soft_cap, window};
      });
  nb::class_<RopeArgs>(m, "Rope").def(
      "__init__",
      [](RopeArgs* self, uintptr_t cos_sin, uintptr_t q_norm, uintptr_t k_norm, float eps) {
        new (self) RopeArgs{at<float>(cos_sin), at<float>(q_norm), at<float>(k_norm), eps};
      });
  nb::class_<CacheArgs>(m, "Cache").def(
      "__init__", [](CacheArgs* self, uintptr_t k, uintptr_t v, int type, int64_t block_size) {
        new (self) CacheArgs{at<void>(k), at<void>(v), Type(type), block_size};
      });
  nb::class_<StepArgs>(m, "Step").def(
      "__init__", [](StepArgs* self, uintptr_t positions, uintptr_t slot_mapping,
                     uintptr_t block_table, uintptr_t query_start, uintptr_t seq_lens, int64_t rows,
                     int64_t tokens, int64_t table_stride) {
        new (self) StepArgs{at<int64_t>(positions),   at<int64_t>(slot_mapping),
                            at<int32_t>(block_table), at<int32_t>(query_start),
                            at<int32_t>(seq_lens),    rows,
                            tokens,                   table_stride};
      });
  nb::class_<LayerArgs>(m, "Layer").def(
      "__init__",
      [](LayerArgs* self, const Matrix& qkv, const Matrix& o, const Matrix& gate_up,
         const Matrix& down, uintptr_t input_norm, uintptr_t after_attention, uintptr_t mlp_norm,
         uintptr_t after_mlp, float eps, int gate, const AttentionShape& shape,
         const RopeArgs& rope) {
        new (self) LayerArgs{qkv,
                             o,
                             gate_up,
                             down,
                             at<float>(input_norm),
                             at<float>(after_attention),
                             at<float>(mlp_norm),
                             at<float>(after_mlp),
                             eps,
                             Gate(gate),
                             shape,
                             rope};
      });
  nb::class_<SamplingColumns>(m, "SamplingColumns")
      .def("__init__", [](SamplingColumns* self, uintptr_t temperature, uintptr_t top_k,
                          uintptr_t top_p, uintptr_t min_p, uintptr_t seeds, int64_t stride) {
        new (self) SamplingColumns{at<float>(temperature), at<float>(top_k), at<float>(top_p),
                                   at<float>(min_p),       at<int64_t>(seeds), stride};
      });
  nb::class_<SlotTable>(m, "SlotTable")
      .def("__init__", [](SlotTable* self, uintptr_t length, uintptr_t next_input,
                          uintptr_t block_table, int64_t slots, int64_t input_stride,
                          int64_t table_width, const SamplingColumns& sampling) {
        new (self) SlotTable{at<int64_t>(length), at<int64_t>(next_input), at<int32_t>(block_table),
                             slots,               input_stride,            table_width,
                             sampling};
      });
}

}  // namespace

NB_MODULE(_native, m) {
  using guard = nb::call_guard<nb::gil_scoped_release>;
  nb::set_leak_warnings(false);  // the engine keeps all that loading made to its end: gc.freeze
  bind_values(m);
  m.def("isa", [] { return chosen().name; });
  m.def("supported_isas", [] {
    nb::list names;
    for (const Kernels* table : supported()) names.append(table->name);
    return names;
  });
  m.def("rms_norm", &rms_norm, guard());
  m.def("gate_mul", &gate_mul, guard());
  m.def("rope_cache", &rope_cache, guard());
  m.def("attention", &attention, guard());
  m.def("group_linear", &group_linear, guard());
  m.def("pack", &pack_matrix, guard());
  m.def("pack_half", &pack_half_rows, guard());
  m.def("look_up", &look_up);
  m.def("run_layers", &run_layers, guard());
  m.def("argmax", &argmax, guard());
  m.def("sample", &sample, guard());
  m.def("sampling_rows", &sampling_rows);
  m.def("decode_inputs", &step_inputs);
  m.def("decode_advance", &step_advance);
}
