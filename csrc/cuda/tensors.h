// Tensor properties that only the CUDA operators need.
#pragma once

#include "../tensors.h"
#include "params.h"

namespace tunable_ops::cuda {

// True if each kernel is dense in memory as [O, kh, kw, C].
inline bool kernels_are_packed(const Tensor& weight) { return is_dense<4>(weight, {1, 3, 4, 2}); }

inline Type type_of(const Tensor& t) {
  return t.scalar_type() == ScalarType::Float  ? Type::kFloat
         : t.scalar_type() == ScalarType::Half ? Type::kHalf
                                               : Type::kBFloat16;
}

inline bool is_aligned(const Tensor& t) { return reinterpret_cast<uintptr_t>(t.const_data_ptr()) % 16 == 0; }

}  // namespace tunable_ops::cuda
