// Where the machine multiplies the type, one alpha for the batch is the library's convolution in that type. Everything
// else runs in float32 workspaces and rounds once: libraries that emulate the type take several times as long.
#include "half.h"

#include "library.h"
#include "number_types.h"
#include "tunable_conv2d.h"

namespace tunable_ops {
namespace {

std::optional<Tensor> to_float(const std::optional<Tensor>& t) {
  return t ? std::optional<Tensor>(to_type(*t, ScalarType::Float)) : t;
}

// Kernels keep what `kernels_are_channels_last` says of them.
Tensor stack_to_float(const Tensor& weight) {
  if (kernels_are_channels_last(weight)) return to_type(weight, ScalarType::Float);
  return to_type(weight, ScalarType::Float, MemoryFormat::Contiguous);
}

void check_rank(const Tensor& alpha) {
  STD_TORCH_CHECK(alpha.dim() <= 2, "tunable_conv2d: alpha must be [P] or [B, P] in 16 bits for backend 'cpp'");
}

// Depthwise in bfloat16 moves memory more than it multiplies.
bool library_is_fastest(const Call& call, const Tensor& weight, MemoryFormat format) {
  if (call.conv.batch == 0 || format != MemoryFormat::ChannelsLast || !library_serves(call, weight)) return false;
  const ScalarType type = weight.scalar_type();
  return multiplies(number_of(type)) || (call.depthwise && type == ScalarType::BFloat16);
}

}  // namespace

Tensor forward_half(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, const Tensor& alpha,
                    const Options& o) {
  check_rank(alpha);
  const MemoryFormat format = output_format(input, weight);
  const Tensor row = to_type(alpha, ScalarType::Float);
  const std::optional<Tensor> shift = to_float(bias);
  Call c = call_of(input, weight, row, o);
  if (library_is_fastest(c, weight, format)) {
    c.conv.activation = in_kernel(o.activation);
    const Tensor output = convolve_by_library(c, in_channels_last(input), weight, blended_bias(c, shift));
    return in_format(with_activation(output, o.activation), format);
  }
  const Tensor output = forward(to_type(input, ScalarType::Float, format), stack_to_float(weight), shift, row, o);
  return in_format(to_type(output, input.scalar_type()), format);
}

Gradients gradients_half(const Tensor& grad_output, const std::optional<Tensor>& saved, const Tensor& input,
                         const Tensor& weight, const std::optional<Tensor>& bias, const Tensor& alpha,
                         const Options& o, const std::vector<bool>& mask) {
  check_rank(alpha);
  const MemoryFormat format = output_format(input, weight);
  const Tensor row = to_type(alpha, ScalarType::Float);
  const std::optional<Tensor> shift = to_float(bias);
  const Call c = call_of(input, weight, row, o);
  const auto compute = [&]() -> Gradients {
    if (library_is_fastest(c, weight, format)) {
      const Tensor grad = without_activation(grad_output, saved, o.activation);
      return gradients_by_library(c, grad, in_channels_last(input), weight, shift, row, mask);
    }
    return gradients(to_type(grad_output, ScalarType::Float), to_float(saved),
                     to_type(input, ScalarType::Float, format), stack_to_float(weight), shift, row, o, mask);
  };
  const auto [grad_input, grad_weight, grad_bias, grad_alpha] = compute();
  const ScalarType type = input.scalar_type();
  return {grad_input.defined() ? in_format(to_type(grad_input, type), format) : grad_input, to_type(grad_weight, type),
          to_type(grad_bias, type), to_type(grad_alpha, alpha.scalar_type())};
}

}  // namespace tunable_ops
