// Dense and grouped convolutions: tiles of output pixels by one panel of outputs, accumulated in registers. Every chunk
// of taps and channels is summed separately, which limits the fp32 rounding error.
namespace tunable_ops::TO_ISA {

// Pixels of one output row by one panel. `rows` x `columns` taps fall inside the image.
struct Tile {
  const float* input;
  int64_t in_pixel, in_row, in_column;  // strides between output pixels, kernel rows, and taps of a row
  int64_t rows, columns, run;           // `run` contiguous channels at every tap
  const float* panel;
  const float* bias;
  float* output;
  int64_t out_pixel;
  int64_t lanes;     // of the last vector
  bool first, last;  // the first chunk adds the bias, later ones the output; the last applies the activation
  Activation activation;
};

// Adds the products of kSteps channels. One base register serves five pixels: addressing modes provide the offsets
// step, 2 step and 4 step, and one more register 3 step.
template <int kPixels, int kVectors, int kSteps>
inline __attribute__((always_inline)) void dense_steps(Vec (&sums)[kPixels][kVectors], const float* const* base,
                                                       int64_t step, const float* w) {
  const int64_t step3 = 3 * step;
#pragma GCC unroll 4
  for (int k = 0; k < kSteps; ++k) {
    Vec weights[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) weights[v] = load(w + (k * kVectors + v) * kLanes);
#pragma GCC unroll 32
    for (int m = 0; m < kPixels; ++m) {
      const int rest = m % 5;
      const Vec x = broadcast(base[m / 5][k + (rest == 3 ? step3 : rest * step)]);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sums[m][v] += x * weights[v];
    }
    asm volatile("" ::: "memory");  // do not hoist loads of the next step: all registers are in use
  }
}

template <int kBases>
inline __attribute__((always_inline)) void advance(const float* (&base)[kBases], int64_t steps) {
#pragma GCC unroll 8
  for (int i = 0; i < kBases; ++i) {
    base[i] += steps;
    asm("" : "+r"(base[i]));  // prevents one induction variable per pixel
  }
}

template <int kPixels, int kVectors>
void dense_tile(const Tile& t) {
  Vec sums[kPixels][kVectors];
#pragma GCC unroll 32
  for (int m = 0; m < kPixels; ++m) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) sums[m][v] = Vec{};
  }
  const float* w = t.panel;
  const int64_t step = t.in_pixel;
  constexpr int kBases = (kPixels + 4) / 5, kSteps = 4;
  for (int64_t r = 0; r < t.rows; ++r) {
    for (int64_t s = 0; s < t.columns; ++s) {
      const float* base[kBases];
#pragma GCC unroll 8
      for (int i = 0; i < kBases; ++i) base[i] = t.input + r * t.in_row + s * t.in_column + 5 * i * step;
      int64_t left = t.run;
      for (; left >= kSteps; left -= kSteps, w += kSteps * kVectors * kLanes) {
        dense_steps<kPixels, kVectors, kSteps>(sums, base, step, w);
        advance(base, kSteps);
      }
      for (; left > 0; --left, w += kVectors * kLanes) {
        dense_steps<kPixels, kVectors, 1>(sums, base, step, w);
        advance(base, 1);
      }
    }
  }
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) {
    const bool whole = v + 1 < kVectors || t.lanes == kLanes;
    const Vec bias = t.bias ? load(t.bias + v * kLanes) : Vec{};
#pragma GCC unroll 32
    for (int m = 0; m < kPixels; ++m) {
      float* y = t.output + m * t.out_pixel + v * kLanes;
      const Vec sum = sums[m][v] + (t.first ? bias : whole ? load(y) : load_first(y, t.lanes));
      const Vec value = t.last ? activate(sum, t.activation) : sum;
      if (whole) {
        store(y, value);
      } else {
        store_first(y, value, t.lanes);
      }
    }
  }
}

using TileFunction = void (*)(const Tile&);

template <int kVectors, int... kPixels>
struct TileTable {
  static constexpr TileFunction functions[] = {nullptr, dense_tile<kPixels, kVectors>...};
};

template <int kVectors>
inline TileFunction tile_function(int64_t pixels);

#define TO_COUNT_6 1, 2, 3, 4, 5, 6
#define TO_COUNT_12 TO_COUNT_6, 7, 8, 9, 10, 11, 12
#define TO_COUNT_14 TO_COUNT_12, 13, 14
#define TO_COUNT_28 TO_COUNT_14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28
#define TO_COUNT_(n) TO_COUNT_##n
#define TO_COUNT(n) TO_COUNT_(n)

