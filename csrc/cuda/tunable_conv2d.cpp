// tunable_conv2d on CUDA: checks, allocation, launches.
#include "tunable_conv2d.h"

#include <algorithm>
#include <limits>

namespace tunable_ops::cuda {
namespace {

// Below so many multiply-adds a launch of its own for the blend costs more than blending in every tile. By arithmetic
// from the share of blending in a tile's time, about a fifth at P = 2, and a few microseconds per launch.
constexpr int64_t kFusedMacs = int64_t{1} << 31;
// Shared memory that every device grants without being asked.
constexpr int32_t kSharedBytes = 48 << 10;

void check(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, const Tensor& alpha) {
  STD_TORCH_CHECK(
      is_served(input.scalar_type()) && weight.scalar_type() == input.scalar_type() &&
          (!bias || bias->scalar_type() == input.scalar_type()) && is_served(alpha.scalar_type()),
      "tunable_conv2d: input, weight and bias must share a dtype of float32, float16 and bfloat16, and alpha "
      "must have one of these, for backend 'cuda'");
  STD_TORCH_CHECK(input.dim() == 4 && weight.dim() == 5,
                  "tunable_conv2d: input must be [B, C, H, W] and weight "
                  "[P, O, C/groups, kh, kw]; got ",
                  input.dim(), " and ", weight.dim(), " dimensions");
  STD_TORCH_CHECK((alpha.dim() == 1 || (alpha.dim() == 2 && alpha.size(0) == input.size(0))) &&
                      alpha.size(alpha.dim() - 1) == weight.size(0),
                  "tunable_conv2d: alpha must be [P] or [B, P] for backend 'cuda'");
  STD_TORCH_CHECK(weight.size(0) <= kMaxKernels, "tunable_conv2d: weight must hold at most ", kMaxKernels,
                  " kernels for backend 'cuda'; got ", weight.size(0));
}

void check_size(const char* what, int64_t size) {
  STD_TORCH_CHECK(size < std::numeric_limits<int32_t>::max() / 2, "tunable_conv2d: ", what,
                  " must be less than 2^30 for backend 'cuda'; got ", size);
}

// What torch's settings say about fp32 convolutions; IEEE where nobody answers (a program without Python).
bool wants_tf32(const Tensor& input) {
  if (input.scalar_type() != ScalarType::Float) return false;
  std::array<StableIValue, 1> stack{from(input)};
  static const bool defined = [&] {
    auto first = stack;
    return torch_call_dispatcher("tunable_ops::tunable_conv2d_tf32", "", first.data(), TORCH_ABI_VERSION) == 0;
  }();
  if (!defined) return false;
  stack = {from(input)};
  call("tunable_ops::tunable_conv2d_tf32", "", stack);
  return to<bool>(stack[0]);
}

Extent extent_of(int64_t in, int64_t taps, int64_t stride, int64_t pad, int64_t dilation) {
  check_size("a padded size", std::max(in + 2 * pad, dilation * (taps - 1) + pad));
  const int64_t out = (in + 2 * pad - dilation * (taps - 1) - 1) / stride + 1;
  return {static_cast<int32_t>(in),     static_cast<int32_t>(out),      static_cast<int32_t>(taps),
          static_cast<int32_t>(stride), static_cast<int32_t>(dilation), static_cast<int32_t>(pad)};
}

void convolve_depthwise(const Call& c, const Tensor& source, const std::optional<Tensor>& bias, const Tensor& target,
                        Activation activation, bool gradient, void* stream) {
  DepthwiseRun run{};
  run.y = c.y, run.x = c.x;
  run.gradient = gradient;
  run.channels = c.groups;
  run.samples = c.batch;
  run.problems = c.problems;
  const Picture in = picture_of(c.groups, c.y.in, c.x.in, c.kernel_format);
  const Picture out = picture_of(c.groups, c.y.out, c.x.out, c.kernel_format);
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

// The wgmma kernel is never the default's: nothing about it has been measured. It waits for the figures of
// `bench/on_gpu.sh OUT hopper`, which reaches it by this name.
Way way_of(const std::string& backend) {
  return backend == "cuda" ? Way::kDefault : backend == "cuda-hopper" ? Way::kHopper : Way::kElsewhere;
}

Activation activation_of(const std::string& name) {
  return name == "relu"         ? Activation::kRelu
         : name == "leaky_relu" ? Activation::kLeakyRelu
         : name == "gelu"       ? Activation::kGelu
         : name == "silu"       ? Activation::kSilu
                                : Activation::kNone;
}

Call call_of(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, const Tensor& alpha,
             const Ints& stride, const Ints& padding, const Ints& dilation, int64_t groups, Way way) {
  check(input, weight, bias, alpha);
  Call c{};
  c.y = extent_of(input.size(2), weight.size(3), stride[0], padding[0], dilation[0]);
  c.x = extent_of(input.size(3), weight.size(4), stride[1], padding[1], dilation[1]);
  check_size("a sample of the input", input.size(1) * input.size(2) * input.size(3));
  check_size("a sample of the output", weight.size(1) * c.pixels());
  check_size("a kernel", weight.size(1) * weight.size(2) * weight.size(3) * weight.size(4));
  check_size("the pixels of the batch", input.size(0) * std::max<int64_t>(c.pixels(), input.size(2) * input.size(3)));
  c.batch = static_cast<int32_t>(input.size(0));
  c.groups = static_cast<int32_t>(groups);
  c.channels = static_cast<int32_t>(weight.size(2));
  c.outputs = static_cast<int32_t>(weight.size(1) / groups);
  c.depthwise = groups > 1 && c.channels == 1 && c.outputs == 1 && c.y.taps * c.x.taps < kSharedBytes / 4;
  c.tf32 = wants_tf32(input);
  c.hopper = way == Way::kHopper;
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

Picture picture_of(int32_t channels, int32_t height, int32_t width, MemoryFormat format) {
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
  const Picture in = picture_of(c.groups * c.channels, c.y.in, c.x.in, c.kernel_format);
  const Picture out = picture_of(c.groups * c.outputs, c.y.out, c.x.out, c.kernel_format);
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
  const char* unfit = c.hopper ? hopper_unfit(run) : nullptr;
  STD_TORCH_CHECK(unfit == nullptr, "tunable_conv2d: backend 'cuda-hopper' must be given ", unfit);
  // The wgmma kernel blends once per block, any number of kernels: nothing is gained by doing it beforehand.
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
    // The rows of later samples start at addresses that are not aligned unless a kernel is whole vectors; it is, since
    // the channels are.
  }
  if (c.hopper) return launch_hopper_conv(run, stream);
  check_launch("conv_kernel", launch_dense(run, stream));
}

Tensor forward(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, const Tensor& alpha,
               const Ints& stride, const Ints& padding, const Ints& dilation, int64_t groups,
               const std::string& activation, const std::string& backend) {
  const Way way = way_of(backend);
  if (way == Way::kElsewhere || input.numel() == 0) {  // an empty batch has nothing to be fast at
    return forward_library(input, weight, bias, alpha, stride, padding, dilation, groups, activation,
                           way == Way::kElsewhere ? backend : "torch");
  }
  const Call c = call_of(input, weight, bias, alpha, stride, padding, dilation, groups, way);
  const OnDevice device(input);
  const Tensor x = in_format(input, c.kernel_format);
  const Tensor output = empty(input, {c.batch, weight.size(1), c.y.out, c.x.out}, input.scalar_type(), c.kernel_format);
  convolve(c, x, weight, bias, output, activation_of(activation), false, device.stream());
  return in_format(output, c.format);
}

}  // namespace tunable_ops::cuda
