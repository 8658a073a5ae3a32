// The operators with their kernels run by the emulator, on CPU tensors, in a namespace of their own.
#include "../cuda/tunable_conv2d.h"

namespace tunable_ops::cuda {

struct OnDevice::State {};
OnDevice::OnDevice(const Tensor&) {}
OnDevice::~OnDevice() = default;
void* OnDevice::stream() const { return nullptr; }
const char* use_device(int32_t) { return nullptr; }
int64_t chunk_bytes() { return 16 << 10; }  // small enough that some of the tests' cases take several

STABLE_TORCH_LIBRARY(tunable_ops_emulated, m) {
  m.def(
      "tunable_conv2d(Tensor input, Tensor weight, Tensor? bias, Tensor alpha, SymInt[2] stride, SymInt[2] padding, "
      "SymInt[2] dilation, SymInt groups, str activation, str backend) -> Tensor");
  m.def(
      "tunable_conv2d_backward(Tensor grad_output, Tensor? saved, Tensor input, Tensor weight, Tensor? bias, "
      "Tensor alpha, SymInt[2] stride, SymInt[2] padding, SymInt[2] dilation, SymInt groups, str activation, "
      "str backend, bool[4] mask) -> (Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(tunable_ops_emulated, CPU, m) {
  m.impl("tunable_conv2d", TORCH_BOX(&forward));
  m.impl("tunable_conv2d_backward", TORCH_BOX(&backward));
}

}  // namespace tunable_ops::cuda
