#include "tunable_conv2d_map.h"

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>

#include <algorithm>

#include "tunable_conv2d_operator.h"

namespace tunable_ops {
namespace {

// Values worth waking another thread for.
constexpr int64_t kGrain = 1 << 15;
constexpr int64_t kNone[] = {0, 0};

struct Options {
  const Ints &stride, &padding, &dilation;
  int64_t groups;
};

// conv(x, weight[p]) + bias[p], [B, O, OH, OW] in channels_last.
Tensor product(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, int64_t p, const Options& o) {
  const Tensor kernel = torch::stable::select(weight, 0, p);
  const Tensor shift = bias ? torch::stable::select(*bias, 0, p) : undefined();
  AtenTensorHandle shift_handle = shift.get(), result;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_convolution(
      x.get(), kernel.get(), bias ? &shift_handle : nullptr, o.stride.data(), 2, o.padding.data(), 2, o.dilation.data(),
      2, 0, kNone, 2, o.groups, &result));
  return in_channels_last(Tensor(result));
}

Map map_of(const Tensor& alpha, int64_t outputs) {
  const int64_t pixels = alpha.size(2) * alpha.size(3);
  return {pixels, alpha.size(1) * pixels, outputs};
}

const float* plane(const Tensor& alpha, int64_t p) {
  return alpha.const_data_ptr<float>() + p * alpha.size(2) * alpha.size(3);
}

// Over the pixels of the batch.
void for_each_pixel(const Tensor& alpha, int64_t outputs, const std::function<void(int64_t, int64_t)>& f) {
  const int64_t pixels = alpha.size(0) * alpha.size(2) * alpha.size(3);
  parallel_for(pixels, std::max<int64_t>(1, kGrain / std::max<int64_t>(1, outputs)), f);
}

void add(const Tensor& sum, const Tensor& term) {
  float* to = sum.mutable_data_ptr<float>();
  const float* from = term.const_data_ptr<float>();
  parallel_for(sum.numel(), kGrain, [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) to[i] += from[i];
  });
}

void check(const Tensor& input, const Tensor& weight, const Tensor& alpha, const Options& o) {
  const Tensor* const tensors[] = {&input, &weight, &alpha};
  for (const Tensor* t : tensors)
    STD_TORCH_CHECK(t->scalar_type() == ScalarType::Float,
                    "tunable_conv2d: input, weight and alpha must be float32 where alpha is a map for backend 'cpp'");
  bool fits = input.dim() == 4 && weight.dim() == 5 && alpha.size(0) == input.size(0) && alpha.size(1) == weight.size(0);
  for (int d = 0; fits && d < 2; ++d) {
    const int64_t span = o.dilation[d] * (weight.size(3 + d) - 1) + 1;
    fits = alpha.size(2 + d) == (input.size(2 + d) + 2 * o.padding[d] - span) / o.stride[d] + 1;
  }
  STD_TORCH_CHECK(fits, "tunable_conv2d: alpha must be [B, P, OH, OW] where it is a map");
}

// The gradients of conv_p at `spread`, the gradient of its product; undefined where not wanted.
std::array<Tensor, 3> product_gradients(const Tensor& spread, const Tensor& x, const Tensor& weight, int64_t p,
                                        const Options& o, const std::array<int32_t, 3>& wanted) {
  const Tensor kernel = torch::stable::select(weight, 0, p);
  const int64_t outputs[] = {weight.size(1)};
  const int64_t* sizes = outputs;
  AtenTensorHandle handles[3];
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_convolution_backward(
      spread.get(), x.get(), kernel.get(), &sizes, 1, o.stride.data(), 2, o.padding.data(), 2, o.dilation.data(), 2, 0,
      kNone, 2, o.groups, wanted.data(), 3, &handles[0], &handles[1], &handles[2]));
  return {Tensor(handles[0]), Tensor(handles[1]), Tensor(handles[2])};
}

void put(const Tensor& stack, int64_t p, const Tensor& value) {
  Tensor place = torch::stable::select(stack, 0, p);
  torch::stable::copy_(place, value);
}

}  // namespace

