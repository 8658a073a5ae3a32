#include "hopper_conv.cuh"

namespace tunable_ops::cuda {

const char* launch_hopper_conv_bfloat16(HopperRun& run, void* stream) {
  return launch_hopper<HopperBFloat16>(run, stream);
}

}  // namespace tunable_ops::cuda
