// If the machine multiplies the type natively, calls use aten's convolution in that type: one for the batch with one
// alpha, and forward one per sample otherwise. Everything else runs in float32 workspaces and rounds once: emulating
// the type takes several times as long.
#include "low_precision.h"

#include "aten_convolution.h"
#include "number_types.h"
#include "tunable_conv2d.h"

namespace tunable_ops {
namespace {

std::optional<Tensor> to_float(const std::optional<Tensor>& t) {
  return t ? std::optional<Tensor>(to_type(*t, ScalarType::Float)) : t;
}

// Preserves the result of `kernels_are_channels_last`.
Tensor stack_to_float(const Tensor& weight) {
  if (kernels_are_channels_last(weight)) return to_type(weight, ScalarType::Float);
  return to_type(weight, ScalarType::Float, MemoryFormat::Contiguous);
}

void check_rank(const Tensor& alpha) {
  STD_TORCH_CHECK(alpha.dim() <= 2, "tunable_conv2d: alpha must be [P] or [B, P] in 16 bits for backend 'cpp'");
}

// Depthwise layers in bfloat16 are bound by memory, so emulated arithmetic costs little.
bool aten_is_fastest(const Call& call, const Tensor& weight, MemoryFormat format) {
  if (call.conv.batch == 0 || format != MemoryFormat::ChannelsLast || !prefers_aten(call, weight)) return false;
  const ScalarType type = weight.scalar_type();
  // oneDNN's values are wrong there (docs/known_faults.md).
  if (type == ScalarType::BFloat16 && call.conv.out_w == 1 && call.conv.stride_w > 1) return false;
  return multiplies_natively(number_type(type)) || (call.depthwise && type == ScalarType::BFloat16);
}

// The same for one alpha per sample, forward: in float32 the samples take longer where the type is native.
bool aten_is_fastest_per_sample(const Call& call, const Tensor& weight, MemoryFormat format) {
  if (call.rows == 1 || !multiplies_natively(number_type(weight.scalar_type()))) return false;
  Call single = call;
  single.rows = 1;
  return aten_is_fastest(single, weight, format);
}

}  // namespace

Tensor forward_low_precision(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                             const Tensor& alpha, const Options& o) {
  check_rank(alpha);
  const MemoryFormat format = output_format(input, weight);
  const Tensor row = to_type(alpha, ScalarType::Float);
  const std::optional<Tensor> shift = to_float(bias);
  Call c = call_of(input, weight, row, o);
  const bool samples = aten_is_fastest_per_sample(c, weight, format);
  if (samples || aten_is_fastest(c, weight, format)) {
    c.conv.activation = fused_activation(o.activation);
    const Tensor x = in_channels_last(input);
    const std::vector<float> blended = blended_bias(c, shift);
    const Tensor output =
        samples ? convolve_samples_with_aten(c, x, weight, blended) : convolve_with_aten(c, x, weight, blended);
    return in_format(apply_unfused_activation(output, o.activation), format);
  }
  const Tensor output = forward(to_type(input, ScalarType::Float, format), stack_to_float(weight), shift, row, o);
  return in_format(to_type(output, input.scalar_type()), format);
}

Gradients gradients_low_precision(const Tensor& grad_output, const std::optional<Tensor>& saved, const Tensor& input,
                                  const Tensor& weight, const std::optional<Tensor>& bias, const Tensor& alpha,
                                  const Options& o, const std::vector<bool>& mask) {
  check_rank(alpha);
  const MemoryFormat format = output_format(input, weight);
  const Tensor row = to_type(alpha, ScalarType::Float);
  const std::optional<Tensor> shift = to_float(bias);
  const Call c = call_of(input, weight, row, o);
  const auto compute = [&]() -> Gradients {
    if (aten_is_fastest(c, weight, format)) {
      const Tensor grad = activation_backward(grad_output, saved, o.activation);
      return gradients_with_aten(c, grad, in_channels_last(input), weight, shift, row, mask);
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
