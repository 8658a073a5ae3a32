// The geometry and data of a tunable_conv2d call on CUDA.
#pragma once

#include <string>

#include "../options.h"
#include "tensors.h"

namespace tunable_ops::cuda {

// Shared memory available on every device without opting in.
constexpr int32_t kSharedBytes = 48 << 10;

// Raises unless `error` is null or empty.
void check_launch(const char* kernel, const char* error);
void check_launch(const char* kernel, const std::string& error);

struct Call {
  Extent y, x;
  int32_t batch, groups, channels, outputs;  // of one group
  bool depthwise, tf32;
  int32_t problems;  // 1 for a shared alpha, else one per sample
  Type type;
  Stack stack;
  Alpha alpha;
  MemoryFormat format, kernel_format;  // of the result; of the tensors that the kernels access
  int64_t kernel_size() const { return static_cast<int64_t>(stack.outputs) * channels * y.taps * x.taps; }
  int64_t pixels() const { return static_cast<int64_t>(y.out) * x.out; }
};

Call call_of(const Tensor& input, const Tensor& weight, const Tensor& alpha, const Options& options);
ImageStrides image_strides(int32_t channels, int32_t height, int32_t width, MemoryFormat format);

// The convolution of a call, or the gradient of its input, by kernels that read and write `kernel_format` and blend
// `weight` themselves (`fused`, if its layout allows that).
ConvRun conv_run(const Call& c, const Tensor& source, const Tensor& weight, const std::optional<Tensor>& bias,
                 const Tensor& target, Activation activation, bool gradient);

}  // namespace tunable_ops::cuda
