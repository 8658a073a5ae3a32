// Blends of kernels that lie without gaps, of any number type: no panels, no layout. Sums are fp32 (fp64 for fp64).
namespace tunable_ops::TO_ISA {

// Elements that stay in the first-level cache while the P kernels go by.
constexpr int64_t kFlat = 1024;

template <typename To, typename From>
inline To bits_as(From value) {
  static_assert(sizeof(To) == sizeof(From), "the same bits");
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

// The exponent is moved by a product, which also makes subnormals normal; infinity and NaN keep the largest one.
inline float from_half(uint16_t bits) {
  const uint32_t magnitude = static_cast<uint32_t>(bits & 0x7fff) << 13;
  const uint32_t moved = bits_as<uint32_t>(bits_as<float>(magnitude) * 0x1p112f);
  const uint32_t value = (bits & 0x7c00) == 0x7c00 ? magnitude | 0x7f800000 : moved;
  return bits_as<float>(value | static_cast<uint32_t>(bits & 0x8000) << 16);
}

inline uint16_t to_half(float value) {
  const uint32_t bits = bits_as<uint32_t>(value), magnitude = bits & 0x7fffffff;
  const uint32_t normal = (magnitude + 0xfff + (magnitude >> 13 & 1) - (112u << 23)) >> 13;
  // 0.5 has the step of the smallest halves: the sum rounds to it.
  const uint32_t small = bits_as<uint32_t>(bits_as<float>(magnitude) + 0.5f) - bits_as<uint32_t>(0.5f);
  const uint32_t finite = magnitude < 0x38800000 ? small : normal;
  const uint32_t large = magnitude > 0x7f800000 ? 0x7e00 : 0x7c00;
  return static_cast<uint16_t>((magnitude >= 0x477ff000 ? large : finite) | (bits >> 16 & 0x8000));
}

// `count` numbers from `begin` on, as Sum.
template <typename Sum>
inline void read(const void* source, Number number, int64_t begin, int64_t count, Sum* to) {
  switch (number) {
    case Number::kFloat:
      for (int64_t i = 0; i < count; ++i) to[i] = static_cast<const float*>(source)[begin + i];
      break;
    case Number::kDouble:
      for (int64_t i = 0; i < count; ++i) to[i] = static_cast<Sum>(static_cast<const double*>(source)[begin + i]);
      break;
    case Number::kHalf:
      for (int64_t i = 0; i < count; ++i) to[i] = from_half(static_cast<const uint16_t*>(source)[begin + i]);
      break;
    case Number::kBFloat16:
      for (int64_t i = 0; i < count; ++i) to[i] = from_bfloat16(static_cast<const uint16_t*>(source)[begin + i]);
      break;
  }
}

template <typename Sum>
inline void write(const Sum* from, Number number, int64_t begin, int64_t count, void* target) {
  switch (number) {
    case Number::kFloat:
      for (int64_t i = 0; i < count; ++i) static_cast<float*>(target)[begin + i] = static_cast<float>(from[i]);
      break;
    case Number::kDouble:
      for (int64_t i = 0; i < count; ++i) static_cast<double*>(target)[begin + i] = from[i];
      break;
    case Number::kHalf:
      for (int64_t i = 0; i < count; ++i)
        static_cast<uint16_t*>(target)[begin + i] = to_half(static_cast<float>(from[i]));
      break;
    case Number::kBFloat16:
      for (int64_t i = 0; i < count; ++i)
        static_cast<uint16_t*>(target)[begin + i] = to_bfloat16(static_cast<float>(from[i]));
      break;
  }
}

// The numbers themselves where they are of the type of the sums, else a copy of them.
template <typename Sum>
inline const Sum* view(const void* source, Number number, int64_t begin, int64_t count, Sum* copy) {
  if (number == (sizeof(Sum) == 8 ? Number::kDouble : Number::kFloat)) return static_cast<const Sum*>(source) + begin;
  read(source, number, begin, count, copy);
  return copy;
}

template <typename Sum>
inline void flat_blend_as(const FlatBlend& b, int64_t begin, int64_t end) {
  Sum copy[kFlat], total[kFlat];
  for (int64_t start = begin; start < end; start += kFlat) {
    const int64_t count = least(kFlat, end - start);
    for (int64_t p = 0; p < b.kernels; ++p) {
      const Sum factor = static_cast<Sum>(b.alpha[p]);
      const Sum* kernel = view(b.stack, b.number, p * b.stride + start, count, copy);
      if (p == 0) {
        for (int64_t i = 0; i < count; ++i) total[i] = factor * kernel[i];
      } else {
        for (int64_t i = 0; i < count; ++i) total[i] += factor * kernel[i];
      }
    }
    write(total, b.out_number, start, count, b.out);
  }
}

// Floats need no tiles: two kernels at a time in long runs, which is what memory is read fastest in.
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
  if (b.number == Number::kFloat && b.out_number == Number::kFloat) return flat_blend_floats(b, begin, end);
  (b.number == Number::kDouble ? flat_blend_as<double> : flat_blend_as<float>)(b, begin, end);
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
    const int64_t count = least(kFlat, end - start);
    const Sum* gradient = view(c.gradient, c.gradient_number, start, count, grad_copy);
    for (int64_t p = 0; p < c.kernels; ++p) {
      if (products) products[p] += flat_dot(gradient, view(c.stack, c.number, p * c.stride + start, count, copy), count);
      if (!c.grad) continue;
      const Sum factor = static_cast<Sum>(c.alpha[p]);
      for (int64_t i = 0; i < count; ++i) scaled[i] = factor * gradient[i];
      write(scaled, c.number, p * c.grad_stride + start, count, c.grad);
    }
  }
}

void flat_contract(const FlatContract& c, int64_t begin, int64_t end, double* products) {
  (c.number == Number::kDouble ? flat_contract_as<double> : flat_contract_as<float>)(c, begin, end, products);
}

}  // namespace tunable_ops::TO_ISA
