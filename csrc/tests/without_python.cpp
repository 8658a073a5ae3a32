// Calls of operators while another thread holds the interpreter's lock: tests/triton_kernels/test_native.py.
#include <atomic>
#include <chrono>
#include <thread>

#include "../tensors.h"

namespace tunable_ops {
namespace {

std::atomic<bool> may_start{false}, is_done{false};

void wait_for(const std::atomic<bool>& flag) {
  while (!flag) std::this_thread::sleep_for(std::chrono::microseconds(50));
}

}  // namespace

// Both begin when the other thread holds the lock, in `hold`.
Tensor forward(const Tensor& input, const Tensor& weight, const Tensor& bias, const Tensor& alpha, int64_t count) {
  wait_for(may_start);
  std::optional<Tensor> output;
  for (int64_t i = 0; i < count; ++i) {
    std::array<StableIValue, 12> stack{from(input), from(weight), from(std::optional<Tensor>(bias)), from(alpha)};
    for (size_t k = 4; k < 11; ++k) stack[k] = from(int64_t{1});  // stride, padding, dilation, groups
    stack[11] = from(int64_t{0});
    call("tunable_ops::tunable_conv2d_triton", stack);
    output = to<Tensor>(stack[0]);
  }
  is_done = true;
  return *output;
}

Tensor backward(const Tensor& output, const Tensor& gradient, const std::vector<Tensor>& leaves, int64_t count) {
  wait_for(may_start);
  for (int64_t i = 0; i < count; ++i) {
    std::array<StableIValue, 5> stack{from(output), from(leaves), from(std::optional<Tensor>(gradient)),
                                      from(std::optional<bool>(true)), from(false)};
    call("aten::_backward", stack);
  }
  is_done = true;
  return gradient;
}

STABLE_TORCH_LIBRARY(tunable_ops_without_python, m) {
  m.def("forward(Tensor input, Tensor weight, Tensor bias, Tensor alpha, int count) -> Tensor");
  m.def("backward(Tensor output, Tensor gradient, Tensor[] leaves, int count) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(tunable_ops_without_python, CompositeImplicitAutograd, m) {
  m.impl("forward", TORCH_BOX(&forward));
  m.impl("backward", TORCH_BOX(&backward));
}

}  // namespace tunable_ops

// To be called with the interpreter's lock: lets the operators above start, and returns whether they finished in time.
extern "C" __attribute__((visibility("default"))) int hold(int milliseconds) {
  using namespace tunable_ops;
  is_done = false;
  may_start = true;
  for (int i = 0; i < milliseconds && !is_done; ++i) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  may_start = false;
  return is_done;
}
