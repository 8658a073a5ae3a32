// Winograd's transforms, and the kernels of winograd.h: blended, then transformed, G w G^T.
namespace tunable_ops::TO_ISA {

// Six points: 0, +-a, +-b and infinity; the rows of B^T are the coefficients of M(x) / (x - point). Of all pairs in
// sixteenths these have the least rounding error, half of that of 1 and 2. All factors of B and A are exact.
struct SixPoints {
  static constexpr int kPoints = 6;
  static constexpr float a = 0.625f, b = 1.5f, a2 = a * a, b2 = b * b;
  static constexpr float at_0 = 1 / (a2 * b2), at_a = 1 / (2 * a2 * (a2 - b2)), at_b = 1 / (2 * b2 * (b2 - a2));

  static inline void input(const Vec (&d)[6], Vec (&t)[6]) {
    const Vec even_a = d[4] - b2 * d[2], odd_a = d[3] - b2 * d[1];
    const Vec even_b = d[4] - a2 * d[2], odd_b = d[3] - a2 * d[1];
    t[0] = a2 * b2 * d[0] - a2 * d[2] + (d[4] - b2 * d[2]);
    t[1] = even_a + a * odd_a;
    t[2] = even_a - a * odd_a;
    t[3] = even_b + b * odd_b;
    t[4] = even_b - b * odd_b;
    t[5] = a2 * b2 * d[1] - a2 * d[3] + (d[5] - b2 * d[3]);
  }
};

// F(4x4, 3x3).
struct Filtering43 : SixPoints {
  static constexpr int kOut = 4, kTaps = 3;

  static inline void kernel(const Vec (&k)[3], Vec (&t)[6]) {
    const Vec even_a = at_a * k[0] + at_a * a2 * k[2], odd_a = at_a * a * k[1];
    const Vec even_b = at_b * k[0] + at_b * b2 * k[2], odd_b = at_b * b * k[1];
    t[0] = at_0 * k[0];
    t[1] = even_a + odd_a;
    t[2] = even_a - odd_a;
    t[3] = even_b + odd_b;
    t[4] = even_b - odd_b;
    t[5] = k[2];
  }

  static inline void output(const Vec (&m)[6], Vec (&y)[4]) {
    const Vec even_a = m[1] + m[2], odd_a = m[1] - m[2], even_b = m[3] + m[4], odd_b = m[3] - m[4];
    y[0] = m[0] + even_a + even_b;
    y[1] = a * odd_a + b * odd_b;
    y[2] = a2 * even_a + b2 * even_b;
    y[3] = a * a2 * odd_a + b * b2 * odd_b + m[5];
  }

  // A, the transpose of `output`.
  static inline void gradient(const Vec (&y)[4], Vec (&m)[6]) {
    const Vec even_a = y[0] + a2 * y[2], odd_a = a * y[1] + a * a2 * y[3];
    const Vec even_b = y[0] + b2 * y[2], odd_b = b * y[1] + b * b2 * y[3];
    m[0] = y[0];
    m[1] = even_a + odd_a;
    m[2] = even_a - odd_a;
    m[3] = even_b + odd_b;
    m[4] = even_b - odd_b;
    m[5] = y[3];
  }

  // G^T, the transpose of `kernel`.
  static inline void taps(const Vec (&t)[6], Vec (&k)[3]) {
    const Vec even_a = t[1] + t[2], even_b = t[3] + t[4];
    k[0] = at_0 * t[0] + at_a * even_a + at_b * even_b;
    k[1] = at_a * a * (t[1] - t[2]) + at_b * b * (t[3] - t[4]);
    k[2] = at_a * a2 * even_a + at_b * b2 * even_b + t[5];
  }
};

// F(2x2, 5x5).
struct Filtering25 : SixPoints {
  static constexpr int kOut = 2, kTaps = 5;
  static constexpr float a3 = a * a2, b3 = b * b2, a4 = a2 * a2, b4 = b2 * b2;

