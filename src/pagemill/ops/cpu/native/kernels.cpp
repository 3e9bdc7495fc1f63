// Compiled once per instruction set; PAGEMILL_ISA names it.
#include "kernels.h"

#include "attention.h"
#include "elementwise.h"
#include "group_linear.h"
#include "half_linear.h"
#include "layer.h"
#include "look_up.h"
#include "sampling.h"

#define PAGEMILL_TEXT_OF(x) #x
#define PAGEMILL_TEXT(x) PAGEMILL_TEXT_OF(x)

namespace pagemill::PAGEMILL_ISA {
namespace {

// Calls the float32 or the bfloat16 instance of a kernel.
template <typename Args, void (*kFloat)(const Args&), void (*kHalf)(const Args&)>
void dispatch(Type type, const Args& args) {
  type == Type::kFloat32 ? kFloat(args) : kHalf(args);
}

// The cache has the type of the activations, or is float16 beside float32.
template <typename Args, void (*kFloat)(const Args&), void (*kMixed)(const Args&),
          void (*kHalf)(const Args&)>
void dispatch_cached(Type type, const Args& args) {
  if (type == Type::kBFloat16) return kHalf(args);
  args.cache.type == Type::kFloat16 ? kMixed(args) : kFloat(args);
}

}  // namespace

const Kernels& kernels() {
  static const Kernels table = {
      PAGEMILL_TEXT(PAGEMILL_ISA),
      dispatch<NormArgs, rms_norm<float>, rms_norm<BFloat16>>,
      dispatch<GateArgs, gate_mul<float>, gate_mul<BFloat16>>,
      dispatch_cached<RopeCacheArgs, rope_cache<float, float>, rope_cache<float, Float16>,
                      rope_cache<BFloat16, BFloat16>>,
      dispatch_cached<AttentionArgs, attention<float, float>, attention<float, Float16>,
                      attention<BFloat16, BFloat16>>,
      dispatch<GroupLinearArgs, packed_linear<float>, packed_linear<BFloat16>>,
      look_up,
      layers,
      dispatch<ArgmaxArgs, argmax<float>, argmax<BFloat16>>,
      dispatch<SampleArgs, sample<float>, sample<BFloat16>>,
  };
  return table;
}

}  // namespace pagemill::PAGEMILL_ISA
