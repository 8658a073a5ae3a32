// Depthwise convolutions: a thread computes a vector of channels (one channel in contiguous images). The block blends
// its channels' kernels into shared memory once.
#include "launch.cuh"
#include "numeric.cuh"

namespace tunable_ops::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kGroupsPerThread = 4;  // groups of pixels

// Tiles of a DepthwiseRun: channels by groups of `pixels` neighbours in a destination row.
struct DepthwiseGrid {
  int32_t tiles_n, tiles_m, phases, groups_per_block;
  TO_HD constexpr DepthwiseGrid(const DepthwiseRun& run, int32_t vector, int32_t pixels)
      : tiles_n(ceil_div(run.channels, run.lanes * vector)),
        tiles_m(0),
        phases(run.gradient ? run.y.stride * run.x.stride : 1),
        groups_per_block(kThreads / run.lanes * kGroupsPerThread) {
    const Axis y = axis_of(run.y, run.gradient, 0), x = axis_of(run.x, run.gradient, 0);
    tiles_m = ceil_div(y.count * ceil_div(x.count, pixels), groups_per_block);
  }
};

// A thread's work: its channels, and their offsets in source and target.
template <class T, int kVector_>
struct DepthwiseThread {
  const DepthwiseRun& run;
  const Axis& y;
  const Axis& x;
  const float* weights;  // [taps][width], from the thread's first channel on
  int32_t width;
  int64_t source, target;
  const float* bias;

  TO_DEVICE AlignedArray<T, kVector_> load(int32_t at_y, int32_t at_x) const {
    if (at_y < 0 || at_y >= y.src_size || at_x < 0 || at_x >= x.src_size) {
      AlignedArray<T, kVector_> zeros;
#pragma unroll
      for (int e = 0; e < kVector_; ++e) zeros.data[e] = from_float<T>(0.0f);
      return zeros;
    }
    const T* from = static_cast<const T*>(run.input) + source + (at_y * run.source.row + at_x * run.source.pixel);
    return *reinterpret_cast<const AlignedArray<T, kVector_>*>(from);
  }

  TO_DEVICE void store(int32_t i, int32_t j, const float (&sums)[kVector_]) const {
    AlignedArray<T, kVector_> result;
#pragma unroll
    for (int e = 0; e < kVector_; ++e) result.data[e] = from_float<T>(activate(sums[e] + bias[e], run.activation));
    T* to = static_cast<T*>(run.output) + target +
            (y.destination(i) * run.target.row + x.destination(j) * run.target.pixel);
    *reinterpret_cast<AlignedArray<T, kVector_>*>(to) = result;
  }

  // One pixel, for any geometry.
  TO_DEVICE void pixel(int32_t i, int32_t j) const {
    float sums[kVector_] = {};
    for (int32_t r = 0; r < y.taps; ++r) {
      for (int32_t s = 0; s < x.taps; ++s) {
        const auto value = load(y.source(i) + r * y.src_step, x.source(j) + s * x.src_step);
        const float* w = weights + (r * x.taps + s) * width;
#pragma unroll
        for (int e = 0; e < kVector_; ++e) sums[e] = fmaf(to_float(value.data[e]), w[e], sums[e]);
      }
    }
    store(i, j, sums);
  }

  // Four adjacent pixels of a 3x3 convolution with stride and dilation 1: they share six columns, and a row of taps
  // stays in registers.
  TO_DEVICE void four_pixels(int32_t i, int32_t j) const {
    float sums[4][kVector_] = {};
#pragma unroll
    for (int r = 0; r < 3; ++r) {
      AlignedArray<T, kVector_> columns[6];
#pragma unroll
      for (int s = 0; s < 6; ++s) columns[s] = load(y.source(i) + r, x.source(j) + s);
      float taps[3][kVector_];
#pragma unroll
      for (int s = 0; s < 3; ++s) {
        const auto row = *reinterpret_cast<const AlignedArray<float, kVector_>*>(weights + (r * 3 + s) * width);
#pragma unroll
        for (int e = 0; e < kVector_; ++e) taps[s][e] = row.data[e];
      }
#pragma unroll
      for (int s = 0; s < 6; ++s) {
#pragma unroll
        for (int e = 0; e < kVector_; ++e) {
          const float value = to_float(columns[s].data[e]);
#pragma unroll
          for (int q = 0; q < 4; ++q) {
            if (s - q >= 0 && s - q < 3) sums[q][e] = fmaf(value, taps[s - q][e], sums[q][e]);
          }
        }
      }
    }
#pragma unroll
    for (int q = 0; q < 4; ++q) {
      if (j + q < x.count) store(i, j + q, sums[q]);
    }
  }
};

