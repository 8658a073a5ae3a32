// Arithmetic of the wgmma kernel: tiles, shared memory layout, swizzles, descriptors. Plain C++, tested on the host.
#pragma once

#include <cstdint>

#include "params.h"

namespace tunable_ops::cuda {

constexpr int32_t kHopperPixels = 64;  // pixels of a row: the M of one wgmma
constexpr int32_t kHopperGroups = 2;   // warpgroups that multiply; one more issues the copies
constexpr int32_t kHopperThreads = (kHopperGroups + 1) * 128;
// Registers per thread, of the warpgroup that copies and of those that multiply: together no more than at the start,
// when each has 65536 / kHopperThreads.
constexpr int32_t kHopperCopyRegisters = 40, kHopperProductRegisters = 232;
static_assert((kHopperCopyRegisters + kHopperGroups * kHopperProductRegisters) * 128 <= 65536, "too many registers");
constexpr int32_t kHopperMaxTaps = 7;              // per dimension
constexpr int32_t kHopperSharedBytes = 227 << 10;  // limit per block on compute capability 9.0
constexpr int32_t kHopperMaxSlots = 4;
constexpr int32_t kHopperColumns = 32;    // outputs that a warp stores at a time
constexpr int32_t kHopperPattern = 1024;  // bytes after which every swizzle pattern repeats

// Template constants of the kernel: channels per step, outputs per block, rows of pixels per warpgroup.
struct HopperShape {
  int32_t channels, outputs, rows;
  TO_HD constexpr int32_t row_bytes() const { return channels * 2; }  // per pixel or output: one swizzle span
  TO_HD constexpr int32_t tile_rows() const { return rows * kHopperGroups; }
};

// NVRTC instantiates those that layers need. Accumulators take rows * outputs / 2 registers per thread.
constexpr HopperShape kHopperShapes[] = {{16, 32, 4}, {32, 32, 4},  {32, 64, 3},
                                         {64, 64, 3}, {64, 128, 1}, {64, 128, 2}};

// Permutes the 16-byte chunks of a row of 32, 64 or 128 bytes like the swizzle modes of TMA and wgmma: XOR of the
// chunk's index with address bits 7 and up. Rows start at multiples of their size. Which chunk is where depends on the
// address alone, so an operand may start at any row of a box.
TO_HD constexpr int32_t swizzled(int32_t offset, int32_t row_bytes) {
  return offset ^ (((offset >> 7) & (row_bytes / 16 - 1)) << 4);
}

// Describes a swizzled K-major wgmma operand in shared memory: rows of row_bytes, in groups of eight. Steps along K
// inside a row add their bytes to the address. The base offset (bits 49 to 51) stays 0: it tells where patterns start,
// and all of ours start at multiples of 1024, wherever the operand does.
TO_HD constexpr uint64_t matrix_descriptor(uint32_t address, int32_t row_bytes) {
  const uint64_t mode = row_bytes == 128 ? 1 : row_bytes == 64 ? 2 : 3;
  const uint64_t group = static_cast<uint64_t>(row_bytes) * 8;
  return static_cast<uint64_t>((address & 0x3ffff) >> 4) | uint64_t{1} << 16 | (group >> 4) << 32 | mode << 62;
}
constexpr uint64_t kDescriptorStep = 2;  // 16 elements of 2 bytes along K

// How many column shifts of the kernel read one box. kHalo: all of them read one wide box, through operands that start
// at any pixel of it. kColumns: each shift has a box of its own, whose operands start where swizzle patterns do.
enum class HopperBoxes : int32_t { kHalo, kColumns };
TO_HD constexpr int32_t hopper_shifts(HopperBoxes boxes, int32_t taps_w) {
  return boxes == HopperBoxes::kHalo ? taps_w : 1;
}

// The shared memory of a block.
struct HopperMemory {
  int32_t columns, box, slot;                                 // pixels per row of a box; bytes of a box and of a slot
  int32_t panel, stage, bias, alpha, barriers, bytes;         // offsets (slots are at 0); total bytes
  static constexpr int32_t kStage = 16 * kHopperColumns * 2;  // bytes of 16 pixels; two per warp

