// One instance of the wgmma kernel. It is compiled when it is first needed, with these macros; the build does not
// compile it.
//   TO_HOPPER_MATH        HopperHalf or HopperBFloat16
//   TO_HOPPER_SHAPE       index into kHopperShapes
//   TO_HOPPER_ACTIVATION  code of the activation
//   TO_HOPPER_RUN_BYTES   size of HopperRun for the compiler of the host
#include "hopper_conv.cuh"

namespace tunable_ops::cuda {

static_assert(sizeof(HopperRun) == TO_HOPPER_RUN_BYTES, "host and device must lay out the argument alike");

extern "C" TO_KERNEL(kHopperThreads, 1) hopper_conv_kernel(TO_RUN HopperRun run) {
  hopper_conv<HopperTile<TO_HOPPER_MATH, TO_HOPPER_SHAPE, TO_HOPPER_ACTIVATION>>(run);
}

}  // namespace tunable_ops::cuda
