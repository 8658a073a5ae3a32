// Storage types and their conversions. Arithmetic is in fp32; conversions back round once, to nearest even.
#pragma once

#include "params.h"
#include "platform.cuh"

namespace tunable_ops::cuda {

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

template <class T>
constexpr int32_t kVector = 16 / sizeof(T);  // elements of a 16-byte access

TO_DEVICE float to_float(float v) { return v; }
TO_DEVICE float to_float(BFloat16 v) { return bits_to_float(static_cast<uint32_t>(v.bits) << 16); }
TO_DEVICE float to_float(Half v) { return half_to_float(v.bits); }

template <class T>
TO_DEVICE T from_float(float v);
template <>
TO_DEVICE float from_float<float>(float v) {
  return v;
}
template <>
TO_DEVICE Half from_float<Half>(float v) {
  return {float_to_half(v)};
}
template <>
TO_DEVICE BFloat16 from_float<BFloat16>(float v) {
  return {float_to_bfloat16(v)};
}

// kVector elements, loaded and stored as 16 bytes.
template <class T>
struct alignas(16) Pack {
  T data[kVector<T>];
};

// n elements of T, aligned to their total size for vector loads and stores.
template <class T, int n>
struct alignas(n * sizeof(T)) AlignedArray {
  T data[n];
};

TO_DEVICE float load_scalar(const void* data, Type type, int64_t index) {
  if (type == Type::kFloat) return static_cast<const float*>(data)[index];
  if (type == Type::kHalf) return to_float(static_cast<const Half*>(data)[index]);
  return to_float(static_cast<const BFloat16*>(data)[index]);
}

TO_DEVICE void store_scalar(void* data, Type type, int64_t index, float value) {
  if (type == Type::kFloat) static_cast<float*>(data)[index] = value;
  if (type == Type::kHalf) static_cast<Half*>(data)[index] = from_float<Half>(value);
  if (type == Type::kBFloat16) static_cast<BFloat16*>(data)[index] = from_float<BFloat16>(value);
}

TO_DEVICE float alpha_of(const Alpha& alpha, int64_t row, int32_t p) {
  return load_scalar(alpha.data, alpha.type, row * alpha.row_step + p * alpha.step);
}

// The blended bias of an output; not rounded, because it is added to an fp32 sum.
TO_DEVICE float blended_bias(const void* bias, Type type, int64_t kernel, int64_t index, const Alpha& alpha,
                             int64_t row) {
  float total = 0;
  for (int32_t p = 0; p < alpha.kernels; ++p)
    total += alpha_of(alpha, row, p) * load_scalar(bias, type, p * kernel + index);
  return total;
}

// Neumaier's compensated sum: an fp32 sum whose error does not grow with the number of terms.
struct CompensatedSum {
  float total = 0, rest = 0;
  TO_DEVICE void add(float v) {
    const float next = total + v;
    rest += fabsf(total) < fabsf(v) ? (v - next) + total : (total - next) + v;
    total = next;
  }
  // An infinite total has a NaN rest.
  TO_DEVICE float value() const { return total - total == 0 ? total + rest : total; }
};

// Every activation propagates NaN, as in PyTorch.
TO_DEVICE float activate(float v, Activation activation) {
  switch (activation) {
    case Activation::kRelu:
      return v < 0 ? 0.0f : v;
    case Activation::kLeakyRelu:
      return v < 0 ? v * kLeakySlope : v;
    case Activation::kGelu:
      return 0.5f * v * (1.0f + erff(v * 0.70710678118654752440f));
    case Activation::kSilu:
      return v / (1.0f + expf(-v));
    default:
      return v;
  }
}

// The derivative at the saved value: the output, or the argument for gelu and silu.
TO_DEVICE float derivative(float v, Activation activation) {
  switch (activation) {
    case Activation::kRelu:
      return v > 0 ? 1.0f : 0.0f;
    case Activation::kLeakyRelu:
      return v > 0 ? 1.0f : kLeakySlope;
    case Activation::kGelu:
      return 0.5f * (1.0f + erff(v * 0.70710678118654752440f)) + v * 0.39894228040143267794f * expf(-0.5f * v * v);
    case Activation::kSilu: {
      const float sigmoid = 1.0f / (1.0f + expf(-v));
      return sigmoid * (1.0f + v * (1.0f - sigmoid));
    }
    default:
      return 1.0f;
  }
}

// Calls f with a value-initialised object of the storage type.
template <class F>
const char* for_type(Type type, F f) {
  if (type == Type::kFloat) return f(float{});
  if (type == Type::kHalf) return f(Half{});
  return f(BFloat16{});
}

}  // namespace tunable_ops::cuda
