// Registers the CUDA operators for CPU tensors, with the kernels run by the emulator, in a separate namespace.
#include "../cuda/tunable_conv2d.h"
#include "../operator.h"

namespace tunable_ops::cuda {

struct OnDevice::State {};
OnDevice::OnDevice(const Tensor&) {}
OnDevice::~OnDevice() = default;
void* OnDevice::stream() const { return nullptr; }
int64_t chunk_bytes() { return 16 << 10; }  // small, so that some test cases need several chunks

STABLE_TORCH_LIBRARY(tunable_ops_emulated, m) {
#define OPTIONS                                                                                                   \
  "Tensor input, Tensor weight, Tensor? bias, Tensor alpha, SymInt stride_h, SymInt stride_w, SymInt padding_h, " \
  "SymInt padding_w, SymInt dilation_h, SymInt dilation_w, SymInt groups, int activation"
#define BACKWARD "(Tensor grad_output, Tensor? saved, " OPTIONS ", bool[4] mask) -> (Tensor, Tensor, Tensor, Tensor)"
  m.def("tunable_conv2d_cuda(" OPTIONS ") -> Tensor");
  m.def("tunable_conv2d_cuda_backward" BACKWARD);
  m.def("tunable_conv2d_wgmma(" OPTIONS ") -> Tensor");
  m.def("tunable_conv2d_wgmma_backward" BACKWARD);
}

STABLE_TORCH_LIBRARY_IMPL(tunable_ops_emulated, CPU, m) {
  m.impl("tunable_conv2d_cuda", TORCH_BOX(&forward_operator<&forward>));
  m.impl("tunable_conv2d_cuda_backward", TORCH_BOX(&backward_operator<&gradients>));
  m.impl("tunable_conv2d_wgmma", TORCH_BOX(&forward_operator<&forward_wgmma>));
  m.impl("tunable_conv2d_wgmma_backward", TORCH_BOX(&backward_operator<&gradients_wgmma>));
}

}  // namespace tunable_ops::cuda
