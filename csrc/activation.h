// The activations of the operators' epilogues. The codes are the schemas': tunable_ops/reference/activation.py has the
// same table, and tests/csrc/test_schema.py compares the two. No Torch here.
#pragma once

#include <cstdint>

namespace tunable_ops {

enum class Activation : int32_t { kNone = 0, kRelu = 1, kGelu = 2, kSilu = 3, kLeakyRelu = 4 };
constexpr float kLeakySlope = 0.01f;

}  // namespace tunable_ops
