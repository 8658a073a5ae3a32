// Between the memory formats of images, faster than aten's copies: blocks of channels and pixels stay in the L1 cache.
#pragma once

#include "../tensors.h"

namespace tunable_ops {

// Returns the tensor itself if it is already dense in the format.
Tensor to_channels_last(const Tensor& t);
Tensor to_contiguous(const Tensor& t);

}  // namespace tunable_ops
