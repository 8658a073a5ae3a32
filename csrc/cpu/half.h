// bfloat16 and float16 in memory, vectors of floats in registers; rounded to the nearest, ties to even.
namespace tunable_ops::TO_ISA {

typedef uint32_t Bits __attribute__((vector_size(TO_LANES * 4)));
typedef uint16_t Shorts __attribute__((vector_size(TO_LANES * 2), aligned(2), may_alias));

inline Bits bits_of(Vec v) { return reinterpret_cast<Bits>(v); }
inline Vec floats_of(Bits b) { return reinterpret_cast<Vec>(b); }
inline Bits widened(const void* p) { return __builtin_convertvector(*static_cast<const Shorts*>(p), Bits); }
inline void store_narrowed(void* p, Bits b) { *static_cast<Shorts*>(p) = __builtin_convertvector(b, Shorts); }

inline Vec load(const BFloat16* p) { return floats_of(widened(p) << 16); }

inline void store(BFloat16* p, Vec v) {
  const Bits bits = bits_of(v), nan = Bits{} + 0x7fc0u;
  store_narrowed(p, v == v ? (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16 : nan);
}

#if defined(TO_AVX512)
// Masked by all ones: g++ warns of the unmasked ones.
inline Vec load(const Half* p) {
  return reinterpret_cast<Vec>(_mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
}
inline void store(Half* p, Vec v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_maskz_cvtps_ph(0xffff, reinterpret_cast<__m512>(v),
                                            _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
#elif defined(TO_F16C)
inline Vec load(const Half* p) {
  return reinterpret_cast<Vec>(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}
inline void store(Half* p, Vec v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm256_cvtps_ph(reinterpret_cast<__m256>(v), _MM_FROUND_TO_NEAREST_INT));
}
#else
inline Vec load(const Half* p) {
  const Bits half = widened(p);
  const Bits bits = bits_of(floats_of((half & 0x7fffu) << 13) * broadcast(0x1p112f));  // subnormals too
  const Bits special = bits | 0x7f800000u, sign = (half & 0x8000u) << 16;
  return floats_of(((half & 0x7c00u) == 0x7c00u ? special : bits) | sign);
}
inline void store(Half* p, Vec v) {
  const Bits sign = bits_of(v) >> 16 & 0x8000u, size = bits_of(v) & 0x7fffffffu;
  const Bits infinite = Bits{} + 0x7c00u, nan = Bits{} + 0x7e00u;
  const Bits normal = (size + 0xc8000fffu + (size >> 13 & 1u)) >> 13;
  const Bits subnormal = bits_of(floats_of(size) + broadcast(0.5f)) - 0x3f000000u;  // the sum has a half's last bit
  const Bits finite = size < 0x38800000u ? subnormal : normal;
  store_narrowed(p, sign | (size > 0x7f800000u ? nan : size >= 0x477ff000u ? infinite : finite));
}
#endif

// As those of floats.
template <class T>
inline Vec load_first(const T* p, int64_t n) {
  T values[kLanes] = {};
  for (int64_t i = 0; i < n; ++i) values[i] = p[i];
  return load(values);
}

template <class T>
inline void store_first(T* p, Vec v, int64_t n) {
  T values[kLanes];
  store(values, v);
  for (int64_t i = 0; i < n; ++i) p[i] = values[i];
}

}  // namespace tunable_ops::TO_ISA
