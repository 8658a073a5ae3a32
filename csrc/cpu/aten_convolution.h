// tunable_conv2d through aten's convolution (oneDNN on most machines), for calls where it is fastest: with one alpha
// for the batch, the kernels are blended into one.
#pragma once

#include "../tensors.h"
#include "passes.h"

namespace tunable_ops {

// blended = sum_p alpha[p] * stack[p], for kernels of any shape that are dense in memory; `blended` has their layout.
// Accumulates in fp32 and rounds once to the stack's type.
void blend_kernels(const Tensor& stack, const float* alpha, const Tensor& blended);

// True for calls with one alpha and kernels that are dense in memory, except those which our kernels compute faster:
// layers that cut the image into patches (2x2 with stride 2), unless the machine multiplies their 16-bit type, and in
// float32 depthwise ones of 3, 5 or 7 taps and 1x1 kernels of few channels; and except 1x1 kernels with a stride, whose
// backward in aten writes outside its memory (docs/known_faults.md).
bool prefers_aten(const Call& call, const Tensor& weight);

// `bias` is [O], already blended, or empty; the activation is relu, leaky_relu or none.
Tensor convolve_with_aten(const Call& call, const Tensor& input, const Tensor& weight, const std::vector<float>& bias);

// The same with one alpha and bias [B, O] per sample: a convolution for each. `input` is in channels_last.
Tensor convolve_samples_with_aten(const Call& call, const Tensor& input, const Tensor& weight,
                                  const std::vector<float>& bias);

// Input and kernels share a type; bias, alpha and their gradients are float32. Gradients of the blended kernel and bias
// are contracted into those of the stacks and alpha.
Gradients gradients_with_aten(const Call& call, const Tensor& grad_output, const Tensor& input, const Tensor& weight,
                              const std::optional<Tensor>& bias, const Tensor& alpha, const std::vector<bool>& mask);

}  // namespace tunable_ops
