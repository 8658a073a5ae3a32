// The dense convolution as an implicit matrix product: rows are destination pixels, columns are outputs, and the sum
// runs over taps and channels. Pixels are gathered into shared memory; kernels are blended there.
#pragma once

#include "launch.cuh"
#include "tile.cuh"

namespace tunable_ops::cuda {

constexpr int kConvStages = 3;

// A block's part of a ConvRun.
struct ConvBlock {
  Axis y, x;
  int32_t group, problem, first_sample, rows, row, column;

  TO_DEVICE ConvBlock(const ConvRun& run, const Place& place, int32_t tile_rows, int32_t tile_columns)
      : y(axis_of(run.y, run.gradient, run.gradient ? place.phase / run.x.stride : 0)),
        x(axis_of(run.x, run.gradient, run.gradient ? place.phase % run.x.stride : 0)),
        group(place.group),
        problem(place.problem),
        first_sample(run.samples / run.problems * place.problem),
        rows(run.samples / run.problems * y.count * x.count),
        row(place.tile_m * tile_rows),
        column(place.tile_n * tile_columns) {}
};

// The current position of the sum: a tap and a block of channels.
struct Cursor {
  int32_t y = 0, x = 0, channel = 0;

  TO_DEVICE void advance(const ConvBlock& block, int32_t channels, int32_t step) {
    channel += step;
    if (channel < channels) return;
    channel = 0;
    if (++x < block.x.taps) return;
    x = 0;
    ++y;
  }
};

// Loads rows of pixels into shared memory, four 16-byte chunks each. A thread loads the same chunk of several rows.
template <class T, int kRows, int kThreads>
struct PixelLoader {
  static constexpr int kOwn = kRows * 4 / kThreads, kApart = kThreads / 4;
  int64_t sample[kOwn];
  int32_t y[kOwn], x[kOwn];

  TO_DEVICE PixelLoader(const ConvRun& run, const ConvBlock& block) {
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      const int32_t row = block.row + static_cast<int32_t>(threadIdx.x) / 4 + i * kApart;
      const Pixel p = pixel_of(row < block.rows ? row : 0, block.y.count, block.x.count);
      sample[i] = (block.first_sample + p.sample) * run.source.sample + block.group * run.channels * run.source.channel;
      y[i] = row < block.rows ? block.y.source(p.y) : INT32_MIN / 2;  // outside the image for every tap
      x[i] = block.x.source(p.x);
    }
  }

  TO_DEVICE bool find(const ConvRun& run, const ConvBlock& block, int i, int32_t tap_y, int32_t tap_x,
                      int64_t& offset) const {
    const int32_t at_y = y[i] + tap_y * block.y.src_step, at_x = x[i] + tap_x * block.x.src_step;
    if (at_y < 0 || at_y >= block.y.src_size || at_x < 0 || at_x >= block.x.src_size) return false;
    offset = sample[i] + (at_y * run.source.row + at_x * run.source.pixel);
    return true;
  }

  TO_DEVICE void load_vectors(unsigned char* tile, const ConvRun& run, const ConvBlock& block, const Cursor& at) const {
    const T* input = static_cast<const T*>(run.input);
    const int32_t chunk = static_cast<int32_t>(threadIdx.x) % 4, channel = at.channel + chunk * kVector<T>;
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      int64_t offset = 0;
      const bool valid = find(run, block, i, at.y, at.x, offset) && channel < run.channels;
      copy_async(tile + row_chunk_offset(static_cast<int32_t>(threadIdx.x) / 4 + i * kApart, chunk),
                 input + (valid ? offset + channel : 0), valid);
    }
  }

  // For any strides and channels: taps and channels form one dimension, so that few channels need no padding.
  TO_DEVICE void load_elements(unsigned char* tile, const ConvRun& run, const ConvBlock& block, int32_t first) const {
    const T* input = static_cast<const T*>(run.input);
    const int32_t chunk = static_cast<int32_t>(threadIdx.x) % 4;
    for (int e = 0; e < kVector<T>; ++e) {
      const int32_t k = first + chunk * kVector<T> + e, tap = k / run.channels, channel = k - tap * run.channels;
      const int32_t tap_y = block.x.taps > 0 ? tap / block.x.taps : 0, tap_x = tap - tap_y * block.x.taps;
#pragma unroll
      for (int i = 0; i < kOwn; ++i) {
        int64_t offset = 0;
        const bool valid = tap_y < block.y.taps && find(run, block, i, tap_y, tap_x, offset);
        const int32_t row = static_cast<int32_t>(threadIdx.x) / 4 + i * kApart;
        reinterpret_cast<T*>(tile + row_chunk_offset(row, chunk))[e] =
            valid ? input[offset + channel * run.source.channel] : from_float<T>(0.0f);
      }
    }
  }
};

