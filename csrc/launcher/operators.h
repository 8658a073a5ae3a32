// The operators of the Triton backend at a device's keys of the dispatcher: from their plans, without Python.
#pragma once

#include <torch/library.h>

#include <string>
#include <vector>

namespace tunable_ops::launcher {

// A number for each name of an operator, the first part of its plans' keys.
int64_t number_of(const std::string& op);

// Calls that found their plan, and that went to Python for want of one, of all threads.
struct Counts {
  int64_t planned, unplanned;
};
Counts counts();

// Serves `tunable_ops::<op>` for tensors of a device type ("CUDA") for as long as it lives. Calls without a plan go to
// `tunable_ops::<op>_unplanned`, a function in Python with the same schema.
class Operators {
 public:
  explicit Operators(const std::string& device);
  // A convolution, its operator that also returns the value before the activation, and its gradients.
  void add_convolution(const std::string& forward, const std::string& saving, const std::string& backward);
  // A blend of kernels, and its gradients.
  void add_blend(const std::string& forward, const std::string& backward);

 private:
  void add(const std::string& op);
  std::vector<torch::Library> libraries_;  // at the device's key, at its autograd key
};

// Sets what every call asks first: whether a hook in Python is known to wait for launches, so that no plan may serve
// the call. A hook that is not in the lists that were looked at last is not known.
void set_listening(bool (*is_listening)());

}  // namespace tunable_ops::launcher
