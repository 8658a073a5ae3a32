// The dense convolution for compute capability 9.0 and stride 1, forward and the gradient of its input. A block blends
// its sample's kernels once into a panel in shared memory, and then streams only pixels.
//
// - A tile is tile_rows() rows of 64 pixels by `outputs` outputs; every row is one wgmma accumulator. The grid is
//   persistent: a block's tiles are consecutive, so that it rarely changes sample.
// - A step is one chunk of channels of a tile: a box with a halo of kh - 1 rows and kw - 1 columns, copied into a slot.
//   An operand of kernel tap (r, s) is 64 pixels of the box, from row r and column s on. (With HopperBoxes::kColumns a
//   step is one column shift of one chunk, and its box has no columns to spare.) Pixels outside the image arrive as
//   zeros, which implements padding.
// - One thread issues the copies, ahead by as many steps as there are slots; two warpgroups multiply, each for its
// rows,
//   with the registers that its warpgroup gives up.
//   `full` barriers signal that a slot's box has arrived, `empty` barriers that the products reading it are done.
// - Every warp hands its results to the copy engine through shared memory of its own, 16 pixels by 32 outputs at a
// time;
//   what lies outside the image or beyond the last output is not written.
#pragma once

#include "hopper_platform.cuh"

namespace tunable_ops::cuda {

struct HopperHalf {
  using T = Half;
  TO_DEVICE static uint32_t pack(float low, float high) { return pack_half(low, high); }
  template <int n>
  TO_DEVICE static void multiply(float (&c)[n], uint64_t a, uint64_t b, bool accumulate) {
    multiply_async_half(c, a, b, accumulate);
  }
};
struct HopperBFloat16 {
  using T = BFloat16;
  TO_DEVICE static uint32_t pack(float low, float high) { return pack_bfloat16(low, high); }
  template <int n>
  TO_DEVICE static void multiply(float (&c)[n], uint64_t a, uint64_t b, bool accumulate) {
    multiply_async_bfloat16(c, a, b, accumulate);
  }
};

constexpr int32_t kAnyActivation = -1;  // the one that the run names

template <class Math_, int kShape, int kActivation_>
struct HopperTile {
  using Math = Math_;
  using T = typename Math::T;
  static constexpr HopperShape shape = kHopperShapes[kShape];
  static constexpr int32_t kActivation = kActivation_;
  static constexpr int32_t kRowBytes_ = shape.row_bytes(), kRows = shape.rows, kSums = shape.outputs / 2;
  static constexpr int32_t kKernel = shape.outputs * kRowBytes_;    // bytes of one chunk of a tap
  static constexpr int32_t kVectors = shape.channels / kVector<T>;  // per pixel or output
  static_assert(kKernel % kHopperPattern == 0 && kHopperPixels * kRowBytes_ % kHopperPattern == 0,
                "tiles must be aligned to the swizzle pattern");
};

// A ring of slots: the slot of the next step, and the parity of the barrier phase it waits for.
struct HopperRing {
  int32_t slots, slot = 0, parity = 0;
  TO_DEVICE explicit HopperRing(int32_t slots_) : slots(slots_) {}
  TO_DEVICE void advance() {
    if (++slot < slots) return;
    slot = 0;
    parity ^= 1;
  }
};

// A block's tiles [begin, end), its first output `column`, and its shared memory.
struct HopperBlock {
  HopperMemory layout;
  unsigned char* memory;
  uint64_t *full, *empty;
  int32_t column, begin, end;

