#include "filtering.h"

#include <algorithm>

#include "algorithm.h"

namespace tunable_ops {
namespace {

// Multiply-adds that justify waking another thread.
constexpr int64_t kGrainMacs = 1 << 18;
// Tiles that are multiplied at a time, in rows of accumulators.
constexpr int64_t kTiles = 14;
// Transformed inputs of a block of tiles: a quarter of a large L2 cache. In the kernels' gradient, with those of the
// outputs; more tiles load and store the sums less often.
constexpr int64_t kTileBytes = 256 << 10, kGradBytes = 512 << 10;
// For layers so wide that fewer than kTiles tiles fit there (in the kernels' gradient fewer than twice as many), the
// transformed kernels come from the L3 cache or from farther: a block has up to kWideTiles tiles, whose inputs at one
// point fit, and kWideOutputs outputs are multiplied at a point before the next one.
constexpr int64_t kWideTiles = 56, kWideOutputs = 128;
// Transformed kernels of the samples that are computed together: what stays in the L2 cache, but work for all threads.
constexpr int64_t kKernelBytes = 1 << 20;
// A line of the cache after each point: without it the points of one kernel share a set.
constexpr int64_t kPad = 16;
// Segments of the tiles whose sums are separate: a part for every thread of a small machine.
constexpr int64_t kSegments = 4, kSegmentTiles = 64;
// Above this size there is one copy of the sums, and the threads share the outputs, where there are enough.
constexpr int64_t kSumBytes = 4 << 20;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t padded(int64_t count, int64_t lanes) { return ceil_div(count, lanes) * lanes; }

Panels panels_of(const Conv& c, int64_t taps, int64_t pad) {
  const Kernels& k = best_kernels();
  return {c.groups, c.outputs, c.channels, taps, taps, k.lanes, k.width, pad};
}

int64_t tiles_of(const Conv& c, int64_t tile) { return ceil_div(c.out_h, tile) * ceil_div(c.out_w, tile); }

// Samples whose kernels of `bytes` bytes are computed together.
int64_t together(const Call& call, int64_t bytes) {
  return std::clamp<int64_t>(std::max(kKernelBytes / bytes, ceil_div(call.threads.count, 2)), 1, call.rows);
}

int64_t grain(int64_t macs_per_item) { return std::max<int64_t>(1, kGrainMacs / std::max<int64_t>(1, macs_per_item)); }

// Blends and transforms the kernels of `rows` rows from `first` on.
void transform_rows(const Call& call, const Stack& stack, const Panels& panels, int64_t taps, int64_t first,
                    int64_t rows, float* to) {
  const Kernels& kernels = best_kernels();
  const int64_t blocks = kernels.winograd_blocks(panels);
  const Blend blend{panels, stack, rows, call.alpha.data() + first * stack.kernels, to, taps};
  call.threads.parallel_for(blocks, grain(16 * rows * panels.size() / blocks),
                            [&](int64_t begin, int64_t end) { kernels.winograd_kernels(blend, begin, end); });
}

}  // namespace

int64_t transformed_size(const Conv& conv, int64_t tile) {
  return panels_of(conv, tile + conv.taps_h - 1, kPad).size();
}

void transform_kernels(const Call& call, int64_t tile, float* to) {
  transform_rows(call, call.weight, panels_of(call.conv, tile + call.conv.taps_h - 1, kPad), call.conv.taps_h, 0, 1,
                 to);
}

void convolve_by_filtering(const Call& call, const Conv& conv, const Stack& stack, const std::vector<float>& bias,
                           const float* input, float* output, int64_t tile) {
  const Kernels& kernels = best_kernels();
  const Panels panels = panels_of(conv, tile + conv.taps_h - 1, kPad);
  const std::vector<float> shift = padded_bias(bias, panels, call.rows, conv.outputs);
  const bool shared = call.rows == 1;
  WinogradRun run{conv, panels, nullptr, nullptr, nullptr, 0, nullptr, 0, 0, 0, 0, 1};
  run.span = (shared ? conv.batch : 1) * tiles_of(conv, tile);
  const int64_t spans = shared ? 1 : together(call, 4 * panels.size());
  const int64_t bytes = 4 * panels.taps() * padded(conv.channels, panels.lanes);
  const int64_t near = kTileBytes / bytes / kTiles * kTiles, most = near ? near : kWideTiles;
  if (!near) run.abreast = std::max<int64_t>(1, kWideOutputs / (panels.lanes * panels.width));
  const int64_t wanted = std::min(run.span / kTiles, ceil_div(4 * call.threads.count, spans));
  run.blocks = std::max<int64_t>({1, wanted, ceil_div(run.span, most)});
  run.block = ceil_div(run.span, run.blocks);
  const Workspace blended(call.transformed ? 0 : spans * panels.size());
  for (int64_t first = 0; first < call.rows; first += spans) {
    const int64_t count = std::min(spans, call.rows - first);
    if (!call.transformed) transform_rows(call, stack, panels, conv.taps_h, first, count, blended.get());
    run.input = input + first * conv.in_sample;
    run.output = output + first * conv.out_sample;
    run.kernels = call.transformed ? call.transformed : blended.get();
    run.kernels_span = panels.size();
    run.bias_span = panels.groups * panels.vectors() * panels.lanes;
    run.bias = shift.empty() ? nullptr : shift.data() + first * run.bias_span;
    call.threads.parallel_for(count * run.blocks,
                              grain(run.block * panels.taps() * conv.groups * conv.channels * conv.outputs),
                              [&](int64_t begin, int64_t end) { kernels.winograd(run, begin, end); });
  }
}

void kernel_gradients_by_filtering(const Call& call, const float* grad_output, const KernelGradients& to) {
  const Kernels& kernels = best_kernels();
  const Conv& c = call.conv;
  const int64_t tile = winograd_tile(c, call.depthwise, call.rows), count = call.weight.kernels;
  const Panels points = panels_of(c, tile + c.taps_h - 1, kPad), panels = panels_of(c, c.taps_h, 0);
  const bool shared = call.rows == 1;
  WinogradGradRun run{c, points, nullptr, nullptr, nullptr, nullptr, 0, 1, 1, 0};
  run.span = (shared ? c.batch : 1) * tiles_of(c, tile);
  const bool large = 4 * points.size() > kSumBytes && points.count() >= kSegments;
  if (!large) run.segments = std::clamp<int64_t>(run.span / kSegmentTiles, 1, ceil_div(kSegments, call.rows));
  const int64_t bytes = 4 * points.taps() * (padded(c.channels, points.lanes) + padded(c.outputs, points.lanes));
  const int64_t near = kGradBytes / bytes;
  run.block = near < 2 * kTiles ? kWideTiles : std::min(near, 8 * kTiles);
  const int64_t chunk = large ? std::clamp<int64_t>(ceil_div(call.threads.count, points.count()), 1, call.rows)
                              : together(call, 4 * run.segments * points.size());
  if (large) run.parts = std::min(points.count(), ceil_div(call.threads.count, chunk));
  const Workspace sums(chunk * run.segments * points.size()), gradient(chunk * panels.size());
  const Workspace partial(to.grad_alpha ? panels.slices() * chunk * count : 0);
  run.sums = sums.get();
  run.gradient = gradient.get();
  for (int64_t first = 0; first < call.rows; first += chunk) {
    const int64_t spans = std::min(chunk, call.rows - first);
    run.input = call.input + first * c.in_sample;
    run.grad_output = grad_output + first * c.out_sample;
    const int64_t macs = points.taps() * c.groups * c.channels * c.outputs;
    call.threads.parallel_for(spans * run.segments * run.parts, grain(run.span / run.segments * macs / run.parts),
                              [&](int64_t begin, int64_t end) { kernels.winograd_grad(run, begin, end); });
    const int64_t taps = c.groups * panels.count();
    call.threads.parallel_for(spans * taps, grain(2 * run.segments * macs / taps),
                              [&](int64_t begin, int64_t end) { kernels.winograd_taps(run, begin, end); });
    const float* alpha = call.alpha.data() + first * count;
    const Contract contract{panels,         call.weight,    to.weight,
                            to.grad_weight, spans,          1,
                            alpha,          gradient.get(), to.grad_alpha ? partial.get() : nullptr,
                            first > 0};
    call.threads.parallel_for(panels.slices(), grain(16 * spans * count * panels.size() / panels.slices()),
                              [&](int64_t begin, int64_t end) { kernels.contract(contract, begin, end); });
    for (int64_t i = 0; to.grad_alpha && i < spans * count; ++i) {
      for (int64_t s = 0; s < panels.slices(); ++s)
        to.grad_alpha[first * count + i] += partial.get()[s * spans * count + i];
    }
  }
}

}  // namespace tunable_ops
