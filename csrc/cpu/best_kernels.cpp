// Picks the kernels for the machine that runs, once per process.
#include <cstdlib>

#include "kernels.h"

namespace tunable_ops {

namespace {
const Kernels& pick() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq")) {
    return avx512_kernels();
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return avx2_kernels();
#endif
  return portable_kernels();
}
}  // namespace

const Kernels& best_kernels() {
  static const Kernels& kernels = pick();
  return kernels;
}

}  // namespace tunable_ops
