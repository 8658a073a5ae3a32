// The gradient of a blended kernel as a matrix product: rows are outputs, columns are taps and channels, and the sum
// runs over a segment of the pixels of one problem. A later pass adds the segments in order.
#pragma once

#include <type_traits>

#include "launch.cuh"
#include "tile.cuh"

namespace tunable_ops::cuda {

constexpr int kGradStages = 3, kGradThreads = 128, kGradTile = 64;
constexpr int kGradTileBytes = 4096;  // per operand: 64 elements of as many pixels as fit

template <class T>
constexpr int32_t kGradPixels = kGradTileBytes / (kGradTile * static_cast<int32_t>(sizeof(T)));

// Operands are stored as [pixels][64 elements], so fragments are loaded transposed.
template <class Math>
struct TensorGradTile : TensorTile<Math, kGradTile, kGradTile, 2, 2> {
  using Base = TensorTile<Math, kGradTile, kGradTile, 2, 2>;
  using T = typename Math::T;

  TO_DEVICE void step(const unsigned char* tile_a, const unsigned char* tile_b) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      uint32_t a[Base::kM][4], b[Base::kN][2];
      if constexpr (sizeof(T) == 2) {
#pragma unroll
        for (int i = 0; i < Base::kM; ++i) {
          const int chunk = Base::first_row() / 8 + i * 2 + lane / 8 % 2;
          load_matrices_transposed(a[i], tile_a + pixel_chunk_offset<2>(half * 16 + lane % 8 + lane / 16 * 8, chunk));
        }
#pragma unroll
        for (int j = 0; j < Base::kN; j += 2) {
          uint32_t four[4];
          const int chunk = Base::first_column() / 8 + j + lane / 16;
          load_matrices_transposed(four, tile_b + pixel_chunk_offset<2>(half * 16 + lane % 16, chunk));
          b[j][0] = four[0], b[j][1] = four[1], b[j + 1][0] = four[2], b[j + 1][1] = four[3];
        }
      } else {
        const int pixel = half * 8 + lane % 4;
#pragma unroll
        for (int i = 0; i < Base::kM; ++i) {
#pragma unroll
          for (int k = 0; k < 4; ++k)
            a[i][k] = word(tile_a, pixel + k / 2 * 4, Base::first_row() + i * 16 + k % 2 * 8 + lane / 4);
        }
#pragma unroll
        for (int j = 0; j < Base::kN; ++j) {
#pragma unroll
          for (int k = 0; k < 2; ++k) b[j][k] = word(tile_b, pixel + k * 4, Base::first_column() + j * 8 + lane / 4);
        }
      }
      Base::multiply(a, b);
    }
  }

  TO_DEVICE static uint32_t word(const unsigned char* tile, int pixel, int element) {
    return *reinterpret_cast<const uint32_t*>(tile + pixel_chunk_offset<4>(pixel, element / 4) + element % 4 * 4);
  }
};

// In IEEE fp32 without tensor cores: 8 x 4 sums per thread. Short sums of products are added to compensated sums: the
// error of a plain sum would grow with the square root of the number of pixels.
struct FloatGradTile {
  using T = float;
  static constexpr int32_t kShort = 8;  // steps
  float sums[8][4];
  CompensatedSum totals[8][4];

  TO_DEVICE void clear() {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) sums[i][j] = 0;
    }
  }

  TO_DEVICE void collect() {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) totals[i][j].add(sums[i][j]);
    }
    clear();
  }

  TO_DEVICE void step(const unsigned char* tile_a, const unsigned char* tile_b) {
    const int m = static_cast<int>(threadIdx.x) % 8, n = static_cast<int>(threadIdx.x) / 8;
#pragma unroll
    for (int pixel = 0; pixel < kGradPixels<float>; ++pixel) {
      const auto low = *reinterpret_cast<const Pack<float>*>(tile_a + pixel_chunk_offset<4>(pixel, m));
      const auto high = *reinterpret_cast<const Pack<float>*>(tile_a + pixel_chunk_offset<4>(pixel, m + 8));
      const auto b = *reinterpret_cast<const Pack<float>*>(tile_b + pixel_chunk_offset<4>(pixel, n));
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          sums[i][j] = fmaf(low.data[i], b.data[j], sums[i][j]);
          sums[i + 4][j] = fmaf(high.data[i], b.data[j], sums[i + 4][j]);
        }
      }
    }
  }

  template <class F>
  TO_DEVICE void each_pair(F f) const {
    const int m = static_cast<int>(threadIdx.x) % 8 * 4, n = static_cast<int>(threadIdx.x) / 8 * 4;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
#pragma unroll
      for (int j = 0; j < 4; j += 2) f(m + i % 4 + i / 4 * 32, n + j, totals[i][j].value(), totals[i][j + 1].value());
    }
  }
};

