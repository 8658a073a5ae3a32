// Index arithmetic of the CUDA kernels. Plain C++ for host and device, tested on the host against loops.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define TO_HD __host__ __device__
#else
#define TO_HD
#endif

namespace tunable_ops::cuda {

template <class Int>
TO_HD constexpr Int ceil_div(Int a, Int b) {
  return (a + b - 1) / b;
}

TO_HD constexpr int32_t greatest_common_divisor(int32_t a, int32_t b) {
  while (b != 0) {
    const int32_t rest = a % b;
    a = b;
    b = rest;
  }
  return a;
}

// One spatial dimension of the convolution, regardless of the pass.
struct Extent {
  int32_t in, out, taps, stride, dilation, pad;
};

// One spatial dimension of a pass. Destination pixel i < count is at dst_offset + i * dst_scale. Tap t < taps is tap
// tap_first + t * tap_step of the kernel and reads source pixel i * src_scale + src_offset + t * src_step, or padding
// if that is outside [0, src_size).
struct Axis {
  int32_t count, taps, tap_first, tap_step;
  int32_t src_scale, src_offset, src_step, src_size;
  int32_t dst_offset, dst_scale;

  TO_HD constexpr int32_t source(int32_t i) const { return i * src_scale + src_offset; }
  TO_HD constexpr int32_t destination(int32_t i) const { return dst_offset + i * dst_scale; }
  TO_HD constexpr int32_t tap(int32_t t) const { return tap_first + t * tap_step; }
};

TO_HD constexpr Axis forward_axis(const Extent& e) {
  return {e.out, e.taps, 0, 1, e.stride, -e.pad, e.dilation, e.in, 0, 1};
}

// The gradient of inputs phase, phase + stride, ...: every step-th tap contributes, in descending order so that source
// positions ascend. A phase that no tap reaches has no taps, and its gradient is zero.
TO_HD constexpr Axis gradient_axis(const Extent& e, int32_t phase) {
  const int32_t divisor = greatest_common_divisor(e.stride, e.dilation);
  const int32_t step = e.stride / divisor, src_step = e.dilation / divisor;
  const int32_t count = phase < e.in ? ceil_div(e.in - phase, e.stride) : 0;
  int32_t first = 0;
  while (first < e.taps && (phase + e.pad - first * e.dilation) % e.stride != 0) ++first;
  if (first >= e.taps) return {count, 0, 0, 1, 1, 0, 1, e.out, phase, e.stride};
  const int32_t taps = (e.taps - 1 - first) / step + 1;
  const int32_t offset = (phase + e.pad - first * e.dilation) / e.stride - (taps - 1) * src_step;
  return {count, taps, first + (taps - 1) * step, -step, 1, offset, src_step, e.out, phase, e.stride};
}

TO_HD constexpr Axis axis_of(const Extent& e, bool gradient, int32_t phase) {
  return gradient ? gradient_axis(e, phase) : forward_axis(e);
}

// Pixels in flat order: [samples, height, width].
struct Pixel {
  int32_t sample, y, x;
};

TO_HD constexpr Pixel pixel_of(int32_t index, int32_t height, int32_t width) {
  const int32_t row = index / width;
  return {row / height, row % height, index - row * width};
}

// A block's coordinates in a one-dimensional grid; `tile_n` varies fastest, so that neighbouring blocks share pixels.
struct Place {
  int32_t tile_n, tile_m, group, problem, phase;
};

TO_HD constexpr Place place_of(int64_t block, int32_t tiles_n, int32_t tiles_m, int32_t groups, int32_t problems) {
  Place p{};
  p.tile_n = static_cast<int32_t>(block % tiles_n);
  block /= tiles_n;
  p.tile_m = static_cast<int32_t>(block % tiles_m);
  block /= tiles_m;
  p.group = static_cast<int32_t>(block % groups);
  block /= groups;
  p.problem = static_cast<int32_t>(block % problems);
  p.phase = static_cast<int32_t>(block / problems);
  return p;
}

// [begin, end) of part `index` of `parts` nearly equal parts of [0, count).
struct Range {
  int64_t begin, end;
};

TO_HD constexpr Range part_of(int64_t count, int32_t parts, int32_t index) {
  return {count * index / parts, count * (index + 1) / parts};
}

// Shared memory with rows of 64 bytes. 16-byte chunks are swizzled so that eight rows of one chunk cover all 32 banks.
constexpr int32_t kRowBytes = 64;
TO_HD constexpr int32_t row_chunk_offset(int32_t row, int32_t chunk) {
  return row * kRowBytes + ((chunk ^ ((row >> 1) & 3)) << 4);
}

// Rows of 64 elements: 128 bytes for 16-bit types (eight rows of one chunk cover all banks), 256 bytes for fp32 (four
// rows of two adjacent chunks do).
template <int kElementBytes>
TO_HD constexpr int32_t pixel_chunk_offset(int32_t row, int32_t chunk) {
  return kElementBytes == 2 ? row * 128 + ((chunk ^ (row & 7)) << 4) : row * 256 + ((chunk ^ ((row & 3) << 1)) << 4);
}

}  // namespace tunable_ops::cuda
