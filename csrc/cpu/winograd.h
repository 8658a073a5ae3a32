// Winograd's minimal filtering for 3x3 kernels with stride 1: F(4x4, 3x3) and F(2x2, 3x3). A tile of m x m outputs is
// A^T [sum_c (G w_c G^T) * (B^T x_c B)] A: (m + 2)^2 products per channel instead of 9 m^2. The products of a block of
// tiles are one matrix product [tiles, channels] x [channels, outputs] per point, done by the kernel for convolutions.
namespace tunable_ops::TO_ISA {

template <int kOut>
struct Filtering;

// At the points 0, +-a, +-b and infinity; the rows of B^T are the coefficients of M(x) / (x - point). Of all pairs in
// sixteenths these have the least rounding error, half of that of 1 and 2. All factors of B and A are exact.
template <>
struct Filtering<4> {
  static constexpr int kPoints = 6;
  static constexpr float a = 0.625f, b = 1.5f, a2 = a * a, b2 = b * b;

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

  static inline void kernel(const Vec (&k)[3], Vec (&t)[6]) {
    constexpr float at_0 = 1 / (a2 * b2), at_a = 1 / (2 * a2 * (a2 - b2)), at_b = 1 / (2 * b2 * (b2 - a2));
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
};

// At the points 0, 1, -1 and infinity.
template <>
struct Filtering<2> {
  static constexpr int kPoints = 4;

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
};

// The kernels of a vector of outputs for as many channels: blended as they lie in the stack, in rows as long as the
// layout allows, then turned so that each vector holds one tap of all outputs.
struct KernelBlock {
  int64_t outputs, channels;
  int64_t outer, outer_step, rows, row_step, size;  // rows of `size` floats in the stack
  int64_t origin, output, channel, tap_h, tap_w;    // in the blended rows: the first value, and the strides
};

inline KernelBlock kernel_block(const Stack& s, int64_t outputs, int64_t channels) {
  KernelBlock k{outputs, channels, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0};
  const bool flipped = s.stride_tap_w < 0, packed = s.stride_tap_w == (flipped ? -1 : 1);
  const int64_t sign = flipped ? -1 : 1;
  const bool by_output = s.stride_output > s.stride_channel;  // an output's kernels lie together
  const int64_t inner = by_output ? channels : outputs, inner_step = by_output ? s.stride_channel : s.stride_output;
  k.outer = by_output ? outputs : channels;
  k.outer_step = by_output ? s.stride_output : s.stride_channel;
  int64_t inner_to;
  if (packed && s.stride_tap_h == 3 * sign && inner_step == 9) {
    k.rows = 1, k.size = 9 * inner, inner_to = 9, k.tap_w = sign, k.tap_h = 3 * sign;
  } else if (inner_step == 1 && s.stride_tap_h == 3 * s.stride_tap_w) {
    k.rows = 9, k.row_step = sign * s.stride_tap_w, k.size = inner, inner_to = 1;
    k.tap_w = sign * inner, k.tap_h = 3 * k.tap_w;
  } else {
    return k;  // no rows
  }
  k.origin = flipped ? -2 * (k.tap_h + k.tap_w) : 0;
  (by_output ? k.output : k.channel) = k.rows * k.size;
  (by_output ? k.channel : k.output) = inner_to;
  return k;
}

// source = sum_p alpha[p] * kernel p, for the block at `data` of the first kernel; [channels][9][lanes] at `taps`.
inline void blend_block(const Stack& stack, const KernelBlock& k, const float* data, const float* alpha, float* blended,
                        float* taps) {
  if (k.size == 0) {
    for (int64_t i = 0; i < k.channels * 9; ++i) {
      const float* from = data + i / 9 * stack.stride_channel + i / 3 % 3 * stack.stride_tap_h + i % 3 * stack.stride_tap_w;
      for (int64_t o = 0; o < k.outputs; ++o) {
        float total = 0;
        for (int64_t p = 0; p < stack.kernels; ++p)
          total += alpha[p] * from[o * stack.stride_output + p * stack.stride_kernel];
        taps[i * kLanes + o] = total;
      }
    }
    return;
  }
  if (k.origin) data += 2 * (stack.stride_tap_h + stack.stride_tap_w);
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
  for (int64_t c = 0; c < k.channels; ++c) {
    for (int64_t tap = 0; tap < 9; ++tap, taps += kLanes) {
      const float* from = blended + k.origin + c * k.channel + tap / 3 * k.tap_h + tap % 3 * k.tap_w;
      if (k.output == 1 && k.outputs == kLanes) {
        store(taps, load(from));
      } else {
        for (int64_t o = 0; o < k.outputs; ++o) taps[o] = from[o * k.output];
      }
    }
  }
}

// Transforms one kernel [9] per lane.
template <int kOut>
inline void transform_kernel(const float* taps, float* to, int64_t point) {
  constexpr int kPoints = Filtering<kOut>::kPoints;
  Vec half[kPoints][3];
#pragma GCC unroll 3
  for (int s = 0; s < 3; ++s) {
    const Vec column[3] = {load(taps + s * kLanes), load(taps + (3 + s) * kLanes), load(taps + (6 + s) * kLanes)};
    Vec t[kPoints];
    Filtering<kOut>::kernel(column, t);
#pragma GCC unroll 6
    for (int i = 0; i < kPoints; ++i) half[i][s] = t[i];
  }
#pragma GCC unroll 6
  for (int i = 0; i < kPoints; ++i) {
    Vec t[kPoints];
    Filtering<kOut>::kernel(half[i], t);
#pragma GCC unroll 6
    for (int j = 0; j < kPoints; ++j) store(to + (i * kPoints + j) * point, t[j]);
  }
}

int64_t winograd_blocks(const Panels& p) { return p.groups * p.vectors() * ceil_div(p.channels, kLanes); }

template <int kOut>
void winograd_kernels_of(const Blend& args, int64_t begin, int64_t end) {
  const Panels& p = args.panels;
  const Stack& stack = args.stack;
  const int64_t blocks = ceil_div(p.channels, kLanes);
  float blended[(9 * kLanes + 1) * kLanes], taps[9 * kLanes * kLanes];
  clear(taps, 9 * kLanes * kLanes);
  for (int64_t item = begin; item < end; ++item) {
    const int64_t vector = item / blocks % p.vectors(), group = item / blocks / p.vectors();
    const int64_t channel = item % blocks * kLanes, channels = min(kLanes, p.channels - channel);
    const int64_t panel = vector / p.width, width = p.panel_vectors(panel) * kLanes;
    const int64_t outputs = min(kLanes, p.outputs - vector * kLanes);
    const KernelBlock block = kernel_block(stack, outputs, channels);
    const float* data = stack.data + group * stack.stride_group + vector * kLanes * stack.stride_output +
                        channel * stack.stride_channel;
    if (outputs < kLanes) clear(taps, 9 * kLanes * kLanes);
    for (int64_t b = 0; b < args.batch; ++b) {
      blend_block(stack, block, data, args.alpha + b * stack.kernels, blended, taps);
      float* to = args.blended + b * p.size() + p.offset(group, panel) + channel * width + vector % p.width * kLanes;
      for (int64_t c = 0; c < channels; ++c)
        transform_kernel<kOut>(taps + c * 9 * kLanes, to + c * width, p.channels * width + p.pad);
    }
  }
}

void winograd_kernels(const Blend& args, int64_t begin, int64_t end) {
  (args.panels.taps_h == Filtering<4>::kPoints ? winograd_kernels_of<4> : winograd_kernels_of<2>)(args, begin, end);
}

// The tiles of an item: their transformed inputs and products, [points][tiles][values]. The strides between points are
// odd numbers of cache lines, so that the points of one tile are in different sets of the cache.
struct TileBlock {
  int64_t count, channels, in_point, width, out_point;
  float* inputs;
  float* products;
};

// Where a tile is.
struct TilePlace {
  int64_t sample, y, x;
};

template <int kOut>
inline TilePlace place_of(const Conv& c, int64_t tile) {
  const int64_t columns = ceil_div(c.out_w, kOut), rows = ceil_div(c.out_h, kOut);
  return {tile / (rows * columns), tile / columns % rows * kOut, tile % columns * kOut};
}

// Transforms the input of a tile, at its first pixel of `image`.
template <int kOut>
inline void transform_input(const Conv& c, const float* image, int64_t top, int64_t left, const float* zeros, float* to,
                            int64_t point) {
  constexpr int kPoints = Filtering<kOut>::kPoints;
  const float* pixels[kPoints][kPoints];
  for (int i = 0; i < kPoints; ++i) {
    const bool inside = top + i >= 0 && top + i < c.in_h;
    for (int j = 0; j < kPoints; ++j)
      pixels[i][j] = inside && left + j >= 0 && left + j < c.in_w
                         ? image + (top + i) * c.in_row + (left + j) * c.in_pixel
                         : zeros;
  }
  for (int64_t channel = 0; channel < c.channels; channel += kLanes, to += kLanes) {
    const int64_t lanes = min(kLanes, c.channels - channel);
    Vec half[kPoints][kPoints];
#pragma GCC unroll 6
    for (int j = 0; j < kPoints; ++j) {
      Vec column[kPoints], t[kPoints];
#pragma GCC unroll 6
      for (int i = 0; i < kPoints; ++i)
        column[i] = lanes == kLanes ? load(pixels[i][j] + channel) : load_first(pixels[i][j] + channel, lanes);
      Filtering<kOut>::input(column, t);
#pragma GCC unroll 6
      for (int i = 0; i < kPoints; ++i) half[i][j] = t[i];
    }
#pragma GCC unroll 6
    for (int i = 0; i < kPoints; ++i) {
      Vec t[kPoints];
      Filtering<kOut>::input(half[i], t);
#pragma GCC unroll 6
      for (int j = 0; j < kPoints; ++j) store(to + (i * kPoints + j) * point, t[j]);
    }
  }
}

// Transforms the products of a tile for one vector of outputs, and stores those that are inside the image.
template <int kOut>
inline void transform_output(const Conv& c, const float* products, int64_t point, Vec bias, float* output, int64_t rows,
                             int64_t columns, int64_t lanes) {
  constexpr int kPoints = Filtering<kOut>::kPoints;
  Vec half[kOut][kPoints];
#pragma GCC unroll 6
  for (int j = 0; j < kPoints; ++j) {
    Vec column[kPoints], t[kOut];
#pragma GCC unroll 6
    for (int i = 0; i < kPoints; ++i) column[i] = load(products + (i * kPoints + j) * point);
    Filtering<kOut>::output(column, t);
#pragma GCC unroll 4
    for (int i = 0; i < kOut; ++i) half[i][j] = t[i];
  }
#pragma GCC unroll 4
  for (int i = 0; i < kOut; ++i) {
    if (i >= rows) break;
    Vec t[kOut];
    Filtering<kOut>::output(half[i], t);
    float* to = output + i * c.out_row;
#pragma GCC unroll 4
    for (int j = 0; j < kOut; ++j) {
      if (j >= columns) break;
      const Vec value = activate(t[j] + bias, c.activation);
      if (lanes == kLanes) {
        store(to + j * c.out_pixel, value);
      } else {
        store_first(to + j * c.out_pixel, value, lanes);
      }
    }
  }
}

// Channels that are summed in registers at a time: short sums limit the rounding error.
constexpr int64_t kSumChannels = 96;

// One matrix product per point.
inline void multiply(const TileBlock& block, const float* panel, int64_t slice, int64_t points, int64_t channels) {
  const int64_t vectors = block.width / kLanes, parts = ceil_div(block.count, kRows[vectors]);
  const int64_t chunks = ceil_div(channels, kSumChannels);
  const TileFunction* functions = vectors == 2 ? TileTable<2, TO_COUNT(TO_ROWS_2)>::functions
                                               : TileTable<1, TO_COUNT(TO_ROWS_1)>::functions;
  Tile tile;
  tile.in_pixel = block.channels;
  tile.in_row = tile.in_column = 0;
  tile.rows = tile.columns = 1;
  tile.bias = nullptr;
  tile.out_pixel = block.width;
  tile.lanes = kLanes;
  tile.last = true;
  tile.activation = Activation::kNone;
  for (int64_t point = 0; point < points; ++point) {
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      const int64_t channel = channels * chunk / chunks;
      tile.run = channels * (chunk + 1) / chunks - channel;
      tile.first = chunk == 0;
      tile.panel = panel + point * slice + channel * block.width;
      tile.input = block.inputs + point * block.in_point + channel;
      tile.output = block.products + point * block.out_point;
      for (int64_t part = 0; part < parts; ++part) {
        const int64_t count = block.count / parts + (part < block.count % parts);
        functions[count](tile);
        tile.input += count * block.channels;
        tile.output += count * block.width;
      }
    }
  }
}

inline int64_t odd_lines(int64_t floats) { return (ceil_div(floats, 16) | 1) * 16; }

template <int kOut>
void winograd_of(const WinogradRun& run, int64_t begin, int64_t end) {
  constexpr int64_t kPoints = Filtering<kOut>::kPoints, kSquare = kPoints * kPoints;
  const Conv& c = run.conv;
  const Panels& p = run.panels;
  TileBlock block;
  block.channels = ceil_div(c.channels, kLanes) * kLanes;
  if (block.channels % 256 == 0) block.channels += 16;
  block.in_point = odd_lines(run.block * block.channels);
  const int64_t widest = min(p.width, p.vectors()) * kLanes, zero_size = block.channels;
  block.out_point = odd_lines(run.block * widest);
  float* memory = new float[kSquare * (block.in_point + block.out_point) + zero_size + 32];
  block.inputs = memory + (16 - reinterpret_cast<uintptr_t>(memory) / 4 % 16);
  block.products = block.inputs + kSquare * block.in_point;
  float* zeros = block.products + kSquare * block.out_point;
  clear(zeros, zero_size);
  for (int64_t item = begin; item < end; ++item) {
    const int64_t span = item / run.blocks, part = item % run.blocks;
    const int64_t first = run.span * part / run.blocks, last = run.span * (part + 1) / run.blocks;
    block.count = last - first;
    for (int64_t group = 0; group < c.groups; ++group) {
      for (int64_t i = 0; i < block.count; ++i) {
        const TilePlace at = place_of<kOut>(c, span * run.span + first + i);
        transform_input<kOut>(c, run.input + at.sample * c.in_sample + group * c.channels, at.y - c.pad_h,
                              at.x - c.pad_w, zeros, block.inputs + i * block.channels, block.in_point);
      }
      for (int64_t panel = 0; panel < p.count(); ++panel) {
        const int64_t vectors = p.panel_vectors(panel), output = panel * p.width * kLanes;
        block.width = vectors * kLanes;
        multiply(block, run.kernels + span * run.kernels_span + p.offset(group, panel),
                 c.channels * block.width + p.pad, kSquare, c.channels);
        const float* bias =
            run.bias ? run.bias + span * run.bias_span + group * p.vectors() * kLanes + output : nullptr;
        for (int64_t i = 0; i < block.count; ++i) {
          const TilePlace at = place_of<kOut>(c, span * run.span + first + i);
          float* to = run.output + at.sample * c.out_sample + at.y * c.out_row + at.x * c.out_pixel +
                      group * c.outputs + output;
          for (int64_t v = 0; v < vectors; ++v)
            transform_output<kOut>(c, block.products + i * block.width + v * kLanes, block.out_point,
                                   bias ? load(bias + v * kLanes) : Vec{}, to + v * kLanes, c.out_h - at.y,
                                   c.out_w - at.x, min(kLanes, c.outputs - output - v * kLanes));
        }
      }
    }
  }
  delete[] memory;
}

void winograd(const WinogradRun& run, int64_t begin, int64_t end) {
  (run.panels.taps_h == Filtering<4>::kPoints ? winograd_of<4> : winograd_of<2>)(run, begin, end);
}

}  // namespace tunable_ops::TO_ISA
