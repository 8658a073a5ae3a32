// The schemas of the operators that exported graphs call, for programs without Python (the blend of a whole network,
// tunable_parameters, is for eager mode: graphs have the operators of the layers). Any process that imports
// tunable_ops has them from Python and must not load this library: a second definition ends the process. A test compares
// the strings with Python's (tests/csrc/test_schema.py).
#include <torch/csrc/stable/library.h>

#define TENSORS "Tensor input, Tensor weight, Tensor? bias, Tensor alpha"
#define OPTIONS                                                                                                    \
  "SymInt stride_h, SymInt stride_w, SymInt padding_h, SymInt padding_w, SymInt dilation_h, SymInt dilation_w, " \
  "SymInt groups, int activation"
#define FORWARD "(" TENSORS ", " OPTIONS ") -> Tensor"
#define BACKWARD                                                                                  \
  "(Tensor grad_output, Tensor? saved, " TENSORS ", " OPTIONS ", bool[4] mask) -> (Tensor, Tensor, " \
  "Tensor, Tensor)"

STABLE_TORCH_LIBRARY(tunable_ops, m) {
  m.def("tunable_conv2d_cpp" FORWARD);
  m.def("tunable_conv2d_cpp_backward" BACKWARD);
  m.def("tunable_conv2d_cuda" FORWARD);
  m.def("tunable_conv2d_cuda_backward" BACKWARD);
}
