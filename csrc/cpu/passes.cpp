// The passes of tunable_conv2d: splits the work into items for the threads. The terms of every sum and their order
// depend only on the shapes, so results do not depend on the number of threads.
#include <algorithm>
#include <cstring>
#include <numeric>

#include "algorithm.h"
#include "filtering.h"
#include "passes.h"

namespace tunable_ops {
namespace {

// Multiply-adds that justify waking another thread.
constexpr int64_t kGrainMacs = 1 << 18;
// Input rows of one item, in bytes: half of a small L2 cache.
constexpr int64_t kBlockBytes = 128 << 10;
// Memory for per-sample weight gradients; larger batches are contracted in chunks.
constexpr int64_t kChunkBytes = 64 << 20;
// A depthwise multiply-add moves as many bytes as this many dense ones.
constexpr int64_t kDepthwiseCost = 16;

// Input of joined rows: the L1 cache.
constexpr int64_t kJoinedBytes = 32 << 10;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

Panels panels_of(const Conv& c, bool depthwise) {
  const Kernels& k = best_kernels();
  if (!depthwise) return {c.groups, c.outputs, c.channels, c.taps_h, c.taps_w, k.lanes, k.width};
  return {1, c.groups, 1, c.taps_h, c.taps_w, k.lanes, ceil_div(c.groups, k.lanes)};
}

// Depthwise kernels have one channel per group: use the groups as outputs.
Stack as_depthwise(Stack stack) {
  stack.stride_output = stack.stride_group;
  stack.stride_channel = 0;
  return stack;
}

int64_t macs_per_pixel(const Conv& c, bool depthwise) {
  const int64_t macs = c.groups * c.outputs * c.channels * c.taps_h * c.taps_w;
  return depthwise ? macs * kDepthwiseCost : macs;
}

void for_each_slice(const Threads& threads, const Panels& panels, int64_t copies,
                    const std::function<void(int64_t, int64_t)>& f) {
  const int64_t work = std::max<int64_t>(1, panels.size() / panels.slices() * copies);
  threads.parallel_for(panels.slices(), std::max<int64_t>(1, (kGrainMacs / 8) / work), f);
}

// The pixels of an output that the groups of a convolution compute, see ConvRun; columns 0: all do the same ones.
struct Phases {
  int64_t columns = 0, row = 0, pixel = 0;
};

// Joins rows of pixels that lie one after the other, where every output reads one of them: fewer and better filled
// tiles. The input of a row stays in the L1 cache.
void join_rows(Conv& c) {
  const bool pointwise = c.taps_h == 1 && c.taps_w == 1 && c.stride_h == 1 && c.stride_w == 1 && !c.pad_h && !c.pad_w;
  // The phases of an input gradient may have more pixels on one side than on the other.
  if (!pointwise || c.in_w != c.out_w || c.in_h != c.out_h) return;
  if (c.in_row != c.in_w * c.in_pixel || c.out_row != c.out_w * c.out_pixel) return;
  while (c.out_h % 2 == 0 && 8 * c.in_row <= kJoinedBytes) {
    c.in_h /= 2, c.out_h /= 2;
    c.in_w *= 2, c.out_w *= 2;
    c.in_row *= 2, c.out_row *= 2;
  }
}

void blend_and_convolve(const Call& call, Conv conv, const Stack& stack, const std::vector<float>& bias,
                        const float* input, float* output, const Phases& phases = {}) {
  if (!call.depthwise && !phases.columns) join_rows(conv);
  if (const int64_t tile = winograd_tile(conv, call.depthwise, call.rows))
    return convolve_by_filtering(call, conv, stack, bias, input, output, tile);
  const Kernels& kernels = best_kernels();
  const Panels panels = panels_of(conv, call.depthwise);
  const Workspace blended(call.rows * panels.size());
  const Blend blend{panels, stack, call.rows, call.alpha.data(), blended.get()};
  for_each_slice(call.threads, panels, stack.kernels * (call.rows + 2),
                 [&](int64_t begin, int64_t end) { kernels.blend(blend, begin, end); });
  const int64_t padded = panels.vectors() * panels.lanes;
  const std::vector<float> shift = padded_bias(bias, panels, call.rows, call.depthwise ? conv.groups : conv.outputs);
  ConvRun run{conv,
              panels,
              input,
              output,
              blended.get(),
              call.rows > 1 ? panels.size() : 0,
              shift.empty() ? nullptr : shift.data(),
              call.rows > 1 ? panels.groups * padded : 0,
              1,
              phases.columns,
              phases.row,
              phases.pixel,
              !foresees_rows()};
  const int64_t row_bytes = 4 * conv.in_w * conv.in_pixel * conv.stride_h;
  run.rows = std::clamp<int64_t>(kBlockBytes / std::max<int64_t>(1, row_bytes), 1, conv.out_h);
  while (run.rows > 1 && conv.batch * ceil_div(conv.out_h, run.rows) < 4 * call.threads.count)
    run.rows = (run.rows + 1) / 2;
  const int64_t macs = run.rows * conv.out_w * macs_per_pixel(conv, call.depthwise);
  call.threads.parallel_for(
      conv.batch * ceil_div(conv.out_h, run.rows), std::max<int64_t>(1, kGrainMacs / macs),
      [&](int64_t begin, int64_t end) { (call.depthwise ? kernels.depthwise : kernels.dense)(run, begin, end); });
}

// One dimension of the input gradient: inputs phase, phase + stride, ... meet every step-th tap.
struct Phase {
  int64_t taps, first, step, dilation, pad, count;
};

Phase phase_of(int64_t phase, int64_t size, int64_t taps, int64_t stride, int64_t dilation, int64_t pad) {
  Phase p{0, 0, stride / std::gcd(stride, dilation), dilation / std::gcd(stride, dilation), 0, 0};
  p.count = phase < size ? ceil_div(size - phase, stride) : 0;
  while (p.first < taps && (phase + pad - p.first * dilation) % stride != 0) ++p.first;
  if (p.first >= taps) return p;
  p.taps = (taps - 1 - p.first) / p.step + 1;
  p.pad = (p.taps - 1) * p.dilation - (phase + pad - p.first * dilation) / stride;
  return p;
}

// The convolution of grad_output that gives the input's gradient at one phase.
Conv turned_of(const Conv& c, const Phase& y, const Phase& x) {
  return {c.batch,
          c.groups,
          c.outputs,
          c.channels,
          c.out_h,
          c.out_w,
          y.count,
          x.count,
          y.taps,
          x.taps,
          1,
          1,
          y.dilation,
          x.dilation,
          y.pad,
          x.pad,
          c.out_sample,
          c.out_row,
          c.out_pixel,
          c.in_sample,
          c.stride_h * c.in_row,
          c.stride_w * c.in_pixel,
          c.activation};
}

// Every pixel of the input has one tap of a dense kernel, whose taps lie one step apart in memory.
bool is_of_blocks(const Call& call) {
  const Conv& c = call.conv;
  return c.groups == 1 && c.taps_h == c.stride_h && c.taps_w == c.stride_w && c.dilation_h == 1 && c.dilation_w == 1 &&
         c.pad_h == 0 && c.pad_w == 0 && c.in_h == c.out_h * c.stride_h && c.in_w == c.out_w * c.stride_w &&
         c.taps_h * c.taps_w > 1 && call.weight.stride_tap_h == c.taps_w * call.weight.stride_tap_w;
}

// All phases at once: a convolution of one tap whose groups are the taps.
void input_gradient_of_blocks(const Call& call, const float* grad_output, float* grad_input,
                              const std::vector<float>& bias) {
  const Conv& c = call.conv;
  const Phase whole{1, 0, 1, 1, 0, 0};
  Conv turned = turned_of(c, whole, whole);
  turned.groups = c.taps_h * c.taps_w;
  turned.out_h = c.out_h, turned.out_w = c.out_w;
  Stack stack = call.weight;
  std::swap(stack.stride_output, stack.stride_channel);
  stack.stride_group = stack.stride_tap_w;
  std::vector<float> repeated;
  for (int64_t r = 0; r < call.rows && !bias.empty(); ++r) {
    for (int64_t i = 0; i < turned.groups; ++i)
      repeated.insert(repeated.end(), bias.begin() + r * turned.outputs, bias.begin() + (r + 1) * turned.outputs);
  }
  blend_and_convolve(call, turned, stack, repeated, grad_output, grad_input, {c.taps_w, c.in_row, c.in_pixel});
}

}  // namespace

std::vector<float> padded_bias(const std::vector<float>& bias, const Panels& panels, int64_t rows, int64_t outputs) {
  const int64_t padded = panels.vectors() * panels.lanes;
  std::vector<float> shift(bias.empty() ? 0 : rows * panels.groups * padded);
  for (int64_t i = 0; !bias.empty() && i < rows * panels.groups; ++i)
    std::copy_n(bias.data() + i * outputs, outputs, shift.data() + i * padded);
  return shift;
}

void convolve(const Call& call, const std::vector<float>& bias, float* output) {
  const Stack stack = call.depthwise ? as_depthwise(call.weight) : call.weight;
  blend_and_convolve(call, call.conv, stack, bias, call.input, output);
}

bool filters_kernel_gradient(const Call& call) { return winograd_tile(call.conv, call.depthwise, call.rows) > 0; }

bool filters_input_gradient(const Call& call) {
  const Conv& c = call.conv;
  if (!winograd_serves(c, call.depthwise)) return false;
  const Conv turned =
      turned_of(c, phase_of(0, c.in_h, c.taps_h, 1, 1, c.pad_h), phase_of(0, c.in_w, c.taps_w, 1, 1, c.pad_w));
  return winograd_tile(turned, false, call.rows) > 0;
}

// Convolves grad_output with the flipped kernels; with a stride, once per phase of the input.
void input_gradient(const Call& call, const float* grad_output, float* grad_input, const std::vector<float>& bias) {
  const Conv& c = call.conv;
  if (is_of_blocks(call)) return input_gradient_of_blocks(call, grad_output, grad_input, bias);
  bool covered = true;
  for (int64_t py = 0; py < c.stride_h; ++py)
    covered &= phase_of(py, c.in_h, c.taps_h, c.stride_h, c.dilation_h, c.pad_h).taps > 0;
  for (int64_t px = 0; px < c.stride_w; ++px)
    covered &= phase_of(px, c.in_w, c.taps_w, c.stride_w, c.dilation_w, c.pad_w).taps > 0;
  if (!covered) std::memset(grad_input, 0, sizeof(float) * c.batch * c.in_sample);
  for (int64_t py = 0; py < c.stride_h; ++py) {
    const Phase y = phase_of(py, c.in_h, c.taps_h, c.stride_h, c.dilation_h, c.pad_h);
    for (int64_t px = 0; px < c.stride_w; ++px) {
      const Phase x = phase_of(px, c.in_w, c.taps_w, c.stride_w, c.dilation_w, c.pad_w);
      if (y.taps == 0 || x.taps == 0 || y.count == 0 || x.count == 0) continue;
      const Conv turned = turned_of(c, y, x);
      Stack stack = call.weight;
      std::swap(stack.stride_output, stack.stride_channel);
      stack.data += (y.first + (y.taps - 1) * y.step) * stack.stride_tap_h +
                    (x.first + (x.taps - 1) * x.step) * stack.stride_tap_w;
      stack.stride_tap_h *= -y.step;
      stack.stride_tap_w *= -x.step;
      blend_and_convolve(call, turned, call.depthwise ? as_depthwise(stack) : stack, bias, grad_output,
                         grad_input + py * c.in_row + px * c.in_pixel);
    }
  }
}

namespace {

// Segments of the output rows with separate gradients: provides enough items for many threads if there are few tiles.
int64_t segments_of(const Conv& c, bool depthwise, int64_t tiles) {
  const int64_t wanted = ceil_div(64, std::max<int64_t>(1, c.batch * (depthwise ? 1 : tiles)));
  const int64_t most = std::max<int64_t>(1, c.out_h * c.out_w / 256);
  return std::clamp<int64_t>(wanted, 1, std::min(most, std::max<int64_t>(1, c.out_h)));
}

void add_sums(const WeightGradRun& run, int64_t first, double* sums) {
  const Panels& p = run.panels;
  const int64_t padded = p.vectors() * p.lanes;
  for (int64_t b = 0; b < run.conv.batch; ++b) {
    for (int64_t g = 0; g < p.groups; ++g) {
      for (int64_t o = 0; o < p.outputs; ++o) {
        double total = 0;
        for (int64_t i = 0; i < run.segments; ++i)
          total += run.sums[((b * run.segments + i) * p.groups + g) * padded + o];
        sums[((first + b) * p.groups + g) * p.outputs + o] = total;
      }
    }
  }
}

}  // namespace

void kernel_gradients(const Call& call, const float* grad_output, const KernelGradients& to) {
  const Kernels& kernels = best_kernels();
  const Conv& c = call.conv;
  const Panels panels = panels_of(c, call.depthwise);
  const int64_t count = call.weight.kernels, size = panels.size();
  bool weighted = to.grad_weight || to.grad_alpha;
  if (weighted && filters_kernel_gradient(call)) {
    kernel_gradients_by_filtering(call, grad_output, to);
    weighted = false;
    if (!to.bias_sums) return;
  }
  const int64_t tiles = call.depthwise ? 1 : kernels.dense_weight_grad_tiles(panels);
  const int64_t segments = segments_of(c, call.depthwise, tiles);
  const int64_t chunk = std::clamp<int64_t>(kChunkBytes / (4 * segments * size), 1, c.batch);
  const int64_t sums_size = panels.groups * panels.vectors() * panels.lanes;
  const Workspace gradient(weighted ? chunk * segments * size : 0),
      sums(to.bias_sums ? chunk * segments * sums_size : 0);
  const Workspace partial(weighted && to.grad_alpha ? panels.slices() * chunk * count : 0);
  for (int64_t first = 0; first < c.batch; first += chunk) {
    const int64_t batch = std::min(chunk, c.batch - first);
    WeightGradRun run{c,
                      panels,
                      call.input + first * c.in_sample,
                      grad_output + first * c.out_sample,
                      weighted ? gradient.get() : nullptr,
                      to.bias_sums ? sums.get() : nullptr,
                      segments,
                      1};
    run.conv.batch = batch;
    if (!call.depthwise) run.parts = std::clamp<int64_t>(ceil_div(4 * call.threads.count, batch * segments), 1, tiles);
    const int64_t macs = c.out_h * c.out_w * macs_per_pixel(c, call.depthwise) / (segments * run.parts);
    call.threads.parallel_for(
        batch * segments * run.parts, std::max<int64_t>(1, kGrainMacs / std::max<int64_t>(1, macs)),
        [&](int64_t begin, int64_t end) {
          (call.depthwise ? kernels.depthwise_weight_grad : kernels.dense_weight_grad)(run, begin, end);
        });
    if (to.bias_sums) add_sums(run, first, to.bias_sums);
    if (!weighted) continue;
    std::vector<float> alpha(batch * count);
    for (int64_t i = 0; i < batch * count; ++i) alpha[i] = call.alpha[call.rows > 1 ? first * count + i : i % count];
    const Stack stack = call.depthwise ? as_depthwise(call.weight) : call.weight;
    const Stack grad_stack = call.depthwise ? as_depthwise(to.weight) : to.weight;
    const Contract contract{panels,         stack,          grad_stack,
                            to.grad_weight, batch,          segments,
                            alpha.data(),   gradient.get(), to.grad_alpha ? partial.get() : nullptr,
                            first > 0};
    for_each_slice(call.threads, panels, 2 * count * (batch + 1),
                   [&](int64_t begin, int64_t end) { kernels.contract(contract, begin, end); });
    for (int64_t i = 0; to.grad_alpha && i < batch * count; ++i) {
      double total = 0;
      for (int64_t s = 0; s < panels.slices(); ++s) total += partial.get()[s * batch * count + i];
      to.grad_alpha[call.rows > 1 ? first * count + i : i % count] += total;
    }
  }
}

}  // namespace tunable_ops