Tensor forward_map(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, const Tensor& alpha,
                   const Ints& stride, const Ints& padding, const Ints& dilation, int64_t groups,
                   const std::string& activation) {
  const Options o{stride, padding, dilation, groups};
  check(input, weight, alpha, o);
  const int64_t kernels = weight.size(0), outputs = weight.size(1);
  const MemoryFormat format = output_format(input, weight);
  if (input.size(0) == 0) return empty({0, outputs, alpha.size(2), alpha.size(3)}, format);
  const Tensor x = in_channels_last(input), weights = torch::stable::contiguous(alpha);
  Tensor output = undefined();
  for (int64_t p = 0; p < kernels; ++p) {
    const Tensor term = product(x, weight, bias, p, o);
    if (p == 0) output = term;
    const Weigh weigh{map_of(weights, outputs),
                      term.const_data_ptr<float>(),
                      output.mutable_data_ptr<float>(),
                      plane(weights, p),
                      p > 0,
                      p == kernels - 1 ? in_kernel(activation) : Activation::kNone};
    for_each_pixel(weights, outputs, [&](int64_t begin, int64_t end) { best_kernels().weigh(weigh, begin, end); });
  }
  return in_format(with_activation(output, activation), format);
}

Gradients gradients_map(const Tensor& grad_output, const std::optional<Tensor>& saved, const Tensor& input,
                        const Tensor& weight, const std::optional<Tensor>& bias, const Tensor& alpha,
                        const Ints& stride, const Ints& padding, const Ints& dilation, int64_t groups,
                        const std::string& activation, const std::vector<bool>& mask) {
  const Options o{stride, padding, dilation, groups};
  check(input, weight, alpha, o);
  const int64_t kernels = weight.size(0), outputs = weight.size(1);
  const Tensor grad = without_activation(grad_output, saved, activation), x = in_channels_last(input);
  const Tensor weights = torch::stable::contiguous(alpha);
  const Map map = map_of(weights, outputs);
  const bool need_bias = bias && mask[2];
  Tensor grad_input = undefined();
  const Tensor grad_weight = mask[1] ? empty_stack_like(weight) : undefined(),
               grad_bias = need_bias ? empty({kernels, outputs}) : undefined(),
               grad_alpha = mask[3] ? empty_like_alpha(alpha) : undefined();
  const std::array<int32_t, 3> wanted{mask[0], mask[1], need_bias};
  for (int64_t p = 0; p < kernels; ++p) {
    if (mask[3]) {
      const Tensor term = product(x, weight, bias, p, o);
      const PixelDots dots{map, grad.const_data_ptr<float>(), term.const_data_ptr<float>(),
                           grad_alpha.mutable_data_ptr<float>() + p * map.pixels};
      for_each_pixel(weights, outputs, [&](int64_t begin, int64_t end) { best_kernels().pixel_dots(dots, begin, end); });
    }
    if (!mask[0] && !mask[1] && !need_bias) continue;
    const Tensor spread = empty({x.size(0), outputs, alpha.size(2), alpha.size(3)}, MemoryFormat::ChannelsLast);
    const Weigh weigh{map,   grad.const_data_ptr<float>(), spread.mutable_data_ptr<float>(), plane(weights, p),
                      false, Activation::kNone};
    for_each_pixel(weights, outputs, [&](int64_t begin, int64_t end) { best_kernels().weigh(weigh, begin, end); });
    const auto gradients = product_gradients(spread, x, weight, p, o, wanted);
    if (mask[0] && p == 0) grad_input = in_channels_last(gradients[0]);
    if (mask[0] && p > 0) add(grad_input, in_channels_last(gradients[0]));
    if (mask[1]) put(grad_weight, p, gradients[1]);
    if (need_bias) put(grad_bias, p, gradients[2]);
  }
  if (mask[0]) grad_input = in_format(grad_input, output_format(input, weight));
  return {grad_input, grad_weight, grad_bias, grad_alpha};
}

}  // namespace tunable_ops
