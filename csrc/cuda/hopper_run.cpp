#include "hopper_run.h"

namespace tunable_ops::cuda {
namespace {

// For 1x1 kernels the image's rows do not matter: reshape it to rows of a full tile if the pixels divide evenly.
void flatten(ConvRun& conv) {
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
  const Extent &y = run.y, &x = run.x;
  if (y.stride != 1 || x.stride != 1 || y.dilation != 1 || x.dilation != 1) return "stride and dilation 1";
  if (!run.vectors || !run.vector_stores) return "multiples of 8 channels and outputs, and tensors aligned to 16 bytes";
  if (!run.fused) return "kernels in channels_last, aligned to 16 bytes";
  const HopperPlan plan = hopper_plan(run.channels, run.outputs, run.y.taps, run.x.taps);
  return plan.slots > 0 ? nullptr : "blended kernels that fit the shared memory";
}

HopperRun hopper_run(const ConvRun& conv, HopperBoxes boxes, int32_t multiprocessors) {
  HopperRun run{};
  run.conv = conv;
  flatten(run.conv);
  run.y = axis_of(run.conv.y, conv.gradient, 0);
  run.x = axis_of(run.conv.x, conv.gradient, 0);
  run.plan = hopper_plan(conv.channels, conv.outputs, conv.y.taps, conv.x.taps, boxes);
  const HopperShape shape = hopper_shape(run.plan);
  run.tiles_h = ceil_div(run.y.count, shape.tile_rows());
  run.tiles_w = ceil_div(run.x.count, kHopperPixels);
  run.tiles_n = ceil_div(conv.outputs, shape.outputs);
  const int64_t tiles = static_cast<int64_t>(conv.samples) * run.tiles_h * run.tiles_w;
  const int64_t most = multiprocessors > run.tiles_n ? multiprocessors / run.tiles_n : 1;
  run.workers = static_cast<int32_t>(tiles < most ? tiles : most);
  return run;
}

ImageMap hopper_source(const HopperRun& run) {
  const ConvRun& conv = run.conv;
  const HopperShape shape = hopper_shape(run.plan);
  return {conv.input,
          conv.samples,
          run.y.src_size,
          run.x.src_size,
          conv.channels,
          conv.source.sample,
          conv.source.row,
          conv.source.pixel,
          shape.tile_rows() + run.y.taps - 1,
          kHopperPixels + run.plan.shifts - 1,
          shape.channels};
}

ImageMap hopper_target(const HopperRun& run) {
  const ConvRun& conv = run.conv;
  return {conv.output,     conv.samples,      run.y.count, run.x.count, conv.outputs,  conv.target.sample,
          conv.target.row, conv.target.pixel, 1,           16,          kHopperColumns};
}

}  // namespace tunable_ops::cuda
