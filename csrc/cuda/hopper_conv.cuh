// The dense convolution for compute capability 9.0 and stride 1. A block blends its sample's kernels once into a panel
// in shared memory, and then streams only pixels.
//
// - A tile is tile_rows() rows of 64 pixels by `outputs` outputs; every row is one wgmma accumulator. A block's tiles
//   are consecutive, so that it rarely changes sample.
// - A step is one column shift of one chunk of channels: a box of tile_rows() + kh - 1 rows, copied into a slot. Each
//   of its rows serves kh kernel rows. Pixels outside the image arrive as zeros, which implements padding.
// - One warp issues the copies, ahead by as many steps as there are slots; two warpgroups multiply, each for its rows.
//   `full` barriers signal that a slot's box has arrived, `empty` barriers that the products reading it are done.
#pragma once

#include "hopper_platform.cuh"

namespace tunable_ops::cuda {

struct HopperHalf {
  using T = Half;
  template <int n>
  TO_DEVICE static void multiply(float (&c)[n], uint64_t a, uint64_t b, bool accumulate) {
    multiply_async_half(c, a, b, accumulate);
  }
};
struct HopperBFloat16 {
  using T = BFloat16;
  template <int n>
  TO_DEVICE static void multiply(float (&c)[n], uint64_t a, uint64_t b, bool accumulate) {
    multiply_async_bfloat16(c, a, b, accumulate);
  }
};

template <class Math_, int kShape>
struct HopperTile {
  using Math = Math_;
  using T = typename Math::T;
  static constexpr HopperShape shape = kHopperShapes[kShape];
  static constexpr int32_t kRowBytes_ = shape.row_bytes(), kRows = shape.rows, kSums = shape.outputs / 2;
  static constexpr int32_t kImageRow = kHopperPixels * kRowBytes_;  // bytes of 64 pixels
  static constexpr int32_t kVectors = shape.channels / kVector<T>;
  static_assert(kImageRow % 1024 == 0 && shape.outputs * kRowBytes_ % 1024 == 0,
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
      : layout(shape, run.y.taps, run.x.taps, run.plan.chunks, run.plan.slots),
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
  prefetch_map(run.pixels);
  HopperRing ring(run.plan.slots);
  for (int32_t tile = block.begin; tile < block.end; ++tile) {
    const HopperPlace at = hopper_place(tile, run, Tile::shape.tile_rows());
    for (int32_t s = 0; s < run.x.taps; ++s) {
      for (int32_t chunk = 0; chunk < run.plan.chunks; ++chunk) {
        barrier_wait(block.empty + ring.slot, ring.parity ^ 1);  // does not block in the first round
        barrier_arrive_expecting(block.full + ring.slot, block.layout.slot);
        load_box(block.memory + ring.slot * block.layout.slot, run.pixels, block.full + ring.slot,
                 chunk * Tile::shape.channels, run.x.source(at.column) + s, run.y.source(at.row), at.sample);
        ring.advance();
      }
    }
  }
}

// Blends kernels and bias for one row of alpha. The kernels are rounded once and stored as
// [taps, chunks][outputs][channels].
template <class Tile>
TO_DEVICE void hopper_blend(const HopperRun& run, const HopperBlock& block, int32_t row) {
  using T = typename Tile::T;
  const ConvRun& conv = run.conv;
  const int32_t taps = run.y.taps * run.x.taps, thread = static_cast<int32_t>(threadIdx.x);
  const int32_t count = taps * run.plan.chunks * Tile::shape.outputs * Tile::kVectors;
  const T* weight = static_cast<const T*>(conv.weight) + row * conv.weight_problem;
#pragma unroll 2
  for (int32_t i = thread; i < count; i += kHopperGroups * 128) {
    const int32_t n = i / Tile::kVectors % Tile::shape.outputs, part = i / Tile::kVectors / Tile::shape.outputs;
    const int32_t tap = part / run.plan.chunks, output = block.column + n;
    const int32_t channel = part % run.plan.chunks * Tile::shape.channels + i % Tile::kVectors * kVector<T>;
    float total[kVector<T>] = {};
    if (output < conv.outputs && channel < conv.channels) {
      const int32_t from = run.y.tap(tap / run.x.taps) * run.x.taps + run.x.tap(tap % run.x.taps);
      const T* vector = weight + (output * taps + from) * conv.channels + channel;
      for (int32_t p = 0; p < (conv.fused ? conv.alpha.kernels : 1); ++p) {
        const float alpha = conv.fused ? alpha_of(conv.alpha, row, p) : 1.0f;
        const auto pack = *reinterpret_cast<const Pack<T>*>(vector + p * conv.weight_kernel);
#pragma unroll
        for (int e = 0; e < kVector<T>; ++e) total[e] = fmaf(alpha, to_float(pack.data[e]), total[e]);
      }
    }
    Pack<T> result;
#pragma unroll
    for (int e = 0; e < kVector<T>; ++e) result.data[e] = from_float<T>(total[e]);
    *reinterpret_cast<Pack<T>*>(block.memory + block.layout.panel + swizzled(i * 16, Tile::kRowBytes_)) = result;
  }
  float* bias = reinterpret_cast<float*>(block.memory + block.layout.bias);
  for (int32_t n = thread; n < Tile::shape.outputs; n += kHopperGroups * 128) {
    const int64_t output = block.column + n;
    bias[n] = conv.bias != nullptr && output < conv.outputs
                  ? blended_bias(conv.bias, conv.type, conv.bias_kernel, output * conv.bias_output, conv.alpha, row)
                  : 0.0f;
  }
}

// Multiplies one slot: kh kernel rows for each of the warpgroup's rows.
template <class Tile>
TO_DEVICE void hopper_multiply(float (&sums)[Tile::kRows][Tile::kSums], uint32_t pixels, uint32_t panel,
                               int32_t kernel_row, int32_t taps_h, bool first) {
#pragma unroll 1
  for (int32_t r = 0; r < taps_h; ++r) {
    const uint64_t kernel = matrix_descriptor(panel + r * kernel_row, Tile::kRowBytes_);
    const uint64_t row = matrix_descriptor(pixels + r * Tile::kImageRow, Tile::kRowBytes_);
#pragma unroll
    for (int k = 0; k < Tile::shape.channels / 16; ++k) {
#pragma unroll
      for (int t = 0; t < Tile::kRows; ++t) {
        Tile::Math::multiply(sums[t], row + k * kDescriptorStep + (t * Tile::kImageRow >> 4),
                             kernel + k * kDescriptorStep, !first || r > 0 || k > 0);
      }
    }
  }
}

// Stores 16 pixels of one row by 32 outputs from `from` on: adds the bias, applies the activation and rounds once. Goes
// through the warp's own shared memory to store whole vectors.
template <class Tile>
TO_DEVICE void hopper_store(const HopperRun& run, const HopperBlock& block, const float* sums, int32_t from,
                            const HopperPlace& at, float* exchange) {
  using T = typename Tile::T;
  const int32_t lane = static_cast<int32_t>(threadIdx.x) % 32;
  warp_sync();  // until the previous values have been read
#pragma unroll
  for (int j = 0; j < kHopperColumns / 8; ++j) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const AlignedArray<float, 2> pair{{sums[j * 4 + half * 2], sums[j * 4 + half * 2 + 1]}};
      const int32_t row = lane / 4 + half * 8;
      *reinterpret_cast<AlignedArray<float, 2>*>(exchange + row * HopperMemory::kExchangeRow + j * 8 + lane % 4 * 2) =
          pair;
    }
  }
  warp_sync();
  const float* bias = reinterpret_cast<const float*>(block.memory + block.layout.bias) + from;
  const Activation activation = run.conv.activation;
  const bool costly = activation == Activation::kGelu || activation == Activation::kSilu;
  if (costly) {  // a separate loop, because this function is inlined once per row of sums and 32 outputs
#pragma unroll 1
    for (int32_t row = 0; row < 16; ++row) {
      float& value = exchange[row * HopperMemory::kExchangeRow + lane];
      value = activate(value + bias[lane], activation);
    }
    warp_sync();
  }
  const float below = activation == Activation::kRelu ? 0.0f : kLeakySlope;
  const bool piecewise_linear = activation == Activation::kRelu || activation == Activation::kLeakyRelu;
  constexpr int32_t kParts = kHopperColumns / kVector<T>;
  const int32_t part = lane % kParts * kVector<T>, column = block.column + from + part;
  if (at.row >= run.y.count || column >= run.conv.outputs) return;
  T* output = static_cast<T*>(run.conv.output) + at.sample * run.conv.target.sample + at.row * run.conv.target.row;
#pragma unroll 1
  for (int32_t row = lane / kParts; row < 16; row += 32 / kParts) {
    if (at.column + row >= run.x.count) return;
    Pack<T> result;
#pragma unroll
    for (int e = 0; e < kVector<T>; ++e) {
      float value = exchange[row * HopperMemory::kExchangeRow + part + e] + (costly ? 0.0f : bias[part + e]);
      if (piecewise_linear && value < 0) value = below == 0 ? 0.0f : value * below;  // as in `activate`
      result.data[e] = from_float<T>(value);
    }
    *reinterpret_cast<Pack<T>*>(output + (at.column + row) * run.conv.target.pixel + column) = result;
  }
}