  TO_DEVICE HopperBlock(const HopperRun& run, const HopperShape& shape)
      : layout(shape, run.y.taps, run.x.taps, run.plan.shifts, run.plan.chunks, run.plan.slots),
        memory(shared_memory()),
        full(reinterpret_cast<uint64_t*>(memory + layout.barriers)),
        empty(full + run.plan.slots),
        column(static_cast<int32_t>(blockIdx.x) % run.tiles_n * shape.outputs) {
    const Range range = part_of(static_cast<int64_t>(run.conv.samples) * run.tiles_h * run.tiles_w, run.workers,
                                static_cast<int32_t>(blockIdx.x) / run.tiles_n);
    begin = static_cast<int32_t>(range.begin);
    end = static_cast<int32_t>(range.end);
  }
};

// Runs on one thread: copies every step's box as soon as its slot is free.
template <class Tile>
TO_DEVICE void hopper_copies(const HopperRun& run, const HopperBlock& block) {
  prefetch_map(run.source);
  HopperRing ring(run.plan.slots);
  for (int32_t tile = block.begin; tile < block.end; ++tile) {
    const HopperPlace at = hopper_place(tile, run, Tile::shape.tile_rows());
    for (int32_t s = 0; s < run.x.taps; s += run.plan.shifts) {
      for (int32_t chunk = 0; chunk < run.plan.chunks; ++chunk) {
        barrier_wait(block.empty + ring.slot, ring.parity ^ 1);  // does not block in the first round
        barrier_arrive_expecting(block.full + ring.slot, block.layout.box);
        load_box(block.memory + ring.slot * block.layout.slot, run.source, block.full + ring.slot,
                 chunk * Tile::shape.channels, run.x.source(at.column) + s, run.y.source(at.row), at.sample);
        ring.advance();
      }
    }
  }
}

// A vector of the weights, and where its blend goes in the panel.
struct HopperVector {
  int64_t source;  // elements into a kernel; negative for padding
  int32_t target;  // bytes into the panel, not yet swizzled
};

// Vector i of the panel [taps, chunks][outputs][channels]. The vectors of the weights run along the panel's channels;
// in the gradient of the input they run along its outputs, and their elements go to different rows.
template <class Tile, bool kGradient>
TO_DEVICE HopperVector hopper_vector(const HopperRun& run, const HopperBlock& block, int32_t i) {
  constexpr int32_t kVector_ = kVector<typename Tile::T>;
  constexpr int32_t kAcross = kGradient ? Tile::shape.channels : Tile::kVectors;  // the index that varies fastest
  constexpr int32_t kDown = kGradient ? Tile::shape.outputs / kVector_ : Tile::shape.outputs;
  const ConvRun& conv = run.conv;
  const int32_t across = i % kAcross, down = i / kAcross % kDown, part = i / (kAcross * kDown);
  const int32_t tap = part / run.plan.chunks, taps = run.y.taps * run.x.taps;
  const int32_t n = kGradient ? down * kVector_ : down, k = kGradient ? across : across * kVector_;
  const int32_t output = block.column + n, channel = part % run.plan.chunks * Tile::shape.channels + k;
  const int32_t at = run.y.tap(tap / run.x.taps) * run.x.taps + run.x.tap(tap % run.x.taps);
  const int32_t outer = kGradient ? channel : output, inner = kGradient ? output : channel;
  const int64_t source = (outer * taps + at) * (kGradient ? conv.outputs : conv.channels) + inner;
  const bool padding = output >= conv.outputs || channel >= conv.channels;
  return {padding || tap >= taps ? -1 : source, part * Tile::kKernel + n * Tile::kRowBytes_ + k * 2};
}

// Blends the kernels into the panel, rounded once. A thread has kBatch vectors of a kernel on their way at a time.
template <class Tile, bool kGradient>
TO_DEVICE void hopper_blend_kernels(const HopperRun& run, const HopperBlock& block, const float* alpha) {
  using T = typename Tile::T;
  constexpr int32_t kBatch = 4, kThreads = kHopperGroups * 128;
  const ConvRun& conv = run.conv;
  const T* weight = static_cast<const T*>(conv.weight);
  const int32_t count = run.y.taps * run.x.taps * run.plan.chunks * Tile::kKernel / 16;
  unsigned char* panel = block.memory + block.layout.panel;
  for (int32_t first = static_cast<int32_t>(threadIdx.x); first < count; first += kBatch * kThreads) {
    HopperVector vectors[kBatch];
    float total[kBatch][kVector<T>] = {};
#pragma unroll
    for (int j = 0; j < kBatch; ++j) vectors[j] = hopper_vector<Tile, kGradient>(run, block, first + j * kThreads);
#pragma unroll 2
    for (int32_t p = 0; p < conv.alpha.kernels; ++p) {
      Pack<T> packs[kBatch] = {};
#pragma unroll
      for (int j = 0; j < kBatch; ++j) {
        if (vectors[j].source < 0) continue;
        packs[j] = *reinterpret_cast<const Pack<T>*>(weight + p * conv.weight_kernel + vectors[j].source);
      }
#pragma unroll
      for (int j = 0; j < kBatch; ++j) {
#pragma unroll
        for (int e = 0; e < kVector<T>; ++e) total[j][e] = fmaf(alpha[p], to_float(packs[j].data[e]), total[j][e]);
      }
    }
#pragma unroll
    for (int j = 0; j < kBatch; ++j) {
      if (first + j * kThreads >= count) continue;
      Pack<T> result;
#pragma unroll
      for (int e = 0; e < kVector<T>; ++e) result.data[e] = from_float<T>(total[j][e]);
      if constexpr (kGradient) {
#pragma unroll
        for (int e = 0; e < kVector<T>; ++e) {
          const int32_t to = swizzled(vectors[j].target + e * Tile::kRowBytes_, Tile::kRowBytes_);
          *reinterpret_cast<T*>(panel + to) = result.data[e];
        }
      } else {
        *reinterpret_cast<Pack<T>*>(panel + swizzled(vectors[j].target, Tile::kRowBytes_)) = result;
      }
    }
  }
}

// Blends kernels and bias for one row of alpha.
template <class Tile>
TO_DEVICE void hopper_blend(const HopperRun& run, const HopperBlock& block, int32_t row) {
  const ConvRun& conv = run.conv;
  const int32_t thread = static_cast<int32_t>(threadIdx.x), threads = kHopperGroups * 128;
  float* alpha = reinterpret_cast<float*>(block.memory + block.layout.alpha);
  float* biases = reinterpret_cast<float*>(block.memory + block.layout.bias);
  named_sync(1, threads);  // until nothing reads the old panel any more
  if (thread < conv.alpha.kernels) alpha[thread] = alpha_of(conv.alpha, row, thread);
  named_sync(1, threads);
  if (conv.gradient) {
    hopper_blend_kernels<Tile, true>(run, block, alpha);
  } else {
    hopper_blend_kernels<Tile, false>(run, block, alpha);
  }
  for (int32_t n = thread; n < Tile::shape.outputs; n += threads) {
    const int64_t output = block.column + n;
    float total = 0;
    for (int32_t p = 0; p < conv.alpha.kernels && conv.bias != nullptr && output < conv.outputs; ++p)
      total += alpha[p] * load_scalar(conv.bias, conv.type, p * conv.bias_kernel + output * conv.bias_output);
    biases[n] = total;  // not rounded: it is added to fp32 sums
  }
  shared_fence();
  named_sync(1, threads);
}

// Multiplies one slot: all kernel rows and the box's column shifts, for each of the warpgroup's rows. `pixels` is the
// warpgroup's first pixel in the box, `kernels` the panel at the box's first tap and chunk.
template <class Tile>
TO_DEVICE void hopper_multiply(float (&sums)[Tile::kRows][Tile::kSums], const HopperRun& run, uint32_t pixels,
                               uint32_t kernels, int32_t row_bytes, bool first) {
  const int32_t tap_bytes = run.plan.chunks * Tile::kKernel;
  const uint64_t image_row = static_cast<uint64_t>(row_bytes) >> 4;
#pragma unroll 1
  for (int32_t s = 0; s < run.plan.shifts; ++s) {
#pragma unroll 1
    for (int32_t r = 0; r < run.y.taps; ++r) {
      const uint64_t kernel = matrix_descriptor(kernels + (r * run.x.taps + s) * tap_bytes, Tile::kRowBytes_);
      const uint64_t row = matrix_descriptor(pixels + r * row_bytes + s * Tile::kRowBytes_, Tile::kRowBytes_);
      const bool fresh = first && s == 0 && r == 0;
#pragma unroll
      for (int k = 0; k < Tile::shape.channels / 16; ++k) {
#pragma unroll
        for (int t = 0; t < Tile::kRows; ++t) {
          Tile::Math::multiply(sums[t], row + k * kDescriptorStep + t * image_row, kernel + k * kDescriptorStep,
                               !fresh || k > 0);
        }
      }
    }
  }
}

// Writes 16 pixels by 32 outputs of one row: adds the bias, applies the activation and rounds once. `stage` is the
// warp's memory for them; the previous copy out of it has read it.
template <class Tile>
TO_DEVICE void hopper_stage(const HopperRun& run, const float* sums, const float (&bias)[8], unsigned char* stage) {
  const Activation activation =
      Tile::kActivation == kAnyActivation ? run.conv.activation : static_cast<Activation>(Tile::kActivation);
  const int32_t lane = static_cast<int32_t>(threadIdx.x) % 32;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int32_t pixel = lane / 4 + half * 8;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float low = activate(sums[j * 4 + half * 2] + bias[j * 2], activation);
      const float high = activate(sums[j * 4 + half * 2 + 1] + bias[j * 2 + 1], activation);
      const int32_t to = swizzled(pixel * kHopperColumns * 2 + j * 16, kHopperColumns * 2) + lane % 4 * 4;
      *reinterpret_cast<uint32_t*>(stage + to) = Tile::Math::pack(low, high);
    }
  }
}