template <>
inline TileFunction tile_function<1>(int64_t pixels) {
  return TileTable<1, TO_COUNT(TO_ROWS_1)>::functions[pixels];
}
template <>
inline TileFunction tile_function<2>(int64_t pixels) {
  return TileTable<2, TO_COUNT(TO_ROWS_2)>::functions[pixels];
}

// The range of taps i that fall inside the image: i * dilation + start in [0, size).
struct Range {
  int64_t begin, end;
};
inline Range valid_taps(int64_t start, int64_t size, int64_t taps, int64_t dilation) {
  const int64_t begin = start >= 0 ? 0 : ceil_div(-start, dilation);
  const int64_t end = start >= size ? 0 : min(taps, (size - 1 - start) / dilation + 1);
  return {begin, max(begin, end)};
}

inline void copy(float* to, const float* from, int64_t count) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(to + i, load(from + i));
  for (; i < count; ++i) to[i] = from[i];
}

inline void clear(float* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = 0;
}

// Copies the window of a tile that crosses the left or right border, with zeros outside the image.
inline void copy_window(const float* row, int64_t pixel, int64_t start, int64_t width, int64_t size, int64_t channels,
                        float* window) {
  const int64_t begin = min(width, max(0, -start)), end = max(begin, min(width, size - start));
  clear(window, begin * channels);
  clear(window + end * channels, (width - end) * channels);
  const float* from = row + (start + begin) * pixel;
  if (pixel == channels) {
    copy(window + begin * channels, from, (end - begin) * channels);
    return;
  }
  for (int64_t i = begin; i < end; ++i, from += pixel) copy(window + i * channels, from, channels);
}

// A block of taps and channels whose weights stay in the L1 cache while a row of pixels is processed.
struct Chunk {
  int64_t row, rows, column, columns, channel, channels;
};
constexpr int64_t kChunkFloats = 48 * 1024 / 4;

// Pointers to one row of one panel, shared by all chunks and tiles.
struct Row {
  const float* image;  // at the first valid kernel row
  const float* panel;
  float* output;
  int64_t vectors;
  // Of the kernel rows that the row of pixels is the first to read: where the image has them, and how many there are.
  // Tiles prefetch those of the next tile, since the processor foresees nothing beyond a page.
  const float* fresh;
  int64_t fresh_rows;
};

// Prefetches what a tile will write, and what the next tile will read: `width` pixels from `ahead` on.
inline void prefetch_tile(const Conv& c, const Row& row, const float* output, int64_t pixels, int64_t ahead,
                          int64_t width) {
  for (int64_t i = 0; i < pixels; ++i) prefetch_to_write(output + i * c.out_pixel, row.vectors * kLanes);
  for (int64_t r = 0; r < row.fresh_rows; ++r)
    prefetch(row.fresh + r * c.in_row + ahead * c.in_pixel, width * c.in_pixel);
}

inline void dense_chunk(const Conv& c, const Row& row, const Chunk& k, Tile tile, float* window) {
  tile.panel = row.panel + ((k.row * c.taps_w + k.column) * c.channels + k.channel) * row.vectors * kLanes;
  tile.rows = k.rows;
  const int64_t count = ceil_div(c.out_w, kRows[row.vectors]), least = c.out_w / count, more = c.out_w % count;
  const int64_t span = (k.columns - 1) * c.dilation_w + 1;
  const float* image = row.image + k.row * c.dilation_h * c.in_row + k.channel;
  for (int64_t i = 0, x = 0; i < count; ++i) {
    const int64_t pixels = least + (i < more);
    const int64_t start = x * c.stride_w - c.pad_w + k.column * c.dilation_w, width = (pixels - 1) * c.stride_w + span;
    int64_t pixel = c.in_pixel;
    if (start >= 0 && start + width <= c.in_w) {
      tile.input = image + start * c.in_pixel;
      tile.in_row = c.dilation_h * c.in_row;
    } else {
      pixel = k.channels;
      for (int64_t r = 0; r < tile.rows; ++r) {
        copy_window(image + r * c.dilation_h * c.in_row, c.in_pixel, start, width, c.in_w, pixel,
                    window + r * width * pixel);
      }
      tile.input = window;
      tile.in_row = width * pixel;
    }
    tile.in_pixel = pixel * c.stride_w;
    tile.in_column = pixel * c.dilation_w;
    // Adjacent taps form one long run.
    const bool joined = c.dilation_w == 1 && pixel == k.channels;
    tile.columns = joined ? 1 : k.columns;
    tile.run = joined ? k.columns * k.channels : k.channels;
    tile.output = row.output + x * c.out_pixel;
    if (tile.first) prefetch_tile(c, row, tile.output, pixels, (x + pixels) * c.stride_w, pixels * c.stride_w);
    (row.vectors == 2 ? tile_function<2> : tile_function<1>)(pixels)(tile);
    x += pixels;
  }
}

