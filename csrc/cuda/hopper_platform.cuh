// The CUDA features that the wgmma kernel uses beyond platform.cuh: barriers, tensor copies, warpgroup products. The
// emulator implements the same functions.
#pragma once

#include "hopper.h"
#include "numeric.cuh"

#if defined(__CUDACC__)

#include <cuda.h>

// Only compute capability 9.0 has this code; for others the kernels are empty and the launcher returns an error.
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define TO_HOPPER 1
#else
#define TO_HOPPER 0
#endif

namespace tunable_ops::cuda {

// Broadcasts the value of lane 0, so that the compiler knows it to be uniform in the warp.
TO_DEVICE int32_t warp_uniform(int32_t value) { return __shfl_sync(0xffffffffu, value, 0); }
TO_DEVICE void warp_sync() { __syncwarp(); }

// A barrier for `threads` threads; block_sync is barrier 0.
TO_DEVICE void named_sync(int32_t number, int32_t threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(number), "r"(threads) : "memory");
}

TO_DEVICE void barrier_init(uint64_t* barrier, int32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}

// Makes initialised barriers visible to the copies.
TO_DEVICE void barrier_init_fence() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

TO_DEVICE void barrier_arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}

TO_DEVICE void barrier_arrive_expecting(uint64_t* barrier, int32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
}

// Waits until the phase with this parity completes.
TO_DEVICE void barrier_wait(uint64_t* barrier, int32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n"
      "}\n" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
}

// Copies a box of pixels [rows, columns, channels] into shared memory, with zeros outside the image, and reports its
// bytes to `barrier`.
TO_DEVICE void load_box(void* target, const TensorMap& map, uint64_t* barrier, int32_t channel, int32_t column,
                        int32_t row, int32_t sample) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], "
      "[%2];" ::"r"(shared_address(target)),
      "l"(&map), "r"(shared_address(barrier)), "r"(channel), "r"(column), "r"(row), "r"(sample)
      : "memory");
}

TO_DEVICE void prefetch_map(const TensorMap& map) { asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory"); }

// Makes this thread's writes to shared memory visible to products.
TO_DEVICE void products_fence() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// Needed before products if the registers of the sums were accessed.
TO_DEVICE void products_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
TO_DEVICE void products_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int kPending>
TO_DEVICE void products_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// Prevents the compiler from moving accesses to the sums across.
template <int n>
TO_DEVICE void products_pin(float (&sums)[n]) {
#pragma unroll
  for (int i = 0; i < n; ++i) asm volatile("" : "+f"(sums[i])::"memory");
}

#define TO_FOUR(c, i) "+f"(c[i]), "+f"(c[i + 1]), "+f"(c[i + 2]), "+f"(c[i + 3])
#define TO_EIGHT(c, i) TO_FOUR(c, i), TO_FOUR(c, i + 4)
#define TO_NAMES_16 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15"
#define TO_NAMES_32 TO_NAMES_16 ",%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define TO_NAMES_64                                                                                       \
  TO_NAMES_32                                                                                             \
  ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56," \
  "%57,%58,%59,%60,%61,%62,%63"
#define TO_PRODUCT(shape, type, names, a, b, add, ...)                                                  \
  asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, " add                                              \
               ", 0;\n"                                                                                 \
               "wgmma.mma_async.sync.aligned." shape "k16.f32." type "." type " {" names "}, " a ", " b \
               ", add, 1, 1, 0, 0;\n}"                                                                  \
               : __VA_ARGS__                                                                            \
               : "l"(a_matrix), "l"(b_matrix), "r"(static_cast<int32_t>(accumulate)))
#define TO_PRODUCTS(name, type)                                                                                    \
  TO_DEVICE void name(float (&c)[16], uint64_t a_matrix, uint64_t b_matrix, bool accumulate) {                     \
    TO_PRODUCT("m64n32", type, TO_NAMES_16, "%16", "%17", "%18", TO_EIGHT(c, 0), TO_EIGHT(c, 8));                  \
  }                                                                                                                \
  TO_DEVICE void name(float (&c)[32], uint64_t a_matrix, uint64_t b_matrix, bool accumulate) {                     \
    TO_PRODUCT("m64n64", type, TO_NAMES_32, "%32", "%33", "%34", TO_EIGHT(c, 0), TO_EIGHT(c, 8), TO_EIGHT(c, 16),  \
               TO_EIGHT(c, 24));                                                                                   \
  }                                                                                                                \
  TO_DEVICE void name(float (&c)[64], uint64_t a_matrix, uint64_t b_matrix, bool accumulate) {                     \
    TO_PRODUCT("m64n128", type, TO_NAMES_64, "%64", "%65", "%66", TO_EIGHT(c, 0), TO_EIGHT(c, 8), TO_EIGHT(c, 16), \
               TO_EIGHT(c, 24), TO_EIGHT(c, 32), TO_EIGHT(c, 40), TO_EIGHT(c, 48), TO_EIGHT(c, 56));               \
  }

