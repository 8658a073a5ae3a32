// tunable_conv2d on CUDA: limits, allocation, launches.
#include "tunable_conv2d.h"

#include <algorithm>
#include <limits>

namespace tunable_ops::cuda {
namespace {

// Up to this many multiply-adds, blending in every tile costs less than a separate launch for the blend. An estimate,
// not measured: blending is about a fifth of a tile's time at P = 2, and a launch takes a few microseconds.
constexpr int64_t kFusedMacs = int64_t{1} << 31;
// Shared memory available on every device without opting in.
constexpr int32_t kSharedBytes = 48 << 10;

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

void convolve_depthwise(const Call& c, const Tensor& source, const std::optional<Tensor>& bias, const Tensor& target,
                        Activation activation, bool gradient, void* stream) {
  DepthwiseRun run{};
  run.y = c.y, run.x = c.x;
  run.gradient = gradient;
  run.channels = c.groups;
  run.samples = c.batch;
  run.problems = c.problems;
  const ImageStrides in = image_strides(c.groups, c.y.in, c.x.in, c.kernel_format);
  const ImageStrides out = image_strides(c.groups, c.y.out, c.x.out, c.kernel_format);
  run.source = gradient ? out : in;
  run.target = gradient ? in : out;
  run.input = source.const_data_ptr();
  run.output = target.mutable_data_ptr();
  run.stack = c.stack;
  run.alpha = c.alpha;
  if (bias) run.bias = bias->const_data_ptr(), run.bias_kernel = bias->stride(0), run.bias_output = bias->stride(1);
  run.activation = activation;
  run.type = c.type;
  const Lanes lanes = depthwise_lanes(c, is_aligned(source) && is_aligned(target), true);
  run.lanes = lanes.count;
  run.vectors = lanes.vectors;
  check_launch("depthwise_kernel", launch_depthwise(run, stream));
}

const char* launch_dense(const ConvRun& run, void* stream) {
  if (run.type == Type::kHalf) return launch_conv_half(run, stream);
  return run.type == Type::kBFloat16 ? launch_conv_bfloat16(run, stream) : launch_conv_float(run, stream);
}

}  // namespace

void check_launch(const char* kernel, const char* error) {
  STD_TORCH_CHECK(error == nullptr, "tunable_conv2d: ", kernel, " could not be launched: ", error);
}

Call call_of(const Tensor& input, const Tensor& weight, const Tensor& alpha, const Options& o, bool hopper) {
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
  c.hopper = hopper;
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

Lanes depthwise_lanes(const Call& c, bool aligned, bool keeps_kernels) {
  if (c.kernel_format != MemoryFormat::ChannelsLast) return {1, false};
  const int32_t vector = static_cast<int32_t>(16 / size_of(c.type)), taps = c.y.taps * c.x.taps;
  Lanes lanes{1, aligned && c.groups % vector == 0 && (taps + 1) * vector * 4 <= kSharedBytes};
  const int32_t width = lanes.vectors ? vector : 1, wanted = lanes.vectors ? 8 : 32;
  const int32_t most = keeps_kernels ? kSharedBytes / ((taps + 1) * width * 4) : wanted;
  while (lanes.count < wanted && lanes.count * width < c.groups && lanes.count * 2 <= most) lanes.count *= 2;
  return lanes;
}

void convolve(const Call& c, const Tensor& source, const Tensor& weight, const std::optional<Tensor>& bias,
              const Tensor& target, Activation activation, bool gradient, void* stream) {
  if (c.depthwise && !c.hopper) return convolve_depthwise(c, source, bias, target, activation, gradient, stream);
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
  run.alpha = c.alpha;
  if (bias) run.bias = bias->const_data_ptr(), run.bias_kernel = bias->stride(0), run.bias_output = bias->stride(1);
  run.activation = activation;
  run.type = c.type;
  run.tf32 = c.tf32;
  run.vectors = run.channels % vector == 0 && is_aligned(source);
  run.vector_stores = run.outputs % vector == 0 && is_aligned(target);
  const int64_t macs = c.batch * c.pixels() * c.kernel_size();
  const char* unsupported = c.hopper ? hopper_unsupported(run) : nullptr;
  STD_TORCH_CHECK(unsupported == nullptr, "tunable_conv2d: the wgmma kernel must be given ", unsupported);
  // The wgmma kernel blends any number of kernels once per block, so blending beforehand gains nothing.
  run.fused = !gradient && run.vectors && (c.hopper || (c.stack.kernels <= kMaxFusedKernels && macs <= kFusedMacs)) &&
              kernels_are_packed(weight) && is_aligned(weight) && weight.stride(0) % vector == 0;
  std::optional<Tensor> blended;
  if (run.fused) {
    run.weight = weight.const_data_ptr();
    run.weight_kernel = weight.stride(0);
  } else {
    blended = empty(source, {c.problems, c.kernel_size()}, source.scalar_type());
    const BlendRun blend{c.stack, c.alpha, blended->mutable_data_ptr(), c.groups, c.problems, gradient, c.type};
    check_launch("blend_kernel", launch_blend(blend, stream));
    run.weight = blended->const_data_ptr();
    run.weight_problem = c.problems > 1 ? c.kernel_size() : 0;
    // Vector loads need every sample's kernel to be aligned: it is, since its channels are a multiple of the vector.
  }
  if (c.hopper) return launch_hopper_conv(run, stream);
  check_launch("conv_kernel", launch_dense(run, stream));
}

namespace {

Tensor run_forward(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, const Tensor& alpha,
                   const Options& o, bool hopper) {
  const Call c = call_of(input, weight, alpha, o, hopper);
  const OnDevice device(input);
  const Tensor x = in_format(input, c.kernel_format);
  const Tensor output = empty(input, {c.batch, weight.size(1), c.y.out, c.x.out}, input.scalar_type(), c.kernel_format);
  if (c.batch) convolve(c, x, weight, bias, output, o.activation, false, device.stream());
  return in_format(output, c.format);
}

}  // namespace

Tensor forward(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, const Tensor& alpha,
               const Options& options) {
  return run_forward(input, weight, bias, alpha, options, false);
}

Tensor forward_wgmma(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, const Tensor& alpha,
                     const Options& options) {
  return run_forward(input, weight, bias, alpha, options, true);
}

}  // namespace tunable_ops::cuda
