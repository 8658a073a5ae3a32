// What the files of this folder share on the tensors' side: calls made of tensors, and tunable_conv2d itself.
#pragma once

#include <optional>
#include <vector>

#include "../options.h"
#include "../tensors.h"
#include "passes.h"

namespace tunable_ops {

// A call's geometry, kernels and alpha (copied); no input yet, no activation.
Call call_of(const Tensor& input, const Tensor& weight, const Tensor& alpha, const Options& options);

// [rows, O]: sum_p alpha[row, p] * bias[p].
std::vector<float> blended_bias(const Call& c, const std::optional<Tensor>& bias);

// What the kernels apply where they store their sums; gelu and silu come after (`with_activation`).
Activation in_kernel(Activation activation);
Tensor with_activation(const Tensor& value, Activation activation);

// The gradient before the activation, in channels_last.
Tensor without_activation(const Tensor& grad, const std::optional<Tensor>& saved, Activation activation);

Tensor forward(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, const Tensor& alpha,
               const Options& options);

// The gradients that are asked for; the others are undefined.
Gradients gradients(const Tensor& grad_output, const std::optional<Tensor>& saved, const Tensor& input,
                    const Tensor& weight, const std::optional<Tensor>& bias, const Tensor& alpha,
                    const Options& options, const std::vector<bool>& mask);

}  // namespace tunable_ops
