// tunable_conv2d on the wgmma kernel: calls that it does not support raise.
#pragma once

#include "../options.h"
#include "tensors.h"

namespace tunable_ops::cuda {

Tensor forward_wgmma(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, const Tensor& alpha,
                     const Options& options);

// The gradient of the input; `input` tells its size and memory format.
Tensor input_gradient_wgmma(const Tensor& grad_output, const Tensor& input, const Tensor& weight, const Tensor& alpha,
                            const Options& options);

// Makes the kernel ready for such a call, or for the gradient of its input. Returns false if the kernel does not
// support it; raises if it should run, but cannot.
bool prepare_wgmma(const Tensor& input, const Tensor& weight, const Tensor& alpha, const Options& options,
                   bool gradient);

}  // namespace tunable_ops::cuda
