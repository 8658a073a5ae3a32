// Vectors of floats for the instruction set TO_ISA; included by each kernels_<isa>.cpp after its target pragma. Each
// instruction set has its own namespace, and these headers instantiate no standard library templates: the linker could
// otherwise keep one copy with the newest instructions for all machines.
namespace tunable_ops::TO_ISA {

typedef float Vec __attribute__((vector_size(TO_LANES * 4), aligned(4), may_alias));

constexpr int64_t kLanes = TO_LANES;
// Vectors per panel, and the rows of accumulators for one or two of them that fit into the registers.
constexpr int kWidth = 2;
constexpr int kRows[kWidth + 1] = {0, TO_ROWS_1, TO_ROWS_2};

inline Vec load(const float* p) { return *reinterpret_cast<const Vec*>(p); }
inline void store(float* p, Vec v) { *reinterpret_cast<Vec*>(p) = v; }
inline Vec broadcast(float v) { return v - Vec{}; }

// Keeps a loaded vector in its register: compilers otherwise load it again in every instruction that reads it.
inline __attribute__((always_inline)) void keep(Vec& v) {
#if defined(__x86_64__)
  asm("" : "+v"(v));
#endif
}

#if defined(TO_AVX2)
inline __m256i first_lanes(int64_t n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
#endif

// These access only the first n lanes: memory after them is neither read nor written.
inline Vec load_first(const float* p, int64_t n) {
#if defined(TO_AVX512)
  return reinterpret_cast<Vec>(_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), p));
#elif defined(TO_AVX2)
  return reinterpret_cast<Vec>(_mm256_maskload_ps(p, first_lanes(n)));
#else
  Vec v = {};
  for (int64_t i = 0; i < n; ++i) v[i] = p[i];
  return v;
#endif
}

inline void store_first(float* p, Vec v, int64_t n) {
#if defined(TO_AVX512)
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1), reinterpret_cast<__m512>(v));
#elif defined(TO_AVX2)
  _mm256_maskstore_ps(p, first_lanes(n), reinterpret_cast<__m256>(v));
#else
  for (int64_t i = 0; i < n; ++i) p[i] = v[i];
#endif
}

inline float sum(Vec v) {
  float total = 0;
  for (int i = 0; i < kLanes; ++i) total += v[i];
  return total;
}

inline int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Memory that does not exist may be prefetched.
inline void prefetch(const float* p, int64_t count) {
  for (int64_t i = 0; i < count; i += 16) __builtin_prefetch(p + i);
}

inline void prefetch_to_write(const float* p, int64_t count) {
  for (int64_t i = 0; i < count; i += 16) __builtin_prefetch(p + i, 1);
}

inline Vec activate(Vec v, Activation activation) {
  const Vec zero = {};
  if (activation == Activation::kRelu) return v < zero ? zero : v;  // NaN stays NaN
  if (activation == Activation::kLeakyRelu) return v < zero ? v * broadcast(kLeakySlope) : v;
  return v;
}

}  // namespace tunable_ops::TO_ISA
