// tunable_conv2d with one fixed kernel, in inference: Winograd's filtering with kernels that an earlier call
// transformed.
#include <torch/csrc/stable/library.h>

#include <array>
#include <cstring>

#include "../operator.h"
#include "algorithm.h"
#include "filtering.h"
#include "tunable_conv2d.h"

namespace tunable_ops {
namespace {

// What `kept` holds, in floats: the description of a kernel, its taps as they lie in memory, the transformed kernel.
// A call compares the first two to the last bit, so that no change of the kernel, by whatever way, is overlooked.
using Description = std::array<int64_t, 8>;
constexpr int64_t kDescription = sizeof(Description) / sizeof(float), kLine = 16;

Description description_of(const Call& c, int64_t tile) {
  const Stack& w = c.weight;
  return {
      tile,          c.conv.taps_h, c.conv.groups, c.conv.outputs, c.conv.channels, w.stride_output, w.stride_channel,
      w.stride_tap_w};
}

// Returns the output, and what later calls are to be given as `kept`: empty if nothing else than this call was, or if
// keeping does not pay.
std::tuple<Tensor, Tensor> convolve_keeping(const Tensor& input, const Tensor& weight,
                                            const std::optional<Tensor>& bias, const Tensor& alpha,
                                            const std::optional<Tensor>& kept, int64_t padding_h, int64_t padding_w,
                                            int64_t groups) {
  const Options o = options_of(1, 1, padding_h, padding_w, 1, 1, groups, 0);
  check_call(input, weight, bias, alpha, o);
  STD_TORCH_CHECK(input.scalar_type() == ScalarType::Float && is_channels_last(input) && input.numel() &&
                      weight.size(0) == 1 && alpha.dim() == 1 && (!kept || kept->scalar_type() == ScalarType::Float),
                  "tunable_conv2d: kept kernels must be those of one float32 kernel, for an input in channels_last");
  Call c = call_of(input, weight, alpha, o);
  const int64_t tile = winograd_tile(c.conv, c.depthwise, 1);
  const bool dense = weight.is_contiguous() || kernels_are_channels_last(weight);
  if (!tile || !dense || !pays_to_keep(c.conv, tile)) return {forward(input, weight, bias, alpha, o), empty({0})};
  const int64_t taps = weight.numel(), before = kDescription + (taps + kLine - 1) / kLine * kLine;
  const int64_t size = before + transformed_size(c.conv, tile);
  const Description description = description_of(c, tile);
  const bool fits = kept && kept->numel() == size &&
                    !std::memcmp(kept->const_data_ptr<float>(), description.data(), sizeof(description)) &&
                    !std::memcmp(kept->const_data_ptr<float>() + kDescription, c.weight.data, taps * sizeof(float));
  Tensor points = empty({fits ? 0 : size});
  if (!fits) {
    float* to = points.mutable_data_ptr<float>();
    std::memcpy(to, description.data(), sizeof(description));
    std::memcpy(to + kDescription, c.weight.data, taps * sizeof(float));
    c.weight.data = to + kDescription;  // of the copy: another thread may write to the weight meanwhile
    transform_kernels(c, tile, to + before);
  }
  c.transformed = (fits ? *kept : points).const_data_ptr<float>() + before;
  c.input = input.const_data_ptr<float>();
  Tensor output = empty({c.conv.batch, weight.size(1), c.conv.out_h, c.conv.out_w}, MemoryFormat::ChannelsLast);
  convolve(c, blended_bias(c, bias), output.mutable_data_ptr<float>());
  return {output, points};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(tunable_ops, CPU, m) { m.impl("tunable_conv2d_cpp_keeping", TORCH_BOX(&convolve_keeping)); }

}  // namespace tunable_ops
