#include "layout.h"

namespace tunable_ops {
namespace {

// Pixels and channels of a block. Planes lie apart by a power of two at times: more of them would share a set of the
// L1 cache.
constexpr int64_t kPixels = 16, kChannels = 4;
// Floats that justify waking another thread.
constexpr int64_t kGrainFloats = 1 << 15;

// Pixels [0, width) of channels [0, depth), between planes of `pixels` and pixels of `channels` floats.
template <bool kToLast>
inline void convert_block(const float* from, float* to, int64_t pixels, int64_t channels, int64_t width,
                          int64_t depth) {
  if (kToLast) {
    for (int64_t p = 0; p < width; ++p) {
      for (int64_t c = 0; c < depth; ++c) to[p * channels + c] = from[c * pixels + p];
    }
  } else {
    for (int64_t c = 0; c < depth; ++c) {
      for (int64_t p = 0; p < width; ++p) to[c * pixels + p] = from[p * channels + c];
    }
  }
}

template <bool kToLast>
void convert(const float* from, float* to, int64_t batch, int64_t channels, int64_t pixels) {
  const int64_t blocks = (pixels + kPixels - 1) / kPixels;
  const int64_t grain = std::max<int64_t>(1, kGrainFloats / (kPixels * channels));
  parallel_for(batch * blocks, grain, [=](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t b = item / blocks, p = item % blocks * kPixels, width = std::min(kPixels, pixels - p);
      for (int64_t c = 0; c < channels; c += kChannels) {
        const int64_t sample = b * channels * pixels, planar = sample + c * pixels + p;
        const int64_t packed = sample + p * channels + c, depth = std::min(kChannels, channels - c);
        const float* source = from + (kToLast ? planar : packed);
        float* target = to + (kToLast ? packed : planar);
        if (width == kPixels && depth == kChannels) {
          convert_block<kToLast>(source, target, pixels, channels, kPixels, kChannels);
        } else {
          convert_block<kToLast>(source, target, pixels, channels, width, depth);
        }
      }
    }
  });
}

// A float32 tensor that is not empty and dense in the other format.
template <MemoryFormat format>
Tensor converted(const Tensor& t) {
  constexpr bool kToLast = format == MemoryFormat::ChannelsLast;
  const Tensor result = empty({t.size(0), t.size(1), t.size(2), t.size(3)}, format);
  convert<kToLast>(t.const_data_ptr<float>(), result.mutable_data_ptr<float>(), t.size(0), t.size(1),
                   t.size(2) * t.size(3));
  return result;
}

}  // namespace

Tensor to_channels_last(const Tensor& t) {
  const bool ours =
      t.scalar_type() == ScalarType::Float && t.numel() > 0 && is_dense<4>(t, {0, 1, 2, 3}) && !is_channels_last(t);
  return ours ? converted<MemoryFormat::ChannelsLast>(t) : in_channels_last(t);
}

Tensor to_contiguous(const Tensor& t) {
  const bool ours =
      t.scalar_type() == ScalarType::Float && t.numel() > 0 && is_channels_last(t) && !is_dense<4>(t, {0, 1, 2, 3});
  return ours ? converted<MemoryFormat::Contiguous>(t) : torch::stable::contiguous(t);
}

}  // namespace tunable_ops
