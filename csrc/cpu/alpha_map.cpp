#include "alpha_map.h"

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>

#include <algorithm>

#include "algorithm.h"
#include "pointwise.h"
#include "tunable_conv2d.h"

namespace tunable_ops {
namespace {

// Values that justify waking another thread.
constexpr int64_t kGrain = 1 << 15;
constexpr int64_t kNone[] = {0, 0};
// Kernels with fewer outputs share a convolution: aten computes 16 outputs in the time of 3, and reads the input only
// once.
constexpr int64_t kOutputs = 64;

// The number of kernels per convolution.
int64_t kernels_at_once(const Tensor& weight, int64_t groups) {
  return groups > 1 ? 1 : std::clamp<int64_t>(kOutputs / weight.size(1), 1, weight.size(0));
}

// stack[first : first + count], [P, O, *], as [count * O, *]: a view if the stack is dense.
Tensor flat_kernels(const Tensor& stack, int64_t first, int64_t count) {
  Tensor whole = stack;
  return torch::stable::flatten(torch::stable::narrow(whole, 0, first, count), 0, 1);
}

// The same, as the library takes kernels.
Tensor library_kernels(const Tensor& weight, int64_t first, int64_t count) {
  return in_format(flat_kernels(weight, first, count), kernel_format(weight));
}

// A convolution with one kernel as a call of the operator.
struct SingleKernel {
  Tensor weight, alpha;  // [1, O, C/groups, kh, kw] and [1]
  std::optional<Tensor> bias;
  Options options;
};

SingleKernel single_kernel(const Tensor& kernel, const Tensor& shift, const Options& o) {
  Ints sizes{1}, strides{kernel.numel()};
  for (int d = 0; d < 4; ++d) sizes.push_back(kernel.size(d)), strides.push_back(kernel.stride(d));
  SingleKernel single{view(kernel, sizes, strides), empty({1}), std::nullopt, o};
  single.alpha.mutable_data_ptr<float>()[0] = 1;
  single.options.activation = Activation::kNone;
  if (shift.defined()) single.bias = view(shift, {1, shift.size(0)}, {shift.numel(), shift.stride(0)});
  return single;
}

// conv(x, kernel) + shift, [B, count * O, OH, OW] in channels_last.
Tensor convolve_kernels(const Tensor& x, const Tensor& kernel, const Tensor& shift, const Options& o) {
  const SingleKernel s = single_kernel(kernel, shift, o);
  const Call c = call_of(x, s.weight, s.alpha, s.options);
  if (winograd_tile(c.conv, c.depthwise, 1)) return in_channels_last(forward(x, s.weight, s.bias, s.alpha, s.options));
  AtenTensorHandle shift_handle = shift.get(), result;
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch_cpu_convolution(x.get(), kernel.get(), shift.defined() ? &shift_handle : nullptr, o.stride, 2,
                                 o.padding, 2, o.dilation, 2, 0, kNone, 2, o.groups, &result));
  return in_channels_last(Tensor(result));
}

Map map_of(const Tensor& alpha, int64_t outputs) {
  const int64_t pixels = alpha.size(2) * alpha.size(3);
  return {pixels, alpha.size(1) * pixels, outputs};
}

const float* plane(const Tensor& alpha, int64_t p) {
  return alpha.const_data_ptr<float>() + p * alpha.size(2) * alpha.size(3);
}

// Runs f(begin, end) over the pixels of the batch.
void for_each_pixel(const Tensor& alpha, int64_t outputs, const std::function<void(int64_t, int64_t)>& f) {
  const int64_t pixels = alpha.size(0) * alpha.size(2) * alpha.size(3);
  parallel_for(pixels, std::max<int64_t>(1, kGrain / std::max<int64_t>(1, outputs)), f);
}

void add_into(const Tensor& sum, const Tensor& term) {
  float* to = sum.mutable_data_ptr<float>();
  const float* from = term.const_data_ptr<float>();
  parallel_for(sum.numel(), kGrain, [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) to[i] += from[i];
  });
}