template <class T, int kVector_, bool kDense3>
TO_KERNEL(kThreads, kDense3 ? 3 : 4)
depthwise_kernel(TO_RUN DepthwiseRun run) {
  constexpr int32_t kPixels = kDense3 ? 4 : 1;
  const DepthwiseGrid grid(run, kVector_, kPixels);
  const Place place = place_of(blockIdx.x, grid.tiles_n, grid.tiles_m, 1, run.samples);
  const Axis y = axis_of(run.y, run.gradient, run.gradient ? place.phase / run.x.stride : 0);
  const Axis x = axis_of(run.x, run.gradient, run.gradient ? place.phase % run.x.stride : 0);
  const int32_t width = run.lanes * kVector_, first = place.tile_n * width, thread = static_cast<int32_t>(threadIdx.x);
  const int32_t row = run.problems == 1 ? 0 : place.problem, taps = y.taps * x.taps;
  float* weights = reinterpret_cast<float*>(shared_memory());
  float* bias = weights + run.y.taps * run.x.taps * width;
  for (int32_t i = thread; i < (taps + 1) * width; i += kThreads) {
    const int32_t tap = i / width, channel = first + i % width;
    float value = 0;
    if (channel < run.channels && tap == taps) {
      if (run.bias)
        value = blended_bias(run.bias, run.type, run.bias_kernel, channel * run.bias_output, run.alpha, row);
    } else if (channel < run.channels) {
      const T* from = static_cast<const T*>(run.stack.data) + channel * run.stack.output +
                      y.tap(tap / x.taps) * run.stack.tap_h + x.tap(tap % x.taps) * run.stack.tap_w;
      for (int32_t p = 0; p < run.alpha.kernels; ++p) {
        value = fmaf(alpha_of(run.alpha, row, p), to_float(from[p * run.stack.kernel]), value);
      }
      value = to_float(from_float<T>(value));
    }
    (tap == taps ? bias + i % width : weights + i)[0] = value;
  }
  block_sync();
  const int32_t lane = thread % run.lanes, channel = first + lane * kVector_;
  if (channel >= run.channels) return;
  const DepthwiseThread<T, kVector_> work{run,
                                          y,
                                          x,
                                          weights + lane * kVector_,
                                          width,
                                          place.problem * run.source.sample + channel * run.source.channel,
                                          place.problem * run.target.sample + channel * run.target.channel,
                                          bias + lane * kVector_};
  const int32_t per_row = ceil_div(x.count, kPixels), count = y.count * per_row;
  for (int32_t g = 0; g < kGroupsPerThread; ++g) {
    const int32_t index = place.tile_m * grid.groups_per_block + g * (kThreads / run.lanes) + thread / run.lanes;
    if (index >= count) return;
    if constexpr (kDense3) {
      work.four_pixels(index / per_row, index % per_row * kPixels);
    } else {
      work.pixel(index / per_row, index % per_row);
    }
  }
}

template <class T, int kVector_>
const char* launch_vectors(const DepthwiseRun& run, void* stream) {
  const bool dense3 = run.y.taps == 3 && run.x.taps == 3 && run.y.stride == 1 && run.x.stride == 1 &&
                      run.y.dilation == 1 && run.x.dilation == 1;
  const DepthwiseGrid grid(run, kVector_, dense3 ? 4 : 1);
  const int64_t blocks = static_cast<int64_t>(grid.tiles_n) * grid.tiles_m * run.samples * grid.phases;
  const int32_t bytes = (run.y.taps * run.x.taps + 1) * run.lanes * kVector_ * 4;
  if (dense3) return launch(depthwise_kernel<T, kVector_, true>, blocks, kThreads, bytes, stream, run);
  return launch(depthwise_kernel<T, kVector_, false>, blocks, kThreads, bytes, stream, run);
}

}  // namespace

const char* launch_depthwise(const DepthwiseRun& run, void* stream) {
  return for_type(run.type, [&](auto zero) {
    using T = decltype(zero);
    return run.vectors ? launch_vectors<T, kVector<T>>(run, stream) : launch_vectors<T, 1>(run, stream);
  });
}

}  // namespace tunable_ops::cuda
