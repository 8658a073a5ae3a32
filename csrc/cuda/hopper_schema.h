// Adapts the wgmma operators to their schemas.
#pragma once

#include "../operator.h"
#include "hopper_operator.h"

namespace tunable_ops::cuda {

inline Tensor input_gradient_operator(const Tensor& grad_output, const Tensor& input, const Tensor& weight,
                                      const Tensor& alpha, int64_t stride_h, int64_t stride_w, int64_t padding_h,
                                      int64_t padding_w, int64_t dilation_h, int64_t dilation_w, int64_t groups) {
  const Options o = options_of(stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w, groups, 0);
  check_call(input, weight, std::nullopt, alpha, o);
  check_output(grad_output, input, weight, o);
  return input_gradient_wgmma(grad_output, input, weight, alpha, o);
}

inline bool prepare_operator(const Tensor& input, const Tensor& weight, const Tensor& alpha, int64_t stride_h,
                             int64_t stride_w, int64_t padding_h, int64_t padding_w, int64_t dilation_h,
                             int64_t dilation_w, int64_t groups, int64_t activation, bool gradient) {
  const Options o = options_of(stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w, groups, activation);
  check_call(input, weight, std::nullopt, alpha, o);
  return prepare_wgmma(input, weight, alpha, o, gradient);
}

}  // namespace tunable_ops::cuda