void copy_into(Tensor place, const Tensor& value) { torch::stable::copy_(place, value); }

// The gradients of x, kernel and shift, given that of the result; undefined where not wanted.
std::array<Tensor, 3> convolve_kernels_backward(const Tensor& grad, const Tensor& x, const Tensor& kernel,
                                                const Tensor& shift, const Options& o,
                                                const std::array<int32_t, 3>& wanted) {
  const SingleKernel s = single_kernel(kernel, shift, o);
  const Call c = call_of(x, s.weight, s.alpha, s.options);
  if ((wanted[0] && filters_input_gradient(c)) || (wanted[1] && filters_kernel_gradient(c))) {
    const std::vector<bool> mask{wanted[0] != 0, wanted[1] != 0, wanted[2] != 0, false};
    const auto [to_x, to_weight, to_bias, none] =
        gradients(grad, std::nullopt, x, s.weight, s.bias, s.alpha, s.options, mask);
    return {to_x, wanted[1] ? flat_kernels(to_weight, 0, 1) : undefined(),
            wanted[2] ? flat_kernels(to_bias, 0, 1) : undefined()};
  }
  const int64_t outputs[] = {kernel.size(0)};
  const int64_t* sizes = outputs;
  AtenTensorHandle handles[3];
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_convolution_backward(
      grad.get(), x.get(), kernel.get(), &sizes, 1, o.stride, 2, o.padding, 2, o.dilation, 2, 0, kNone, 2, o.groups,
      wanted.data(), 3, &handles[0], &handles[1], &handles[2]));
  return {Tensor(handles[0]), Tensor(handles[1]), Tensor(handles[2])};
}

// grad_alpha of the kernels from `first` on; `term` holds their convolutions.
void alpha_gradients(const Tensor& grad, const Tensor& term, int64_t first, const Tensor& grad_alpha) {
  const int64_t outputs = grad.size(1), columns = term.size(1);
  const Map map = map_of(grad_alpha, outputs);
  for (int64_t i = 0; i < columns / outputs; ++i) {
    const PixelDots dots{map,
                         grad.const_data_ptr<float>(),
                         term.const_data_ptr<float>() + i * outputs,
                         outputs,
                         columns,
                         grad_alpha.mutable_data_ptr<float>() + (first + i) * map.pixels};
    for_each_pixel(grad_alpha, outputs,
                   [&](int64_t begin, int64_t end) { best_kernels().pixel_dots(dots, begin, end); });
  }
}

// alpha[b, p] * grad for `count` kernels from `first` on, as [B, count * O, OH, OW].
Tensor scale_by_alpha(const Tensor& grad, const Tensor& alpha, int64_t first, int64_t count) {
  const int64_t outputs = grad.size(1), columns = count * outputs;
  const Tensor scaled = empty({grad.size(0), columns, grad.size(2), grad.size(3)}, MemoryFormat::ChannelsLast);
  for (int64_t i = 0; i < count; ++i) {
    const ScalePixels args{map_of(alpha, outputs),
                           grad.const_data_ptr<float>(),
                           scaled.mutable_data_ptr<float>() + i * outputs,
                           outputs,
                           columns,
                           plane(alpha, first + i),
                           false,
                           Activation::kNone};
    for_each_pixel(alpha, outputs, [&](int64_t begin, int64_t end) { best_kernels().scale_pixels(args, begin, end); });
  }
  return scaled;
}

}  // namespace