// Loads rows of kernels into shared memory: blended ones, or one tile per kernel of the stack to be blended there.
template <class T, int kColumns, int kThreads>
struct KernelLoader {
  static constexpr int kOwn = kColumns * 4 / kThreads, kApart = kThreads / 4, kTileBytes = kColumns * kRowBytes;
  static_assert(kOwn * kThreads == kColumns * 4, "every chunk needs a thread");

  TO_DEVICE static int32_t tap_of(const ConvRun& run, const ConvBlock& block, int32_t y, int32_t x) {
    return block.y.tap(y) * run.x.taps + block.x.tap(x);
  }

  TO_DEVICE static int32_t row_of(const ConvRun& run, const ConvBlock& block, int32_t row) {
    return (block.group * run.outputs + block.column + row) * run.y.taps * run.x.taps;
  }

  TO_DEVICE static void load_vectors(unsigned char* tile, const ConvRun& run, const ConvBlock& block,
                                     const Cursor& at) {
    const int32_t chunk = static_cast<int32_t>(threadIdx.x) % 4, channel = at.channel + chunk * kVector<T>;
    const int32_t tap = tap_of(run, block, at.y, at.x), kernels = run.fused ? run.alpha.kernels : 1;
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      const int32_t row = static_cast<int32_t>(threadIdx.x) / 4 + i * kApart;
      const bool valid = block.column + row < run.outputs && channel < run.channels;
      const T* from = static_cast<const T*>(run.weight);
      if (valid) from += block.problem * run.weight_problem + (row_of(run, block, row) + tap) * run.channels + channel;
      for (int32_t p = 0; p < kernels; ++p) {
        copy_async(tile + p * kTileBytes + row_chunk_offset(row, chunk), from + (valid ? p * run.weight_kernel : 0),
                   valid);
      }
    }
  }

  TO_DEVICE static void load_elements(unsigned char* tile, const ConvRun& run, const ConvBlock& block, int32_t first) {
    const T* weight = static_cast<const T*>(run.weight) + block.problem * run.weight_problem;
    const int32_t chunk = static_cast<int32_t>(threadIdx.x) % 4;
    for (int e = 0; e < kVector<T>; ++e) {
      const int32_t k = first + chunk * kVector<T> + e, tap = k / run.channels, channel = k - tap * run.channels;
      const int32_t tap_y = block.x.taps > 0 ? tap / block.x.taps : 0, tap_x = tap - tap_y * block.x.taps;
#pragma unroll
      for (int i = 0; i < kOwn; ++i) {
        const int32_t row = static_cast<int32_t>(threadIdx.x) / 4 + i * kApart;
        const bool valid = tap_y < block.y.taps && block.column + row < run.outputs;
        reinterpret_cast<T*>(tile + row_chunk_offset(row, chunk))[e] =
            valid ? weight[(row_of(run, block, row) + tap_of(run, block, tap_y, tap_x)) * run.channels + channel]
                  : from_float<T>(0.0f);
      }
    }
  }

  // Accumulates in fp32 and rounds once.
  TO_DEVICE static void blend(unsigned char* blended, const unsigned char* tiles, const float* alpha, int32_t kernels) {
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      const int32_t at = (static_cast<int32_t>(threadIdx.x) + i * kThreads) * 16;
      float total[kVector<T>] = {};
      for (int32_t p = 0; p < kernels; ++p) {
        const auto pack = *reinterpret_cast<const Pack<T>*>(tiles + p * kTileBytes + at);
#pragma unroll
        for (int e = 0; e < kVector<T>; ++e) total[e] = fmaf(alpha[p], to_float(pack.data[e]), total[e]);
      }
      Pack<T> result;
#pragma unroll
      for (int e = 0; e < kVector<T>; ++e) result.data[e] = from_float<T>(total[e]);
      *reinterpret_cast<Pack<T>*>(blended + at) = result;
    }
  }
};

