#include "conv.cuh"

namespace tunable_ops::cuda {

const char* launch_conv_float(const ConvRun& run, void* stream) {
  if (run.tf32) return launch_tensor_conv<Tf32Math>(run, stream);
  return run.vectors ? launch_conv_tile<FloatTile, true>(run, stream) : launch_conv_tile<FloatTile, false>(run, stream);
}

}  // namespace tunable_ops::cuda
