// On Torch's current stream of the tensor's device.
#include "on_device.h"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

namespace tunable_ops::cuda {

struct OnDevice::State {
  explicit State(int32_t index) : guard(index) {
#ifndef TO_WGMMA_ONLY  // else no kernel is launched through the CUDA runtime
    check_launch("a kernel", use_device(index));
#endif
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(index, &stream));
  }
  torch::stable::accelerator::DeviceGuard guard;
  void* stream = nullptr;
};

OnDevice::OnDevice(const Tensor& tensor) : state_(std::make_unique<State>(tensor.get_device_index())) {}
OnDevice::~OnDevice() = default;
void* OnDevice::stream() const { return state_->stream; }

}  // namespace tunable_ops::cuda
