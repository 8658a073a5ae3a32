// The options of a tunable_conv2d call, and its output size. Does not depend on Torch.
#pragma once

#include <cstdint>

#include "activation.h"

namespace tunable_ops {

struct Options {
  int64_t stride[2], padding[2], dilation[2], groups;  // height, then width
  Activation activation;
};

// Output size along dimension d; 0 if the padded input is smaller than the dilated kernel.
inline int64_t output_size(int64_t input, int64_t taps, int d, const Options& o) {
  const int64_t room = input + 2 * o.padding[d] - o.dilation[d] * (taps - 1) - 1;
  return room < 0 ? 0 : room / o.stride[d] + 1;
}

}  // namespace tunable_ops
