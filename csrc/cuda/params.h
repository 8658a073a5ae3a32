// What the CUDA kernels compute and with which arguments, shared by the operator (.cpp) and the kernels (.cu): no Torch
// and no CUDA here. Strides and distances count elements. Offsets inside a sample are 32-bit, those of samples 64-bit.
#pragma once

#include <cstdint>

#include "../activation.h"
#include "geometry.h"

namespace tunable_ops::cuda {

enum class Type : int32_t { kFloat, kHalf, kBFloat16 };
constexpr int64_t size_of(Type type) { return type == Type::kFloat ? 4 : 2; }

constexpr int32_t kMaxKernels = 16;
// Stacks of more kernels are blended in a pass of their own: their tiles would not leave room for two blocks.
constexpr int32_t kMaxFusedKernels = 4;

// alpha [P] (row_step 0) or [B, P], in a dtype of its own.
struct Alpha {
  const void* data;
  int64_t row_step, step;
  int32_t kernels;
  Type type;
};

// A tensor of pixels, dense in channels_last or contiguous.
struct Picture {
  int64_t sample;
  int32_t row, pixel, channel;
};

// Kernels [P, O, C/groups, kh, kw] of any strides; `outputs` and `channels` of all groups and of one.
struct Stack {
  const void* data;
  int64_t kernel, output, channel, tap_h, tap_w;
  int32_t kernels, outputs, channels, taps_h, taps_w;
};

// blended[row] = round(sum_p alpha[row, p] * stack[p]), laid out as [groups, outer, taps, inner]; outer and inner are a
// group's outputs and channels, or with `transposed` its channels and outputs.
struct BlendRun {
  Stack stack;
  Alpha alpha;
  void* blended;
  int32_t groups, rows;
  bool transposed;
  Type type;
};

// A convolution forward, or as the gradient of its input (channels and outputs then change places: `channels` is what
// is summed over, of one group). Problem q covers the samples [q, q + 1) * samples / problems.
struct ConvRun {
  Extent y, x;
  bool gradient;
  int32_t groups, channels, outputs, samples, problems;
  Picture source, target;
  const void* input;
  void* output;
  const void* weight;      // [kernels or rows][groups, outputs, taps, channels], the taps of the whole kernel
  int64_t weight_kernel;   // fused: from kernel to kernel; else 0
  int64_t weight_problem;  // blended: from problem to problem; else 0
  bool fused;
  Alpha alpha;
  const void* bias;  // [P, groups * outputs] or null
  int64_t bias_kernel, bias_output;
  Activation activation;
  Type type;
  bool tf32, vectors, vector_stores;  // 16 bytes at a time: reading, writing
};

// Every channel its own kernel. lanes: vectors of channels side by side in a block.
struct DepthwiseRun {
  Extent y, x;
  bool gradient;
  int32_t channels, samples, problems;
  Picture source, target;
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

// gradient[problem, segment] = [outputs of all groups, taps, channels] from a share of the problem's pixels, in fp32.
struct WeightGradRun {
  Extent y, x;
  int32_t groups, channels, outputs, samples, problems, segments;
  Picture source, target;
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

// sums[problem, segment, output]: grad_output summed over a share of the problem's pixels.
struct SumRun {
  int32_t outputs, samples, pixels, problems, segments, lanes;
  int64_t sample;
  int32_t pixel, channel;
  const void* grad_output;
  float* sums;
  Type type;
};

// One pass over a chunk of G = sum over segments: total[p] += sum_b alpha[b, p] G[b], and
// partial[b, p, warp] = the warp's share of <G[b], stack[p]>. The last chunk is rounded to grad_weight.
struct ContractRun {
  Stack stack;
  Alpha alpha;
  const float* gradient;
  int32_t problems, first_problem, segments;
  bool first, last;
  float* total;       // [P, outputs, taps, channels] between chunks; null for a single chunk
  void* grad_weight;  // null: not asked for
  Stack grad_stack;   // its layout
  float* partial;     // null: not asked for
  int32_t partials;   // warps of the grid
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
constexpr int32_t kContractElements = 4;  // of a thread, one behind the other
constexpr int32_t contract_warps(int64_t size) {
  return static_cast<int32_t>(ceil_div<int64_t>(size, kContractThreads * kContractElements)) * (kContractThreads / 32);
}

// Blocks of one problem of the weight gradient, without segments.
int64_t weight_grad_tiles(const WeightGradRun& run);

// Each returns null, or what went wrong. `stream` is a cudaStream_t of the current device.
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
