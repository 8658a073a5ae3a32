// tunable_conv2d and its backward on CUDA.
#pragma once

#include "on_device.h"

namespace tunable_ops::cuda {

// Memory for gradients of blended kernels; if they need more, they are contracted in chunks. The library or the
// emulator tells.
int64_t chunk_bytes();

Tensor forward(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, const Tensor& alpha,
               const Options& options);
// Return undefined tensors for gradients that `mask` does not request.
Gradients gradients(const Tensor& grad_output, const std::optional<Tensor>& saved, const Tensor& input,
                    const Tensor& weight, const std::optional<Tensor>& bias, const Tensor& alpha,
                    const Options& options, const std::vector<bool>& mask);

// How depthwise kernels access channels: the adjacent lanes of a block, and whether each is a vector of channels.
struct Lanes {
  int32_t count;
  bool vectors;
};
Lanes depthwise_lanes(const Call& c, bool aligned, bool keeps_kernels);

// Computes the convolution, or the gradient of its input if `gradient`, into `target`. Tensors have the kernels'
// format.
void convolve(const Call& c, const Tensor& source, const Tensor& weight, const std::optional<Tensor>& bias,
              const Tensor& target, Activation activation, bool gradient, void* stream);

}  // namespace tunable_ops::cuda