  static inline void kernel(const Vec (&k)[5], Vec (&t)[6]) {
    const Vec even_a = at_a * k[0] + at_a * a2 * k[2] + at_a * a4 * k[4], odd_a = at_a * a * k[1] + at_a * a3 * k[3];
    const Vec even_b = at_b * k[0] + at_b * b2 * k[2] + at_b * b4 * k[4], odd_b = at_b * b * k[1] + at_b * b3 * k[3];
    t[0] = at_0 * k[0];
    t[1] = even_a + odd_a;
    t[2] = even_a - odd_a;
    t[3] = even_b + odd_b;
    t[4] = even_b - odd_b;
    t[5] = k[4];
  }

  static inline void output(const Vec (&m)[6], Vec (&y)[2]) {
    y[0] = m[0] + (m[1] + m[2]) + (m[3] + m[4]);
    y[1] = a * (m[1] - m[2]) + b * (m[3] - m[4]) + m[5];
  }

  static inline void gradient(const Vec (&y)[2], Vec (&m)[6]) {
    m[0] = y[0];
    m[1] = y[0] + a * y[1];
    m[2] = y[0] - a * y[1];
    m[3] = y[0] + b * y[1];
    m[4] = y[0] - b * y[1];
    m[5] = y[1];
  }

  static inline void taps(const Vec (&t)[6], Vec (&k)[5]) {
    const Vec even_a = t[1] + t[2], odd_a = t[1] - t[2], even_b = t[3] + t[4], odd_b = t[3] - t[4];
    k[0] = at_0 * t[0] + at_a * even_a + at_b * even_b;
    k[1] = at_a * a * odd_a + at_b * b * odd_b;
    k[2] = at_a * a2 * even_a + at_b * b2 * even_b;
    k[3] = at_a * a3 * odd_a + at_b * b3 * odd_b;
    k[4] = at_a * a4 * even_a + at_b * b4 * even_b + t[5];
  }
};

// F(2x2, 3x3), at the points 0, 1, -1 and infinity.
struct Filtering23 {
  static constexpr int kPoints = 4, kOut = 2, kTaps = 3;

  static inline void input(const Vec (&d)[4], Vec (&t)[4]) {
    t[0] = d[2] - d[0];
    t[1] = d[2] + d[1];
    t[2] = d[2] - d[1];
    t[3] = d[3] - d[1];
  }

  static inline void kernel(const Vec (&k)[3], Vec (&t)[4]) {
    const Vec even = 0.5f * k[0] + 0.5f * k[2], odd = 0.5f * k[1];
    t[0] = -k[0];
    t[1] = even + odd;
    t[2] = even - odd;
    t[3] = k[2];
  }

  static inline void output(const Vec (&m)[4], Vec (&y)[2]) {
    y[0] = m[0] + m[1] + m[2];
    y[1] = m[1] - m[2] + m[3];
  }

  static inline void gradient(const Vec (&y)[2], Vec (&m)[4]) {
    m[0] = y[0];
    m[1] = y[0] + y[1];
    m[2] = y[0] - y[1];
    m[3] = y[1];
  }

