// The passes of tunable_conv2d by Winograd's filtering: algorithm.h chooses it. Does not depend on Torch.
#pragma once

#include <vector>

#include "passes.h"

namespace tunable_ops {

// Blends and convolves in tiles of `tile` x `tile` outputs. `bias` is [rows, O], already blended, or empty.
void convolve_by_filtering(const Call& call, const Conv& conv, const Stack& stack, const std::vector<float>& bias,
                           const float* input, float* output, int64_t tile);

// The kernels of a call with one alpha, blended and transformed, as `Call::transformed` takes them: their floats, and
// how to compute them.
int64_t transformed_size(const Conv& conv, int64_t tile);
void transform_kernels(const Call& call, int64_t tile, float* to);

// Sets grad_weight and adds to grad_alpha; leaves bias_sums to the caller.
void kernel_gradients_by_filtering(const Call& call, const float* grad_output, const KernelGradients& to);

}  // namespace tunable_ops
