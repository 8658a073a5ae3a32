// Decides whether the wgmma kernel supports a convolution, and launches it.
#include "hopper.h"
#include "tunable_conv2d.h"

namespace tunable_ops::cuda {
namespace {

// For 1x1 kernels the image's rows do not matter: reshape it to rows of a full tile if the pixels divide evenly.
void flatten(HopperRun& run) {
  ConvRun& conv = run.conv;
  const bool pointwise = conv.y.taps == 1 && conv.x.taps == 1 && conv.y.pad == 0 && conv.x.pad == 0;
  const int64_t pixels = static_cast<int64_t>(conv.y.in) * conv.x.in;
  if (!pointwise || pixels % kHopperPixels != 0) return;
  conv.y.in = conv.y.out = static_cast<int32_t>(pixels / kHopperPixels);
  conv.x.in = conv.x.out = kHopperPixels;
  conv.source.row = kHopperPixels * conv.source.pixel;
  conv.target.row = kHopperPixels * conv.target.pixel;
}

}  // namespace

const char* hopper_unsupported(const ConvRun& run) {
  if (run.type == Type::kFloat) return "fp16 or bf16";
  if (run.groups != 1) return "groups 1";
  for (const Extent& e : {run.y, run.x}) {
    if (e.stride != 1 || e.dilation != 1) return "stride and dilation 1";
  }
  if (!run.vectors || !run.vector_stores) return "multiples of 8 channels and outputs, and tensors aligned to 16 bytes";
  const HopperPlan plan = hopper_plan(run.channels, run.outputs, run.y.taps, run.x.taps);
  return plan.slots > 0 ? nullptr : "blended kernels that fit the shared memory";
}

void launch_hopper_conv(const ConvRun& conv, void* stream) {
  HopperRun run{};
  run.conv = conv;
  flatten(run);
  run.y = axis_of(run.conv.y, conv.gradient, 0);
  run.x = axis_of(run.conv.x, conv.gradient, 0);
  run.plan = hopper_plan(conv.channels, conv.outputs, conv.y.taps, conv.x.taps);
  const bool half = conv.type == Type::kHalf;
  check_launch("hopper_conv_kernel",
               half ? launch_hopper_conv_half(run, stream) : launch_hopper_conv_bfloat16(run, stream));
}

}  // namespace tunable_ops::cuda
