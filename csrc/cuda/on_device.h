// The device and stream of a call; the library or the emulator provides them.
#pragma once

#include <memory>

#include "call.h"

namespace tunable_ops::cuda {

// Makes a tensor's device the current one during its lifetime.
class OnDevice {
 public:
  explicit OnDevice(const Tensor& tensor);
  ~OnDevice();
  void* stream() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace tunable_ops::cuda
