// tunable_conv2d in bfloat16 and float16.
#pragma once

#include <optional>
#include <vector>

#include "../options.h"
#include "../tensors.h"

namespace tunable_ops {

inline bool is_low_precision(const Tensor& t) {
  return t.scalar_type() == ScalarType::BFloat16 || t.scalar_type() == ScalarType::Half;
}

// Like `forward` and `gradients`. Input, weight and bias share one of the two types; alpha has that type or float32.
Tensor forward_low_precision(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                             const Tensor& alpha, const Options& options);

Gradients gradients_low_precision(const Tensor& grad_output, const std::optional<Tensor>& saved, const Tensor& input,
                                  const Tensor& weight, const std::optional<Tensor>& bias, const Tensor& alpha,
                                  const Options& options, const std::vector<bool>& mask);

}  // namespace tunable_ops