// Runs on the warpgroups that multiply.
template <class Tile>
TO_DEVICE void hopper_products(const HopperRun& run, const HopperBlock& block, int32_t warp) {
  const int32_t group = warp / 4, lane = static_cast<int32_t>(threadIdx.x) % 32;
  float* exchange = reinterpret_cast<float*>(block.memory + block.layout.exchange + warp * HopperMemory::kExchange);
  const uint32_t slots = shared_address(block.memory) + group * Tile::kRows * Tile::kImageRow;
  const uint32_t panel = shared_address(block.memory) + block.layout.panel;
  constexpr int32_t kKernel = Tile::shape.outputs * Tile::kRowBytes_;  // bytes of one chunk of a tap
  const int32_t steps = run.x.taps * run.plan.chunks;
  HopperRing ring(run.plan.slots);
  int32_t blended = -1;
  for (int32_t tile = block.begin; tile < block.end; ++tile) {
    HopperPlace at = hopper_place(tile, run, Tile::shape.tile_rows());
    const int32_t row = run.conv.problems == 1 ? 0 : at.sample;
    if (row != blended) {
      named_sync(1, kHopperGroups * 128);  // until the old panel is no longer read
      hopper_blend<Tile>(run, block, row);
      products_fence();
      named_sync(1, kHopperGroups * 128);
      blended = row;
    }
    float sums[Tile::kRows][Tile::kSums];
    int32_t last = 0;
#pragma unroll 1
    for (int32_t step = 0; step < steps; ++step) {
      barrier_wait(block.full + ring.slot, ring.parity);
#pragma unroll
      for (int t = 0; t < Tile::kRows; ++t) products_pin(sums[t]);
      products_begin();
      // Steps are [kw, chunks] and the panel is [kh, kw, chunks].
      hopper_multiply<Tile>(sums, slots + ring.slot * block.layout.slot, panel + step * kKernel, steps * kKernel,
                            run.y.taps, step == 0);
      products_commit();
      products_wait<1>();
      if (step > 0 && lane == 0) barrier_arrive(block.empty + last);  // the previous step is done
      last = ring.slot;
      ring.advance();
    }
    products_wait<0>();
#pragma unroll
    for (int t = 0; t < Tile::kRows; ++t) products_pin(sums[t]);
    if (lane == 0) barrier_arrive(block.empty + last);
    at.row += group * Tile::kRows;
    at.column += warp % 4 * 16;
#pragma unroll
    for (int t = 0; t < Tile::kRows; ++t) {
#pragma unroll
      for (int from = 0; from < Tile::shape.outputs; from += kHopperColumns) {
        hopper_store<Tile>(run, block, sums[t] + from / 2, from, at, exchange);
      }
      ++at.row;
    }
  }
}

