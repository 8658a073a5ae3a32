// From the tensors of a tunable_conv2d call to the arguments of kernels: limits and geometry.
#include "call.h"

#include <algorithm>
#include <limits>

namespace tunable_ops::cuda {
namespace {

void check(const Tensor& weight, const Tensor& alpha) {
  STD_TORCH_CHECK(alpha.dim() <= 2, "tunable_conv2d: alpha must be [P] or [B, P] for backend 'cuda'");
  STD_TORCH_CHECK(weight.size(0) <= kMaxKernels, "tunable_conv2d: weight must hold at most ", kMaxKernels,
                  " kernels for backend 'cuda'; got ", weight.size(0));
}

void check_size(const char* what, int64_t size) {
  STD_TORCH_CHECK(size < std::numeric_limits<int32_t>::max() / 2, "tunable_conv2d: ", what,
                  " must be less than 2^30 for backend 'cuda'; got ", size);
}

// Torch's setting for fp32 convolutions. Programs without Python do not have this operator and get IEEE fp32.
bool wants_tf32(const Tensor& input) {
  if (input.scalar_type() != ScalarType::Float) return false;
  std::array<StableIValue, 1> stack{from(input)};
  static const bool defined = [&] {
    auto first = stack;
    return torch_call_dispatcher("tunable_ops::tunable_conv2d_tf32", "", first.data(), TORCH_ABI_VERSION) == 0;
  }();
  if (!defined) return false;
  stack = {from(input)};
  call("tunable_ops::tunable_conv2d_tf32", stack);
  return to<bool>(stack[0]);
}

// Dimension d of the convolution.
Extent extent_of(const Tensor& input, const Tensor& weight, int d, const Options& o) {
  const int64_t in = input.size(2 + d), taps = weight.size(3 + d);
  check_size("a padded size", std::max(in + 2 * o.padding[d], o.dilation[d] * (taps - 1) + o.padding[d]));
  return {static_cast<int32_t>(in),
          static_cast<int32_t>(output_size(in, taps, d, o)),
          static_cast<int32_t>(taps),
          static_cast<int32_t>(o.stride[d]),
          static_cast<int32_t>(o.dilation[d]),
          static_cast<int32_t>(o.padding[d])};
}

}  // namespace

void check_launch(const char* kernel, const char* error) {
  STD_TORCH_CHECK(error == nullptr, "tunable_conv2d: ", kernel, " could not be launched: ", error);
}

void check_launch(const char* kernel, const std::string& error) {
  check_launch(kernel, error.empty() ? nullptr : error.c_str());
}

Call call_of(const Tensor& input, const Tensor& weight, const Tensor& alpha, const Options& o) {
  check(weight, alpha);
  Call c{};
  c.y = extent_of(input, weight, 0, o);
  c.x = extent_of(input, weight, 1, o);
  check_size("a sample of the input", input.size(1) * input.size(2) * input.size(3));
  check_size("a sample of the output", weight.size(1) * c.pixels());
  check_size("a kernel", weight.size(1) * weight.size(2) * weight.size(3) * weight.size(4));
  check_size("the pixels of the batch", input.size(0) * std::max<int64_t>(c.pixels(), input.size(2) * input.size(3)));
  c.batch = static_cast<int32_t>(input.size(0));
  c.groups = static_cast<int32_t>(o.groups);
  c.channels = static_cast<int32_t>(weight.size(2));
  c.outputs = static_cast<int32_t>(weight.size(1) / o.groups);
  c.depthwise = o.groups > 1 && c.channels == 1 && c.outputs == 1 && c.y.taps * c.x.taps < kSharedBytes / 4;
  c.tf32 = wants_tf32(input);
  c.problems = alpha.dim() == 1 ? 1 : c.batch;
  c.type = type_of(input);
  c.stack = {weight.const_data_ptr(),
             weight.stride(0),
             weight.stride(1),
             weight.stride(2),
             weight.stride(3),
             weight.stride(4),
             static_cast<int32_t>(weight.size(0)),
             static_cast<int32_t>(weight.size(1)),
             c.channels,
             c.y.taps,
             c.x.taps};
  c.alpha = {alpha.const_data_ptr(), alpha.dim() == 1 ? 0 : alpha.stride(0), alpha.stride(alpha.dim() - 1),
             c.stack.kernels, type_of(alpha)};
  c.format = output_format(input, weight);
  c.kernel_format = c.depthwise ? c.format : MemoryFormat::ChannelsLast;
  return c;
}

ImageStrides image_strides(int32_t channels, int32_t height, int32_t width, MemoryFormat format) {
  const int64_t sample = static_cast<int64_t>(channels) * height * width;
  if (format == MemoryFormat::ChannelsLast) return {sample, width * channels, channels, 1};
  return {sample, width, 1, height * width};
}

ConvRun conv_run(const Call& c, const Tensor& source, const Tensor& weight, const std::optional<Tensor>& bias,
                 const Tensor& target, Activation activation, bool gradient) {
  const int64_t vector = 16 / size_of(c.type);
  ConvRun run{};
  run.y = c.y, run.x = c.x;
  run.gradient = gradient;
  run.groups = c.groups;
  run.channels = gradient ? c.outputs : c.channels;
  run.outputs = gradient ? c.channels : c.outputs;
  run.samples = c.batch;
  run.problems = c.problems;
  const ImageStrides in = image_strides(c.groups * c.channels, c.y.in, c.x.in, c.kernel_format);
  const ImageStrides out = image_strides(c.groups * c.outputs, c.y.out, c.x.out, c.kernel_format);
  run.source = gradient ? out : in;
  run.target = gradient ? in : out;
  run.input = source.const_data_ptr();
  run.output = target.mutable_data_ptr();
  run.weight = weight.const_data_ptr();
  run.weight_kernel = weight.stride(0);
  run.fused = kernels_are_packed(weight) && is_aligned(weight) && weight.stride(0) % vector == 0;
  run.alpha = c.alpha;
  if (bias) run.bias = bias->const_data_ptr(), run.bias_kernel = bias->stride(0), run.bias_output = bias->stride(1);
  run.activation = activation;
  run.type = c.type;
  run.tf32 = c.tf32;
  run.vectors = run.channels % vector == 0 && is_aligned(source);
  run.vector_stores = run.outputs % vector == 0 && is_aligned(target);
  return run;
}

}  // namespace tunable_ops::cuda
