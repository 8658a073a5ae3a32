// Activations that the operators apply to their result. The codes are part of the schemas and must match
// tunable_ops/reference/activation.py (tests/csrc/test_schema.py compares them). Does not depend on Torch.
#pragma once

#include <cstdint>

namespace tunable_ops {

enum class Activation : int32_t { kNone = 0, kRelu = 1, kGelu = 2, kSilu = 3, kLeakyRelu = 4 };
constexpr float kLeakySlope = 0.01f;

}  // namespace tunable_ops
