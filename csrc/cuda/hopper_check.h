// The check of the wgmma kernel at its first use: a small convolution of integers with an exact result, and that
// result.
#pragma once

#include <string>
#include <vector>

#include "hopper_run.h"

namespace tunable_ops::cuda {

// A convolution with the channels, outputs, taps and dtype of `conv`, or its gradient, with a kernel per sample and
// several tiles for each of the few blocks: rings of slots go around, and panels are blended anew.
struct HopperCheck {
  ConvRun conv;  // without pointers
  std::vector<uint16_t> input, weight, bias, output;
  std::vector<float> alpha;
  static constexpr int32_t kMultiprocessors = 2;

  explicit HopperCheck(const ConvRun& like);
  // Compares `output` with the definition at some pixels of every tile. Returns an empty string or the first
  // difference.
  std::string difference() const;
};

}  // namespace tunable_ops::cuda
