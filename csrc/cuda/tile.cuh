// Block-level products of two shared-memory tiles, with rows of 64 bytes along the summed dimension:
// sums[m, n] += a[m] . b[n].
#pragma once

#include "numeric.cuh"

namespace tunable_ops::cuda {

// Tensor core instructions for each type; they consume 32 bytes of a row at a time.
struct HalfMath {
  using T = Half;
  TO_DEVICE static void prepare(uint32_t&) {}
  TO_DEVICE static void multiply(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    multiply_half(c, a, b);
  }
};
struct BFloat16Math {
  using T = BFloat16;
  TO_DEVICE static void prepare(uint32_t&) {}
  TO_DEVICE static void multiply(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    multiply_bfloat16(c, a, b);
  }
};
struct Tf32Math {
  using T = float;
  TO_DEVICE static void prepare(uint32_t& v) { v = to_tf32(v); }
  TO_DEVICE static void multiply(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    multiply_tf32(c, a, b);
  }
};

// kRows x kColumns sums in the layout of the tensor cores, distributed over kWarpsM x kWarpsN warps.
template <class Math_, int kRows_, int kColumns_, int kWarpsM, int kWarpsN>
struct TensorTile {
  using Math = Math_;
  using T = typename Math::T;
  static constexpr int kRows = kRows_, kColumns = kColumns_, kThreads = 32 * kWarpsM * kWarpsN;
  static constexpr int kBlocks = sizeof(T) == 2 ? 3 : 2;  // minimum per multiprocessor
  static constexpr int kWarpRows = kRows / kWarpsM, kWarpColumns = kColumns / kWarpsN;
  static constexpr int kM = kWarpRows / 16, kN = kWarpColumns / 8;
  static_assert(kM * 16 == kWarpRows && kN * 8 == kWarpColumns && kN % 2 == 0,
                "must consist of whole fragments, in pairs of columns");

  float sums[kM][kN][4];

  TO_DEVICE void clear() {
#pragma unroll
    for (int i = 0; i < kM; ++i) {
#pragma unroll
      for (int j = 0; j < kN; ++j) {
#pragma unroll
        for (int k = 0; k < 4; ++k) sums[i][j][k] = 0;
      }
    }
  }

  TO_DEVICE static int first_row() { return static_cast<int>(threadIdx.x) / 32 / kWarpsN * kWarpRows; }
  TO_DEVICE static int first_column() { return static_cast<int>(threadIdx.x) / 32 % kWarpsN * kWarpColumns; }

  TO_DEVICE void multiply(uint32_t (&a)[kM][4], uint32_t (&b)[kN][2]) {
#pragma unroll
    for (int i = 0; i < kM; ++i) {
#pragma unroll
      for (int k = 0; k < 4; ++k) Math::prepare(a[i][k]);
    }
#pragma unroll
    for (int j = 0; j < kN; ++j) {
      Math::prepare(b[j][0]);
      Math::prepare(b[j][1]);
    }
#pragma unroll
    for (int i = 0; i < kM; ++i) {
#pragma unroll
      for (int j = 0; j < kN; ++j) Math::multiply(sums[i][j], a[i], b[j]);
    }
  }

  TO_DEVICE void step(const unsigned char* tile_a, const unsigned char* tile_b) {
    const int lane = static_cast<int>(threadIdx.x) % 32, row = first_row() + lane % 16;
    const int column = first_column() + lane % 8 + lane / 16 * 8;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      uint32_t a[kM][4], b[kN][2];
#pragma unroll
      for (int i = 0; i < kM; ++i) load_matrices(a[i], tile_a + row_chunk_offset(row + i * 16, half * 2 + lane / 16));
#pragma unroll
      for (int j = 0; j < kN; j += 2) {
        uint32_t four[4];
        load_matrices(four, tile_b + row_chunk_offset(column + j * 8, half * 2 + lane / 8 % 2));
        b[j][0] = four[0], b[j][1] = four[1], b[j + 1][0] = four[2], b[j + 1][1] = four[3];
      }
      multiply(a, b);
    }
  }

  // Calls f(m, n, sum at n, sum at n + 1).
  template <class F>
  TO_DEVICE void each_pair(F f) const {
    const int lane = static_cast<int>(threadIdx.x) % 32, row = first_row() + lane / 4,
              column = first_column() + lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < kM; ++i) {
#pragma unroll
      for (int j = 0; j < kN; ++j) {
        f(row + i * 16, column + j * 8, sums[i][j][0], sums[i][j][1]);
        f(row + i * 16 + 8, column + j * 8, sums[i][j][2], sums[i][j][3]);
      }
    }
  }
};

// The same in IEEE fp32 without tensor cores: 64 x 64 sums, 8 x 4 per thread.
struct FloatTile {
  using T = float;
  static constexpr int kRows = 64, kColumns = 64, kThreads = 128, kBlocks = 2;
  float sums[8][4];

  TO_DEVICE void clear() {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) sums[i][j] = 0;
    }
  }

  TO_DEVICE static int row(int i) { return static_cast<int>(threadIdx.x) % 8 + i * 8; }
  TO_DEVICE static int column(int j) { return static_cast<int>(threadIdx.x) / 8 * 2 + j % 2 + j / 2 * 32; }

  TO_DEVICE void step(const unsigned char* tile_a, const unsigned char* tile_b) {
#pragma unroll
    for (int chunk = 0; chunk < 4; ++chunk) {
      Pack<float> a[8];
#pragma unroll
      for (int i = 0; i < 8; ++i)
        a[i] = *reinterpret_cast<const Pack<float>*>(tile_a + row_chunk_offset(row(i), chunk));
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const auto b = *reinterpret_cast<const Pack<float>*>(tile_b + row_chunk_offset(column(j), chunk));
#pragma unroll
        for (int i = 0; i < 8; ++i) {
#pragma unroll
          for (int k = 0; k < 4; ++k) sums[i][j] = fmaf(a[i].data[k], b.data[k], sums[i][j]);
        }
      }
    }
  }

  template <class F>
  TO_DEVICE void each_pair(F f) const {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
#pragma unroll
      for (int j = 0; j < 4; j += 2) f(row(i), column(j), sums[i][j], sums[i][j + 1]);
    }
  }
};

}  // namespace tunable_ops::cuda
