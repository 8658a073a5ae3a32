// From torch's types to those of the CPU kernels.
#pragma once

#include "../tensors.h"
#include "kernels.h"

namespace tunable_ops {

inline Number number_of(ScalarType type) {
  switch (type) {
    case ScalarType::Float:
      return Number::kFloat;
    case ScalarType::Double:
      return Number::kDouble;
    case ScalarType::Half:
      return Number::kHalf;
    case ScalarType::BFloat16:
      return Number::kBFloat16;
    default:
      STD_TORCH_CHECK(false, "tunable_ops: tensors must be float32, float16, bfloat16 or float64");
  }
}

}  // namespace tunable_ops
