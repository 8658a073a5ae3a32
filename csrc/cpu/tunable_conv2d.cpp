// tunable_conv2d and its backward at the CPU key: allocation, the choice between our kernels and aten's convolution,
// and registration. Python defines the schemas.
#include "tunable_conv2d.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>

#include "../operator.h"
#include "algorithm.h"
#include "alpha_map.h"
#include "aten_convolution.h"
#include "layout.h"
#include "low_precision.h"

namespace tunable_ops {
namespace {

Stack stack_of(const Tensor& weight, int64_t groups) {
  return {weight.scalar_type() == ScalarType::Float ? weight.const_data_ptr<float>() : nullptr,
          weight.size(0),
          weight.stride(0),
          weight.size(1) / groups * weight.stride(1),
          weight.stride(1),
          weight.stride(2),
          weight.stride(3),
          weight.stride(4)};
}

}  // namespace

Call call_of(const Tensor& input, const Tensor& weight, const Tensor& alpha, const Options& o) {
  Call c;
  Conv& v = c.conv;
  v.batch = input.size(0);
  v.groups = o.groups;
  v.channels = weight.size(2);
  v.outputs = weight.size(1) / o.groups;
  v.in_h = input.size(2);
  v.in_w = input.size(3);
  v.taps_h = weight.size(3);
  v.taps_w = weight.size(4);
  v.stride_h = o.stride[0], v.stride_w = o.stride[1];
  v.dilation_h = o.dilation[0], v.dilation_w = o.dilation[1];
  v.pad_h = o.padding[0], v.pad_w = o.padding[1];
  v.out_h = output_size(v.in_h, v.taps_h, 0, o);
  v.out_w = output_size(v.in_w, v.taps_w, 1, o);
  v.in_pixel = o.groups * v.channels;
  v.in_row = v.in_pixel * v.in_w;
  v.in_sample = v.in_row * v.in_h;
  v.out_pixel = o.groups * v.outputs;
  v.out_row = v.out_pixel * v.out_w;
  v.out_sample = v.out_row * v.out_h;
  v.activation = Activation::kNone;
  c.depthwise = o.groups > 1 && v.channels == 1 && v.outputs == 1;
  c.weight = stack_of(weight, o.groups);
  c.input = nullptr;
  c.rows = alpha.dim() == 1 ? 1 : alpha.size(0);
  const float* values = alpha.const_data_ptr<float>();
  const int64_t kernels = weight.size(0), row_step = alpha.dim() == 1 ? 0 : alpha.stride(0),
                step = alpha.stride(alpha.dim() - 1);
  c.alpha.resize(c.rows * kernels);
  for (int64_t i = 0; i < c.rows * kernels; ++i) c.alpha[i] = values[i / kernels * row_step + i % kernels * step];
  c.threads = {&parallel_for, static_cast<int64_t>(torch::stable::get_num_threads())};
  return c;
}

std::vector<float> blended_bias(const Call& c, const std::optional<Tensor>& bias) {
  if (!bias) return {};
  const int64_t kernels = bias->size(0), outputs = bias->size(1), step = bias->stride(0), next = bias->stride(1);
  const float* values = bias->const_data_ptr<float>();
  std::vector<float> blended(c.rows * outputs);
  for (int64_t r = 0; r < c.rows; ++r) {
    for (int64_t o = 0; o < outputs; ++o) {
      float total = 0;
      for (int64_t p = 0; p < kernels; ++p) total += c.alpha[r * kernels + p] * values[p * step + o * next];
      blended[r * outputs + o] = total;
    }
  }
  return blended;
}

Activation fused_activation(Activation activation) {
  const bool piecewise_linear = activation == Activation::kRelu || activation == Activation::kLeakyRelu;
  return piecewise_linear ? activation : Activation::kNone;
}

Tensor apply_unfused_activation(const Tensor& value, Activation activation) {
  if (activation == Activation::kGelu) {
    std::array<StableIValue, 2> stack{from(value), from(std::string("none"))};
    call("aten::gelu", stack);
    return to<Tensor>(stack[0]);
  }
  if (activation == Activation::kSilu) {
    std::array<StableIValue, 1> stack{from(value)};
    call("aten::silu", stack);
    return to<Tensor>(stack[0]);
  }
  return value;
}

Tensor activation_backward(const Tensor& grad, const std::optional<Tensor>& saved, Activation activation) {
  const Tensor dense = to_channels_last(grad);
  if (!saved || activation == Activation::kNone) return dense;
  const Tensor value = to_channels_last(*saved);
  if (activation == Activation::kGelu) {
    std::array<StableIValue, 3> stack{from(dense), from(value), from(std::string("none"))};
    call("aten::gelu_backward", stack);
    return in_channels_last(to<Tensor>(stack[0]));
  }
  if (activation == Activation::kSilu) {
    std::array<StableIValue, 2> stack{from(dense), from(value)};
    call("aten::silu_backward", stack);
    return in_channels_last(to<Tensor>(stack[0]));
  }
  Ints sizes, strides;
  for (int d = 0; d < 4; ++d) sizes.push_back(dense.size(d)), strides.push_back(dense.stride(d));
  const Tensor result = empty_strided(dense, dense.scalar_type(), sizes, strides);
  const bool relu = activation == Activation::kRelu;
  with_type(dense.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const T *g = dense.const_data_ptr<T>(), *y = value.const_data_ptr<T>();
    T* out = result.mutable_data_ptr<T>();
    parallel_for(result.numel(), 1 << 15, [=](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const float grad = g[i], before = y[i];
        out[i] = relu ? (before <= 0 ? 0.0f : grad) : before > 0 ? grad : grad * kLeakySlope;  // propagates NaN
      }
    });
  });
  return result;
}

