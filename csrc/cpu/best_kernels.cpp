// Selects the kernels for this machine, once per process. With TUNABLE_OPS_PORTABLE those for every machine (make
// portable, which tests them).
#include "kernels.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace tunable_ops {

namespace {
const Kernels& pick() {
#if defined(__x86_64__) && !defined(TUNABLE_OPS_PORTABLE)
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

bool foresees_rows() {
#if defined(__x86_64__)
  // One thread of a Xeon of the fifth generation: prefetching takes 1.07 of the time. It was tuned on Zen 4.
  static const bool foresees = __builtin_cpu_is("intel") && &best_kernels() == &avx512_kernels();
  return foresees;
#else
  return false;
#endif
}

bool multiplies_natively(NumberType type) {
  if (type == NumberType::kFloat) return true;
#if defined(__x86_64__)
  unsigned a, b, c, d;
  if (&best_kernels() != &avx512_kernels()) return false;
  if (type == NumberType::kHalf) return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d >> 23 & 1);  // AVX512_FP16
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 5 & 1);                                  // AVX512_BF16
#else
  return false;
#endif
}

}  // namespace tunable_ops
