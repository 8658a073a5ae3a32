// tunable_conv2d with one alpha per pixel. Convolves with one kernel at a time (several if they have few outputs) and
// accumulates each result into the output, so that the results of all kernels are never in memory together.
#pragma once

#include <optional>
#include <vector>

#include "../options.h"
#include "../tensors.h"

namespace tunable_ops {

// Like `forward` and `gradients`, for float32 and alpha [B, P, OH, OW].
Tensor forward_map(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, const Tensor& alpha,
                   const Options& options);

Gradients gradients_map(const Tensor& grad_output, const std::optional<Tensor>& saved, const Tensor& input,
                        const Tensor& weight, const std::optional<Tensor>& bias, const Tensor& alpha,
                        const Options& options, const std::vector<bool>& mask);

}  // namespace tunable_ops
