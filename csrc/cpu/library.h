// tunable_conv2d with one alpha for the batch, where the library's convolution is the fastest: the kernels are blended
// into one, and oneDNN does the rest through aten.
#pragma once

#include "../tensors.h"
#include "passes.h"

namespace tunable_ops {

// blended = sum_p alpha[p] * stack[p] for kernels of any shape that are dense in memory, in their own order; summed in
// fp32 and rounded once to the stack's type.
void blend_kernels(const Tensor& stack, const float* alpha, const Tensor& blended);

// Whether the library's convolution is taken: one alpha, kernels dense in memory, and no layer that cuts the picture
// into patches (2x2 with stride 2), which our kernels compute faster.
bool library_serves(const Call& call, const Tensor& weight);

// `bias` is [O], blended, or empty; the activation is relu, leaky_relu or none.
Tensor convolve_by_library(const Call& call, const Tensor& input, const Tensor& weight, const std::vector<float>& bias);

// Input and kernels are of one type, bias and alpha and their gradients float32.
// Gradients of the input, and of the blended kernel and bias (contracted into the stacks' and alpha's), as masked.
Gradients gradients_by_library(const Call& call, const Tensor& grad_output, const Tensor& input, const Tensor& weight,
                               const std::optional<Tensor>& bias, const Tensor& alpha,
                               const std::vector<bool>& mask);

}  // namespace tunable_ops