// Stores the warp's part of its warpgroup's rows. `at` is its first pixel; `turn` tells which stage is next.
template <class Tile>
TO_DEVICE void hopper_store(const HopperRun& run, const HopperBlock& block,
                            const float (&sums)[Tile::kRows][Tile::kSums], const HopperPlace& at, unsigned char* stages,
                            int32_t& turn) {
  if (at.column >= run.x.count) return;
  const int32_t lane = static_cast<int32_t>(threadIdx.x) % 32;
  const float* biases = reinterpret_cast<const float*>(block.memory + block.layout.bias) + lane % 4 * 2;
#pragma unroll
  for (int from = 0; from < Tile::shape.outputs; from += kHopperColumns) {
    float bias[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) bias[i] = biases[from + i / 2 * 8 + i % 2];
#pragma unroll
    for (int t = 0; t < Tile::kRows; ++t) {
      if (block.column + from >= run.conv.outputs || at.row + t >= run.y.count) continue;
      unsigned char* stage = stages + turn * HopperMemory::kStage;
      turn ^= 1;
      if (lane == 0) stores_wait_reads<1>();  // for the store before the last one, out of the same memory
      warp_sync();
      hopper_stage<Tile>(run, sums[t] + from / 2, bias, stage);
      shared_fence();
      warp_sync();
      if (lane != 0) continue;
      store_box(run.target, stage, block.column + from, at.column, at.row + t, at.sample);
      stores_commit();
    }
  }
}

