#include "pointwise.h"

namespace tunable_ops {
namespace {

// The outputs of one dimension that meet a pixel: `count` from `first` on, the first of them at pixel `start`.
struct Met {
  int64_t first, start, count;
};

Met met(int64_t size, int d, const Options& o) {
  const int64_t s = o.stride[d], p = o.padding[d], first = (p + s - 1) / s;
  const int64_t end = std::min(output_size(size, 1, d, o), (size + p + s - 1) / s);
  return {first, first * s - p, std::max<int64_t>(0, end - first)};
}

// The views of pixels and of outputs that belong to each other.
std::array<Tensor, 2> paired(const Tensor& input, const Tensor& output, const Options& o) {
  Ints sizes{input.size(0), input.size(1)}, from{input.stride(0), input.stride(1)},
      to{output.stride(0), output.stride(1)};
  int64_t from_offset = 0, to_offset = 0;
  for (int d = 0; d < 2; ++d) {
    const Met m = met(input.size(2 + d), d, o);
    sizes.push_back(m.count);
    from.push_back(input.stride(2 + d) * o.stride[d]);
    to.push_back(output.stride(2 + d));
    if (m.count) from_offset += m.start * input.stride(2 + d), to_offset += m.first * to.back();
  }
  return {view(input, sizes, from, from_offset), view(output, sizes, to, to_offset)};
}

}  // namespace

Tensor pick(const Tensor& input, const Options& o, MemoryFormat format) {
  const Ints sizes{input.size(0), input.size(1), output_size(input.size(2), 1, 0, o),
                   output_size(input.size(3), 1, 1, o)};
  Tensor picked = empty(input, sizes, input.scalar_type(), format);
  if (o.padding[0] || o.padding[1]) torch::stable::zero_(picked);
  auto [pixels, outputs] = paired(input, picked, o);
  torch::stable::copy_(outputs, pixels);
  return picked;
}

Tensor put_back(const Tensor& grad, const Tensor& input, const Options& o, MemoryFormat format) {
  const Ints sizes{input.size(0), input.size(1), input.size(2), input.size(3)};
  Tensor whole = empty(input, sizes, grad.scalar_type(), format);
  torch::stable::zero_(whole);
  auto [pixels, outputs] = paired(whole, grad, o);
  torch::stable::copy_(pixels, outputs);
  return whole;
}

}  // namespace tunable_ops
