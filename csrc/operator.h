// Adapts each device's implementation to the schemas of tunable_conv2d. Exported programs call the operators without
// Python, so all arguments are validated here, once for every device.
#pragma once

#include "options.h"
#include "tensors.h"

namespace tunable_ops {

inline void check_call(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                       const Tensor& alpha, const Options& o) {
  const ScalarType type = input.scalar_type(), alpha_type = alpha.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Half || type == ScalarType::BFloat16,
                  "tunable_conv2d: input must be float32, bfloat16 or float16 for the compiled operators");
  const bool narrow = alpha_type == ScalarType::Half || alpha_type == ScalarType::BFloat16;
  STD_TORCH_CHECK(
      weight.scalar_type() == type && (!bias || bias->scalar_type() == type) &&
          (alpha_type == ScalarType::Float || (narrow && type != ScalarType::Float)),
      "tunable_conv2d: weight and bias must have the input's dtype; alpha must be float32, or 16-bit if they are");
  const auto is_elsewhere = [&](const Tensor& t) { return t.device() != input.device(); };
  STD_TORCH_CHECK(!is_elsewhere(weight) && !is_elsewhere(alpha) && !(bias && is_elsewhere(*bias)),
                  "tunable_conv2d: weight, bias and alpha must be on the input's device");
  STD_TORCH_CHECK(input.dim() == 4 && weight.dim() == 5, "tunable_conv2d: input must be [B, C, H, W] and weight ",
                  "[P, O, C/groups, kh, kw]; got ", input.dim(), " and ", weight.dim(), " dimensions");
  bool fits = o.groups > 0 && weight.numel() > 0 && weight.size(2) * o.groups == input.size(1) &&
              weight.size(1) % o.groups == 0;
  if (bias) fits = fits && bias->dim() == 2 && bias->size(0) == weight.size(0) && bias->size(1) == weight.size(1);
  const int64_t rank = alpha.dim();
  fits = fits && (rank == 1 || rank == 2 || rank == 4) && alpha.size(rank == 1 ? 0 : 1) == weight.size(0) &&
         (rank == 1 || alpha.size(0) == input.size(0));
  for (int d = 0; d < 2 && fits; ++d) {
    fits = o.stride[d] > 0 && o.dilation[d] > 0 && o.padding[d] >= 0;
    const int64_t size = fits ? output_size(input.size(2 + d), weight.size(3 + d), d, o) : 0;
    fits = size > 0 && (rank != 4 || alpha.size(2 + d) == size);
  }
  STD_TORCH_CHECK(fits, "tunable_conv2d: input, weight, bias, alpha and the options must fit each other");
}

// A tensor with the result's shape and dtype: its gradient, or a value that was saved.
inline void check_output(const Tensor& t, const Tensor& input, const Tensor& weight, const Options& o) {
  bool fits = t.dim() == 4 && t.device() == input.device() && t.scalar_type() == input.scalar_type() &&
              t.size(0) == input.size(0) && t.size(1) == weight.size(1);
  for (int d = 0; d < 2 && fits; ++d) fits = t.size(2 + d) == output_size(input.size(2 + d), weight.size(3 + d), d, o);
  STD_TORCH_CHECK(fits, "tunable_conv2d: grad_output and saved must have the output's shape and dtype");
}

inline Options options_of(int64_t stride_h, int64_t stride_w, int64_t padding_h, int64_t padding_w, int64_t dilation_h,
                          int64_t dilation_w, int64_t groups, int64_t activation) {
  STD_TORCH_CHECK(activation >= 0 && activation <= static_cast<int64_t>(Activation::kLeakyRelu),
                  "tunable_conv2d: activation must be a code of the schema; got ", activation);
  constexpr int64_t kLimit = int64_t{1} << 31;  // products of two and a size do not overflow
  for (const int64_t value : {stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w, groups})
    STD_TORCH_CHECK(value >= 0 && value < kLimit,
                    "tunable_conv2d: stride, padding, dilation and groups must be in [0, 2^31); got ", value);
  return {{stride_h, stride_w},
          {padding_h, padding_w},
          {dilation_h, dilation_w},
          groups,
          static_cast<Activation>(activation)};
}

// Of one tap the dilation means nothing, and oneDNN reads address 0 with one of 2 (docs/known_faults.md).
inline Options without_idle_dilation(Options o, const Tensor& weight) {
  for (int d = 0; d < 2; ++d) {
    if (weight.size(3 + d) == 1) o.dilation[d] = 1;
  }
  return o;
}

using Forward = Tensor (*)(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                           const Tensor& alpha, const Options& options);
// Returns undefined tensors for the gradients that `mask` does not request.
using Backward = Gradients (*)(const Tensor& grad_output, const std::optional<Tensor>& saved, const Tensor& input,
                               const Tensor& weight, const std::optional<Tensor>& bias, const Tensor& alpha,
                               const Options& options, const std::vector<bool>& mask);

template <Forward forward>
Tensor forward_operator(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                        const Tensor& alpha, int64_t stride_h, int64_t stride_w, int64_t padding_h, int64_t padding_w,
                        int64_t dilation_h, int64_t dilation_w, int64_t groups, int64_t activation) {
  const Options given =
      options_of(stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w, groups, activation);
  check_call(input, weight, bias, alpha, given);
  const Options options = without_idle_dilation(given, weight);
  return forward(input, weight, bias, alpha, options);
}

template <Backward backward>
Gradients backward_operator(const Tensor& grad_output, const std::optional<Tensor>& saved, const Tensor& input,
                            const Tensor& weight, const std::optional<Tensor>& bias, const Tensor& alpha,
                            int64_t stride_h, int64_t stride_w, int64_t padding_h, int64_t padding_w,
                            int64_t dilation_h, int64_t dilation_w, int64_t groups, int64_t activation,
                            const std::vector<bool>& mask) {
  const Options given =
      options_of(stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w, groups, activation);
  check_call(input, weight, bias, alpha, given);
  const Options options = without_idle_dilation(given, weight);
  STD_TORCH_CHECK(mask.size() == 4, "tunable_conv2d: mask must hold 4 values; got ", mask.size());
  STD_TORCH_CHECK(saved.has_value() == (options.activation != Activation::kNone),
                  "tunable_conv2d: saved must be given exactly if there is an activation");
  check_output(grad_output, input, weight, options);
  if (saved) check_output(*saved, input, weight, options);
  const auto [grad_input, grad_weight, grad_bias, grad_alpha] =
      backward(grad_output, saved, input, weight, bias, alpha, options, mask);
  const auto or_empty = [&](const Tensor& t) {
    return t.defined() ? t : empty_strided(grad_output, grad_output.scalar_type(), {0}, {1});
  };
  return {or_empty(grad_input), or_empty(grad_weight), or_empty(grad_bias), or_empty(grad_alpha)};
}

}  // namespace tunable_ops