// One output row of one panel.
inline void dense_row(const ConvRun& run, int64_t sample, int64_t y, int64_t group, int64_t panel, float* window) {
  const Conv& c = run.conv;
  const int64_t vectors = run.panels.panel_vectors(panel), block = run.panels.width * kLanes;
  const Range rows = valid_taps(y * c.stride_h - c.pad_h, c.in_h, c.taps_h, c.dilation_h);
  const int64_t top = y * c.stride_h - c.pad_h + rows.begin * c.dilation_h, count = rows.end - rows.begin;
  Row row;
  row.vectors = vectors;
  const float* image = run.input + sample * c.in_sample;
  row.image = image + run.input_offset(group) + top * c.in_row;
  row.panel = run.blended + sample * run.blended_sample + run.panels.offset(group, panel) +
              rows.begin * c.taps_w * c.channels * vectors * kLanes;
  row.output = run.output + sample * c.out_sample + y * c.out_row + run.output_offset(group) + panel * block;
  const int64_t bottom = y * c.stride_h - c.pad_h + (c.taps_h - 1) * c.dilation_h;
  row.fresh_rows = group == 0 && panel == 0 && c.dilation_h == 1 && bottom < c.in_h ? min(c.stride_h, count) : 0;
  row.fresh = image + (bottom + 1 - row.fresh_rows) * c.in_row;
  Tile tile;
  tile.bias = run.bias ? run.bias + sample * run.bias_sample +
                             (group * run.panels.vectors() + panel * run.panels.width) * kLanes
                       : nullptr;
  tile.out_pixel = c.out_pixel;
  tile.lanes = min(kLanes, c.outputs - panel * block - (vectors - 1) * kLanes);
  tile.activation = c.activation;
  // Whole kernel rows if they fit, else whole taps, else some of the channels.
  const int64_t width = vectors * kLanes, tap = c.channels * width;
  const int64_t row_step = max(1, min(count, kChunkFloats / (tap * c.taps_w)));
  const int64_t column_step = row_step > 1 || tap * c.taps_w <= kChunkFloats ? c.taps_w : max(1, kChunkFloats / tap);
  const int64_t channel_step = column_step > 1 || tap <= kChunkFloats ? c.channels : max(1, kChunkFloats / width);
  tile.first = true;
  for (int64_t r = 0; r < count || r == 0; r += row_step) {
    for (int64_t s = 0; s < c.taps_w; s += column_step) {
      for (int64_t k = 0; k < c.channels; k += channel_step) {
        const Chunk chunk{r, min(row_step, count - r),         s, min(column_step, c.taps_w - s),
                          k, min(channel_step, c.channels - k)};
        tile.last = r + row_step >= count && s + column_step >= c.taps_w && k + channel_step >= c.channels;
        dense_chunk(c, row, chunk, tile, window);
        tile.first = false;
      }
    }
  }
}

inline int64_t window_size(const Conv& c) {
  return c.taps_h * c.channels * ((kRows[1] - 1) * c.stride_w + (c.taps_w - 1) * c.dilation_w + 1);
}

constexpr int64_t kNearFloats = 256 * 1024 / 4;

void dense(const ConvRun& run, int64_t begin, int64_t end) {
  const int64_t blocks = ceil_div(run.conv.out_h, run.rows);
  float* window = new float[window_size(run.conv)];
  for (int64_t item = begin; item < end; ++item) {
    const int64_t sample = item / blocks, first = item % blocks * run.rows;
    const int64_t last = min(first + run.rows, run.conv.out_h);
    // Row by row while all kernels stay in the L2 cache: a row is then read once from afar. Else panel by panel.
    const int64_t step = run.panels.size() <= kNearFloats ? 1 : last - first;
    for (int64_t row = first; row < last; row += step) {
      for (int64_t group = 0; group < run.conv.groups; ++group) {
        for (int64_t panel = 0; panel < run.panels.count(); ++panel) {
          for (int64_t y = row; y < row + step; ++y) dense_row(run, sample, y, group, panel, window);
        }
      }
    }
  }
  delete[] window;
}

}  // namespace tunable_ops::TO_ISA