namespace {

// Raises if Winograd's filtering was asked for by name and does not serve the call.
void check_algorithm(const Tensor& input, const Tensor& weight, const Tensor& alpha, const Options& o) {
  const Algorithm named = chosen_algorithm();
  if (named == Algorithm::kDefault || named == Algorithm::kDirect || input.size(0) == 0) return;
  const bool depthwise = o.groups > 1 && weight.size(2) == 1 && weight.size(1) == o.groups;
  bool fits = input.scalar_type() == ScalarType::Float && alpha.dim() <= 2 && !depthwise;
  const int64_t taps = weight.size(3);
  fits = fits && weight.size(4) == taps && (taps == 3 || (taps == 5 && named == Algorithm::kWinograd2));
  for (int d = 0; d < 2; ++d) fits = fits && o.stride[d] == 1 && o.dilation[d] == 1;
  STD_TORCH_CHECK(
      fits, "tunable_conv2d: algorithm must be one that serves the call; Winograd's filtering serves ",
      "float32, kernels of 3x3 with stride 1 and dilation 1 (with tiles of 2x2 those of 5x5 too), not depthwise, and ",
      "an alpha [P] or [B, P]. Use ", "'default' for the fastest that does");
}

}  // namespace

Tensor forward(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, const Tensor& alpha,
               const Options& o) {
  check_algorithm(input, weight, alpha, o);
  if (is_low_precision(input)) return forward_low_precision(input, weight, bias, alpha, o);
  if (alpha.dim() == 4) return forward_map(input, weight, bias, alpha, o);
  Call c = call_of(input, weight, alpha, o);
  c.conv.activation = fused_activation(o.activation);
  const MemoryFormat format = output_format(input, weight);
  const Tensor x = to_channels_last(input);
  if (c.conv.batch && format == MemoryFormat::ChannelsLast && prefers_aten(c, weight) &&
      !winograd_tile(c.conv, c.depthwise, c.rows))
    return apply_unfused_activation(convolve_with_aten(c, x, weight, blended_bias(c, bias)), o.activation);
  c.input = x.const_data_ptr<float>();
  // An empty tensor keeps the format that it is made with: `contiguous` returns it as it is.
  Tensor output = empty({c.conv.batch, weight.size(1), c.conv.out_h, c.conv.out_w},
                        c.conv.batch ? MemoryFormat::ChannelsLast : format);
  if (c.conv.batch) convolve(c, blended_bias(c, bias), output.mutable_data_ptr<float>());
  output = apply_unfused_activation(output, o.activation);
  return format == MemoryFormat::ChannelsLast ? output : to_contiguous(output);
}

namespace {

// Computes grad_bias (unless null) from the sums of grad_output [batch, O], and adds its contribution to grad_alpha.
void bias_gradients(const Call& c, const Tensor& bias, const std::vector<double>& sums, float* grad_bias,
                    std::vector<double>& grad_alpha) {
  const int64_t kernels = bias.size(0), outputs = bias.size(1);
  const float* values = bias.const_data_ptr<float>();
  std::vector<double> total(kernels * outputs);
  for (int64_t b = 0; b < c.conv.batch; ++b) {
    const int64_t row = c.rows > 1 ? b : 0;
    for (int64_t p = 0; p < kernels; ++p) {
      const double alpha = c.alpha[row * kernels + p];
      double product = 0;
      for (int64_t o = 0; o < outputs; ++o) {
        const double grad = sums[b * outputs + o];
        total[p * outputs + o] += alpha * grad;
        product += grad * values[p * bias.stride(0) + o * bias.stride(1)];
      }
      grad_alpha[row * kernels + p] += product;
    }
  }
  for (int64_t i = 0; grad_bias && i < kernels * outputs; ++i) grad_bias[i] = static_cast<float>(total[i]);
}

Gradients empty_batch_gradients(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                                const Tensor& alpha, const std::vector<bool>& mask) {
  const auto zeros = [](const Tensor& t) {
    std::fill_n(t.mutable_data_ptr<float>(), t.numel(), 0.0f);
    return t;
  };
  return {mask[0] ? empty({0, input.size(1), input.size(2), input.size(3)}, output_format(input, weight)) : undefined(),
          mask[1] ? zeros(empty_stack_like(weight)) : undefined(),
          mask[2] && bias ? zeros(empty({bias->size(0), bias->size(1)})) : undefined(),
          mask[3] ? zeros(empty_like_alpha(alpha)) : undefined()};
}

}  // namespace

