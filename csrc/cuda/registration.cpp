// tunable_conv2d and its backward at the CUDA key, on Torch's current stream of the input's device. Python defines the
// schemas.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include "../operator.h"
#include "tunable_conv2d.h"

namespace tunable_ops::cuda {

struct OnDevice::State {
  explicit State(int32_t index) : guard(index) {
    check_launch("a kernel", use_device(index));
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(index, &stream));
  }
  torch::stable::accelerator::DeviceGuard guard;
  void* stream = nullptr;
};

OnDevice::OnDevice(const Tensor& tensor) : state_(std::make_unique<State>(tensor.get_device_index())) {}
OnDevice::~OnDevice() = default;
void* OnDevice::stream() const { return state_->stream; }

int64_t chunk_bytes() { return int64_t{64} << 20; }

STABLE_TORCH_LIBRARY_IMPL(tunable_ops, CUDA, m) {
  m.impl("tunable_conv2d_cuda", TORCH_BOX(&forward_operator<&forward>));
  m.impl("tunable_conv2d_cuda_backward", TORCH_BOX(&backward_operator<&gradients>));
  m.impl("tunable_conv2d_wgmma", TORCH_BOX(&forward_operator<&forward_wgmma>));
  m.impl("tunable_conv2d_wgmma_backward", TORCH_BOX(&backward_operator<&gradients_wgmma>));
}

}  // namespace tunable_ops::cuda
