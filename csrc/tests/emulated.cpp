// Registers the CUDA operators for CPU tensors, with the kernels run by the emulator, in a separate namespace.
#include "../cuda/hopper_schema.h"
#include "../cuda/tunable_conv2d.h"
#include "emulated_hopper.h"

namespace tunable_ops::cuda {

struct OnDevice::State {};
OnDevice::OnDevice(const Tensor&) {}
OnDevice::~OnDevice() = default;
void* OnDevice::stream() const { return nullptr; }
int64_t chunk_bytes() { return 16 << 10; }  // small, so that some test cases need several chunks

// Whether boxes hold one column shift each, for the calls that follow; returns its argument.
Tensor use_columns(const Tensor& value) {
  emulated_boxes = *value.const_data_ptr<float>() != 0 ? HopperBoxes::kColumns : HopperBoxes::kHalo;
  return value;
}

STABLE_TORCH_LIBRARY(tunable_ops_emulated, m) {
#define GEOMETRY                                                                                                 \
  "SymInt stride_h, SymInt stride_w, SymInt padding_h, SymInt padding_w, SymInt dilation_h, SymInt dilation_w, " \
  "SymInt groups"
#define OPTIONS "Tensor input, Tensor weight, Tensor? bias, Tensor alpha, " GEOMETRY ", int activation"
#define BACKWARD "(Tensor grad_output, Tensor? saved, " OPTIONS ", bool[4] mask) -> (Tensor, Tensor, Tensor, Tensor)"
  m.def("tunable_conv2d_cuda(" OPTIONS ") -> Tensor");
  m.def("tunable_conv2d_cuda_backward" BACKWARD);
  m.def("tunable_conv2d_wgmma(" OPTIONS ") -> Tensor");
  m.def("tunable_conv2d_wgmma_input(Tensor grad_output, Tensor input, Tensor weight, Tensor alpha, " GEOMETRY
        ") -> Tensor");
  m.def("tunable_conv2d_wgmma_prepare(Tensor input, Tensor weight, Tensor alpha, " GEOMETRY
        ", int activation, bool gradient) -> bool");
  m.def("use_columns(Tensor value) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(tunable_ops_emulated, CPU, m) {
  m.impl("tunable_conv2d_cuda", TORCH_BOX(&forward_operator<&forward>));
  m.impl("tunable_conv2d_cuda_backward", TORCH_BOX(&backward_operator<&gradients>));
  m.impl("tunable_conv2d_wgmma", TORCH_BOX(&forward_operator<&forward_wgmma>));
  m.impl("tunable_conv2d_wgmma_input", TORCH_BOX(&input_gradient_operator));
  m.impl("tunable_conv2d_wgmma_prepare", TORCH_BOX(&prepare_operator));
  m.impl("use_columns", TORCH_BOX(&use_columns));
}

}  // namespace tunable_ops::cuda
