// tunable_conv2d and its backward on CUDA: the operator's side, and what its device must offer.
#pragma once

#include <memory>

#include "../options.h"
#include "tensors.h"

namespace tunable_ops::cuda {

// Makes a tensor's device the current one for as long as it lives.
class OnDevice {
 public:
  explicit OnDevice(const Tensor& tensor);
  ~OnDevice();
  void* stream() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// Makes the device current in the kernels' own CUDA runtime; null, or what went wrong.
const char* use_device(int32_t index);

// Gradients of blended kernels kept at a time; more are contracted chunk by chunk.
int64_t chunk_bytes();

void check_launch(const char* kernel, const char* error);

// The operators of the schema. The wgmma kernel of hopper.h has operators of its own, which raise where it cannot serve;
// nothing about it has been measured, so no call chooses it.
Tensor forward(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, const Tensor& alpha,
               const Options& options);
Tensor forward_wgmma(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, const Tensor& alpha,
                     const Options& options);
// Undefined where `mask` asks for nothing.
Gradients gradients(const Tensor& grad_output, const std::optional<Tensor>& saved, const Tensor& input,
                    const Tensor& weight, const std::optional<Tensor>& bias, const Tensor& alpha,
                    const Options& options, const std::vector<bool>& mask);
Gradients gradients_wgmma(const Tensor& grad_output, const std::optional<Tensor>& saved, const Tensor& input,
                          const Tensor& weight, const std::optional<Tensor>& bias, const Tensor& alpha,
                          const Options& options, const std::vector<bool>& mask);

// A call in the kernels' terms.
struct Call {
  Extent y, x;
  int32_t batch, groups, channels, outputs;  // of one group
  bool depthwise, tf32, hopper;
  int32_t problems;  // 1 for a shared alpha, else one per sample
  Type type;
  Stack stack;
  Alpha alpha;
  MemoryFormat format, kernel_format;  // of the result; of what the kernels read and write
  int64_t kernel_size() const { return static_cast<int64_t>(stack.outputs) * channels * y.taps * x.taps; }
  int64_t pixels() const { return static_cast<int64_t>(y.out) * x.out; }
};

Call call_of(const Tensor& input, const Tensor& weight, const Tensor& alpha, const Options& options, bool hopper);
Picture picture_of(int32_t channels, int32_t height, int32_t width, MemoryFormat format);

// How depthwise kernels read pictures: vectors of channels, and how many lie side by side in a block.
struct Lanes {
  int32_t count;
  bool vectors;
};
Lanes depthwise_lanes(const Call& c, bool aligned, bool keeps_kernels);

// The convolution, or with `gradient` the gradient of its input, into `target`; all in the kernels' format.
void convolve(const Call& c, const Tensor& source, const Tensor& weight, const std::optional<Tensor>& bias,
              const Tensor& target, Activation activation, bool gradient, void* stream);

// Null, or what the wgmma kernel asks for that this run has not.
const char* hopper_unfit(const ConvRun& run);
void launch_hopper_conv(const ConvRun& run, void* stream);

}  // namespace tunable_ops::cuda
