#include "operators.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <atomic>
#include <mutex>

#include "../activation.h"
#include "plan.h"

namespace tunable_ops::launcher {
namespace {

using c10::DispatchKeySet;
using c10::IValue;
using c10::OperatorHandle;
using torch::jit::Stack;

std::atomic<int64_t> planned{0}, unplanned{0};
std::atomic<bool (*)()> listening{nullptr};

OperatorHandle find(const std::string& op) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(("tunable_ops::" + op).c_str(), "");
}

// At a device's own key.
class Planned : public c10::OperatorKernel {
 public:
  explicit Planned(const std::string& op) : number_(number_of(op)), unplanned_(find(op + "_unplanned")) {}

  void operator()(const OperatorHandle& op, DispatchKeySet, Stack* stack) {
    const bool is_listening = listening.load() != nullptr && listening.load()();
    const auto key = is_listening ? std::nullopt : key_of(number_, *stack);
    const auto plan = key ? find_plan(*key) : nullptr;
    if (plan != nullptr) {
      if (auto results = repeat(*plan, *stack)) {
        ++planned;
        stack->clear();
        for (at::Tensor& result : *results) stack->emplace_back(std::move(result));
        return;
      }
      forget_plan(*key, plan);
    }
    ++unplanned;
    unplanned_.callBoxed(*stack);
  }

 private:
  static std::optional<Slots> repeat(const Plan& plan, const Stack& stack) {
    Slots slots;
    for (size_t i = 0; i < stack.size() && (stack[i].isTensor() || stack[i].isNone()); ++i)
      slots.push_back(stack[i].isNone() ? at::Tensor() : stack[i].toTensor());
    const c10::impl::ExcludeDispatchKeyGuard guard(c10::autograd_dispatch_keyset_with_ADInplaceOrView);
    return plan.run(std::move(slots));
  }

  int64_t number_;
  OperatorHandle unplanned_;
};

bool wants_gradient(const Stack& stack) {
  return at::GradMode::is_enabled() && std::any_of(stack.begin(), stack.end(), [](const IValue& value) {
           return value.isTensor() && value.toTensor().defined() && value.toTensor().requires_grad();
         });
}

// Below view tracking too, as `Operator.run` in Python.
void call_below_autograd(const OperatorHandle& op, Stack& stack) {
  const at::AutoDispatchBelowADInplaceOrView guard;
  op.callBoxed(stack);
}

struct Convolution {
  OperatorHandle forward, saving, backward;
};

OperatorHandle find_saved(const std::string& name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name.c_str(), "");
}

// With create_graph it is the operator that records its gradients.
void call_backward(const OperatorHandle& op, Stack& stack) {
  if (at::GradMode::is_enabled()) return op.callBoxed(stack);
  call_below_autograd(op, stack);
}

// As _TunableConv2d in Python; the operators find their way through modes and subclasses by themselves.
class Gradients : public torch::autograd::Function<Gradients> {
 public:
  static constexpr bool is_traceable = true;

  static at::Tensor forward(torch::autograd::AutogradContext* ctx, const at::Tensor& input, const at::Tensor& weight,
                            const std::optional<at::Tensor>& bias, const at::Tensor& alpha, const Convolution& ops,
                            const Stack& options) {
    const int64_t activation = options.back().toInt();
    const bool saves_value = is(activation, Activation::kGelu) || is(activation, Activation::kSilu);
    Stack stack{input, weight, bias, alpha};
    stack.insert(stack.end(), options.begin(), options.end());
    call_below_autograd(saves_value ? ops.saving : ops.forward, stack);
    const at::Tensor output = stack[0].toTensor();
    ctx->save_for_backward({input, weight, bias.value_or(at::Tensor()), alpha,
                            is(activation, Activation::kNone) ? at::Tensor() : stack[saves_value ? 1 : 0].toTensor()});
    ctx->saved_data["backward"] = ops.backward.operator_name().name;
    for (size_t i = 0; i < options.size(); ++i) ctx->saved_data[std::to_string(i)] = options[i];
    return output;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 torch::autograd::variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const bool has_bias = saved[2].defined();
    c10::List<bool> mask;
    for (const size_t edge : {0, 1, 2, has_bias ? 3 : 2})  // there is none for a missing bias
      mask.push_back(ctx->needs_input_grad(edge));
    mask[2] = has_bias && mask[2];
    Stack stack{grads[0], optional(saved[4]), saved[0], saved[1], optional(saved[2]), saved[3]};
    const size_t options = ctx->saved_data.size() - 1;
    for (size_t i = 0; i < options; ++i) stack.push_back(ctx->saved_data.at(std::to_string(i)));
    stack.emplace_back(mask);
    call_backward(find_saved(ctx->saved_data.at("backward").toStringRef()), stack);
    torch::autograd::variable_list results(4 + 2);  // none for the operators and options
    for (size_t i = 0; i < 4; ++i)
      if (mask[i]) results[i] = stack[i].toTensor();
    return results;
  }

