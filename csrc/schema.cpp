// The schemas of the operators that exported graphs call, for programs without Python (the blend of a whole network,
// tunable_parameters, is for eager mode: graphs have the operators of the layers). Any process that imports
// tunable_ops has them from Python and must not load this library: a second definition ends the process. That the strings
// are Python's is tested (tests/csrc/test_schema.py).
#include <torch/csrc/stable/library.h>

#define TENSORS "Tensor input, Tensor weight, Tensor? bias, Tensor alpha"
#define OPTIONS "SymInt[2] stride, SymInt[2] padding, SymInt[2] dilation, SymInt groups, str activation, str backend"

STABLE_TORCH_LIBRARY(tunable_ops, m) {
  m.def("tunable_conv2d(" TENSORS ", " OPTIONS ") -> Tensor");
  m.def("tunable_conv2d_backward(Tensor grad_output, Tensor? saved, " TENSORS ", " OPTIONS
        ", bool[4] mask) -> (Tensor, Tensor, Tensor, Tensor)");
}
