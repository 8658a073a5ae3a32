// Plans of calls: what the Python side of an operator allocated, called and launched, to be repeated without Python.
// `backends/triton/plans.py` records them; it says what a plan depends on.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/ivalue.h>

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

namespace tunable_ops::launcher {

using Ints = std::vector<int64_t>;
using Slots = std::vector<at::Tensor>;  // the call's tensors, then those that it made; undefined where there is none

// A tensor of a plan: a whole slot, or a view of it that starts `offset` elements later.
struct Place {
  struct View {
    Ints size, stride;
    int64_t offset;
  };
  size_t slot;
  std::optional<View> view;

  at::Tensor find(const Slots& slots) const;
};

struct Allocation {
  Ints size, stride;
  at::ScalarType type;
  at::Device device;
};

// A call of an operator of PyTorch's. Results that are tensors of before take no slot.
struct Call {
  struct Argument {
    c10::IValue value;          // unless there are tensors
    std::vector<Place> places;  // a tensor, or a list of them
    bool is_list = false;
  };
  c10::OperatorHandle op;
  std::vector<Argument> arguments;
  std::vector<std::pair<size_t, Ints>> kept;  // results that take slots: index, strides
};

struct Launch {
  struct Address {
    size_t parameter, slot;
    int64_t offset;  // bytes
  };
  void* function;
  std::array<unsigned, 3> grid;
  unsigned threads, shared;
  std::vector<uint64_t> parameters;  // a value in its first bytes; 0 for addresses
  std::vector<Address> addresses;
};

using Step = std::variant<Allocation, Call, Launch>;

struct Plan {
  at::Device device;
  std::vector<Step> steps;
  std::vector<std::optional<Place>> results;

  // Repeats the call on the current stream of the device, below autograd. Results that it does not have are empty.
  Slots run(Slots slots) const;
};

// Returns the key of a call's plan: everything that a plan depends on but the tables of measurements. Null for
// arguments that no plan serves.
std::optional<Ints> key_of(int64_t op, c10::ArrayRef<c10::IValue> arguments);

// The plans of all operators, for any number of threads.
std::shared_ptr<const Plan> find_plan(const Ints& key);
void keep_plan(Ints key, Plan plan);
void forget_plans();

}  // namespace tunable_ops::launcher
