// The CUDA features that the wgmma kernel uses beyond platform.cuh: barriers, tensor copies, warpgroup products. The
// emulator implements the same functions.
#pragma once

#include "hopper.h"
#include "numeric.cuh"

#if defined(__CUDACC__)

namespace tunable_ops::cuda {

// Broadcasts the value of lane 0, so that the compiler knows it to be uniform in the warp.
TO_DEVICE int32_t warp_uniform(int32_t value) { return __shfl_sync(0xffffffffu, value, 0); }
TO_DEVICE void warp_sync() { __syncwarp(); }

// Changes the registers per thread; all warps of a warpgroup must call it.
template <int kRegisters>
TO_DEVICE void release_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
TO_DEVICE void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// A barrier for `threads` threads; block_sync is barrier 0.
TO_DEVICE void named_sync(int32_t number, int32_t threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(number), "r"(threads) : "memory");
}

TO_DEVICE void barrier_init(uint64_t* barrier, int32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}

// Rounds two values to nearest even; the first one comes first in memory.
TO_DEVICE uint32_t pack_half(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}
TO_DEVICE uint32_t pack_bfloat16(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
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

// Copies a box of 16 pixels by kHopperColumns outputs out of shared memory, but for what lies outside the image.
// Belongs to the thread's next group of stores.
TO_DEVICE void store_box(const TensorMap& map, const void* source, int32_t channel, int32_t column, int32_t row,
                         int32_t sample) {
  asm volatile("cp.async.bulk.tensor.4d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4, %5}], [%1];" ::"l"(&map),
               "r"(shared_address(source)), "r"(channel), "r"(column), "r"(row), "r"(sample)
               : "memory");
}
TO_DEVICE void stores_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }

// Waits until all but the last kPending groups of this thread's stores have read shared memory.
template <int kPending>
TO_DEVICE void stores_wait_reads() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kPending) : "memory");
}
TO_DEVICE void stores_wait_all() { asm volatile("cp.async.bulk.wait_group 0;" ::: "memory"); }

TO_DEVICE void prefetch_map(const TensorMap& map) { asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory"); }

// Makes this thread's writes to shared memory visible to products and stores.
TO_DEVICE void shared_fence() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

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

}  // namespace tunable_ops::cuda

#else
#include "../tests/hopper_emulator.h"
#endif
