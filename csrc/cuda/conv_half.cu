#include "conv.cuh"

namespace tunable_ops::cuda {

const char* launch_conv_half(const ConvRun& run, void* stream) { return launch_tensor_conv<HalfMath>(run, stream); }

}  // namespace tunable_ops::cuda
