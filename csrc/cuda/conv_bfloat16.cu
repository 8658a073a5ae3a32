#include "conv.cuh"

namespace tunable_ops::cuda {

const char* launch_conv_bfloat16(const ConvRun& run, void* stream) {
  return launch_tensor_conv<BFloat16Math>(run, stream);
}

}  // namespace tunable_ops::cuda
