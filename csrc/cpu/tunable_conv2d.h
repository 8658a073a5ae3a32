// Shared by the CPU operators: converting tensors to a Call, activations, and tunable_conv2d itself.
#pragma once

#include <optional>
#include <vector>

#include "../options.h"
#include "../tensors.h"
#include "passes.h"

namespace tunable_ops {

// Sets geometry, kernels and alpha (copied); leaves input and activation unset.
Call call_of(const Tensor& input, const Tensor& weight, const Tensor& alpha, const Options& options);

// [rows, O]: sum_p alpha[row, p] * bias[p].
std::vector<float> blended_bias(const Call& c, const std::optional<Tensor>& bias);

// The kernels apply relu and leaky_relu as they store; `apply_unfused_activation` applies gelu and silu afterwards.
Activation fused_activation(Activation activation);
Tensor apply_unfused_activation(const Tensor& value, Activation activation);

// The gradient with respect to the activation's argument, in channels_last.
Tensor activation_backward(const Tensor& grad, const std::optional<Tensor>& saved, Activation activation);

Tensor forward(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, const Tensor& alpha,
               const Options& options);

// Returns undefined tensors for gradients that are not requested.
Gradients gradients(const Tensor& grad_output, const std::optional<Tensor>& saved, const Tensor& input,
                    const Tensor& weight, const std::optional<Tensor>& bias, const Tensor& alpha,
                    const Options& options, const std::vector<bool>& mask);

}  // namespace tunable_ops
