// The operators behind tunable_ops/ops/direct.py: options are one number, and the tensors are checked here.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "tunable_conv2d_library.h"
#include "tunable_conv2d_operator.h"

namespace tunable_ops {
namespace {

// The options of a call in one number, which is faster to hand over than three lists and two strings: from the lowest
// bits on a byte each for stride, padding and dilation (height, then width), four bits for the activation, the groups.
struct Packed {
  Ints stride, padding, dilation;
  int64_t groups;
  std::string activation;

  explicit Packed(int64_t options) {
    const auto pair = [options](int shift) { return Ints{options >> shift & 255, options >> (shift + 8) & 255}; };
    const char* activations[] = {"none", "relu", "leaky_relu", "gelu", "silu"};
    stride = pair(0), padding = pair(16), dilation = pair(32);
    activation = activations[options >> 48 & 15];
    groups = options >> 52;
  }
};

// float32 tensors [B, C, H, W] and [P, *, *, kh, kw] with a bias [P, *] and an alpha [P], [1, P] or [B, P].
bool tensors_fit(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, const Tensor& alpha) {
  const auto is_float = [](const Tensor& t) { return t.scalar_type() == ScalarType::Float; };
  if (!is_float(input) || !is_float(weight) || !is_float(alpha) || input.dim() != 4 || weight.dim() != 5) return false;
  if (input.numel() == 0 || weight.numel() == 0) return false;  // nothing to be fast at, and an error
  const int64_t kernels = weight.size(0), rank = alpha.dim();
  if (bias && (!is_float(*bias) || bias->dim() != 2 || bias->size(0) != kernels)) return false;
  if ((rank != 1 && rank != 2) || alpha.size(rank - 1) != kernels) return false;
  return rank == 1 || alpha.size(0) == input.size(0) || alpha.size(0) == 1;
}

bool fits(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, const Tensor& alpha,
          const Packed& options) {
  if (!tensors_fit(input, weight, bias, alpha)) return false;
  const int64_t outputs = weight.size(1);
  if (bias && bias->size(1) != outputs) return false;
  if (weight.size(2) * options.groups != input.size(1) || outputs % options.groups != 0) return false;
  for (int d = 0; d < 2; ++d) {
    const int64_t span = options.dilation[d] * (weight.size(3 + d) - 1) + 1;
    if (input.size(2 + d) + 2 * options.padding[d] < span) return false;
  }
  return true;
}

// Both for calls that need no look at anything but their tensors; undefined results for those that do not fit.
Tensor forward_direct(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, const Tensor& alpha,
                      int64_t options) {
  const Packed o(options);
  if (!fits(input, weight, bias, alpha, o)) return undefined();
  return forward(input, weight, bias, alpha, o.stride, o.padding, o.dilation, o.groups, o.activation, "cpp");
}

Gradients backward_direct(const Tensor& grad_output, const std::optional<Tensor>& saved, const Tensor& input,
                          const Tensor& weight, const std::optional<Tensor>& bias, const Tensor& alpha, int64_t options,
                          int64_t mask) {
  const Packed o(options);
  std::vector<bool> wanted;
  for (int i = 0; i < 4; ++i) wanted.push_back(mask >> i & 1);
  return gradients(grad_output, saved, input, weight, bias, alpha, o.stride, o.padding, o.dilation, o.groups,
                   o.activation, wanted);
}

// The transposed convolution is the gradient of the input of the convolution from its output to its input: with weight
// [P, C, O/groups, kh, kw] the kernels of that one. Kernels at least as large as their stride leave no pixel without a
// tap.
bool transposed_fits(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, const Tensor& alpha,
                     const Packed& options, const Ints& size) {
  if (!tensors_fit(input, weight, bias, alpha) || !is_channels_last(input)) return false;
  if (weight.size(1) != input.size(1) || input.size(1) % options.groups != 0) return false;
  if (bias && bias->size(1) != weight.size(2) * options.groups) return false;
  for (int d = 0; d < 2; ++d) {
    if (size[d] < 1 || options.dilation[d] != 1 || weight.size(3 + d) < options.stride[d]) return false;
  }
  return true;
}

// `more`: output_padding, 8 bits each.
Tensor transposed_direct(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                         const Tensor& alpha, int64_t options, int64_t more) {
  const Packed o(options);
  if (input.dim() != 4 || weight.dim() != 5) return undefined();
  Ints size;
  for (int d = 0; d < 2; ++d) {
    const int64_t extra = more >> 8 * d & 255;
    if (extra >= o.stride[d]) return undefined();
    size.push_back((input.size(2 + d) - 1) * o.stride[d] - 2 * o.padding[d] + weight.size(3 + d) + extra);
  }
  if (!transposed_fits(input, weight, bias, alpha, o, size)) return undefined();
  const Tensor output =
      empty({input.size(0), weight.size(2) * o.groups, size[0], size[1]}, MemoryFormat::ChannelsLast);
  Call c = call_of(output, weight, alpha, o.stride, o.padding, o.dilation, o.groups);
  c.conv.activation = in_kernel(o.activation);
  input_gradient(c, input.const_data_ptr<float>(), output.mutable_data_ptr<float>(), blended_bias(c, bias));
  return with_activation(output, o.activation);
}

// Whether the elements of stack[p] fill a range of memory, in whatever order.
bool kernels_are_dense(const Tensor& stack) {
  std::vector<std::pair<int64_t, int64_t>> steps;
  for (int64_t d = 1; d < stack.dim(); ++d) {
    if (stack.size(d) > 1) steps.emplace_back(stack.stride(d), stack.size(d));
  }
  std::sort(steps.begin(), steps.end());
  int64_t expected = 1;
  for (const auto& [stride, size] : steps) {
    if (stride != expected) return false;
    expected *= size;
  }
  return true;
}

// sum_p alpha[p] * stack[p], [*shape] with the strides of the kernels of the stack [P, *shape]; undefined for what it
// does not serve.
Tensor blend_direct(const Tensor& stack, const Tensor& alpha) {
  const ScalarType type = stack.scalar_type();
  if (type != ScalarType::Float && type != ScalarType::BFloat16 && type != ScalarType::Half) return undefined();
  if (alpha.scalar_type() != ScalarType::Float && alpha.scalar_type() != type) return undefined();
  if (stack.dim() < 2 || alpha.dim() != 1 || stack.size(0) != alpha.size(0)) return undefined();
  if (!alpha.is_contiguous()) return undefined();
  if (stack.numel() == 0 || !kernels_are_dense(stack)) return undefined();
  Ints sizes, strides;
  for (int64_t d = 1; d < stack.dim(); ++d) sizes.push_back(stack.size(d)), strides.push_back(stack.stride(d));
  const Tensor kernel = empty_strided(stack, stack.scalar_type(), sizes, strides);
  blend_kernels(stack, to_type(alpha, ScalarType::Float).const_data_ptr<float>(), kernel);
  return kernel;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(tunable_ops, CPU, m) {
  m.impl("tunable_parameter_direct", TORCH_BOX(&blend_direct));
  m.impl("tunable_conv2d_direct", TORCH_BOX(&forward_direct));
  m.impl("tunable_conv2d_direct_backward", TORCH_BOX(&backward_direct));
  m.impl("tunable_conv_transpose2d_direct", TORCH_BOX(&transposed_direct));
}

}  // namespace tunable_ops
