// tunable_parameters and its backward at the CPU key: blends many stacks in one call, split into blocks of elements for
// the threads. Also tunable_parameter, which blends one. Python defines the schemas. The terms of every sum and their
// order depend only on the shapes.
#include <torch/csrc/stable/library.h>

#include <algorithm>

#include "number_types.h"

namespace tunable_ops {
namespace {

using Tensors = std::vector<Tensor>;

// Elements of a work item, regardless of the number of threads, and the items that justify waking another thread.
constexpr int64_t kBlock = 1 << 14;
constexpr int64_t kGrainBlocks = 4;

// The dimensions of one kernel from outermost to innermost in memory: contiguous or channels_last.
std::vector<int> order_of(int64_t dims, bool channels_last) {
  std::vector<int> order;
  for (int d = 0; d < dims; ++d) order.push_back(d);
  if (channels_last) std::rotate(order.begin() + 1, order.begin() + 2, order.end());
  return order;
}

// True if dimensions first, first + 1, ... of t are densely packed in that order.
bool lies_in(const Tensor& t, int first, const std::vector<int>& order) {
  int64_t expected = 1;
  for (size_t i = order.size(); i-- > 0;) {
    const int d = first + order[i];
    if (t.size(d) == 0) return true;
    if (t.size(d) != 1 && t.stride(d) != expected) return false;
    expected *= t.size(d);
  }
  return true;
}

// A stack [P, *shape] of densely packed kernels, and the memory order of their dimensions, which the blend keeps.
struct Flat {
  Tensor tensor;
  std::vector<int> order;
  int64_t size;  // of a kernel
};

Flat flat(const Tensor& stack) {
  const int64_t dims = stack.dim() - 1, size = stack.size(0) ? stack.numel() / stack.size(0) : 0;
  std::vector<int> order = order_of(dims, false);
  if (lies_in(stack, 1, order)) return {stack, order, size};
  if (dims == 4 || dims == 5) {
    const std::vector<int> last = order_of(dims, true);
    if (lies_in(stack, 1, last)) return {stack, last, size};
  }
  return {torch::stable::contiguous(stack), order, size};
}

// An uninitialised tensor [lead, *shape], or [*shape] without lead, in the kernels' memory order.
Tensor empty_like(const Flat& stack, ScalarType type, std::optional<int64_t> lead) {
  const int64_t dims = static_cast<int64_t>(stack.order.size());
  Ints sizes(dims), strides(dims);
  int64_t step = 1;
  for (size_t i = dims; i-- > 0;) {
    const int d = stack.order[i];
    sizes[d] = stack.tensor.size(d + 1);
    strides[d] = step;
    step *= std::max<int64_t>(1, sizes[d]);
  }
  if (lead) sizes.insert(sizes.begin(), *lead), strides.insert(strides.begin(), step);
  return empty_strided(stack.tensor, type, sizes, strides);
}

std::vector<double> values_of(const Tensor& alpha) {
  const int64_t count = alpha.size(0), step = alpha.stride(0);
  std::vector<double> values(count);
  STD_TORCH_CHECK(alpha.scalar_type() == ScalarType::Float || alpha.scalar_type() == ScalarType::Double,
                  "tunable_parameters: alpha must be float32 or float64 for backend 'cpp'");
  for (int64_t i = 0; i < count; ++i) {
    values[i] = alpha.scalar_type() == ScalarType::Double ? static_cast<const double*>(alpha.const_data_ptr())[i * step]
                                                          : static_cast<const float*>(alpha.const_data_ptr())[i * step];
  }
  return values;
}

struct Item {
  size_t stack;
  int64_t begin, end;
};

std::vector<Item> items_of(const std::vector<Flat>& stacks) {
  std::vector<Item> items;
  for (size_t i = 0; i < stacks.size(); ++i) {
    for (int64_t begin = 0; begin < stacks[i].size; begin += kBlock)
      items.push_back({i, begin, std::min(stacks[i].size, begin + kBlock)});
  }
  return items;
}

void for_each(const std::vector<Item>& items, const std::function<void(size_t, const Item&)>& f) {
  parallel_for(static_cast<int64_t>(items.size()), kGrainBlocks, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) f(i, items[i]);
  });
}

void blend(const std::vector<Flat>& stacks, const Tensor& alpha, const Ints& starts, const Tensors& outputs) {
  const std::vector<double> values = values_of(alpha);
  std::vector<FlatBlend> blends;
  for (size_t i = 0; i < stacks.size(); ++i) {
    const Tensor& stack = stacks[i].tensor;
    blends.push_back({stack.const_data_ptr(), number_type(stack.scalar_type()), stack.size(0), stack.stride(0),
                      values.data() + starts[i], outputs[i].mutable_data_ptr(), number_type(outputs[i].scalar_type())});
  }
  for_each(items_of(stacks),
           [&](size_t, const Item& item) { best_kernels().flat_blend(blends[item.stack], item.begin, item.end); });
}

// Each stack [P, *] with its P values of alpha [A], from `starts` on.
void check_stacks(const Tensors& parameters, const Tensor& alpha, const Ints& starts) {
  bool fits = alpha.dim() == 1 && starts.size() == parameters.size();
  for (size_t i = 0; i < parameters.size() && fits; ++i) {
    const Tensor& stack = parameters[i];
    fits = stack.dim() >= 1 && stack.device() == alpha.device() && starts[i] >= 0 && starts[i] <= alpha.size(0) &&
           stack.size(0) <= alpha.size(0) - starts[i];
  }
  STD_TORCH_CHECK(fits, "tunable_parameters: parameters, alpha and starts must fit each other");
}

