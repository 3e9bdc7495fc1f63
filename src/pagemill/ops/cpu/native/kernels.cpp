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

// Calls kernel<activations, cache>: the cache has the type of the activations, or is int8, or float16
// beside float32.
template <typename Args, template <typename, typename> class Kernel>
void dispatch_cached(Type type, const Args& args) {
  const bool codes = args.cache.type == Type::kInt8;
  if (type == Type::kBFloat16)
    return codes ? Kernel<BFloat16, Int8>::run(args) : Kernel<BFloat16, BFloat16>::run(args);
  if (codes) return Kernel<float, Int8>::run(args);
  args.cache.type == Type::kFloat16 ? Kernel<float, Float16>::run(args)
                                    : Kernel<float, float>::run(args);
}

template <typename T, typename C>
struct RopeCache {
  static void run(const RopeCacheArgs& args) { rope_cache<T, C>(args); }
};

template <typename T, typename C>
struct Attention {
  static void run(const AttentionArgs& args) { attention<T, C>(args); }
};

}  // namespace

const Kernels& kernels() {
  static const Kernels table = {
      PAGEMILL_TEXT(PAGEMILL_ISA),
      dispatch<NormArgs, rms_norm<float>, rms_norm<BFloat16>>,
      dispatch<GateArgs, gate_mul<float>, gate_mul<BFloat16>>,
      dispatch_cached<RopeCacheArgs, RopeCache>,
      dispatch_cached<AttentionArgs, Attention>,
      dispatch<GroupLinearArgs, packed_linear<float>, packed_linear<BFloat16>>,
      look_up,
      layers,
      dispatch<ArgmaxArgs, argmax<float>, argmax<BFloat16>>,
      dispatch<SampleArgs, sample<float>, sample<BFloat16>>,
  };
  return table;
}

}  // namespace pagemill::PAGEMILL_ISA
