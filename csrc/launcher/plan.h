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

// Slots that no later step and no result needs: their memory serves later steps, which run on the same stream.
struct Release {
  std::vector<size_t> slots;
};

using Step = std::variant<Allocation, Call, Launch, Release>;

struct Plan {
  at::Device device;
  std::vector<Step> steps;
  std::vector<std::optional<Place>> results;

  // Repeats the call on the current stream of the device, below autograd. Results that it does not have are empty.
  // Null if an operator of PyTorch's gave a tensor of other strides than in the recorded call.
  std::optional<Slots> run(Slots slots) const;
};

// Returns the key of a call's plan: everything that a plan depends on but what forget_plans is for (the tables of
// measurements, and constants that only tests change). Null for arguments that no plan serves.
std::optional<Ints> key_of(int64_t op, c10::ArrayRef<c10::IValue> arguments);

// The plans of all operators, for any number of threads.
std::shared_ptr<const Plan> find_plan(const Ints& key);
// The number of times that forget_plans was called.
uint64_t generation();
// Keeps a plan whose call began in a generation; drops it, and returns false, if that is over.
bool keep_plan(Ints key, Plan plan, uint64_t generation);
// Forgets one plan, unless another one has its key by now.
void forget_plan(const Ints& key, const std::shared_ptr<const Plan>& plan);
void forget_plans();

// Whether this torch tells the current stream, without which nothing can be launched.
bool finds_stream();

}  // namespace tunable_ops::launcher
