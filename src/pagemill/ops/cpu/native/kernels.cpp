// Compiled once per instruction set; PAGEMILL_ISA names it.
#include "kernels.h"

#include "attention.h"
#include "elementwise.h"
#include "int8_linear.h"

#define PAGEMILL_TEXT_OF(x) #x
#define PAGEMILL_TEXT(x) PAGEMILL_TEXT_OF(x)

namespace pagemill::PAGEMILL_ISA {
namespace {

// Calls the float32 or the bfloat16 instance of a kernel.
template <typename Args, void (*kFloat)(const Args&), void (*kHalf)(const Args&)>
void dispatch(Type type, const Args& args) {
  type == Type::kFloat32 ? kFloat(args) : kHalf(args);
}

}  // namespace

const Kernels& kernels() {
  static const Kernels table = {
      PAGEMILL_TEXT(PAGEMILL_ISA),
      dispatch<NormArgs, rms_norm<float>, rms_norm<BFloat16>>,
      dispatch<GateArgs, gate_mul<float>, gate_mul<BFloat16>>,
      dispatch<RopeCacheArgs, rope_cache<float>, rope_cache<BFloat16>>,
      dispatch<AttentionArgs, attention<float>, attention<BFloat16>>,
      dispatch<Int8LinearArgs, int8_linear<float>, int8_linear<BFloat16>>,
  };
  return table;
}

}  // namespace pagemill::PAGEMILL_ISA
