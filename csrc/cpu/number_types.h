// Converts Torch's dtypes to those of the CPU kernels.
#pragma once

#include "../tensors.h"
#include "kernels.h"

namespace tunable_ops {

inline NumberType number_type(ScalarType type) {
  switch (type) {
    case ScalarType::Float:
      return NumberType::kFloat;
    case ScalarType::Double:
      return NumberType::kDouble;
    case ScalarType::Half:
      return NumberType::kHalf;
    case ScalarType::BFloat16:
      return NumberType::kBFloat16;
    default:
      STD_TORCH_CHECK(false, "tunable_ops: tensors must be float32, float16, bfloat16 or float64");
  }
}

}  // namespace tunable_ops
