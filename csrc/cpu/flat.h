// Blends contiguous kernels of any number type, treating each as a flat array. Accumulates in fp32 (fp64 for fp64).
namespace tunable_ops::TO_ISA {

// Elements that stay in the L1 cache while the P kernels are read.
constexpr int64_t kFlat = 1024;

template <typename To, typename From>
inline To bits_as(From value) {
  static_assert(sizeof(To) == sizeof(From), "sizes must match");
  To result;
  __builtin_memcpy(&result, &value, sizeof(To));
  return result;
}

inline float from_bfloat16(uint16_t bits) { return bits_as<float>(static_cast<uint32_t>(bits) << 16); }

inline uint16_t to_bfloat16(float value) {
  const uint32_t bits = bits_as<uint32_t>(value);
  const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  return static_cast<uint16_t>(value != value ? 0x7fc0 : rounded);
}

// A multiplication rebiases the exponent and normalises subnormals; infinity and NaN get the largest exponent.
inline float from_half(uint16_t bits) {
  const uint32_t magnitude = static_cast<uint32_t>(bits & 0x7fff) << 13;
  const uint32_t moved = bits_as<uint32_t>(bits_as<float>(magnitude) * 0x1p112f);
  const uint32_t value = (bits & 0x7c00) == 0x7c00 ? magnitude | 0x7f800000 : moved;
  return bits_as<float>(value | static_cast<uint32_t>(bits & 0x8000) << 16);
}

inline uint16_t to_half(float value) {
  const uint32_t bits = bits_as<uint32_t>(value), magnitude = bits & 0x7fffffff;
  const uint32_t normal = (magnitude + 0xfff + (magnitude >> 13 & 1) - (112u << 23)) >> 13;
  // The spacing of floats at 0.5 is that of subnormal halves, so the addition rounds correctly.
  const uint32_t small = bits_as<uint32_t>(bits_as<float>(magnitude) + 0.5f) - bits_as<uint32_t>(0.5f);
  const uint32_t finite = magnitude < 0x38800000 ? small : normal;
  const uint32_t large = magnitude > 0x7f800000 ? 0x7e00 : 0x7c00;
  return static_cast<uint16_t>((magnitude >= 0x477ff000 ? large : finite) | (bits >> 16 & 0x8000));
}

// Converts `count` numbers from `begin` on to Sum.
template <typename Sum>
inline void read(const void* source, NumberType type, int64_t begin, int64_t count, Sum* to) {
  switch (type) {
    case NumberType::kFloat:
      for (int64_t i = 0; i < count; ++i) to[i] = static_cast<const float*>(source)[begin + i];
      break;
    case NumberType::kDouble:
      for (int64_t i = 0; i < count; ++i) to[i] = static_cast<Sum>(static_cast<const double*>(source)[begin + i]);
      break;
    case NumberType::kHalf:
      for (int64_t i = 0; i < count; ++i) to[i] = from_half(static_cast<const uint16_t*>(source)[begin + i]);
      break;
    case NumberType::kBFloat16:
      for (int64_t i = 0; i < count; ++i) to[i] = from_bfloat16(static_cast<const uint16_t*>(source)[begin + i]);
      break;
  }
}

template <typename Sum>
inline void write(const Sum* from, NumberType type, int64_t begin, int64_t count, void* target) {
  switch (type) {
    case NumberType::kFloat:
      for (int64_t i = 0; i < count; ++i) static_cast<float*>(target)[begin + i] = static_cast<float>(from[i]);
      break;
    case NumberType::kDouble:
      for (int64_t i = 0; i < count; ++i) static_cast<double*>(target)[begin + i] = from[i];
      break;
    case NumberType::kHalf:
      for (int64_t i = 0; i < count; ++i)
        static_cast<uint16_t*>(target)[begin + i] = to_half(static_cast<float>(from[i]));
      break;
    case NumberType::kBFloat16:
      for (int64_t i = 0; i < count; ++i)
        static_cast<uint16_t*>(target)[begin + i] = to_bfloat16(static_cast<float>(from[i]));
      break;
  }
}

// Points at the numbers themselves if they already have type Sum, else at a converted copy.
template <typename Sum>
inline const Sum* view(const void* source, NumberType type, int64_t begin, int64_t count, Sum* copy) {
  if (type == (sizeof(Sum) == 8 ? NumberType::kDouble : NumberType::kFloat))
    return static_cast<const Sum*>(source) + begin;
  read(source, type, begin, count, copy);
  return copy;
}

template <typename Sum>
inline void flat_blend_as(const FlatBlend& b, int64_t begin, int64_t end) {
  Sum copy[kFlat], total[kFlat];
  for (int64_t start = begin; start < end; start += kFlat) {
    const int64_t count = min(kFlat, end - start);
    for (int64_t p = 0; p < b.kernels; ++p) {
      const Sum factor = static_cast<Sum>(b.alpha[p]);
      const Sum* kernel = view(b.stack, b.type, p * b.stride + start, count, copy);
      if (p == 0) {
        for (int64_t i = 0; i < count; ++i) total[i] = factor * kernel[i];
      } else {
        for (int64_t i = 0; i < count; ++i) total[i] += factor * kernel[i];
      }
    }
    write(total, b.out_type, start, count, b.out);
  }
}

// Floats need no conversion, hence no blocks: two kernels at a time in long runs, for memory bandwidth.
inline void flat_blend_floats(const FlatBlend& b, int64_t begin, int64_t end) {
  float* out = static_cast<float*>(b.out);
  for (int64_t p = 0; p < b.kernels; p += 2) {
    const float* first = static_cast<const float*>(b.stack) + p * b.stride;
    const bool pair = p + 1 < b.kernels;
    const float* second = pair ? first + b.stride : first;
    const float factors[] = {static_cast<float>(b.alpha[p]), pair ? static_cast<float>(b.alpha[p + 1]) : 0.0f};
    const Vec f = broadcast(factors[0]), g = broadcast(factors[1]);
    int64_t i = begin;
    for (; i + kLanes <= end; i += kLanes) {
      Vec sum = f * load(first + i);
      if (pair) sum += g * load(second + i);
      store(out + i, p == 0 ? sum : load(out + i) + sum);
    }
    for (; i < end; ++i) {
      float sum = factors[0] * first[i];
      if (pair) sum += factors[1] * second[i];
      out[i] = p == 0 ? sum : out[i] + sum;
    }
  }
}

void flat_blend(const FlatBlend& b, int64_t begin, int64_t end) {
  if (b.type == NumberType::kFloat && b.out_type == NumberType::kFloat) return flat_blend_floats(b, begin, end);
  (b.type == NumberType::kDouble ? flat_blend_as<double> : flat_blend_as<float>)(b, begin, end);
}

template <typename Sum>
inline double flat_dot(const Sum* a, const Sum* b, int64_t count) {
  constexpr int64_t kSums = 64;
  Sum sums[kSums] = {};
  int64_t i = 0;
  for (; i + kSums <= count; i += kSums) {
    for (int64_t s = 0; s < kSums; ++s) sums[s] += a[i + s] * b[i + s];
  }
  double total = 0;
  for (; i < count; ++i) total += static_cast<double>(a[i]) * b[i];
  for (const Sum sum : sums) total += sum;
  return total;
}

template <typename Sum>
inline void flat_contract_as(const FlatContract& c, int64_t begin, int64_t end, double* products) {
  Sum copy[kFlat], grad_copy[kFlat], scaled[kFlat];
  for (int64_t start = begin; start < end; start += kFlat) {
    const int64_t count = min(kFlat, end - start);
    const Sum* gradient = view(c.gradient, c.gradient_type, start, count, grad_copy);
    for (int64_t p = 0; p < c.kernels; ++p) {
      if (products) products[p] += flat_dot(gradient, view(c.stack, c.type, p * c.stride + start, count, copy), count);
      if (!c.grad) continue;
      const Sum factor = static_cast<Sum>(c.alpha[p]);
      for (int64_t i = 0; i < count; ++i) scaled[i] = factor * gradient[i];
      write(scaled, c.type, p * c.grad_stride + start, count, c.grad);
    }
  }
}

void flat_contract(const FlatContract& c, int64_t begin, int64_t end, double* products) {
  (c.type == NumberType::kDouble ? flat_contract_as<double> : flat_contract_as<float>)(c, begin, end, products);
}

}  // namespace tunable_ops::TO_ISA
