// The interface between the operator (.cpp) and the CUDA kernels (.cu): arguments and launchers, without Torch or CUDA
// headers. Strides count elements. Offsets inside a sample are 32-bit, offsets of samples 64-bit.
#pragma once

#include <cstdint>

#include "../activation.h"
#include "geometry.h"

namespace tunable_ops::cuda {

enum class Type : int32_t { kFloat, kHalf, kBFloat16 };
constexpr int64_t size_of(Type type) { return type == Type::kFloat ? 4 : 2; }

constexpr int32_t kMaxKernels = 16;
// Larger stacks are blended in a separate pass: their tiles would not leave shared memory for two blocks.
constexpr int32_t kMaxFusedKernels = 4;

// alpha [P] (row_step 0) or [B, P]; its dtype may differ from the input's.
struct Alpha {
  const void* data;
  int64_t row_step, step;
  int32_t kernels;
  Type type;
};

// The strides of an image batch, dense in channels_last or contiguous.
struct ImageStrides {
  int64_t sample;
  int32_t row, pixel, channel;
};

// Kernels [P, O, C/groups, kh, kw] with any strides. `outputs` counts all groups, `channels` one.
struct Stack {
  const void* data;
  int64_t kernel, output, channel, tap_h, tap_w;
  int32_t kernels, outputs, channels, taps_h, taps_w;
};

// blended[row] = round(sum_p alpha[row, p] * stack[p]) as [groups, outer, taps, inner], where outer and inner are a
// group's outputs and channels, or its channels and outputs if `transposed`.
struct BlendRun {
  Stack stack;
  Alpha alpha;
  void* blended;
  int32_t groups, rows;
  bool transposed;
  Type type;
};

// A convolution, or the gradient of its input. `channels` is the dimension of one group that is summed over, so the
// gradient swaps channels and outputs. Problem q covers samples [q, q + 1) * samples / problems.
struct ConvRun {
  Extent y, x;
  bool gradient;
  int32_t groups, channels, outputs, samples, problems;
  ImageStrides source, target;
  const void* input;
  void* output;
  const void* weight;      // [kernels or rows][groups, outputs, taps, channels], all taps of the kernel
  int64_t weight_kernel;   // stride between kernels if fused, else 0
  int64_t weight_problem;  // stride between problems if blended beforehand, else 0
  bool fused;
  Alpha alpha;
  const void* bias;  // [P, groups * outputs] or null
  int64_t bias_kernel, bias_output;
  Activation activation;
  Type type;
  bool tf32, vectors, vector_stores;  // 16-byte loads; 16-byte stores
};

// A depthwise convolution. `lanes` is the number of adjacent vectors of channels in a block.
struct DepthwiseRun {
  Extent y, x;
  bool gradient;
  int32_t channels, samples, problems;
  ImageStrides source, target;
  const void* input;
  void* output;
  Stack stack;
  Alpha alpha;
  const void* bias;
  int64_t bias_kernel, bias_output;
  Activation activation;
  Type type;
  int32_t lanes;
  bool vectors;
};

// gradient[problem, segment] = [outputs of all groups, taps, channels] from a segment of the problem's pixels, in fp32.
struct WeightGradRun {
  Extent y, x;
  int32_t groups, channels, outputs, samples, problems, segments;
  ImageStrides source, target;
  const void* input;
  const void* grad_output;
  float* gradient;
  Type type;
  bool tf32, vectors;
  int32_t lanes;  // depthwise only
};

// result = grad * the activation's derivative, from its output (relu, leaky_relu) or its argument (gelu, silu).
struct ActivationRun {
  const void* grad;
  const void* saved;
  void* result;
  int64_t count;
  Activation activation;
  Type type;
};

// sums[problem, segment, output]: grad_output summed over a segment of the problem's pixels.
struct SumRun {
  int32_t outputs, samples, pixels, problems, segments, lanes;
  int64_t sample;
  int32_t pixel, channel;
  const void* grad_output;
  float* sums;
  Type type;
};

// Processes a chunk of G = sum over segments: total[p] += sum_b alpha[b, p] G[b], and
// partial[b, p, warp] = the warp's part of <G[b], stack[p]>. The last chunk rounds the totals to grad_weight.
struct ContractRun {
  Stack stack;
  Alpha alpha;
  const float* gradient;
  int32_t problems, first_problem, segments;
  bool first, last;
  float* total;       // [P, outputs, taps, channels] between chunks; null for a single chunk
  void* grad_weight;  // or null
  Stack grad_stack;   // the layout of grad_weight
  float* partial;     // or null
  int32_t partials;   // warps in the grid
  Type type;
};

// grad_alpha[b, p] = sum of partial[b, p] + <sum over pixels of grad_output, bias[p]>;
// grad_bias[p, o] = sum_b alpha[b, p] * that sum.
struct FinishRun {
  Alpha alpha;
  int32_t problems, outputs, segments, partials;
  const float* partial;  // or null
  const float* sums;     // [problems, segments, outputs] or null
  const void* bias;
  int64_t bias_kernel, bias_output;
  void* grad_alpha;  // [problems, P] of alpha's type, or null
  void* grad_bias;   // [P, outputs], or null
  Type type;
};

constexpr int32_t kContractThreads = 256;
constexpr int32_t kContractElements = 4;  // per thread
constexpr int32_t contract_warps(int64_t size) {
  return static_cast<int32_t>(ceil_div<int64_t>(size, kContractThreads * kContractElements)) * (kContractThreads / 32);
}

// The blocks for one problem and one segment of the weight gradient.
int64_t weight_grad_tiles(const WeightGradRun& run);

// Makes the device current for the CUDA runtime of this library. Returns null or an error message.
const char* use_device(int32_t index);

// Launchers return null or an error message. `stream` is a cudaStream_t of the current device.
const char* launch_blend(const BlendRun& run, void* stream);
const char* launch_conv_half(const ConvRun& run, void* stream);
const char* launch_conv_bfloat16(const ConvRun& run, void* stream);
const char* launch_conv_float(const ConvRun& run, void* stream);
const char* launch_depthwise(const DepthwiseRun& run, void* stream);
const char* launch_weight_grad(const WeightGradRun& run, void* stream);
const char* launch_depthwise_weight_grad(const WeightGradRun& run, void* stream);
const char* launch_activation_grad(const ActivationRun& run, void* stream);
const char* launch_sum(const SumRun& run, void* stream);
const char* launch_contract(const ContractRun& run, void* stream);
const char* launch_finish(const FinishRun& run, void* stream);

}  // namespace tunable_ops::cuda
