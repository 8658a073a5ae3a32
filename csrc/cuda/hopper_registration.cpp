// The wgmma kernel's operators at the CUDA key. Python defines the schemas.
#include "hopper_schema.h"

namespace tunable_ops::cuda {

STABLE_TORCH_LIBRARY_IMPL(tunable_ops, CUDA, m) {
  m.impl("tunable_conv2d_wgmma", TORCH_BOX(&forward_operator<&forward_wgmma>));
  m.impl("tunable_conv2d_wgmma_input", TORCH_BOX(&input_gradient_operator));
  m.impl("tunable_conv2d_wgmma_prepare", TORCH_BOX(&prepare_operator));
}

}  // namespace tunable_ops::cuda