 private:
  static bool is(int64_t code, Activation activation) { return code == static_cast<int64_t>(activation); }

  static IValue optional(const at::Tensor& t) { return t.defined() ? IValue(t) : IValue(); }
};

// As _Blend in Python.
class BlendGradients : public torch::autograd::Function<BlendGradients> {
 public:
  static constexpr bool is_traceable = true;

  static at::Tensor forward(torch::autograd::AutogradContext* ctx, const at::Tensor& parameter, const at::Tensor& alpha,
                            const OperatorHandle& op, const OperatorHandle& backward) {
    Stack stack{parameter, alpha};
    call_below_autograd(op, stack);
    ctx->save_for_backward({parameter, alpha});
    ctx->saved_data["backward"] = backward.operator_name().name;
    return stack[0].toTensor();
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 torch::autograd::variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const c10::List<bool> mask({ctx->needs_input_grad(0), ctx->needs_input_grad(1)});
    Stack stack{grads[0], saved[0], saved[1], mask};
    call_backward(find_saved(ctx->saved_data.at("backward").toStringRef()), stack);
    torch::autograd::variable_list results(2 + 2);  // none for the operators
    for (size_t i = 0; i < 2; ++i)
      if (mask[i]) results[i] = stack[i].toTensor();
    return results;
  }
};

// At a device's autograd key.
class Differentiable : public c10::OperatorKernel {
 public:
  explicit Differentiable(Convolution ops) : ops_(std::move(ops)) {}

  void operator()(const OperatorHandle& op, DispatchKeySet, Stack* stack) {
    if (!wants_gradient(*stack)) return call_below_autograd(op, *stack);
    const Stack all = std::move(*stack);
    stack->clear();
    stack->push_back(Gradients::apply(all[0].toTensor(), all[1].toTensor(), all[2].toOptional<at::Tensor>(),
                                      all[3].toTensor(), ops_, Stack(all.begin() + 4, all.end())));
  }

 private:
  Convolution ops_;
};

class DifferentiableBlend : public c10::OperatorKernel {
 public:
  explicit DifferentiableBlend(const std::string& backward) : backward_(find(backward)) {}

  void operator()(const OperatorHandle& op, DispatchKeySet, Stack* stack) {
    if (!wants_gradient(*stack)) return call_below_autograd(op, *stack);
    at::Tensor result = BlendGradients::apply((*stack)[0].toTensor(), (*stack)[1].toTensor(), op, backward_);
    stack->clear();
    stack->push_back(std::move(result));
  }

 private:
  OperatorHandle backward_;
};

// Of the gradients: their own gradients are made in Python.
class TwiceDifferentiable : public c10::OperatorKernel {
 public:
  explicit TwiceDifferentiable(const std::string& op) : differentiable_(find(op + "_differentiable")) {}

  void operator()(const OperatorHandle& op, DispatchKeySet, Stack* stack) {
    if (!wants_gradient(*stack)) return call_below_autograd(op, *stack);
    differentiable_.callBoxed(*stack);
  }

 private:
  OperatorHandle differentiable_;
};

template <class Kernel, class... Arguments>
void implement(torch::Library& library, const std::string& op, Arguments&&... arguments) {
  library.impl(op.c_str(), torch::CppFunction::makeFromBoxedFunctor(
                               std::make_unique<Kernel>(std::forward<Arguments>(arguments)...)));
}

}  // namespace

int64_t number_of(const std::string& op) {
  static std::mutex mutex;
  static std::vector<std::string> names;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto place = std::find(names.begin(), names.end(), op);
  const int64_t number = place - names.begin();
  if (place == names.end()) names.push_back(op);
  return number;
}

Counts counts() { return {planned, unplanned}; }

void set_listening(bool (*is_listening)()) { listening = is_listening; }

Operators::Operators(const std::string& device) {
  for (const std::string& key : {device, "Autograd" + device})
    libraries_.emplace_back(torch::Library::IMPL, "tunable_ops", c10::parseDispatchKey(key), __FILE__, __LINE__);
}

void Operators::add(const std::string& op) { implement<Planned>(libraries_[0], op, op); }

void Operators::add_convolution(const std::string& forward, const std::string& saving, const std::string& backward) {
  for (const auto& op : {forward, saving, backward}) add(op);
  implement<Differentiable>(libraries_[1], forward, Convolution{find(forward), find(saving), find(backward)});
  implement<TwiceDifferentiable>(libraries_[1], backward, backward);
}

void Operators::add_blend(const std::string& forward, const std::string& backward) {
  for (const auto& op : {forward, backward}) add(op);
  implement<DifferentiableBlend>(libraries_[1], forward, backward);
  implement<TwiceDifferentiable>(libraries_[1], backward, backward);
}

}  // namespace tunable_ops::launcher
