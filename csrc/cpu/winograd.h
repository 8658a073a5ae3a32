// Winograd's minimal filtering with stride 1: F(4x4, 3x3), F(2x2, 3x3) and F(2x2, 5x5). A tile of m x m outputs is
// A^T [sum_c (G w_c G^T) * (B^T x_c B)] A: (m + r - 1)^2 products per channel instead of m^2 r^2 with r x r taps. The
// products of a block of tiles are one matrix product [tiles, channels] x [channels, outputs] per point, done by the
// kernel for convolutions.
namespace tunable_ops::TO_ISA {

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

template <class F>
inline TilePlace place_of(const Conv& c, int64_t tile) {
  const int64_t columns = ceil_div(c.out_w, F::kOut), rows = ceil_div(c.out_h, F::kOut);
  return {tile / (rows * columns), tile / columns % rows * F::kOut, tile % columns * F::kOut};
}

// Transforms the input of a tile, at its first pixel of `image`.
template <class F>
inline void transform_input(const Conv& c, const float* image, int64_t top, int64_t left, const float* zeros, float* to,
                            int64_t point) {
  constexpr int kPoints = F::kPoints;
  const float* pixels[kPoints][kPoints];
  for (int i = 0; i < kPoints; ++i) {
    const bool inside = top + i >= 0 && top + i < c.in_h;
    for (int j = 0; j < kPoints; ++j)
      pixels[i][j] =
          inside && left + j >= 0 && left + j < c.in_w ? image + (top + i) * c.in_row + (left + j) * c.in_pixel : zeros;
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
      F::input(column, t);
#pragma GCC unroll 6
      for (int i = 0; i < kPoints; ++i) half[i][j] = t[i];
    }
#pragma GCC unroll 6
    for (int i = 0; i < kPoints; ++i) {
      Vec t[kPoints];
      F::input(half[i], t);
#pragma GCC unroll 6
      for (int j = 0; j < kPoints; ++j) store(to + (i * kPoints + j) * point, t[j]);
    }
  }
}

