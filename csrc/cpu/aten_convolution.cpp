#include "aten_convolution.h"

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>

#include <algorithm>
#include <cstring>

#include "number_types.h"

namespace tunable_ops {
namespace {

// Values that a thread processes at a time. Partial sums are per block, so they do not depend on the number of threads.
constexpr int64_t kBlock = 1 << 12;
// Blocks that justify waking another thread.
constexpr int64_t kGrainBlocks = 16;

int64_t elements(const Tensor& weight) { return weight.numel() / weight.size(0); }

void for_each_block(int64_t count, const std::function<void(int64_t, int64_t, int64_t)>& f) {
  parallel_for((count + kBlock - 1) / kBlock, kGrainBlocks, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) f(block, block * kBlock, std::min(count, (block + 1) * kBlock));
  });
}

// An uninitialised kernel [O, C/groups, kh, kw] in the layout of the kernels in the stack.
Tensor empty_kernel(const Tensor& weight) {
  Ints sizes;
  for (int d = 1; d < 5; ++d) sizes.push_back(weight.size(d));
  return empty_strided(weight, weight.scalar_type(), sizes, strides_of(sizes, kernel_format(weight)));
}

Tensor blended_kernel(const Call& call, const Tensor& weight) {
  const Tensor kernel = empty_kernel(weight);
  blend_kernels(weight, call.alpha.data(), kernel);
  return kernel;
}

void activate(const Tensor& output, Activation activation) {
  if (activation == Activation::kNone) return;
  const bool relu = activation == Activation::kRelu;
  with_type(output.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    T* y = output.mutable_data_ptr<T>();
    parallel_for(output.numel(), 1 << 15, [=](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const float value = y[i];
        y[i] = value < 0 ? (relu ? 0.0f : value * kLeakySlope) : value;
      }
    });
  });
}

// Computes grad_weight[p] = alpha[p] G unless null, and returns the products <G, weight[p]> for grad_alpha.
std::vector<double> contract(const Call& call, const Tensor& gradient, const Tensor& weight, void* grad_weight,
                             bool need_alpha) {
  const int64_t count = weight.size(0), size = elements(weight);
  const std::vector<double> alpha(call.alpha.begin(), call.alpha.end());
  const NumberType type = number_type(weight.scalar_type());
  const FlatContract contract{weight.const_data_ptr(),
                              type,
                              count,
                              weight.stride(0),
                              alpha.data(),
                              gradient.const_data_ptr(),
                              type,
                              grad_weight,
                              size};
  std::vector<double> partial((size + kBlock - 1) / kBlock * count), totals(count);
  for_each_block(size, [&](int64_t block, int64_t begin, int64_t end) {
    best_kernels().flat_contract(contract, begin, end, need_alpha ? partial.data() + block * count : nullptr);
  });
  for (size_t i = 0; i < partial.size(); ++i) totals[i % count] += partial[i];
  return totals;
}

Tensor with_layout_of(const Tensor& gradient, const Tensor& weight) {
  return torch::stable::contiguous(gradient, kernel_format(weight));
}

// Channels of a group times its outputs, of 1x1 kernels that aten computes faster. On Ice Lake a step of 512 x 512
// takes 1.31 of the plain layer's time by ours and 1.03 by aten, of 256 x 256 1.17 and 1.09, of 128 x 128 0.96
// and 1.07; on Zen 4 aten takes longer up to 256 channels.
constexpr int64_t kWidePoints = 1 << 17;

}  // namespace

void blend_kernels(const Tensor& stack, const float* alpha, const Tensor& blended) {
  const std::vector<double> factors(alpha, alpha + stack.size(0));
  const NumberType type = number_type(stack.scalar_type());
  const FlatBlend blend{stack.const_data_ptr(),     type, stack.size(0), stack.stride(0), factors.data(),
                        blended.mutable_data_ptr(), type};
  for_each_block(elements(stack),
                 [&](int64_t, int64_t begin, int64_t end) { best_kernels().flat_blend(blend, begin, end); });
}

bool prefers_aten(const Call& call, const Tensor& weight) {
  if (call.rows != 1 || !(weight.is_contiguous() || kernels_are_channels_last(weight))) return false;
  const Conv& v = call.conv;
  const bool native =
      weight.scalar_type() != ScalarType::Float && multiplies_natively(number_type(weight.scalar_type()));
  const bool patches = !native && v.stride_h > 1 && v.stride_w > 1 && v.stride_h >= v.taps_h && v.stride_w >= v.taps_w;
  const bool skips = v.taps_h == 1 && v.taps_w == 1 && (v.stride_h > 1 || v.stride_w > 1);
  const bool windows = call.depthwise && weight.scalar_type() == ScalarType::Float && v.stride_h == 1 &&
                       v.stride_w == 1 && v.dilation_h == 1 && v.dilation_w == 1 &&
                       (v.taps_w == 3 || v.taps_w == 5 || v.taps_w == 7);
  const bool points = v.taps_h == 1 && v.taps_w == 1 && weight.scalar_type() == ScalarType::Float &&
                      v.channels * v.outputs < kWidePoints;
  return !patches && !skips && !windows && !points;
}