// `blend` has the shape of one kernel of the stack.
void check_blend(const Tensor& blend, const Tensor& stack) {
  bool fits = blend.dim() == stack.dim() - 1 && blend.device() == stack.device();
  for (int64_t d = 0; d < blend.dim() && fits; ++d) fits = blend.size(d) == stack.size(d + 1);
  STD_TORCH_CHECK(fits, "tunable_parameters: outputs and gradients must have the shape of their stack's kernels");
}

Tensors forward(const Tensors& parameters, const Tensor& alpha, const Ints& starts, std::optional<ScalarType> dtype) {
  check_stacks(parameters, alpha, starts);
  std::vector<Flat> stacks;
  Tensors outputs;
  for (const Tensor& parameter : parameters) {
    stacks.push_back(flat(parameter));
    outputs.push_back(empty_like(stacks.back(), dtype.value_or(parameter.scalar_type()), std::nullopt));
  }
  blend(stacks, alpha, starts, outputs);
  return outputs;
}

void into(const Tensors& parameters, const Tensor& alpha, const Ints& starts, const Tensors& outputs) {
  check_stacks(parameters, alpha, starts);
  STD_TORCH_CHECK(outputs.size() == parameters.size(), "tunable_parameters: outputs must be one per parameter");
  std::vector<Flat> stacks;
  for (const Tensor& parameter : parameters) stacks.push_back(flat(parameter));
  for (size_t i = 0; i < stacks.size(); ++i) {
    check_blend(outputs[i], parameters[i]);
    STD_TORCH_CHECK(
        lies_in(outputs[i], 0, stacks[i].order),
        "tunable_parameters: outputs must have the memory layout of their stack's kernels for backend 'cpp'");
  }
  blend(stacks, alpha, starts, outputs);
}

Tensors backward(const Tensors& grad_outputs, const Tensors& parameters, const Tensor& alpha, const Ints& starts,
                 const std::vector<bool>& mask) {
  check_stacks(parameters, alpha, starts);
  STD_TORCH_CHECK(grad_outputs.size() == parameters.size() && mask.size() == parameters.size() + 1,
                  "tunable_parameters: grad_outputs must be one per parameter, and mask one more");
  for (size_t i = 0; i < parameters.size(); ++i) check_blend(grad_outputs[i], parameters[i]);
  const std::vector<double> values = values_of(alpha);
  const bool need_alpha = mask.back();
  std::vector<Flat> stacks;
  std::vector<FlatContract> contracts;
  Tensors gradients, results;
  for (size_t i = 0; i < parameters.size(); ++i) {
    stacks.push_back(flat(parameters[i]));
    const Flat& stack = stacks.back();
    const ScalarType type = stack.tensor.scalar_type();
    gradients.push_back(grad_outputs[i]);
    if (!lies_in(gradients[i], 0, stack.order)) {
      gradients[i] = empty_like(stack, grad_outputs[i].scalar_type(), std::nullopt);
      torch::stable::copy_(gradients[i], grad_outputs[i]);
    }
    results.push_back(mask[i] ? empty_like(stack, type, stack.tensor.size(0)) : empty(stack.tensor, {0}, type));
    contracts.push_back({stack.tensor.const_data_ptr(), number_type(type), stack.tensor.size(0), stack.tensor.stride(0),
                         values.data() + starts[i], gradients[i].const_data_ptr(),
                         number_type(gradients[i].scalar_type()), mask[i] ? results[i].mutable_data_ptr() : nullptr,
                         stack.size});
  }
  const std::vector<Item> items = items_of(stacks);
  int64_t most = 1;
  for (const Flat& stack : stacks) most = std::max(most, stack.tensor.size(0));
  std::vector<double> products(need_alpha ? items.size() * most : 0), totals(values.size());
  for_each(items, [&](size_t index, const Item& item) {
    best_kernels().flat_contract(contracts[item.stack], item.begin, item.end,
                                 need_alpha ? products.data() + index * most : nullptr);
  });
  results.push_back(empty(alpha, {need_alpha ? alpha.size(0) : 0}, alpha.scalar_type()));
  if (!need_alpha) return results;
  for (size_t index = 0; index < items.size(); ++index) {
    const size_t i = items[index].stack;
    for (int64_t p = 0; p < contracts[i].kernels; ++p) totals[starts[i] + p] += products[index * most + p];
  }
  void* target = results.back().mutable_data_ptr();
  for (size_t i = 0; i < totals.size(); ++i) {
    if (alpha.scalar_type() == ScalarType::Double) {
      static_cast<double*>(target)[i] = totals[i];
    } else {
      static_cast<float*>(target)[i] = static_cast<float>(totals[i]);
    }
  }
  return results;
}

Tensor forward_one(const Tensor& parameter, const Tensor& alpha) {
  STD_TORCH_CHECK(parameter.dim() >= 1 && alpha.dim() == 1 && alpha.size(0) == parameter.size(0),
                  "tunable_parameter: alpha must be [P] for backend 'cpp'");
  return forward({parameter}, to_type(alpha, ScalarType::Float), {0}, std::nullopt)[0];
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(tunable_ops, CPU, m) {
  m.impl("tunable_parameter_cpp", TORCH_BOX(&forward_one));
  m.impl("tunable_parameters_cpp", TORCH_BOX(&forward));
  m.impl("tunable_parameters_cpp_into", TORCH_BOX(&into));
  m.impl("tunable_parameters_cpp_backward", TORCH_BOX(&backward));
}

}  // namespace tunable_ops