// The shared memory of a block: stages of pixels and kernels, blended kernels, bias and alpha. The sums reuse the
// memory of the stages at the end.
template <class Tile>
struct ConvMemory {
  static constexpr int kPixelBytes = Tile::kRows * kRowBytes, kKernelBytes = Tile::kColumns * kRowBytes;
  static constexpr int kRowOfSums = Tile::kColumns + 4;
  static_assert(Tile::kRows * kRowOfSums * 4 <= kConvStages * (kPixelBytes + kKernelBytes),
                "the sums must fit into the stages");
  int32_t stage_bytes, blended, bias, alpha, bytes;

  TO_HD constexpr explicit ConvMemory(const ConvRun& run)
      : stage_bytes(kPixelBytes + (run.fused ? run.alpha.kernels : 1) * kKernelBytes),
        blended(kConvStages * stage_bytes),
        bias(blended + (run.fused ? kKernelBytes : 0)),
        alpha(bias + Tile::kColumns * 4),
        bytes(alpha + kMaxFusedKernels * 4) {}
};

template <class Tile>
struct ConvGrid {
  int32_t tiles_n, tiles_m, phases;
  TO_HD constexpr explicit ConvGrid(const ConvRun& run)
      : tiles_n(ceil_div(run.outputs, static_cast<int32_t>(Tile::kColumns))),
        tiles_m(ceil_div(
            run.samples / run.problems * axis_of(run.y, run.gradient, 0).count * axis_of(run.x, run.gradient, 0).count,
            static_cast<int32_t>(Tile::kRows))),
        phases(run.gradient ? run.y.stride * run.x.stride : 1) {}
  constexpr int64_t blocks(const ConvRun& run) const {
    return static_cast<int64_t>(tiles_n) * tiles_m * run.groups * run.problems * phases;
  }
};

// Adds the bias, applies the activation and rounds once. Stores 16 bytes at a time if possible.
template <class Tile>
TO_DEVICE void store_sums(const ConvRun& run, const ConvBlock& block, const float* sums, const float* bias) {
  using T = typename Tile::T;
  constexpr int kPerRow = Tile::kColumns / kVector<T>;
  T* output = static_cast<T*>(run.output);
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < Tile::kRows * kPerRow; i += Tile::kThreads) {
    const int32_t m = i / kPerRow, n = i % kPerRow * kVector<T>, row = block.row + m, column = block.column + n;
    if (row >= block.rows || column >= run.outputs) continue;
    const Pixel p = pixel_of(row, block.y.count, block.x.count);
    const int64_t offset = (block.first_sample + p.sample) * run.target.sample +
                           (block.y.destination(p.y) * run.target.row + block.x.destination(p.x) * run.target.pixel +
                            (block.group * run.outputs + column) * run.target.channel);
    Pack<T> result;
#pragma unroll
    for (int e = 0; e < kVector<T>; ++e) {
      result.data[e] =
          from_float<T>(activate(sums[m * ConvMemory<Tile>::kRowOfSums + n + e] + bias[n + e], run.activation));
    }
    if (run.vector_stores) {
      *reinterpret_cast<Pack<T>*>(output + offset) = result;
    } else {
#pragma unroll
      for (int e = 0; e < kVector<T>; ++e) {
        if (column + e < run.outputs) output[offset + e * run.target.channel] = result.data[e];
      }
    }
  }
}