namespace {

// `bias` as a tensor of the type, undefined if it is empty.
Tensor shift_of(const std::vector<float>& bias, ScalarType type) {
  if (bias.empty()) return undefined();
  const Tensor shift = empty({static_cast<int64_t>(bias.size())});
  std::copy(bias.begin(), bias.end(), shift.mutable_data_ptr<float>());
  return to_type(shift, type);
}

// In channels_last.
Tensor convolve_and_activate(const Conv& v, const Tensor& input, const Tensor& kernel, const Tensor& shift) {
  AtenTensorHandle shift_handle = shift.get(), result;
  const int64_t stride[] = {v.stride_h, v.stride_w}, padding[] = {v.pad_h, v.pad_w},
                dilation[] = {v.dilation_h, v.dilation_w}, none[] = {0, 0};
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_convolution(input.get(), kernel.get(),
                                                           shift.defined() ? &shift_handle : nullptr, stride, 2,
                                                           padding, 2, dilation, 2, 0, none, 2, v.groups, &result));
  const Tensor output = in_channels_last(Tensor(result));
  activate(output, v.activation);
  return output;
}

}  // namespace

Tensor convolve_with_aten(const Call& call, const Tensor& input, const Tensor& weight, const std::vector<float>& bias) {
  return convolve_and_activate(call.conv, input, blended_kernel(call, weight), shift_of(bias, weight.scalar_type()));
}

Tensor convolve_samples_with_aten(const Call& call, const Tensor& input, const Tensor& weight,
                                  const std::vector<float>& bias) {
  const Conv& v = call.conv;
  const ScalarType type = weight.scalar_type();
  const int64_t outputs = weight.size(1), size = elements(weight);
  const Ints image{1, input.size(1), v.in_h, v.in_w}, pixels = strides_of(image, MemoryFormat::ChannelsLast);
  const Ints shape{outputs, weight.size(2), weight.size(3), weight.size(4)},
      taps = strides_of(shape, kernel_format(weight));
  const Tensor kernels = empty_strided(weight, type, {v.batch * size}, {1}), shifts = shift_of(bias, type),
               output = empty(input, {v.batch, outputs, v.out_h, v.out_w}, type, MemoryFormat::ChannelsLast);
  const size_t bytes = v.out_sample * input.element_size();
  char* to = static_cast<char*>(output.mutable_data_ptr());
  for (int64_t b = 0; b < v.batch; ++b) {
    const Tensor kernel = view(kernels, shape, taps, b * size);
    blend_kernels(weight, call.alpha.data() + b * weight.size(0), kernel);
    const Tensor shift = shifts.defined() ? view(shifts, {outputs}, {1}, b * outputs) : undefined();
    const Tensor result = convolve_and_activate(v, view(input, image, pixels, b * v.in_sample), kernel, shift);
    std::memcpy(to + b * bytes, result.const_data_ptr(), bytes);
  }
  return output;
}

Gradients gradients_with_aten(const Call& call, const Tensor& grad_output, const Tensor& input, const Tensor& weight,
                              const std::optional<Tensor>& bias, const Tensor& alpha, const std::vector<bool>& mask) {
  const Conv& v = call.conv;
  const int32_t wanted[] = {mask[0], mask[1] || mask[3], bias && (mask[2] || mask[3])};
  const Tensor kernel = blended_kernel(call, weight);
  const int64_t outputs[] = {weight.size(1)}, stride[] = {v.stride_h, v.stride_w}, padding[] = {v.pad_h, v.pad_w},
                dilation[] = {v.dilation_h, v.dilation_w}, none[] = {0, 0};
  const int64_t* sizes = outputs;
  AtenTensorHandle handles[3];
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_convolution_backward(
      grad_output.get(), input.get(), kernel.get(), &sizes, 1, stride, 2, padding, 2, dilation, 2, 0, none, 2, v.groups,
      wanted, 3, &handles[0], &handles[1], &handles[2]));
  const Tensor results[] = {Tensor(handles[0]), Tensor(handles[1]), Tensor(handles[2])};
  Tensor grad_input = undefined(), grad_weight = undefined(), grad_bias = undefined(), grad_alpha = undefined();
  if (mask[0]) grad_input = in_channels_last(results[0]);
  std::vector<double> alphas(weight.size(0));
  if (wanted[1]) {
    const Tensor gradient = with_layout_of(results[1], weight);
    if (mask[1]) grad_weight = empty_stack_like(weight);
    alphas = contract(call, gradient, weight, mask[1] ? grad_weight.mutable_data_ptr() : nullptr, mask[3]);
  }
  if (wanted[2]) {
    const Tensor sums = to_type(results[2], ScalarType::Float);
    const float *g = sums.const_data_ptr<float>(), *values = bias->const_data_ptr<float>();
    if (mask[2]) grad_bias = empty({bias->size(0), bias->size(1)});
    float* to_bias = mask[2] ? grad_bias.mutable_data_ptr<float>() : nullptr;
    for (int64_t p = 0; p < bias->size(0); ++p) {
      for (int64_t o = 0; o < bias->size(1); ++o) {
        alphas[p] += static_cast<double>(g[o]) * values[p * bias->stride(0) + o * bias->stride(1)];
        if (to_bias) to_bias[p * bias->size(1) + o] = call.alpha[p] * g[o];
      }
    }
  }
  if (mask[3]) {
    grad_alpha = empty_like_alpha(alpha);
    std::copy(alphas.begin(), alphas.end(), grad_alpha.mutable_data_ptr<float>());
  }
  return {grad_input, grad_weight, grad_bias, grad_alpha};
}

}  // namespace tunable_ops