// Runs on the warpgroups that multiply.
template <class Tile>
TO_DEVICE void hopper_products(const HopperRun& run, const HopperBlock& block, int32_t warp) {
  const int32_t group = warp / 4, lane = static_cast<int32_t>(threadIdx.x) % 32;
  const int32_t row_bytes = block.layout.columns * Tile::kRowBytes_;  // of a box
  const uint32_t slots = shared_address(block.memory) + group * Tile::kRows * row_bytes;
  const uint32_t panel = shared_address(block.memory) + block.layout.panel;
  unsigned char* stages = block.memory + block.layout.stage + warp * 2 * HopperMemory::kStage;
  HopperRing ring(run.plan.slots);
  int32_t blended = -1, turn = 0;
  for (int32_t tile = block.begin; tile < block.end; ++tile) {
    HopperPlace at = hopper_place(tile, run, Tile::shape.tile_rows());
    const int32_t row = run.conv.problems == 1 ? 0 : at.sample;
    if (row != blended) {
      hopper_blend<Tile>(run, block, row);
      blended = row;
    }
    float sums[Tile::kRows][Tile::kSums];
    int32_t last = -1;
#pragma unroll 1
    for (int32_t s = 0; s < run.x.taps; s += run.plan.shifts) {
#pragma unroll 1
      for (int32_t chunk = 0; chunk < run.plan.chunks; ++chunk) {
        barrier_wait(block.full + ring.slot, ring.parity);
#pragma unroll
        for (int t = 0; t < Tile::kRows; ++t) products_pin(sums[t]);
        products_begin();
        hopper_multiply<Tile>(sums, run, slots + ring.slot * block.layout.slot,
                              panel + (s * run.plan.chunks + chunk) * Tile::kKernel, row_bytes, last < 0);
        products_commit();
        products_wait<1>();
        if (last >= 0 && lane == 0) barrier_arrive(block.empty + last);  // the previous step is done
        last = ring.slot;
        ring.advance();
      }
    }
    products_wait<0>();
#pragma unroll
    for (int t = 0; t < Tile::kRows; ++t) products_pin(sums[t]);
    if (lane == 0) barrier_arrive(block.empty + last);
    at.row += group * Tile::kRows;
    at.column += warp % 4 * 16;
    hopper_store<Tile>(run, block, sums, at, stages, turn);
  }
  if (lane == 0) stores_wait_all();
}

template <class Tile>
TO_DEVICE void hopper_conv(const HopperRun& run) {
  constexpr HopperShape shape = Tile::shape;
  const HopperBlock block(run, shape);
  if (threadIdx.x == 0) {
    for (int32_t i = 0; i < run.plan.slots; ++i) {
      barrier_init(block.full + i, 1);
      barrier_init(block.empty + i, kHopperGroups * 4);  // one lane of every warp
    }
    barrier_init_fence();
  }
  block_sync();
  const int32_t warp = warp_uniform(static_cast<int32_t>(threadIdx.x) / 32);
  if (warp < kHopperGroups * 4) {
    take_registers<kHopperProductRegisters>();
    hopper_products<Tile>(run, block, warp);
  } else {
    release_registers<kHopperCopyRegisters>();
    if (threadIdx.x == kHopperGroups * 128) hopper_copies<Tile>(run, block);
  }
}

}  // namespace tunable_ops::cuda