template <bool kVectors>
struct GradGrid {
  int32_t tiles_m, tiles_c, tiles_n;
  TO_HD constexpr explicit GradGrid(const WeightGradRun& run)
      : tiles_m(ceil_div(run.outputs, kGradTile)),
        tiles_c(ceil_div(run.channels, kGradTile)),
        tiles_n(kVectors ? run.y.taps * run.x.taps * tiles_c
                         : ceil_div(run.y.taps * run.x.taps * run.channels, kGradTile)) {}
};

// A block's part: outputs from `output` on, and columns from `column` on of [taps, channels]; of one tap with vectors.
struct GradBlock {
  int32_t group, problem, segment, output, column, columns, tap_y, tap_x, channel, begin, end;
};

template <bool kVectors>
TO_DEVICE GradBlock grad_block(const WeightGradRun& run) {
  const GradGrid<kVectors> grid(run);
  const Place place = place_of(blockIdx.x, grid.tiles_n, grid.tiles_m * run.segments, run.groups, run.problems);
  GradBlock b{};
  b.group = place.group;
  b.problem = place.problem;
  b.segment = place.tile_m / grid.tiles_m;
  b.output = place.tile_m % grid.tiles_m * kGradTile;
  const Range range =
      part_of(static_cast<int64_t>(run.samples / run.problems) * run.y.out * run.x.out, run.segments, b.segment);
  b.begin = static_cast<int32_t>(range.begin);
  b.end = static_cast<int32_t>(range.end);
  if (kVectors) {
    const int32_t tap = place.tile_n / grid.tiles_c;
    b.channel = place.tile_n % grid.tiles_c * kGradTile;
    b.tap_y = tap / run.x.taps;
    b.tap_x = tap % run.x.taps;
    b.column = tap * run.channels + b.channel;
    b.columns = run.channels - b.channel;
  } else {
    b.column = place.tile_n * kGradTile;
    b.columns = run.y.taps * run.x.taps * run.channels - b.column;
  }
  return b;
}

// Loads a step's pixels of both operands into shared memory.
template <class T, bool kVectors>
TO_DEVICE void load_step(unsigned char* tile, const WeightGradRun& run, const GradBlock& block, int32_t first_pixel) {
  constexpr int32_t kChunks = kGradTile / kVector<T>, kOwn = kGradPixels<T> * kChunks / kGradThreads;
  const T* input = static_cast<const T*>(run.input);
  const T* grad = static_cast<const T*>(run.grad_output);
  const int32_t first_sample = run.samples / run.problems * block.problem;
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    const int32_t id = static_cast<int32_t>(threadIdx.x) + i * kGradThreads, row = id / kChunks, chunk = id % kChunks;
    const int32_t index = first_pixel + row, offset = pixel_chunk_offset<sizeof(T)>(row, chunk),
                  element = chunk * kVector<T>;
    const bool inside = index < block.end;
    const Pixel p = pixel_of(inside ? index : block.begin, run.y.out, run.x.out);
    const int64_t sample = first_sample + p.sample;
    const int64_t from_grad =
        sample * run.target.sample + (p.y * run.target.row + p.x * run.target.pixel +
                                      (block.group * run.outputs + block.output + element) * run.target.channel);
    const int64_t from_input = sample * run.source.sample + block.group * run.channels * run.source.channel;
    if constexpr (kVectors) {
      const bool valid = inside && block.output + element < run.outputs;
      copy_async(tile + offset, grad + (valid ? from_grad : 0), valid);
      const int32_t y = p.y * run.y.stride - run.y.pad + block.tap_y * run.y.dilation;
      const int32_t x = p.x * run.x.stride - run.x.pad + block.tap_x * run.x.dilation;
      const bool meets = inside && y >= 0 && y < run.y.in && x >= 0 && x < run.x.in && element < block.columns;
      const int32_t from = meets ? y * run.source.row + x * run.source.pixel + block.channel + element : 0;
      copy_async(tile + kGradTileBytes + offset, input + (meets ? from_input + from : 0), meets);
    } else {
      for (int e = 0; e < kVector<T>; ++e) {
        const bool valid = inside && block.output + element + e < run.outputs;
        reinterpret_cast<T*>(tile + offset)[e] = valid ? grad[from_grad + e * run.target.channel] : from_float<T>(0.0f);
        const int32_t column = block.column + element + e, tap = column / run.channels;
        const int32_t y = p.y * run.y.stride - run.y.pad + tap / run.x.taps * run.y.dilation;
        const int32_t x = p.x * run.x.stride - run.x.pad + tap % run.x.taps * run.x.dilation;
        const bool meets = inside && y >= 0 && y < run.y.in && x >= 0 && x < run.x.in && element + e < block.columns;
        const int32_t from =
            meets ? y * run.source.row + x * run.source.pixel + column % run.channels * run.source.channel : 0;
        reinterpret_cast<T*>(tile + kGradTileBytes + offset)[e] =
            meets ? input[from_input + from] : from_float<T>(0.0f);
      }
    }
  }
}

