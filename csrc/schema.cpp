// Schemas of the operators in exported graphs, for programs without Python. A process that imports tunable_ops gets
// them from Python and must not load this library: defining them twice aborts the process. tests/csrc/test_schema.py
// compares the two. tunable_parameters is missing because it runs in eager mode only: graphs contain the operators of
// the layers.
#include <torch/csrc/stable/library.h>

#define TENSORS "Tensor input, Tensor weight, Tensor? bias, Tensor alpha"
#define OPTIONS                                                                                                  \
  "SymInt stride_h, SymInt stride_w, SymInt padding_h, SymInt padding_w, SymInt dilation_h, SymInt dilation_w, " \
  "SymInt groups, int activation"
#define FORWARD "(" TENSORS ", " OPTIONS ") -> Tensor"
#define BACKWARD                                              \
  "(Tensor grad_output, Tensor? saved, " TENSORS ", " OPTIONS \
  ", bool[4] mask) "                                          \
  "-> (Tensor, Tensor, Tensor, Tensor)"

STABLE_TORCH_LIBRARY(tunable_ops, m) {
  m.def("tunable_conv2d_cpp" FORWARD);
  m.def("tunable_conv2d_cpp_backward" BACKWARD);
  m.def("tunable_conv2d_cuda" FORWARD);
  m.def("tunable_conv2d_cuda_backward" BACKWARD);
}
