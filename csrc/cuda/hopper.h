// Arithmetic of the wgmma kernel: tiles, shared memory, swizzles, descriptors. Plain C++, tested on the host.
#pragma once

#include <cstdint>

#include "params.h"

namespace tunable_ops::cuda {

constexpr int32_t kHopperPixels = 64;  // of a row: the M of one wgmma
constexpr int32_t kHopperGroups = 2;   // warpgroups that multiply; one warp more starts the copies
constexpr int32_t kHopperThreads = kHopperGroups * 128 + 32;
constexpr int32_t kHopperMaxTaps = 7;                        // of a side
constexpr int32_t kHopperSharedBytes = 227 << 10;            // that a block can have on compute capability 9.0
constexpr int32_t kHopperMostSlots = 4, kHopperColumns = 32;  // that the epilogue exchanges at a time

// The kernel's constants: channels of a step, outputs of a block, rows of pixels of a warpgroup.
struct HopperShape {
  int32_t channels, outputs, rows;
  TO_HD constexpr int32_t row_bytes() const { return channels * 2; }  // of a pixel or an output: one swizzle span
  TO_HD constexpr int32_t tile_rows() const { return rows * kHopperGroups; }
};

// Every one is instantiated; accumulators take rows * outputs / 2 registers of a thread.
constexpr HopperShape kHopperShapes[] = {{16, 32, 4}, {32, 32, 4},  {32, 64, 3},
                                         {64, 64, 3}, {64, 128, 1}, {64, 128, 2}};

// 16-byte chunks of a row of 32, 64 or 128 bytes change places by the bits of the address above the chunk's own, as in
// the copies' and the products' swizzle modes. Rows start at multiples of their size.
TO_HD constexpr int32_t swizzled(int32_t offset, int32_t row_bytes) {
  return offset ^ (((offset >> 7) & (row_bytes / 16 - 1)) << 4);
}

// A K-major operand of wgmma in shared memory, swizzled: rows of row_bytes, eight of them a group. The step along K
// inside a row adds its bytes to the address.
TO_HD constexpr uint64_t matrix_descriptor(uint32_t address, int32_t row_bytes) {
  const uint64_t mode = row_bytes == 128 ? 1 : row_bytes == 64 ? 2 : 3;
  const uint64_t group = static_cast<uint64_t>(row_bytes) * 8;
  return static_cast<uint64_t>((address & 0x3ffff) >> 4) | uint64_t{1} << 16 | (group >> 4) << 32 | mode << 62;
}
constexpr uint64_t kDescriptorStep = 2;  // 16 elements of 2 bytes along K

// The shared memory of a block.
struct HopperMemory {
  int32_t slot, panel, exchange, bias, barriers, bytes;  // a slot's bytes; then offsets, slots at 0
  static constexpr int32_t kExchangeRow = kHopperColumns + 4;  // floats
  static constexpr int32_t kExchange = 16 * kExchangeRow * 4;  // bytes of a warp

  TO_HD constexpr HopperMemory(const HopperShape& shape, int32_t taps_h, int32_t taps_w, int32_t chunks, int32_t slots)
      : slot((shape.tile_rows() + taps_h - 1) * kHopperPixels * shape.row_bytes()),
        panel(slots * slot),
        exchange(panel + taps_h * taps_w * chunks * shape.outputs * shape.row_bytes()),
        bias(exchange + kHopperGroups * 4 * kExchange),
        barriers(bias + shape.outputs * 4),
        bytes(barriers + slots * 16) {}
};

// Which shape serves a layer, in how many chunks of channels and slots of pixels; slots is 0 where none fits.
struct HopperPlan {
  int32_t shape, chunks, slots;
};

// The shape with the least time by arithmetic: products at 2048 per clock, pixels from the second-level cache at 24
// bytes per clock, whichever takes longer; tails count in full. Of equals the one with fewer products, then the larger.
// Two slots at least, so that copies run beside products.
constexpr HopperPlan hopper_plan(int32_t channels, int32_t outputs, int32_t taps_h, int32_t taps_w) {
  HopperPlan best{0, 0, 0};
  if (taps_h > kHopperMaxTaps || taps_w > kHopperMaxTaps || channels > 1024) return best;
  int64_t least = 0, fewest = 0;
  for (int32_t i = 0; i < static_cast<int32_t>(sizeof(kHopperShapes) / sizeof(HopperShape)); ++i) {
    const HopperShape& s = kHopperShapes[i];
    const int32_t chunks = ceil_div(channels, s.channels);
    int32_t slots = kHopperMostSlots;
    while (slots > 1 && HopperMemory(s, taps_h, taps_w, chunks, slots).bytes > kHopperSharedBytes) --slots;
    if (slots < 2) continue;
    const int64_t padded = static_cast<int64_t>(chunks) * s.channels * ceil_div(outputs, s.outputs);
    const int64_t products = padded * s.outputs * taps_h * taps_w * s.tile_rows() * 24;
    const int64_t traffic = padded * taps_w * 2 * (s.tile_rows() + taps_h - 1) * 2048;
    // Per row of pixels: 24 is a multiple of every shape's rows.
    const int64_t scale = 24 / s.tile_rows(), time = (products > traffic ? products : traffic) * scale;
    if (best.slots > 0 && (time > least || (time == least && products * scale > fewest))) continue;
    best = {i, chunks, slots};
    least = time;
    fewest = products * scale;
  }
  return best;
}

// Coordinates and sizes of a copy, in the hardware's format; the emulator has its own.
struct alignas(128) TensorMap {
  uint64_t words[16];
};

// `conv` without groups, strides, dilation, along these axes; tiles of tile_rows x kHopperPixels pixels, columns first.
struct HopperRun {
  ConvRun conv;
  Axis y, x;
  HopperPlan plan;
  int32_t tiles_h, tiles_w, tiles_n, workers;  // workers: blocks that share the tiles of each tile of outputs
  TensorMap pixels;
};

struct HopperPlace {
  int32_t sample, row, column;
};
TO_HD constexpr HopperPlace hopper_place(int32_t tile, const HopperRun& run, int32_t tile_rows) {
  const int32_t row = tile / run.tiles_w;
  return {row / run.tiles_h, row % run.tiles_h * tile_rows, (tile - row * run.tiles_w) * kHopperPixels};
}

// Each returns null, or what went wrong. `conv`, the axes and the plan are given; the launcher adds the rest.
const char* launch_hopper_conv_half(HopperRun& run, void* stream);
const char* launch_hopper_conv_bfloat16(HopperRun& run, void* stream);

}  // namespace tunable_ops::cuda