template <class Tile>
constexpr int kGradBlocks = std::is_same_v<Tile, FloatGradTile> ? 2 : 3;  // per multiprocessor: registers limit it

template <class Tile, bool kVectors>
TO_KERNEL(kGradThreads, kGradBlocks<Tile>)
weight_grad_kernel(TO_RUN WeightGradRun run) {
  using T = typename Tile::T;
  const GradBlock block = grad_block<kVectors>(run);
  unsigned char* memory = shared_memory();
  const int32_t steps = ceil_div(block.end - block.begin, kGradPixels<T>);
  int32_t loaded = 0, stage = 0;
  auto load = [&](int32_t into) {
    if (loaded < steps) {
      load_step<T, kVectors>(memory + into * 2 * kGradTileBytes, run, block, block.begin + loaded * kGradPixels<T>);
      ++loaded;
    }
    commit_copies();
  };
#pragma unroll
  for (int i = 0; i < kGradStages - 1; ++i) load(i);
  Tile tile;
  tile.clear();
  for (int32_t step = 0; step < steps; ++step) {
    wait_copies<kGradStages - 2>();
    block_sync();
    load(stage == 0 ? kGradStages - 1 : stage - 1);
    const unsigned char* operands = memory + stage * 2 * kGradTileBytes;
    tile.step(operands, operands + kGradTileBytes);
    stage = stage == kGradStages - 1 ? 0 : stage + 1;
    if constexpr (std::is_same_v<Tile, FloatGradTile>) {
      if (step % Tile::kShort == Tile::kShort - 1 || step == steps - 1) tile.collect();
    }
  }
  wait_copies<0>();
  const int32_t columns = run.y.taps * run.x.taps * run.channels;
  const int64_t size = static_cast<int64_t>(run.groups) * run.outputs * columns;
  float* gradient = run.gradient + (static_cast<int64_t>(block.problem) * run.segments + block.segment) * size +
                    static_cast<int64_t>(block.group) * run.outputs * columns + block.column;
  tile.each_pair([&](int32_t m, int32_t n, float v0, float v1) {
    if (block.output + m >= run.outputs) return;
    float* to = gradient + static_cast<int64_t>(block.output + m) * columns + n;
    if (n < block.columns) to[0] = v0;
    if (n + 1 < block.columns) to[1] = v1;
  });
}

template <class Tile, bool kVectors>
const char* launch_grad_tile(const WeightGradRun& run, void* stream) {
  const GradGrid<kVectors> grid(run);
  const int64_t blocks = static_cast<int64_t>(grid.tiles_n) * grid.tiles_m * run.segments * run.groups * run.problems;
  return launch(weight_grad_kernel<Tile, kVectors>, blocks, kGradThreads, kGradStages * 2 * kGradTileBytes, stream,
                run);
}

template <class Tile>
const char* launch_grad(const WeightGradRun& run, void* stream) {
  return run.vectors ? launch_grad_tile<Tile, true>(run, stream) : launch_grad_tile<Tile, false>(run, stream);
}

}  // namespace tunable_ops::cuda
