// tunable_conv2d with an alpha for every pixel: a convolution per kernel (of few outputs: for several kernels at once),
// weighed into the output as soon as it is there, so that the products of all kernels never stand side by side.
#pragma once

#include <optional>
#include <vector>

#include "../options.h"
#include "../tensors.h"

namespace tunable_ops {

// As `forward` and `gradients`: float32, alpha [B, P, OH, OW].
Tensor forward_map(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, const Tensor& alpha,
                   const Options& options);

Gradients gradients_map(const Tensor& grad_output, const std::optional<Tensor>& saved, const Tensor& input,
                        const Tensor& weight, const std::optional<Tensor>& bias, const Tensor& alpha,
                        const Options& options, const std::vector<bool>& mask);

}  // namespace tunable_ops
