// The gradients of tunable_conv2d on CUDA: computes G[b], the gradient of a sample's blended kernel, and contracts it
// into the gradients of kernels and alpha.
#include <algorithm>

#include "tunable_conv2d.h"

namespace tunable_ops::cuda {
namespace {

// The target number of blocks of a pass, a few per multiprocessor of the largest devices. A constant, because the order
// of the sums must not depend on the device.
constexpr int64_t kTargetBlocks = 512;
constexpr int64_t kMinPixels = 256;  // per segment

// The gradient with respect to the activation's argument, in the kernels' format.
Tensor activation_backward(const Call& c, const Tensor& grad, const std::optional<Tensor>& saved, Activation activation,
                           void* stream) {
  const Tensor dense = in_format(grad, c.kernel_format);
  if (!saved || activation == Activation::kNone) return dense;
  const Tensor value = in_format(*saved, c.kernel_format);
  const Tensor result =
      empty(dense, {dense.size(0), dense.size(1), dense.size(2), dense.size(3)}, dense.scalar_type(), c.kernel_format);
  const ActivationRun run{
      dense.const_data_ptr(), value.const_data_ptr(), result.mutable_data_ptr(), result.numel(), activation, c.type};
  check_launch("activation_grad_kernel", launch_activation_grad(run, stream));
  return result;
}

int32_t segments_of(int64_t blocks, int64_t pixels) {
  const int64_t most = std::max<int64_t>(1, pixels / kMinPixels);
  return static_cast<int32_t>(std::clamp<int64_t>(ceil_div<int64_t>(kTargetBlocks, blocks), 1, most));
}

WeightGradRun weight_grad_run(const Call& c, const Tensor& input, const Tensor& grad) {
  WeightGradRun run{};
  run.y = c.y, run.x = c.x;
  run.groups = c.groups;
  run.channels = c.channels;
  run.outputs = c.outputs;
  run.samples = c.batch;
  run.problems = c.problems;
  run.source = image_strides(c.groups * c.channels, c.y.in, c.x.in, c.kernel_format);
  run.target = image_strides(c.groups * c.outputs, c.y.out, c.x.out, c.kernel_format);
  run.input = input.const_data_ptr();
  run.grad_output = grad.const_data_ptr();
  run.type = c.type;
  run.tf32 = c.tf32;
  const bool aligned = is_aligned(input) && is_aligned(grad);
  if (c.depthwise) {
    const Lanes lanes = depthwise_lanes(c, aligned, false);
    run.vectors = lanes.vectors;
    run.lanes = lanes.count;
  } else {
    const int64_t vector = 16 / size_of(c.type);
    run.vectors = aligned && c.channels % vector == 0 && c.outputs % vector == 0;
  }
  return run;
}

int64_t blocks_of(const Call& c, const WeightGradRun& run) {
  if (!c.depthwise) return weight_grad_tiles(run);
  return ceil_div<int64_t>(c.groups, run.lanes * (run.vectors ? 16 / size_of(c.type) : 1));
}

// Computes grad_weight if given, and returns the weight's contribution to grad_alpha, [problems, P, partials], if
// needed.
std::optional<Tensor> kernel_gradients(const Call& c, const Tensor& input, const Tensor& grad,
                                       const std::optional<Tensor>& grad_weight, bool need_alpha, void* stream) {
  WeightGradRun run = weight_grad_run(c, input, grad);
  const int64_t bytes = 4 * c.kernel_size(), samples = c.batch / c.problems;
  run.segments = segments_of(blocks_of(c, run) * c.problems, samples * c.pixels());
  run.segments = static_cast<int32_t>(std::clamp<int64_t>(chunk_bytes() / bytes, 1, run.segments));
  const int32_t chunk =
      static_cast<int32_t>(std::clamp<int64_t>(chunk_bytes() / (bytes * run.segments), 1, c.problems));
  const Tensor gradient = empty(input, {chunk, run.segments, c.kernel_size()}, ScalarType::Float);
  std::optional<Tensor> total, partial;
  if (grad_weight && chunk < c.problems) total = empty(input, {c.stack.kernels, c.kernel_size()}, ScalarType::Float);
  const int32_t warps = contract_warps(c.kernel_size());
  if (need_alpha) partial = empty(input, {c.problems, c.stack.kernels, warps}, ScalarType::Float);
  ContractRun contract{};
  contract.stack = contract.grad_stack = c.stack;
  contract.alpha = c.alpha;
  contract.gradient = gradient.const_data_ptr<float>();
  contract.segments = run.segments;
  contract.total = total ? total->mutable_data_ptr<float>() : nullptr;
  if (grad_weight) {
    contract.grad_weight = grad_weight->mutable_data_ptr();
    contract.grad_stack = {nullptr,
                           grad_weight->stride(0),
                           grad_weight->stride(1),
                           grad_weight->stride(2),
                           grad_weight->stride(3),
                           grad_weight->stride(4),
                           c.stack.kernels,
                           c.stack.outputs,
                           c.channels,
                           c.y.taps,
                           c.x.taps};
  }
  contract.partial = partial ? partial->mutable_data_ptr<float>() : nullptr;
  contract.partials = warps;
  contract.type = c.type;
  for (int32_t first = 0; first < c.problems; first += chunk) {
    const int32_t problems = std::min(chunk, c.problems - first);
    run.problems = problems;
    run.samples = static_cast<int32_t>(problems * samples);
    run.input =
        static_cast<const char*>(input.const_data_ptr()) + first * samples * run.source.sample * size_of(c.type);
    run.grad_output =
        static_cast<const char*>(grad.const_data_ptr()) + first * samples * run.target.sample * size_of(c.type);
    run.gradient = gradient.mutable_data_ptr<float>();
    check_launch("weight_grad_kernel",
                 c.depthwise ? launch_depthwise_weight_grad(run, stream) : launch_weight_grad(run, stream));
    contract.problems = problems;
    contract.first_problem = first;
    contract.first = first == 0;
    contract.last = first + problems == c.problems;
    check_launch("contract_kernel", launch_contract(contract, stream));
  }
  return partial;
}

// grad_output summed over pixels: [problems, segments, O].
Tensor output_sums(const Call& c, const Tensor& grad, void* stream) {
  SumRun run{};
  const ImageStrides p = image_strides(c.stack.outputs, c.y.out, c.x.out, c.kernel_format);
  run.outputs = c.stack.outputs;
  run.samples = c.batch;
  run.pixels = static_cast<int32_t>(c.pixels());
  run.problems = c.problems;
  run.lanes = 1;
  while (c.kernel_format == MemoryFormat::ChannelsLast && run.lanes < 32 && run.lanes < run.outputs) run.lanes *= 2;
  run.segments = segments_of(ceil_div(run.outputs, run.lanes) * static_cast<int64_t>(c.problems),
                             c.batch / c.problems * c.pixels());
  run.sample = p.sample;
  run.pixel = p.pixel;
  run.channel = p.channel;
  run.grad_output = grad.const_data_ptr();
  const Tensor sums = empty(grad, {c.problems, run.segments, run.outputs}, ScalarType::Float);
  run.sums = sums.mutable_data_ptr<float>();
  run.type = c.type;
  check_launch("sum_kernel", launch_sum(run, stream));
  return sums;
}

Gradients empty_batch_gradients(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                                const Tensor& alpha, const std::vector<bool>& mask) {
  const auto zeros = [](Tensor t) { return torch::stable::zero_(t); };
  const ScalarType type = input.scalar_type();
  return {mask[0] ? empty(input, {0, input.size(1), input.size(2), input.size(3)}, type, output_format(input, weight))
                  : undefined(),
          mask[1] ? zeros(empty_stack_like(weight)) : undefined(),
          mask[2] && bias ? zeros(empty(input, {bias->size(0), bias->size(1)}, type)) : undefined(),
          mask[3] ? zeros(empty_like_alpha(alpha)) : undefined()};
}

}  // namespace

Gradients gradients(const Tensor& grad_output, const std::optional<Tensor>& saved, const Tensor& input,
                    const Tensor& weight, const std::optional<Tensor>& bias, const Tensor& alpha, const Options& o,
                    const std::vector<bool>& mask) {
  if (input.size(0) == 0) return empty_batch_gradients(input, weight, bias, alpha, mask);
  const Call c = call_of(input, weight, alpha, o);
  const OnDevice device(input);
  void* stream = device.stream();
  const Tensor grad = activation_backward(c, grad_output, saved, o.activation, stream);
  Tensor grad_input = undefined(), grad_bias = undefined(), grad_alpha = undefined();
  if (mask[0]) {
    grad_input = empty(input, {c.batch, input.size(1), c.y.in, c.x.in}, input.scalar_type(), c.kernel_format);
    convolve(c, grad, weight, std::nullopt, grad_input, Activation::kNone, true, stream);
    grad_input = in_format(grad_input, c.format);
  }
  std::optional<Tensor> grad_weight, partial, sums;
  if (mask[1]) grad_weight = empty_stack_like(weight);
  if (mask[1] || mask[3])
    partial = kernel_gradients(c, in_format(input, c.kernel_format), grad, grad_weight, mask[3], stream);
  const bool need_bias = bias && mask[2];
  if (bias && (mask[2] || mask[3])) sums = output_sums(c, grad, stream);
  if (mask[3]) grad_alpha = empty_like_alpha(alpha);
  if (need_bias) grad_bias = empty(input, {bias->size(0), bias->size(1)}, bias->scalar_type());
  if (mask[3] || need_bias) {
    FinishRun run{};
    run.alpha = c.alpha;
    run.problems = c.problems;
    run.outputs = c.stack.outputs;
    run.segments = sums ? static_cast<int32_t>(sums->size(1)) : 0;
    run.partials = partial ? static_cast<int32_t>(partial->size(2)) : 0;
    run.partial = partial ? partial->const_data_ptr<float>() : nullptr;
    run.sums = sums ? sums->const_data_ptr<float>() : nullptr;
    if (bias) run.bias = bias->const_data_ptr(), run.bias_kernel = bias->stride(0), run.bias_output = bias->stride(1);
    run.grad_alpha = mask[3] ? grad_alpha.mutable_data_ptr() : nullptr;
    run.grad_bias = need_bias ? grad_bias.mutable_data_ptr() : nullptr;
    run.type = c.type;
    check_launch("finish_kernel", launch_finish(run, stream));
  }
  return {grad_input, grad_weight ? *grad_weight : undefined(), grad_bias, grad_alpha};
}

}  // namespace tunable_ops::cuda