Tensor forward_map(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, const Tensor& alpha,
                   const Options& o) {
  const int64_t kernels = weight.size(0), outputs = weight.size(1);
  const MemoryFormat format = output_format(input, weight);
  if (is_strided_pointwise(weight, o)) {
    const Tensor picked = pick(input, o, MemoryFormat::ChannelsLast);
    return in_format(forward_map(picked, weight, bias, alpha, without_stride(o)), format);
  }
  if (input.size(0) == 0) return empty({0, outputs, alpha.size(2), alpha.size(3)}, format);
  const Tensor x = in_channels_last(input), weights = torch::stable::contiguous(alpha);
  const MemoryFormat last = MemoryFormat::ChannelsLast;
  const int64_t step = kernels_at_once(weight, o.groups);
  Tensor output = undefined(), term = undefined();
  for (int64_t p = 0; p < kernels; ++p) {
    const int64_t first = p / step * step, count = std::min(step, kernels - first);
    if (p == first) {
      term = undefined();  // frees the previous one first
      term = convolve_kernels(x, library_kernels(weight, first, count),
                              bias ? flat_kernels(*bias, first, count) : undefined(), o);
    }
    if (p == 0) output = count == 1 ? term : empty({x.size(0), outputs, alpha.size(2), alpha.size(3)}, last);
    const ScalePixels args{map_of(weights, outputs),
                           term.const_data_ptr<float>() + (p - first) * outputs,
                           output.mutable_data_ptr<float>(),
                           count * outputs,
                           outputs,
                           plane(weights, p),
                           p > 0,
                           p == kernels - 1 ? fused_activation(o.activation) : Activation::kNone};
    for_each_pixel(weights, outputs,
                   [&](int64_t begin, int64_t end) { best_kernels().scale_pixels(args, begin, end); });
  }
  return in_format(apply_unfused_activation(output, o.activation), format);
}

Gradients gradients_map(const Tensor& grad_output, const std::optional<Tensor>& saved, const Tensor& input,
                        const Tensor& weight, const std::optional<Tensor>& bias, const Tensor& alpha, const Options& o,
                        const std::vector<bool>& mask) {
  if (is_strided_pointwise(weight, o)) {
    const Tensor picked = pick(input, o, MemoryFormat::ChannelsLast);
    Gradients found = gradients_map(grad_output, saved, picked, weight, bias, alpha, without_stride(o), mask);
    if (mask[0]) std::get<0>(found) = put_back(std::get<0>(found), input, o, output_format(input, weight));
    return found;
  }
  const int64_t kernels = weight.size(0), outputs = weight.size(1);
  const Tensor grad = activation_backward(grad_output, saved, o.activation), x = in_channels_last(input);
  const Tensor weights = torch::stable::contiguous(alpha);
  const bool need_bias = bias && mask[2];
  Tensor grad_input = undefined();
  const Tensor grad_weight = mask[1] ? empty_stack_like(weight) : undefined(),
               grad_bias = need_bias ? empty({kernels, outputs}) : undefined(),
               grad_alpha = mask[3] ? empty_like_alpha(alpha) : undefined();
  const std::array<int32_t, 3> wanted{mask[0], mask[1], need_bias};
  const int64_t step = kernels_at_once(weight, o.groups);
  for (int64_t p = 0; p < kernels; p += step) {
    const int64_t count = std::min(step, kernels - p);
    const Tensor kernel = library_kernels(weight, p, count);
    const Tensor shift = bias ? flat_kernels(*bias, p, count) : undefined();
    if (mask[3]) alpha_gradients(grad, convolve_kernels(x, kernel, shift, o), p, grad_alpha);
    if (!mask[0] && !mask[1] && !need_bias) continue;
    const auto gradients =
        convolve_kernels_backward(scale_by_alpha(grad, weights, p, count), x, kernel, shift, o, wanted);
    if (mask[0] && p == 0) grad_input = in_channels_last(gradients[0]);
    if (mask[0] && p > 0) add_into(grad_input, in_channels_last(gradients[0]));
    if (mask[1]) copy_into(flat_kernels(grad_weight, p, count), gradients[1]);
    if (need_bias) copy_into(flat_kernels(grad_bias, p, count), gradients[2]);
  }
  if (mask[0]) grad_input = in_format(grad_input, output_format(input, weight));
  return {grad_input, grad_weight, grad_bias, grad_alpha};
}

}  // namespace tunable_ops
