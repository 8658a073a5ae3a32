// What the operators of this folder's CPU library share on the tensors' side: calls made of tensors, and tunable_conv2d
// itself.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "tensors.h"
#include "tunable_conv2d.h"

namespace tunable_ops {

// The geometry of a call, its kernels and its alpha, copied; no input yet, no activation.
Call call_of(const Tensor& input, const Tensor& weight, const Tensor& alpha, const Ints& stride, const Ints& padding,
             const Ints& dilation, int64_t groups);

// [rows, O]: sum_p alpha[row, p] * bias[p].
std::vector<float> blended_bias(const Call& c, const std::optional<Tensor>& bias);

// What the kernels apply where they store their sums; gelu and silu come after (`with_activation`).
Activation in_kernel(const std::string& activation);
Tensor with_activation(const Tensor& value, const std::string& activation);

// The gradient before the activation, in channels_last.
Tensor without_activation(const Tensor& grad, const std::optional<Tensor>& saved, const std::string& activation);

Tensor forward(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, const Tensor& alpha,
               const Ints& stride, const Ints& padding, const Ints& dilation, int64_t groups,
               const std::string& activation, const std::string& backend);

// The gradients that are asked for; the others are undefined.
Gradients gradients(const Tensor& grad_output, const std::optional<Tensor>& saved, const Tensor& input,
                    const Tensor& weight, const std::optional<Tensor>& bias, const Tensor& alpha, const Ints& stride,
                    const Ints& padding, const Ints& dilation, int64_t groups, const std::string& activation,
                    const std::vector<bool>& mask);

}  // namespace tunable_ops