  static inline void taps(const Vec (&t)[4], Vec (&k)[3]) {
    const Vec even = 0.5f * t[1] + 0.5f * t[2];
    k[0] = even - t[0];
    k[1] = 0.5f * t[1] - 0.5f * t[2];
    k[2] = even + t[3];
  }
};

// Calls f with the filtering that has these points and taps per dimension.
template <class Function>
inline void with_filtering(int64_t points, int64_t taps, Function f) {
  if (points == Filtering23::kPoints) return f(Filtering23());
  if (taps == Filtering43::kTaps) return f(Filtering43());
  f(Filtering25());
}

// The kernels of a vector of outputs for as many channels: blended as they lie in the stack, in rows as long as the
// layout allows, then turned so that each vector holds one tap of all outputs.
struct KernelBlock {
  int64_t outputs, channels;
  int64_t outer, outer_step, rows, row_step, size;  // rows of `size` floats in the stack
  int64_t origin, output, channel, tap_h, tap_w;    // in the blended rows: the first value, and the strides
};

template <int kTaps>
inline KernelBlock kernel_block(const Stack& s, int64_t outputs, int64_t channels) {
  constexpr int64_t kSquare = kTaps * kTaps;
  KernelBlock k{outputs, channels, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0};
  const bool flipped = s.stride_tap_w < 0, packed = s.stride_tap_w == (flipped ? -1 : 1);
  const int64_t sign = flipped ? -1 : 1;
  const bool by_output = s.stride_output > s.stride_channel;  // an output's kernels lie together
  const int64_t inner = by_output ? channels : outputs, inner_step = by_output ? s.stride_channel : s.stride_output;
  k.outer = by_output ? outputs : channels;
  k.outer_step = by_output ? s.stride_output : s.stride_channel;
  int64_t inner_to;
  if (packed && s.stride_tap_h == kTaps * sign && inner_step == kSquare) {
    k.rows = 1, k.size = kSquare * inner, inner_to = kSquare, k.tap_w = sign, k.tap_h = kTaps * sign;
  } else if (inner_step == 1 && s.stride_tap_h == kTaps * s.stride_tap_w) {
    k.rows = kSquare, k.row_step = sign * s.stride_tap_w, k.size = inner, inner_to = 1;
    k.tap_w = sign * inner, k.tap_h = kTaps * k.tap_w;
  } else {
    return k;  // no rows
  }
  k.origin = flipped ? -(kTaps - 1) * (k.tap_h + k.tap_w) : 0;
  (by_output ? k.output : k.channel) = k.rows * k.size;
  (by_output ? k.channel : k.output) = inner_to;
  return k;
}

// [channels][taps][lanes] at `taps` from the blended rows.
template <int kTaps>
inline void turn_block(const KernelBlock& k, const float* blended, float* taps) {
  constexpr int64_t kSquare = kTaps * kTaps;
  const bool whole = k.outputs == kLanes && k.channels == kLanes;
  if (whole && k.channel == 1) {
    for (int64_t tap = 0; tap < kSquare; ++tap)
      transpose(blended + k.origin + tap / kTaps * k.tap_h + tap % kTaps * k.tap_w, k.output, taps + tap * kLanes,
                kSquare * kLanes);
    return;
  }
  if (whole && k.channel == kSquare && k.tap_w == 1) {  // each output's values in the order of `taps`
    for (int64_t i = 0; i < kSquare * kLanes; i += kLanes) transpose(blended + i, k.output, taps + i * kLanes, kLanes);
    return;
  }
  for (int64_t c = 0; c < k.channels; ++c) {
    for (int64_t tap = 0; tap < kSquare; ++tap, taps += kLanes) {
      const float* from = blended + k.origin + c * k.channel + tap / kTaps * k.tap_h + tap % kTaps * k.tap_w;
      if (k.output == 1 && k.outputs == kLanes) {
        store(taps, load(from));
      } else {
        for (int64_t o = 0; o < k.outputs; ++o) taps[o] = from[o * k.output];
      }
    }
  }
}

// source = sum_p alpha[p] * kernel p, for the block at `data` of the first kernel; [channels][taps][lanes] at `taps`.
template <int kTaps>
inline void blend_block(const Stack& stack, const KernelBlock& k, const float* data, const float* alpha, float* blended,
                        float* taps) {
  constexpr int64_t kSquare = kTaps * kTaps;
  if (k.size == 0) {
    for (int64_t i = 0; i < k.channels * kSquare; ++i) {
      const float* from = data + i / kSquare * stack.stride_channel + i / kTaps % kTaps * stack.stride_tap_h +
                          i % kTaps * stack.stride_tap_w;
      for (int64_t o = 0; o < k.outputs; ++o) {
        float total = 0;
        for (int64_t p = 0; p < stack.kernels; ++p)
          total += alpha[p] * from[o * stack.stride_output + p * stack.stride_kernel];
        taps[i * kLanes + o] = total;
      }
    }
    return;
  }
  if (k.origin) data += (kTaps - 1) * (stack.stride_tap_h + stack.stride_tap_w);
  float* to = blended;
  for (int64_t i = 0; i < k.outer; ++i) {
    for (int64_t row = 0; row < k.rows; ++row, to += k.size) {
      const float* from = data + i * k.outer_step + row * k.row_step;
      for (int64_t j = 0; j < k.size; j += kLanes) {
        const int64_t lanes = min(kLanes, k.size - j);
        Vec total = {};
        for (int64_t p = 0; p < stack.kernels; ++p) {
          const float* at = from + p * stack.stride_kernel + j;
          total += broadcast(alpha[p]) * (lanes == kLanes ? load(at) : load_first(at, lanes));
        }
        store(to + j, total);  // the next row overwrites what is beyond this one
      }
    }
  }
  turn_block<kTaps>(k, blended, taps);
}

// Transforms one kernel [taps] per lane.
template <class F>
inline void transform_kernel(const float* taps, float* to, int64_t point) {
  constexpr int kPoints = F::kPoints;
  constexpr int kTaps = F::kTaps;
  Vec half[kPoints][kTaps];
#pragma GCC unroll 5
  for (int s = 0; s < kTaps; ++s) {
    Vec column[kTaps], t[kPoints];
#pragma GCC unroll 5
    for (int r = 0; r < kTaps; ++r) column[r] = load(taps + (kTaps * r + s) * kLanes);
    F::kernel(column, t);
#pragma GCC unroll 6
    for (int i = 0; i < kPoints; ++i) half[i][s] = t[i];
  }
#pragma GCC unroll 6
  for (int i = 0; i < kPoints; ++i) {
    Vec t[kPoints];
    F::kernel(half[i], t);
#pragma GCC unroll 6
    for (int j = 0; j < kPoints; ++j) store(to + (i * kPoints + j) * point, t[j]);
  }
}

int64_t winograd_blocks(const Panels& p) { return p.groups * p.vectors() * ceil_div(p.channels, kLanes); }

template <class F>
void winograd_kernels_of(const Blend& args, int64_t begin, int64_t end) {
  const Panels& p = args.panels;
  const Stack& stack = args.stack;
  const int64_t blocks = ceil_div(p.channels, kLanes);
  constexpr int64_t kSquare = F::kTaps * F::kTaps;
  float blended[(kSquare * kLanes + 1) * kLanes], taps[kSquare * kLanes * kLanes];
  clear(taps, kSquare * kLanes * kLanes);
  for (int64_t item = begin; item < end; ++item) {
    const int64_t vector = item / blocks % p.vectors(), group = item / blocks / p.vectors();
    const int64_t channel = item % blocks * kLanes, channels = min(kLanes, p.channels - channel);
    const int64_t panel = vector / p.width, width = p.panel_vectors(panel) * kLanes;
    const int64_t outputs = min(kLanes, p.outputs - vector * kLanes);
    const KernelBlock block = kernel_block<F::kTaps>(stack, outputs, channels);
    const float* data = stack.data + group * stack.stride_group + vector * kLanes * stack.stride_output +
                        channel * stack.stride_channel;
    if (outputs < kLanes) clear(taps, kSquare * kLanes * kLanes);
    for (int64_t b = 0; b < args.batch; ++b) {
      blend_block<F::kTaps>(stack, block, data, args.alpha + b * stack.kernels, blended, taps);
      float* to = args.blended + b * p.size() + p.offset(group, panel) + channel * width + vector % p.width * kLanes;
      for (int64_t c = 0; c < channels; ++c)
        transform_kernel<F>(taps + c * kSquare * kLanes, to + c * width, p.channels * width + p.pad);
    }
  }
}

void winograd_kernels(const Blend& args, int64_t begin, int64_t end) {
  with_filtering(args.panels.taps_h, args.taps,
                 [&](auto filtering) { winograd_kernels_of<decltype(filtering)>(args, begin, end); });
}

}  // namespace tunable_ops::TO_ISA
