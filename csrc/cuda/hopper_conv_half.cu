#include "hopper_conv.cuh"

namespace tunable_ops::cuda {

const char* launch_hopper_conv_half(HopperRun& run, void* stream) { return launch_hopper<HopperHalf>(run, stream); }

}  // namespace tunable_ops::cuda
