// The operators' schemas for programs without Python: load this library before the operators'. Where Python defines the
// same schemas (any process that imports tunable_ops) it must stay out: two definitions abort the process.
// tests/csrc/test_schema.py compares the strings with Python's.
#include <torch/csrc/stable/library.h>
#include <torch/headeronly/util/Exception.h>

namespace {

// Without Python there is one backend.
void other_backend(StableIValue*, uint64_t, uint64_t) {
  STD_TORCH_CHECK(false, "tunable_conv2d: backend must be 'cpp' in a program without Python; export a network whose "
                         "tunable layers all take it (float32, channels_last)");
}

}  // namespace

#define TENSORS "Tensor input, Tensor weight, Tensor? bias, Tensor alpha"
#define GRADIENT "Tensor grad_output, Tensor? saved, "
#define OPTIONS "SymInt[2] stride, SymInt[2] padding, SymInt[2] dilation, SymInt groups, str activation, str backend"
#define GRADIENTS "bool[4] mask) -> (Tensor, Tensor, Tensor, Tensor)"

STABLE_TORCH_LIBRARY(tunable_ops, m) {
  m.def("tunable_conv2d(" TENSORS ", " OPTIONS ") -> Tensor");
  m.def("tunable_conv2d_backward(" GRADIENT TENSORS ", " OPTIONS ", " GRADIENTS);
  m.def("tunable_conv2d_library(" TENSORS ", " OPTIONS ") -> Tensor");
  m.def("tunable_conv2d_backward_library(" GRADIENT TENSORS ", " OPTIONS ", " GRADIENTS);
}

STABLE_TORCH_LIBRARY_IMPL(tunable_ops, CompositeExplicitAutograd, m) {
  m.impl("tunable_conv2d_library", &other_backend);
  m.impl("tunable_conv2d_backward_library", &other_backend);
}
