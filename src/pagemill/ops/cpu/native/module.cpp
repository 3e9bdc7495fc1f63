// The Python module. Addresses come as integers: torch's own dlpack export costs more than most
// of these kernels on a small batch. ops.py, the only caller, checks shapes, types and strides.
#include <nanobind/nanobind.h>

#include "kernels.h"

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
}  // namespace pagemill

namespace {

const Kernels& select() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw"))
    return avx512::kernels();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return avx2::kernels();
#endif
  return baseline::kernels();
}

const Kernels& chosen() {
  static const Kernels& table = select();
  return table;
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

void rope_cache(int type, uintptr_t qkv, uintptr_t q, uintptr_t k_cache, uintptr_t v_cache,
                uintptr_t positions, uintptr_t slot_mapping, uintptr_t cos_sin, uintptr_t q_norm,
                uintptr_t k_norm, int64_t tokens, int64_t heads, int64_t kv_heads,
                int64_t head_dim, int64_t block_size, float eps) {
  chosen().rope_cache(Type(type),
                      {at<void>(qkv), at<void>(q), at<void>(k_cache), at<void>(v_cache),
                       at<int64_t>(positions), at<int64_t>(slot_mapping), at<float>(cos_sin),
                       at<float>(q_norm), at<float>(k_norm), tokens, heads, kv_heads, head_dim,
                       block_size, eps});
}

void attention(int type, uintptr_t q, uintptr_t out, uintptr_t k_cache, uintptr_t v_cache,
               uintptr_t block_table, uintptr_t query_start, uintptr_t seq_lens, int64_t rows,
               int64_t heads, int64_t kv_heads, int64_t head_dim, int64_t block_size,
               int64_t table_stride, float scale, float soft_cap, int64_t window) {
  chosen().attention(Type(type),
                     {at<void>(q), at<void>(out), at<void>(k_cache), at<void>(v_cache),
                      at<int32_t>(block_table), at<int32_t>(query_start), at<int32_t>(seq_lens),
                      rows, heads, kv_heads, head_dim, block_size, table_stride, scale, soft_cap,
                      window});
}

void int8_linear(int type, uintptr_t x, uintptr_t weight, uintptr_t scale, uintptr_t bias,
                 uintptr_t out, int64_t rows, int64_t in, int64_t outs) {
  chosen().int8_linear(Type(type), {at<void>(x), at<int8_t>(weight), at<float>(scale),
                                    at<float>(bias), at<void>(out), rows, in, outs});
}

}  // namespace

NB_MODULE(_native, m) {
  using guard = nb::call_guard<nb::gil_scoped_release>;
  m.def("isa", [] { return chosen().name; });
  m.def("rms_norm", &rms_norm, guard());
  m.def("gate_mul", &gate_mul, guard());
  m.def("rope_cache", &rope_cache, guard());
  m.def("attention", &attention, guard());
  m.def("int8_linear", &int8_linear, guard());
}
