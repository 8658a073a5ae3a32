// tunable_conv2d on CUDA: allocation, launches.
#include "tunable_conv2d.h"

#include "hopper_launch.h"

namespace tunable_ops::cuda {
namespace {

// Up to this many multiply-adds, blending in every tile costs less than a separate launch for the blend. An estimate,
// not measured: blending is about a fifth of a tile's time at P = 2, and a launch takes a few microseconds.
constexpr int64_t kFusedMacs = int64_t{1} << 31;

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
  if (c.depthwise) return convolve_depthwise(c, source, bias, target, activation, gradient, stream);
  ConvRun run = conv_run(c, source, weight, bias, target, activation, gradient);
  const int32_t device = source.get_device_index();
  if (hopper_is_default(run, device)) return check_launch("hopper_conv_kernel", launch_hopper(run, device, stream));
  const int64_t macs = c.batch * c.pixels() * c.kernel_size();
  run.fused = run.fused && !gradient && run.vectors && c.stack.kernels <= kMaxFusedKernels && macs <= kFusedMacs;
  std::optional<Tensor> blended;
  if (!run.fused) {
    blended = empty(source, {c.problems, c.kernel_size()}, source.scalar_type());
    const BlendRun blend{c.stack, c.alpha, blended->mutable_data_ptr(), c.groups, c.problems, gradient, c.type};
    check_launch("blend_kernel", launch_blend(blend, stream));
    run.weight = blended->const_data_ptr();
    run.weight_kernel = 0;
    run.weight_problem = c.problems > 1 ? c.kernel_size() : 0;
    // Vector loads need every sample's kernel to be aligned: it is, since its channels are a multiple of the vector.
  }
  check_launch("conv_kernel", launch_dense(run, stream));
}

Tensor forward(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, const Tensor& alpha,
               const Options& o) {
  const Call c = call_of(input, weight, alpha, o);
  const OnDevice device(input);
  const Tensor x = in_format(input, c.kernel_format);
  const Tensor output = empty(input, {c.batch, weight.size(1), c.y.out, c.x.out}, input.scalar_type(), c.kernel_format);
  if (c.batch) convolve(c, x, weight, bias, output, o.activation, false, device.stream());
  return in_format(output, c.format);
}

}  // namespace tunable_ops::cuda