// Transforms the products of a tile for one vector of outputs, and stores those that are inside the image.
template <class F>
inline void transform_output(const Conv& c, const float* products, int64_t point, Vec bias, float* output, int64_t rows,
                             int64_t columns, int64_t lanes) {
  constexpr int kPoints = F::kPoints;
  Vec half[F::kOut][kPoints];
#pragma GCC unroll 6
  for (int j = 0; j < kPoints; ++j) {
    Vec column[kPoints], t[F::kOut];
#pragma GCC unroll 6
    for (int i = 0; i < kPoints; ++i) column[i] = load(products + (i * kPoints + j) * point);
    F::output(column, t);
#pragma GCC unroll 4
    for (int i = 0; i < F::kOut; ++i) half[i][j] = t[i];
  }
#pragma GCC unroll 4
  for (int i = 0; i < F::kOut; ++i) {
    if (i >= rows) break;
    Vec t[F::kOut];
    F::output(half[i], t);
    float* to = output + i * c.out_row;
#pragma GCC unroll 4
    for (int j = 0; j < F::kOut; ++j) {
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

// The matrix product of a block's inputs at one point with a panel of `vectors` vectors of outputs, to the products
// from `output` on.
inline void multiply(const TileBlock& block, int64_t point, const float* panel, int64_t vectors, int64_t channels,
                     int64_t output) {
  const int64_t width = vectors * kLanes, parts = ceil_div(block.count, kRows[vectors]);
  const int64_t chunks = ceil_div(channels, kSumChannels);
  const TileFunction* functions =
      vectors == 2 ? TileTable<2, TO_COUNT(TO_ROWS_2)>::functions : TileTable<1, TO_COUNT(TO_ROWS_1)>::functions;
  Tile tile;
  tile.in_pixel = block.channels;
  tile.in_row = tile.in_column = 0;
  tile.rows = tile.columns = 1;
  tile.bias = nullptr;
  tile.out_pixel = block.width;
  tile.lanes = kLanes;
  tile.last = true;
  tile.activation = Activation::kNone;
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    const int64_t channel = channels * chunk / chunks;
    tile.run = channels * (chunk + 1) / chunks - channel;
    tile.first = chunk == 0;
    tile.panel = panel + channel * width;
    tile.input = block.inputs + point * block.in_point + channel;
    tile.output = block.products + point * block.out_point + output;
    for (int64_t part = 0; part < parts; ++part) {
      const int64_t count = block.count / parts + (part < block.count % parts);
      functions[count](tile);
      tile.input += count * block.channels;
      tile.output += count * block.width;
    }
  }
}

inline int64_t odd_lines(int64_t floats) { return (ceil_div(floats, 16) | 1) * 16; }

// The memory of a block of at most `tiles` tiles, and zeros for the pixels outside the image.
struct TileMemory {
  TileBlock block;
  Workspace memory;
  float* zeros;

  TileMemory(int64_t tiles, int64_t channels, int64_t width, int64_t points)
      : TileMemory(points, tiles, row_of(channels), odd_lines(tiles * row_of(channels)), odd_lines(tiles * width)) {}

 private:
  // The channels of a tile: not a multiple of 256, or the rows of a product share a set of the cache.
  static int64_t row_of(int64_t channels) {
    const int64_t row = ceil_div(channels, kLanes) * kLanes;
    return row % 256 == 0 ? row + 16 : row;
  }

  TileMemory(int64_t points, int64_t tiles, int64_t row, int64_t in_point, int64_t out_point)
      : block{tiles, row, in_point, 0, out_point, nullptr, nullptr}, memory(points * (in_point + out_point) + row) {
    block.inputs = memory.get();
    block.products = block.inputs + points * in_point;
    zeros = block.products + points * out_point;
    clear(zeros, row);
  }
};

template <class F>
void winograd_of(const WinogradRun& run, int64_t begin, int64_t end) {
  constexpr int64_t kPoints = F::kPoints, kSquare = kPoints * kPoints;
  const Conv& c = run.conv;
  const Panels& p = run.panels;
  TileMemory memory(run.block, c.channels, min(run.abreast * p.width, p.vectors()) * kLanes, kSquare);
  TileBlock& block = memory.block;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t span = item / run.blocks, part = item % run.blocks;
    const int64_t first = run.span * part / run.blocks, last = run.span * (part + 1) / run.blocks;
    block.count = last - first;
    for (int64_t group = 0; group < c.groups; ++group) {
      for (int64_t i = 0; i < block.count; ++i) {
        const TilePlace at = place_of<F>(c, span * run.span + first + i);
        transform_input<F>(c, run.input + at.sample * c.in_sample + group * c.channels, at.y - c.pad_h, at.x - c.pad_w,
                           memory.zeros, block.inputs + i * block.channels, block.in_point);
      }
      for (int64_t begin_panel = 0; begin_panel < p.count(); begin_panel += run.abreast) {
        const int64_t end_panel = min(begin_panel + run.abreast, p.count()), output = begin_panel * p.width * kLanes;
        const int64_t vectors = min(run.abreast * p.width, p.vectors() - begin_panel * p.width);
        block.width = vectors * kLanes;
        for (int64_t point = 0; point < kSquare; ++point) {
          for (int64_t panel = begin_panel; panel < end_panel; ++panel) {
            const int64_t slice = c.channels * p.panel_vectors(panel) * kLanes + p.pad;
            multiply(block, point, run.kernels + span * run.kernels_span + p.offset(group, panel) + point * slice,
                     p.panel_vectors(panel), c.channels, panel * p.width * kLanes - output);
          }
        }
        const float* bias =
            run.bias ? run.bias + span * run.bias_span + group * p.vectors() * kLanes + output : nullptr;
        for (int64_t i = 0; i < block.count; ++i) {
          const TilePlace at = place_of<F>(c, span * run.span + first + i);
          float* to = run.output + at.sample * c.out_sample + at.y * c.out_row + at.x * c.out_pixel +
                      group * c.outputs + output;
          for (int64_t v = 0; v < vectors; ++v)
            transform_output<F>(c, block.products + i * block.width + v * kLanes, block.out_point,
                                bias ? load(bias + v * kLanes) : Vec{}, to + v * kLanes, c.out_h - at.y, c.out_w - at.x,
                                min(kLanes, c.outputs - output - v * kLanes));
        }
      }
    }
  }
}

void winograd(const WinogradRun& run, int64_t begin, int64_t end) {
  with_filtering(run.panels.taps_h, run.conv.taps_h,
                 [&](auto filtering) { winograd_of<decltype(filtering)>(run, begin, end); });
}

}  // namespace tunable_ops::TO_ISA
