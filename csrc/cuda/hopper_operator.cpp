#include "hopper_operator.h"

#include "hopper_launch.h"
#include "on_device.h"

namespace tunable_ops::cuda {
namespace {

void run(const Call& c, const Tensor& source, const Tensor& weight, const std::optional<Tensor>& bias,
         const Tensor& target, Activation activation, bool gradient, void* stream) {
  const ConvRun conv = conv_run(c, source, weight, bias, target, activation, gradient);
  const char* rule = hopper_unsupported(conv);
  STD_TORCH_CHECK(rule == nullptr, "tunable_conv2d: the wgmma kernel must be given ", rule);
  check_launch("hopper_conv_kernel", launch_hopper(conv, source.get_device_index(), stream));
}

}  // namespace

Tensor forward_wgmma(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, const Tensor& alpha,
                     const Options& o) {
  const Call c = call_of(input, weight, alpha, o);
  const OnDevice device(input);
  const Tensor x = in_channels_last(input);
  const Tensor output =
      empty(input, {c.batch, weight.size(1), c.y.out, c.x.out}, input.scalar_type(), MemoryFormat::ChannelsLast);
  if (c.batch) run(c, x, weight, bias, output, o.activation, false, device.stream());
  return in_format(output, c.format);
}

Tensor input_gradient_wgmma(const Tensor& grad_output, const Tensor& input, const Tensor& weight, const Tensor& alpha,
                            const Options& o) {
  const Call c = call_of(input, weight, alpha, o);
  const OnDevice device(input);
  const Tensor grad = in_channels_last(grad_output);
  const Tensor result =
      empty(input, {c.batch, input.size(1), c.y.in, c.x.in}, input.scalar_type(), MemoryFormat::ChannelsLast);
  if (c.batch) run(c, grad, weight, std::nullopt, result, Activation::kNone, true, device.stream());
  return in_format(result, c.format);
}

bool prepare_wgmma(const Tensor& input, const Tensor& weight, const Tensor& alpha, const Options& o, bool gradient) {
  const Call c = call_of(input, weight, alpha, o);
  const OnDevice device(input);
  // Whether a kernel is ready depends on no pixels.
  const ConvRun conv =
      conv_run(c, input, weight, std::nullopt, input, gradient ? Activation::kNone : o.activation, gradient);
  if (hopper_unsupported(conv) != nullptr) return false;
  check_launch("hopper_conv_kernel", prepare_hopper(conv, input.get_device_index()));
  return true;
}

}  // namespace tunable_ops::cuda