template <class Tile>
TO_KERNEL(kHopperThreads, 1)
hopper_conv_kernel(TO_RUN HopperRun run) {
#if TO_HOPPER
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
    hopper_products<Tile>(run, block, warp);
  } else if (threadIdx.x % 32 == 0) {
    hopper_copies<Tile>(run, block);
  }
#endif
}

template <class Tile>
const char* launch_hopper_tile(HopperRun& run, void* stream) {
  const ConvRun& conv = run.conv;
  int32_t multiprocessors = 0;
  const void* kernel = reinterpret_cast<const void*>(hopper_conv_kernel<Tile>);
  if (const char* error = hopper_device(kernel, multiprocessors)) return error;
  const Axis &y = run.y, &x = run.x;
  run.tiles_h = ceil_div(y.count, Tile::shape.tile_rows());
  run.tiles_w = ceil_div(x.count, kHopperPixels);
  run.tiles_n = ceil_div(conv.outputs, Tile::shape.outputs);
  const int64_t tiles = static_cast<int64_t>(conv.samples) * run.tiles_h * run.tiles_w;
  const int64_t most = multiprocessors > run.tiles_n ? multiprocessors / run.tiles_n : 1;
  run.workers = static_cast<int32_t>(tiles < most ? tiles : most);
  const int32_t sizes[4] = {conv.samples, y.src_size, x.src_size, conv.channels};
  const int64_t strides[3] = {conv.source.sample, conv.source.row, conv.source.pixel};
  if (const char* error = make_map(run.pixels, conv.input, conv.type, sizes, strides, Tile::shape,
                                   Tile::shape.tile_rows() + y.taps - 1)) {
    return error;
  }
  const HopperMemory memory(Tile::shape, y.taps, x.taps, run.plan.chunks, run.plan.slots);
  return launch(hopper_conv_kernel<Tile>, static_cast<int64_t>(run.tiles_n) * run.workers, kHopperThreads, memory.bytes,
                stream, run);
}

template <class Math, int kShape = 0>
const char* launch_hopper(HopperRun& run, void* stream) {
  if constexpr (kShape < static_cast<int>(sizeof(kHopperShapes) / sizeof(HopperShape))) {
    if (run.plan.shape == kShape) return launch_hopper_tile<HopperTile<Math, kShape>>(run, stream);
    return launch_hopper<Math, kShape + 1>(run, stream);
  }
  return "no tile shape supports the layer";
}

}  // namespace tunable_ops::cuda