Gradients gradients(const Tensor& grad_output, const std::optional<Tensor>& saved, const Tensor& input,
                    const Tensor& weight, const std::optional<Tensor>& bias, const Tensor& alpha, const Options& o,
                    const std::vector<bool>& mask) {
  check_algorithm(input, weight, alpha, o);
  if (is_low_precision(input)) return gradients_low_precision(grad_output, saved, input, weight, bias, alpha, o, mask);
  if (input.size(0) == 0) return empty_batch_gradients(input, weight, bias, alpha, mask);
  if (alpha.dim() == 4) return gradients_map(grad_output, saved, input, weight, bias, alpha, o, mask);
  Call c = call_of(input, weight, alpha, o);
  const MemoryFormat format = output_format(input, weight);
  const Tensor grad = activation_backward(grad_output, saved, o.activation), x = to_channels_last(input);
  const bool by_aten = format == MemoryFormat::ChannelsLast && prefers_aten(c, weight);
  const bool filters_kernels = (mask[1] || mask[3]) && filters_kernel_gradient(c);
  if (by_aten && !filters_kernels && !(mask[0] && filters_input_gradient(c)))
    return gradients_with_aten(c, grad, x, weight, bias, alpha, mask);
  c.input = x.const_data_ptr<float>();
  Tensor grad_input = undefined(), grad_weight = undefined(), grad_bias = undefined(), grad_alpha = undefined();
  if (mask[0]) {
    grad_input = empty({input.size(0), input.size(1), input.size(2), input.size(3)}, MemoryFormat::ChannelsLast);
    input_gradient(c, grad.const_data_ptr<float>(), grad_input.mutable_data_ptr<float>());
    if (format == MemoryFormat::Contiguous) grad_input = to_contiguous(grad_input);
  }
  const bool need_bias = bias && (mask[2] || mask[3]);
  if (!mask[1] && !mask[3] && !need_bias) return {grad_input, grad_weight, grad_bias, grad_alpha};
  if (by_aten && !filters_kernels) {
    Gradients others = gradients_with_aten(c, grad, x, weight, bias, alpha, {false, mask[1], mask[2], mask[3]});
    std::get<0>(others) = grad_input;
    return others;
  }
  std::vector<double> alphas(c.rows * weight.size(0)), sums(need_bias ? c.conv.batch * weight.size(1) : 0);
  KernelGradients wanted{c.weight, nullptr, mask[3] ? alphas.data() : nullptr, need_bias ? sums.data() : nullptr};
  if (mask[1]) {
    grad_weight = empty_stack_like(weight);
    wanted.weight = stack_of(grad_weight, o.groups);
    wanted.grad_weight = grad_weight.mutable_data_ptr<float>();
  }
  kernel_gradients(c, grad.const_data_ptr<float>(), wanted);
  if (mask[2] && bias) grad_bias = empty({bias->size(0), bias->size(1)});
  if (need_bias) bias_gradients(c, *bias, sums, mask[2] ? grad_bias.mutable_data_ptr<float>() : nullptr, alphas);
  if (mask[3]) {
    grad_alpha = empty_like_alpha(alpha);
    float* target = grad_alpha.mutable_data_ptr<float>();
    for (size_t i = 0; i < alphas.size(); ++i) target[i] = static_cast<float>(alphas[i]);
  }
  return {grad_input, grad_weight, grad_bias, grad_alpha};
}

namespace {

int64_t set_algorithm(int64_t code) {
  STD_TORCH_CHECK(code >= 0 && code <= static_cast<int64_t>(Algorithm::kWinograd4),
                  "tunable_conv2d: algorithm must be a code of tunable_ops/algorithm.py; got ", code);
  return static_cast<int64_t>(choose_algorithm(static_cast<Algorithm>(code)));
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(tunable_ops, CompositeExplicitAutograd, m) {
  m.impl("tunable_conv2d_cpp_algorithm", TORCH_BOX(&set_algorithm));
}

STABLE_TORCH_LIBRARY_IMPL(tunable_ops, CPU, m) {
  m.impl("tunable_conv2d_cpp", TORCH_BOX(&forward_operator<&forward>));
  m.impl("tunable_conv2d_cpp_backward", TORCH_BOX(&backward_operator<&gradients>));
}

}  // namespace tunable_ops