  TO_HD constexpr HopperMemory(const HopperShape& shape, int32_t taps_h, int32_t taps_w, int32_t shifts, int32_t chunks,
                               int32_t slots)
      : columns(kHopperPixels + shifts - 1),
        box((shape.tile_rows() + taps_h - 1) * columns * shape.row_bytes()),
        slot(ceil_div(box, kHopperPattern) * kHopperPattern),
        panel(slots * slot),
        stage(panel + taps_h * taps_w * chunks * shape.outputs * shape.row_bytes()),
        bias(stage + kHopperGroups * 4 * 2 * kStage),
        alpha(bias + shape.outputs * 4),
        barriers(alpha + kMaxKernels * 4),
        bytes(barriers + slots * 16) {}
};

// The shape for a layer, the number of channel chunks, the column shifts per box, and the number of slots for boxes (0
// if no shape fits).
struct HopperPlan {
  int32_t shape, chunks, shifts, slots;
};

// Chooses the shape with the shortest estimated time, the maximum of 2048 products per clock (for 32 outputs two thirds
// of that: operands arrive at 128 bytes per clock from shared memory) and 24 bytes of pixels per clock from the L2
// cache; partial tiles count in full. Ties go to fewer products, then to the larger shape. Needs at least two slots, so
// that copies overlap with products.
constexpr HopperPlan hopper_plan(int32_t channels, int32_t outputs, int32_t taps_h, int32_t taps_w,
                                 HopperBoxes boxes = HopperBoxes::kHalo) {
  HopperPlan best{0, 0, 0, 0};
  if (taps_h > kHopperMaxTaps || taps_w > kHopperMaxTaps || channels > 1024) return best;
  const int32_t shifts = hopper_shifts(boxes, taps_w);
  int64_t least = 0, fewest = 0;
  for (int32_t i = 0; i < static_cast<int32_t>(sizeof(kHopperShapes) / sizeof(HopperShape)); ++i) {
    const HopperShape& s = kHopperShapes[i];
    const int32_t chunks = ceil_div(channels, s.channels);
    int32_t slots = kHopperMaxSlots;
    while (slots > 1 && HopperMemory(s, taps_h, taps_w, shifts, chunks, slots).bytes > kHopperSharedBytes) --slots;
    if (slots < 2) continue;
    const int64_t padded = static_cast<int64_t>(chunks) * s.channels * ceil_div(outputs, s.outputs);
    const int64_t slow = s.outputs < 64 ? (64 + s.outputs) / 2 : s.outputs;
    const int64_t products = padded * slow * taps_h * taps_w * s.tile_rows() * kHopperPixels * 24;
    const int64_t pixels = static_cast<int64_t>(s.tile_rows() + taps_h - 1) * (kHopperPixels + shifts - 1);
    const int64_t traffic = padded * (taps_w / shifts) * 2 * pixels * 2048;
    // Per row of pixels: 24 is a multiple of every shape's tile_rows().
    const int64_t scale = 24 / s.tile_rows(), time = (products > traffic ? products : traffic) * scale;
    if (best.slots > 0 && (time > least || (time == least && products * scale > fewest))) continue;
    best = {i, chunks, shifts, slots};
    least = time;
    fewest = products * scale;
  }
  return best;
}

// A CUtensorMap, or the emulator's equivalent.
struct alignas(128) TensorMap {
  uint64_t words[16];
};

// What a tensor map describes: a batch of images in channels_last, and the box of one copy. The box's swizzle mode is
// that of its channels' bytes.
struct ImageMap {
  const void* data;
  int32_t samples, height, width, channels;
  int64_t sample, row, pixel;  // strides in elements
  int32_t box_rows, box_columns, box_channels;
};

// `conv`, without groups, strides or dilation, and with the weights of the layer, not blended ones. Tiles have
// tile_rows x kHopperPixels pixels; their column index varies fastest.
struct HopperRun {
  ConvRun conv;
  Axis y, x;
  HopperPlan plan;
  int32_t tiles_h, tiles_w, tiles_n, workers;  // workers: blocks per tile of outputs
  TensorMap source, target;
};

constexpr HopperShape hopper_shape(const HopperPlan& plan) { return kHopperShapes[plan.shape]; }
inline HopperMemory hopper_memory(const HopperRun& run) {
  const HopperPlan& plan = run.plan;
  return {hopper_shape(plan), run.y.taps, run.x.taps, plan.shifts, plan.chunks, plan.slots};
}

struct HopperPlace {
  int32_t sample, row, column;
};
TO_HD constexpr HopperPlace hopper_place(int32_t tile, const HopperRun& run, int32_t tile_rows) {
  const int32_t row = tile / run.tiles_w;
  return {row / run.tiles_h, row % run.tiles_h * tile_rows, (tile - row * run.tiles_w) * kHopperPixels};
}

}  // namespace tunable_ops::cuda
