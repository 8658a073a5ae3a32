#include "hopper_check.h"

#include <cmath>
#include <cstring>

namespace tunable_ops::cuda {
namespace {

constexpr int32_t kKernels = 3, kSamples = 3;
constexpr float kAlpha[kKernels] = {1.0f, -1.0f, 2.0f};

// Small integers from a linear congruence; most of them zero, so that sums stay small.
struct Integers {
  uint32_t state;
  int32_t next() {
    state = state * 1664525u + 1013904223u;
    const uint32_t v = state >> 24;
    return v < 24 ? 1 : v < 48 ? -1 : 0;
  }
};

// Integers up to 256 are exact in both types.
uint16_t to_bits(int32_t value, Type type) {
  const float v = static_cast<float>(value);
  uint32_t bits;
  std::memcpy(&bits, &v, 4);
  if (type == Type::kBFloat16) return static_cast<uint16_t>(bits >> 16);
  if (value == 0) return 0;
  const uint32_t exponent = (bits >> 23 & 0xff) - 127 + 15;
  return static_cast<uint16_t>((bits >> 16 & 0x8000) | exponent << 10 | (bits >> 13 & 0x3ff));
}

float to_value(uint16_t bits, Type type) {
  if (type == Type::kBFloat16) {
    const uint32_t wide = static_cast<uint32_t>(bits) << 16;
    float v;
    std::memcpy(&v, &wide, 4);
    return v;
  }
  const int32_t exponent = bits >> 10 & 31, fraction = bits & 0x3ff;
  const float sign = bits >> 15 ? -1.0f : 1.0f;
  if (exponent == 31) return fraction != 0 ? NAN : sign * INFINITY;
  return sign * (exponent == 0 ? std::ldexp(static_cast<float>(fraction), -24)
                               : std::ldexp(static_cast<float>(fraction + 1024), exponent - 25));
}

float activated(float v, Activation activation) {
  switch (activation) {
    case Activation::kRelu:
      return v < 0 ? 0.0f : v;
    case Activation::kLeakyRelu:
      return v < 0 ? v * kLeakySlope : v;
    case Activation::kGelu:
      return 0.5f * v * (1.0f + std::erf(v * 0.70710678f));
    case Activation::kSilu:
      return v / (1.0f + std::exp(-v));
    default:
      return v;
  }
}

void fill(std::vector<uint16_t>& values, size_t count, uint32_t seed, Type type) {
  Integers integers{seed};
  values.resize(count);
  for (uint16_t& value : values) value = to_bits(integers.next(), type);
}

}  // namespace

HopperCheck::HopperCheck(const ConvRun& like) : conv(like) {
  for (Extent* e : {&conv.y, &conv.x}) {
    e->pad = e->taps / 2;
    e->in = e == &conv.y ? 19 : 70;
    e->out = e->in + 2 * e->pad - e->taps + 1;
  }
  const Extent &y = conv.y, &x = conv.x;
  conv.samples = conv.problems = kSamples;
  const auto strides = [](int32_t channels, int32_t height, int32_t width) {
    return ImageStrides{static_cast<int64_t>(channels) * height * width, width * channels, channels, 1};
  };
  conv.source = conv.gradient ? strides(conv.channels, y.out, x.out) : strides(conv.channels, y.in, x.in);
  conv.target = conv.gradient ? strides(conv.outputs, y.in, x.in) : strides(conv.outputs, y.out, x.out);
  fill(input, kSamples * conv.source.sample, 1, conv.type);
  conv.weight_kernel = static_cast<int64_t>(conv.outputs) * conv.channels * y.taps * x.taps;
  fill(weight, kKernels * conv.weight_kernel, 2, conv.type);
  if (!conv.gradient) fill(bias, static_cast<size_t>(kKernels) * conv.outputs, 3, conv.type);
  conv.bias_kernel = conv.outputs;
  conv.bias_output = 1;
  for (int32_t b = 0; b < kSamples; ++b) {
    for (int32_t p = 0; p < kKernels; ++p) alpha.push_back(kAlpha[(b + p) % kKernels]);
  }
  conv.alpha = {nullptr, kKernels, 1, kKernels, Type::kFloat};
  output.assign(kSamples * conv.target.sample, 0);
}

std::string HopperCheck::difference() const {
  const Axis y = axis_of(conv.y, conv.gradient, 0), x = axis_of(conv.x, conv.gradient, 0);
  const int32_t taps = y.taps * x.taps, channels = conv.channels, outputs = conv.outputs;
  std::vector<float> kernel(conv.weight_kernel), sums(outputs);  // [taps, channels, outputs]
  for (int32_t sample = 0; sample < kSamples; ++sample) {
    const float* row = alpha.data() + sample * kKernels;
    for (int32_t t = 0; t < taps; ++t) {
      const int32_t tap = y.tap(t / x.taps) * x.taps + x.tap(t % x.taps);
      for (int32_t c = 0; c < channels; ++c) {
        for (int32_t o = 0; o < outputs; ++o) {
          const int64_t at = conv.gradient ? (c * taps + tap) * static_cast<int64_t>(outputs) + o
                                           : (o * taps + tap) * static_cast<int64_t>(channels) + c;
          float total = 0;
          for (int32_t p = 0; p < kKernels; ++p)
            total += row[p] * to_value(weight[p * conv.weight_kernel + at], conv.type);
          kernel[(t * channels + c) * static_cast<int64_t>(outputs) + o] = total;
        }
      }
    }
    // 13 has no factor in common with the pixels of a tile's row: every lane is looked at.
    for (int32_t pixel = sample; pixel < y.count * x.count; pixel += 13) {
      const int32_t py = pixel / x.count, px = pixel % x.count;
      for (int32_t o = 0; o < outputs; ++o) {
        sums[o] = 0;
        for (int32_t p = 0; p < kKernels && !bias.empty(); ++p)
          sums[o] += row[p] * to_value(bias[p * outputs + o], conv.type);
      }
      for (int32_t t = 0; t < taps; ++t) {
        const int32_t sy = y.source(py) + t / x.taps, sx = x.source(px) + t % x.taps;
        if (sy < 0 || sy >= y.src_size || sx < 0 || sx >= x.src_size) continue;
        const uint16_t* from =
            input.data() + sample * conv.source.sample + sy * conv.source.row + sx * conv.source.pixel;
        for (int32_t c = 0; c < channels; ++c) {
          const float value = to_value(from[c], conv.type);
          if (value == 0) continue;
          const float* weights = kernel.data() + (t * channels + c) * static_cast<int64_t>(outputs);
          for (int32_t o = 0; o < outputs; ++o) sums[o] += value * weights[o];
        }
      }
      const uint16_t* found =
          output.data() + sample * conv.target.sample + py * conv.target.row + px * conv.target.pixel;
      for (int32_t o = 0; o < outputs; ++o) {
        const float value = to_value(found[o], conv.type), expected = activated(sums[o], conv.activation);
        // Integers are exact; larger ones and what is no integer are rounded to bfloat16 or better.
        const bool exact = conv.activation <= Activation::kRelu && std::fabs(expected) <= 256;
        if (std::fabs(value - expected) <= (exact ? 0.0f : std::fabs(expected) / 256 + 1e-6f)) continue;
        return "sample " + std::to_string(sample) + ", row " + std::to_string(py) + ", column " + std::to_string(px) +
               ", output " + std::to_string(o) + ": " + std::to_string(value) + " instead of " +
               std::to_string(expected);
      }
    }
  }
  return {};
}

}  // namespace tunable_ops::cuda