// c += a * b^T, or c = a * b^T unless `accumulate`, with 64 rows of a, two rows of b per register of c, and 16 elements
// along K. Lane l of warp w holds rows w * 16 + l / 4 (+ 8) and columns l % 4 * 2 (+ 1), + 8, ...
TO_PRODUCTS(multiply_async_half, "f16")
TO_PRODUCTS(multiply_async_bfloat16, "bf16")
#undef TO_PRODUCTS
#undef TO_PRODUCT
#undef TO_NAMES_64
#undef TO_NAMES_32
#undef TO_NAMES_16
#undef TO_EIGHT
#undef TO_FOUR

// Queries the device. Returns null, or why it cannot run the kernel.
inline const char* hopper_device(const void* kernel, int32_t& multiprocessors) {
  int device = 0;
  cudaError_t error = cudaGetDevice(&device);
  cudaFuncAttributes attributes{};
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
  }
  int major = 0, minor = 0;
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  if (error != cudaSuccess) return cudaGetErrorString(error);
  if (major != 9 || minor != 0) return "it needs a device of compute capability 9.0";
  error = cudaFuncGetAttributes(&attributes, kernel);
  if (error != cudaSuccess) return cudaGetErrorString(error);
  return attributes.binaryVersion == 90 ? nullptr : "this build has no code for sm_90a";
}

// Creates the tensor map of a channels_last image [samples, height, width, channels], for boxes of box_rows x
// kHopperPixels.
inline const char* make_map(TensorMap& map, const void* data, Type type, const int32_t (&sizes)[4],
                            const int64_t (&strides)[3], const HopperShape& shape, int32_t box_rows) {
  using Encode = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*,
                              const cuuint64_t*, const cuuint32_t*, const cuuint32_t*, CUtensorMapInterleave,
                              CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill);
  static const Encode encode = [] {
    void* address = nullptr;
    cudaDriverEntryPointQueryResult found{};
#if CUDART_VERSION >= 12050
    const cudaError_t error =
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &address, 12000, cudaEnableDefault, &found);
#else
    const cudaError_t error = cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &address, cudaEnableDefault, &found);
#endif
    const bool ok = error == cudaSuccess && found == cudaDriverEntryPointSuccess;
    return ok ? reinterpret_cast<Encode>(address) : nullptr;
  }();
  if (encode == nullptr) return "this driver does not support tensor maps";
  static_assert(sizeof(CUtensorMap) == sizeof(TensorMap) && alignof(CUtensorMap) <= alignof(TensorMap));
  const cuuint64_t extents[4] = {static_cast<cuuint64_t>(sizes[3]), static_cast<cuuint64_t>(sizes[2]),
                                 static_cast<cuuint64_t>(sizes[1]), static_cast<cuuint64_t>(sizes[0])};
  const cuuint64_t steps[3] = {static_cast<cuuint64_t>(strides[2] * 2), static_cast<cuuint64_t>(strides[1] * 2),
                               static_cast<cuuint64_t>(strides[0] * 2)};  // bytes
  const cuuint32_t box[4] = {static_cast<cuuint32_t>(shape.channels), kHopperPixels, static_cast<cuuint32_t>(box_rows),
                             1};
  const cuuint32_t every[4] = {1, 1, 1, 1};
  const auto swizzle = shape.row_bytes() == 128  ? CU_TENSOR_MAP_SWIZZLE_128B
                       : shape.row_bytes() == 64 ? CU_TENSOR_MAP_SWIZZLE_64B
                                                 : CU_TENSOR_MAP_SWIZZLE_32B;
  const CUresult result =
      encode(reinterpret_cast<CUtensorMap*>(&map),
             type == Type::kHalf ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 4,
             const_cast<void*>(data), extents, steps, box, every, CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle,
             CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? nullptr : "the driver rejected the tensor map";
}

}  // namespace tunable_ops::cuda

#else
#include "../tests/hopper_emulator.h"
#endif
