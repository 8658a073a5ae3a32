// The layer between the operator (tensors, checks) and the CPU kernels (pointers, loops): the geometry of a call, and
// the passes of forward and backward. Does not depend on Torch.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "kernels.h"
#include "workspace.h"

namespace tunable_ops {

// Runs f(begin, end) over [0, count) on the caller's threads, with at least `grain` items on each.
using ParallelFor = void (*)(int64_t count, int64_t grain, const std::function<void(int64_t, int64_t)>& f);

struct Threads {
  ParallelFor parallel_for;
  int64_t count;
};

// A call of the operator: tensors in channels_last, kernels with any strides.
struct Call {
  Conv conv;
  bool depthwise;
  Stack weight;
  const float* input;
  std::vector<float> alpha;  // [rows, kernels], rows: 1 (shared) or batch
  int64_t rows;
  Threads threads;
  const float* transformed = nullptr;  // for `convolve` by filtering: kernels of `transform_kernels`, else computed
};

// Bias [rows, groups * outputs] as the kernels read it: [rows, groups, vectors * lanes]; empty if there is none.
std::vector<float> padded_bias(const std::vector<float>& bias, const Panels& panels, int64_t rows, int64_t outputs);

// `bias` is [rows, O], already blended, or empty.
void convolve(const Call& call, const std::vector<float>& bias, float* output);

// As a transposed convolution it also applies the call's activation and `bias` [rows, groups * channels]; then every
// pixel must have a tap.
void input_gradient(const Call& call, const float* grad_output, float* grad_input, const std::vector<float>& bias = {});

// True if the gradient of the input, or of the kernels, is computed by Winograd's filtering.
bool filters_input_gradient(const Call& call);
bool filters_kernel_gradient(const Call& call);

// The destinations of the kernels' gradients; null if not requested.
struct KernelGradients {
  Stack weight;        // the layout of grad_weight
  float* grad_weight;  // in that layout
  double* grad_alpha;  // [rows, kernels]: the weight's contribution
  double* bias_sums;   // [batch, O], grad_output summed over the pixels
};

void kernel_gradients(const Call& call, const float* grad_output, const KernelGradients& to);

}  // namespace tunable_ops
