#include "plan.h"

#include <ATen/Context.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_strided.h>
#include <c10/core/DeviceGuard.h>

#include <algorithm>
#include <atomic>
#include <map>
#include <mutex>
#include <shared_mutex>
#include <unordered_map>

#include "../cuda/cuda_driver.h"

// Torch's; only libtorch_cuda has it.
extern "C" __attribute__((weak)) int32_t aoti_torch_get_current_cuda_stream(int32_t device, void** stream);

namespace tunable_ops::launcher {
namespace {

const cuda::Driver& driver() {
  std::string error;
  const cuda::Driver* found = cuda::load_driver(error);
  TORCH_CHECK(found != nullptr, "tunable_ops: ", error);
  return *found;
}

void check(const char* function, int result) {
  if (result != 0) TORCH_CHECK(false, "tunable_ops: ", cuda::driver_error(driver(), function, result));
}

// A thread that has not called CUDA yet has no context. The device must be the current one.
void enter(const at::Device& device) {
  cuda::DriverHandle current = nullptr;
  check("cuCtxGetCurrent", driver().cuCtxGetCurrent(&current));
  if (current != nullptr) return;
  static std::mutex mutex;
  static std::map<int, cuda::DriverHandle> contexts;  // each is retained once
  const std::lock_guard<std::mutex> lock(mutex);
  cuda::DriverHandle& context = contexts[device.index()];
  if (context == nullptr) {
    int ordinal = 0;
    check("cuDeviceGet", driver().cuDeviceGet(&ordinal, device.has_index() ? device.index() : 0));
    check("cuDevicePrimaryCtxRetain", driver().cuDevicePrimaryCtxRetain(&context, ordinal));
  }
  check("cuCtxSetCurrent", driver().cuCtxSetCurrent(context));
}

bool run(const Allocation& step, Slots& slots, const at::Device&) {
  slots.push_back(at::empty_strided(step.size, step.stride, at::TensorOptions(step.type).device(step.device)));
  return true;
}

bool run(const Call& step, Slots& slots, const at::Device&) {
  torch::jit::Stack stack;
  stack.reserve(step.arguments.size());
  for (const auto& [value, places, is_list] : step.arguments) {
    if (places.empty()) {
      stack.push_back(value);
    } else if (is_list) {
      std::vector<at::Tensor> tensors;
      for (const Place& place : places) tensors.push_back(place.find(slots));
      stack.emplace_back(tensors);
    } else {
      stack.emplace_back(places[0].find(slots));
    }
  }
  step.op.callBoxed(stack);
  for (const auto& [index, stride] : step.kept) {
    at::Tensor result = stack[index].toTensor();
    if (result.defined() && result.strides() != at::IntArrayRef(stride)) return false;
    slots.push_back(std::move(result));
  }
  return true;
}

bool run(const Launch& step, Slots& slots, const at::Device& device) {
  enter(device);
  void* stream = nullptr;
  TORCH_CHECK(finds_stream() && aoti_torch_get_current_cuda_stream(device.index(), &stream) == 0,
              "tunable_ops: no current stream");
  std::vector<uint64_t> values = step.parameters;
  for (const auto& [parameter, slot, offset] : step.addresses)
    values[parameter] = reinterpret_cast<uint64_t>(slots[slot].const_data_ptr()) + static_cast<uint64_t>(offset);
  std::vector<void*> pointers(values.size());
  for (size_t i = 0; i < values.size(); ++i) pointers[i] = &values[i];
  const auto [x, y, z] = step.grid;
  check("cuLaunchKernel", driver().cuLaunchKernel(step.function, x, y, z, step.threads, 1, 1, step.shared, stream,
                                                  pointers.data(), nullptr));
  return true;
}

bool run(const Release& step, Slots& slots, const at::Device&) {
  for (const size_t slot : step.slots) slots[slot].reset();
  return true;
}

struct HashOfInts {
  size_t operator()(const Ints& values) const {
    uint64_t hash = values.size();
    for (const int64_t value : values) {
      hash = (hash ^ static_cast<uint64_t>(value)) * 0x9e3779b97f4a7c15u;
      hash ^= hash >> 29;
    }
    return hash;
  }
};

constexpr size_t kMost = 4096;  // plans; more are those of a program that meets new sizes for ever

struct Plans {
  std::shared_mutex mutex;
  std::atomic<uint64_t> generation{0};  // changes under the mutex
  std::unordered_map<Ints, std::shared_ptr<const Plan>, HashOfInts> known;
};

Plans& plans() {
  static auto* all = new Plans;  // never destroyed: threads may outlive the interpreter
  return *all;
}

}  // namespace

at::Tensor Place::find(const Slots& slots) const {
  const at::Tensor& base = slots[slot];
  if (!view) return base;
  return base.as_strided(view->size, view->stride, base.storage_offset() + view->offset);
}

std::optional<Slots> Plan::run(Slots slots) const {
  const c10::DeviceGuard guard(device);
  const at::Tensor first = slots[0];
  const auto runs = [&](const Step& step) {
    return std::visit([&](const auto& s) { return launcher::run(s, slots, device); }, step);
  };
  if (!std::all_of(steps.begin(), steps.end(), runs)) return std::nullopt;
  Slots found;
  for (const auto& place : results) found.push_back(place ? place->find(slots) : at::empty({0}, first.options()));
  return found;
}

std::optional<Ints> key_of(int64_t op, c10::ArrayRef<c10::IValue> arguments) {
  constexpr int64_t kNone = -1;
  Ints key{op, at::globalContext().userEnabledCuDNN()};  // strides of PyTorch's results depend on cuDNN
  key.reserve(96);
  bool has_float = false;
  for (const c10::IValue& value : arguments) {
    if (value.isNone()) {
      key.push_back(kNone);
    } else if (value.isTensor()) {
      const at::Tensor& t = value.toTensor();
      if (!t.defined()) {
        key.push_back(kNone);
        continue;
      }
      if (t.layout() != at::kStrided || !t.has_storage()) return std::nullopt;
      const bool is_aligned = reinterpret_cast<uintptr_t>(t.const_data_ptr()) % 16 == 0;
      has_float = has_float || t.scalar_type() == at::kFloat;
      key.insert(key.end(), {t.dim(), static_cast<int64_t>(t.scalar_type()), static_cast<int64_t>(t.device().type()),
                             t.device().index(), is_aligned});
      key.insert(key.end(), t.sizes().begin(), t.sizes().end());
      key.insert(key.end(), t.strides().begin(), t.strides().end());
    } else if (value.isInt()) {
      key.push_back(value.toInt());
    } else if (value.isBool()) {
      key.push_back(value.toBool());
    } else if (value.isBoolList()) {
      for (const bool v : value.toBoolList()) key.push_back(v);
    } else {
      return std::nullopt;
    }
  }
  if (has_float) {  // whether kernels may round to tf32
    const auto read = [](at::Float32Backend backend, at::Float32Op of) {
      return static_cast<int64_t>(at::globalContext().float32Precision(backend, of));
    };
    key.push_back(read(at::Float32Backend::CUDA, at::Float32Op::CONV));
    key.push_back(read(at::Float32Backend::GENERIC, at::Float32Op::ALL));
  }
  return key;
}

std::shared_ptr<const Plan> find_plan(const Ints& key) {
  const std::shared_lock<std::shared_mutex> lock(plans().mutex);
  const auto found = plans().known.find(key);
  return found == plans().known.end() ? nullptr : found->second;
}

uint64_t generation() { return plans().generation; }

bool keep_plan(Ints key, Plan plan, uint64_t generation) {
  const std::unique_lock<std::shared_mutex> lock(plans().mutex);
  if (generation != plans().generation) return false;
  if (plans().known.size() >= kMost) plans().known.erase(plans().known.begin());
  plans().known.insert_or_assign(std::move(key), std::make_shared<const Plan>(std::move(plan)));
  return true;
}

void forget_plan(const Ints& key, const std::shared_ptr<const Plan>& plan) {
  const std::unique_lock<std::shared_mutex> lock(plans().mutex);
  const auto found = plans().known.find(key);
  if (found != plans().known.end() && found->second == plan) plans().known.erase(found);
}

void forget_plans() {
  const std::unique_lock<std::shared_mutex> lock(plans().mutex);
  ++plans().generation;
  plans().known.clear();
}

bool finds_stream() { return aoti_torch_get_current_cuda_stream != nullptr; }

}  // namespace tunable_ops::launcher