template <class Tile, bool kVectors>
TO_KERNEL(Tile::kThreads, Tile::kBlocks)
conv_kernel(TO_RUN ConvRun run) {
  using T = typename Tile::T;
  using Kernels = KernelLoader<T, Tile::kColumns, Tile::kThreads>;
  constexpr int32_t kStep = kRowBytes / sizeof(T);
  const ConvGrid<Tile> grid(run);
  const ConvBlock block(run, place_of(blockIdx.x, grid.tiles_n, grid.tiles_m, run.groups, run.problems), Tile::kRows,
                        Tile::kColumns);
  if (block.row >= block.rows) return;  // this phase has fewer pixels than the first
  unsigned char* memory = shared_memory();
  const ConvMemory<Tile> layout(run);
  float* bias = reinterpret_cast<float*>(memory + layout.bias);
  float* alpha = reinterpret_cast<float*>(memory + layout.alpha);
  for (int32_t n = static_cast<int32_t>(threadIdx.x); n < Tile::kColumns; n += Tile::kThreads) {
    const bool valid = run.bias != nullptr && block.column + n < run.outputs;
    const int64_t output = block.group * run.outputs + block.column + n;
    bias[n] =
        valid ? blended_bias(run.bias, run.type, run.bias_kernel, output * run.bias_output, run.alpha, block.problem)
              : 0.0f;
  }
  if (run.fused && static_cast<int32_t>(threadIdx.x) < run.alpha.kernels) {
    alpha[threadIdx.x] = alpha_of(run.alpha, block.problem, static_cast<int32_t>(threadIdx.x));
  }

  const PixelLoader<T, Tile::kRows, Tile::kThreads> pixels(run, block);
  const int32_t taps = block.y.taps * block.x.taps;
  const int32_t steps = kVectors ? taps * ceil_div(run.channels, kStep) : ceil_div(taps * run.channels, kStep);
  Cursor cursor;
  int32_t loaded = 0, stage = 0;
  auto load = [&](int32_t into) {
    unsigned char* tile = memory + into * layout.stage_bytes;
    if (loaded < steps) {
      if constexpr (kVectors) {
        pixels.load_vectors(tile, run, block, cursor);
        Kernels::load_vectors(tile + ConvMemory<Tile>::kPixelBytes, run, block, cursor);
        cursor.advance(block, run.channels, kStep);
      } else {
        pixels.load_elements(tile, run, block, loaded * kStep);
        Kernels::load_elements(tile + ConvMemory<Tile>::kPixelBytes, run, block, loaded * kStep);
      }
      ++loaded;
    }
    commit_copies();  // possibly an empty group, which keeps the count right
  };
#pragma unroll
  for (int i = 0; i < kConvStages - 1; ++i) load(i);

  Tile tile;
  tile.clear();
  for (int32_t step = 0; step < steps; ++step) {
    wait_copies<kConvStages - 2>();
    block_sync();  // this stage is visible to all threads, and the previous one is free
    load(stage == 0 ? kConvStages - 1 : stage - 1);
    const unsigned char* tile_a = memory + stage * layout.stage_bytes;
    const unsigned char* tile_b = tile_a + ConvMemory<Tile>::kPixelBytes;
    if (run.fused) {
      Kernels::blend(memory + layout.blended, tile_b, alpha, run.alpha.kernels);
      tile_b = memory + layout.blended;
      block_sync();
    }
    tile.step(tile_a, tile_b);
    stage = stage == kConvStages - 1 ? 0 : stage + 1;
  }
  wait_copies<0>();
  block_sync();
  float* sums = reinterpret_cast<float*>(memory);
  tile.each_pair([&](int32_t m, int32_t n, float v0, float v1) {
    AlignedArray<float, 2> pair{{v0, v1}};
    *reinterpret_cast<AlignedArray<float, 2>*>(sums + m * ConvMemory<Tile>::kRowOfSums + n) = pair;
  });
  block_sync();
  store_sums<Tile>(run, block, sums, bias);
}

template <class Tile, bool kVectors>
const char* launch_conv_tile(const ConvRun& run, void* stream) {
  return launch(conv_kernel<Tile, kVectors>, ConvGrid<Tile>(run).blocks(run), Tile::kThreads,
                ConvMemory<Tile>(run).bytes, stream, run);
}

// Tiles of 128 x 64 read the least memory per product; smaller ones occupy more multiprocessors. The threshold is an
// estimate, not measured: two waves on the 132 multiprocessors of an H200.
template <class Math>
const char* launch_tensor_conv(const ConvRun& run, void* stream) {
  using Small = TensorTile<Math, 64, 64, 2, 2>;
  using Large = TensorTile<Math, 128, 64, 2, 2>;
  using Narrow = TensorTile<Math, 128, 32, 4, 1>;
  if (!run.vectors) return launch_conv_tile<Small, false>(run, stream);
  if (run.outputs <= Narrow::kColumns) return launch_conv_tile<Narrow, true>(run, stream);
  if (ConvGrid<Large>(run).blocks(run) >= 2 * 132) return launch_conv_tile<Large, true>(run, stream);
  return launch_conv_tile<Small, true>(run, stream);
}

}  // namespace tunable_ops::cuda
