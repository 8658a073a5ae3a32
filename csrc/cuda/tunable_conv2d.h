// tunable_conv2d and its backward on CUDA, and the device functions that registration.cpp or the emulator provides.
#pragma once

#include <memory>

#include "../options.h"
#include "tensors.h"

namespace tunable_ops::cuda {

// Makes a tensor's device the current one during its lifetime.
class OnDevice {
 public:
  explicit OnDevice(const Tensor& tensor);
  ~OnDevice();
  void* stream() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// Memory for gradients of blended kernels; if they need more, they are contracted in chunks.
int64_t chunk_bytes();

void check_launch(const char* kernel, const char* error);

// The operators. The wgmma kernel has separate ones, which raise if it does not support a call; it has not been
// measured, so no call selects it by default.
Tensor forward(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, const Tensor& alpha,
               const Options& options);
Tensor forward_wgmma(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, const Tensor& alpha,
                     const Options& options);
// Return undefined tensors for gradients that `mask` does not request.
Gradients gradients(const Tensor& grad_output, const std::optional<Tensor>& saved, const Tensor& input,
                    const Tensor& weight, const std::optional<Tensor>& bias, const Tensor& alpha,
                    const Options& options, const std::vector<bool>& mask);
Gradients gradients_wgmma(const Tensor& grad_output, const std::optional<Tensor>& saved, const Tensor& input,
                          const Tensor& weight, const std::optional<Tensor>& bias, const Tensor& alpha,
                          const Options& options, const std::vector<bool>& mask);

// The geometry and data of a call.
struct Call {
  Extent y, x;
  int32_t batch, groups, channels, outputs;  // of one group
  bool depthwise, tf32, hopper;
  int32_t problems;  // 1 for a shared alpha, else one per sample
  Type type;
  Stack stack;
  Alpha alpha;
  MemoryFormat format, kernel_format;  // of the result; of the tensors that the kernels access
  int64_t kernel_size() const { return static_cast<int64_t>(stack.outputs) * channels * y.taps * x.taps; }
  int64_t pixels() const { return static_cast<int64_t>(y.out) * x.out; }
};

Call call_of(const Tensor& input, const Tensor& weight, const Tensor& alpha, const Options& options, bool hopper);
ImageStrides image_strides(int32_t channels, int32_t height, int32_t width, MemoryFormat format);

// How depthwise kernels access channels: the adjacent lanes of a block, and whether each is a vector of channels.
struct Lanes {
  int32_t count;
  bool vectors;
};
Lanes depthwise_lanes(const Call& c, bool aligned, bool keeps_kernels);

// Computes the convolution, or the gradient of its input if `gradient`, into `target`. Tensors have the kernels'
// format.
void convolve(const Call& c, const Tensor& source, const Tensor& weight, const std::optional<Tensor>& bias,
              const Tensor& target, Activation activation, bool gradient, void* stream);

// Returns null, or the requirement of the wgmma kernel that this run does not meet.
const char* hopper_unsupported(const ConvRun& run);
void launch_hopper_conv(const ConvRun& run, void* stream);

}  // namespace tunable_ops::cuda
