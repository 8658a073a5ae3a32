// tunable_conv2d and its backward at the CUDA key. Python defines the schemas.
#include "../operator.h"
#include "tunable_conv2d.h"

namespace tunable_ops::cuda {

int64_t chunk_bytes() { return int64_t{64} << 20; }

STABLE_TORCH_LIBRARY_IMPL(tunable_ops, CUDA, m) {
  m.impl("tunable_conv2d_cuda", TORCH_BOX(&forward_operator<&forward>));
  m.impl("tunable_conv2d_cuda_backward", TORCH_BOX(&backward_operator<&gradients>));
}

}  // namespace tunable_ops::cuda
