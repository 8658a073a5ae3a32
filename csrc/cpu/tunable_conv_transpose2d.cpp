// tunable_conv_transpose2d for inference: the input gradient of the convolution that maps its output to its input,
// whose kernels are `weight` [P, C, O/groups, kh, kw].
#include <torch/csrc/stable/library.h>

#include "../operator.h"
#include "tunable_conv2d.h"

namespace tunable_ops {
namespace {

// Serves float32 in channels_last without dilation. Kernels are at least as large as the stride: every pixel has a tap.
Tensor transposed(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, const Tensor& alpha,
                  int64_t stride_h, int64_t stride_w, int64_t padding_h, int64_t padding_w, int64_t output_padding_h,
                  int64_t output_padding_w, int64_t groups, int64_t activation) {
  const Options o = options_of(stride_h, stride_w, padding_h, padding_w, 1, 1, groups, activation);
  const auto is_float = [](const Tensor& t) { return t.scalar_type() == ScalarType::Float; };
  bool fits = is_float(input) && is_float(weight) && is_float(alpha) && (!bias || is_float(*bias)) &&
              input.dim() == 4 && weight.dim() == 5 && is_channels_last(input) && input.numel() && weight.numel() &&
              groups > 0 && weight.size(1) == input.size(1) && input.size(1) % groups == 0;
  const int64_t rank = alpha.dim();
  fits = fits && (rank == 1 || (rank == 2 && alpha.size(0) == input.size(0))) && alpha.size(rank - 1) == weight.size(0);
  if (bias)
    fits = fits && bias->dim() == 2 && bias->size(0) == weight.size(0) && bias->size(1) == weight.size(2) * groups;
  const int64_t output_padding[] = {output_padding_h, output_padding_w};
  Ints size;
  for (int d = 0; d < 2 && fits; ++d) {
    const int64_t taps = weight.size(3 + d);
    size.push_back((input.size(2 + d) - 1) * o.stride[d] - 2 * o.padding[d] + taps + output_padding[d]);
    fits = o.stride[d] > 0 && o.padding[d] >= 0 && taps >= o.stride[d] && output_padding[d] >= 0 &&
           output_padding[d] < o.stride[d] && size[d] > 0;
  }
  STD_TORCH_CHECK(fits, "tunable_conv_transpose2d: input, weight, bias, alpha and the options must fit each other");
  const Tensor output = empty({input.size(0), weight.size(2) * groups, size[0], size[1]}, MemoryFormat::ChannelsLast);
  Call c = call_of(output, weight, alpha, o);
  c.conv.activation = fused_activation(o.activation);
  input_gradient(c, input.const_data_ptr<float>(), output.mutable_data_ptr<float>(), blended_bias(c, bias));
  return apply_unfused_activation(output, o.activation);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(tunable_ops, CPU, m) { m.impl("tunable_conv_transpose2d_cpp", TORCH_BOX(&transposed)); }

}  // namespace tunable_ops
