// A convolution of one tap with a stride, as one without: of the pixels that the tap meets. aten's backward of the
// first writes outside its memory on machines with AVX2 (docs/known_faults.md).
#pragma once

#include "../options.h"
#include "../tensors.h"

namespace tunable_ops {

inline bool is_strided_pointwise(const Tensor& weight, const Options& o) {
  return weight.size(3) == 1 && weight.size(4) == 1 && (o.stride[0] > 1 || o.stride[1] > 1);
}

inline Options without_stride(const Options& o) { return {{1, 1}, {0, 0}, {1, 1}, o.groups, o.activation}; }

// The pixels [B, C, OH, OW], dense in the format; zero where the tap meets the padding.
Tensor pick(const Tensor& input, const Options& o, MemoryFormat format);

// The gradient of the input of `pick`, dense in the format, given that of its result.
Tensor put_back(const Tensor& grad, const Tensor& input, const Options& o, MemoryFormat format);

}  // namespace tunable_ops
