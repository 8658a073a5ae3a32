// Dense (and grouped) convolutions: tiles of output pixels by one panel of outputs, accumulated in registers.
namespace tunable_ops::TO_ISA {

// One tile: pixels of one output row, one panel. The taps that fall on the picture are `rows` x `columns`.
struct Tile {
  const float* input;
  int64_t in_pixel, in_row, in_column;  // steps from pixel to pixel, from kernel row to kernel row, from tap to tap
  int64_t rows, columns, run;           // `run` channels lie side by side at every tap
  const float* panel;
  const float* bias;
  float* output;
  int64_t out_pixel;
  int64_t lanes;  // of the last vector
  Activation activation;
};

template <int kPixels, int kVectors>
void dense_tile(const Tile& t) {
  Vec sums[kPixels][kVectors];
#pragma GCC unroll 2
  for (int v = 0; v < kVectors; ++v) {
    const Vec start = t.bias ? load(t.bias + v * kLanes) : Vec{};
#pragma GCC unroll 32
    for (int m = 0; m < kPixels; ++m) sums[m][v] = start;
  }
  const float* w = t.panel;
  const int64_t step = t.in_pixel;
  // One base address for five pixels: with step, 2 step, 3 step and 4 step the rest is in the addressing mode.
  constexpr int kBases = (kPixels + 4) / 5;
  for (int64_t r = 0; r < t.rows; ++r) {
    for (int64_t s = 0; s < t.columns; ++s) {
      const float* first = t.input + r * t.in_row + s * t.in_column;
      const float* base[kBases];
#pragma GCC unroll 8
      for (int i = 0; i < kBases; ++i) base[i] = first + 5 * i * step;
      const float* end = first + t.run;
      const int64_t step3 = 3 * step;
      while (base[0] != end) {
        Vec weights[kVectors];
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) weights[v] = load(w + v * kLanes);
#pragma GCC unroll 32
        for (int m = 0; m < kPixels; ++m) {
          const int rest = m % 5;
          const Vec x = broadcast(base[m / 5][rest == 3 ? step3 : rest * step]);
#pragma GCC unroll 2
          for (int v = 0; v < kVectors; ++v) sums[m][v] += x * weights[v];
        }
        w += kVectors * kLanes;
#pragma GCC unroll 8
        for (int i = 0; i < kBases; ++i) {
          ++base[i];
          asm("" : "+r"(base[i]));  // keeps the compiler from one induction variable per pixel
        }
      }
    }
  }
#pragma GCC unroll 32
  for (int m = 0; m < kPixels; ++m) {
    float* y = t.output + m * t.out_pixel;
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      const Vec value = activate(sums[m][v], t.activation);
      if (v + 1 < kVectors || t.lanes == kLanes) {
        store(y + v * kLanes, value);
      } else {
        store_first(y + v * kLanes, value, t.lanes);
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

// The part of a range of taps that falls on the picture: i * dilation + start in [0, size).
struct Range {
  int64_t begin, end;
};
inline Range valid_taps(int64_t start, int64_t size, int64_t taps, int64_t dilation) {
  const int64_t begin = start >= 0 ? 0 : ceil_div(-start, dilation);
  const int64_t end = start >= size ? 0 : least(taps, (size - 1 - start) / dilation + 1);
  return {begin, most(begin, end)};
}

// Copies the window of a tile that reaches over the left or right border, with zeros there.
inline void copy_window(const float* row, int64_t pixel, int64_t start, int64_t width, int64_t size, int64_t channels,
                        float* window) {
  for (int64_t i = 0; i < width; ++i, window += channels) {
    const int64_t x = start + i;
    if (x >= 0 && x < size) {
      const float* source = row + x * pixel;
      for (int64_t c = 0; c < channels; ++c) window[c] = source[c];
    } else {
      for (int64_t c = 0; c < channels; ++c) window[c] = 0;
    }
  }
}

// One output row of one panel.
inline void dense_row(const ConvRun& run, int64_t sample, int64_t y, int64_t group, int64_t panel, float* window) {
  const Conv& c = run.conv;
  const int64_t vectors = run.panels.panel_vectors(panel), block = run.panels.width * kLanes;
  const Range rows = valid_taps(y * c.stride_h - c.pad_h, c.in_h, c.taps_h, c.dilation_h);
  const int64_t top = y * c.stride_h - c.pad_h + rows.begin * c.dilation_h;
  const float* picture = run.input + sample * c.in_sample + group * c.channels;
  Tile tile;
  tile.rows = rows.end - rows.begin;
  tile.panel = run.blended + sample * run.blended_sample + run.panels.offset(group, panel) +
               rows.begin * c.taps_w * c.channels * vectors * kLanes;
  tile.bias = run.bias ? run.bias + sample * run.bias_sample + (group * run.panels.vectors() + panel * run.panels.width) * kLanes : nullptr;
  tile.out_pixel = c.out_pixel;
  tile.lanes = least(kLanes, c.outputs - panel * block - (vectors - 1) * kLanes);
  tile.activation = c.activation;
  float* output = run.output + sample * c.out_sample + y * c.out_row + group * c.outputs + panel * block;
  const int64_t count = ceil_div(c.out_w, kRows[vectors]);
  const int64_t span = (c.taps_w - 1) * c.dilation_w + 1;
  for (int64_t i = 0, x = 0; i < count; ++i) {
    const int64_t pixels = c.out_w / count + (i < c.out_w % count);
    const int64_t start = x * c.stride_w - c.pad_w, width = (pixels - 1) * c.stride_w + span;
    int64_t pixel = c.in_pixel;
    if (start >= 0 && start + width <= c.in_w) {
      tile.input = picture + top * c.in_row + start * c.in_pixel;
      tile.in_row = c.dilation_h * c.in_row;
    } else {
      pixel = c.channels;
      for (int64_t r = 0; r < tile.rows; ++r) {
        copy_window(picture + (top + r * c.dilation_h) * c.in_row, c.in_pixel, start, width, c.in_w, c.channels,
                    window + r * width * c.channels);
      }
      tile.input = window;
      tile.in_row = width * c.channels;
    }
    tile.in_pixel = pixel * c.stride_w;
    tile.in_column = pixel * c.dilation_w;
    // Taps side by side make one long run.
    const bool joined = c.dilation_w == 1 && pixel == c.channels;
    tile.columns = joined ? 1 : c.taps_w;
    tile.run = joined ? c.taps_w * c.channels : c.channels;
    tile.output = output + x * c.out_pixel;
    (vectors == 2 ? tile_function<2> : tile_function<1>)(pixels)(tile);
    x += pixels;
  }
}

inline int64_t window_size(const Conv& c) {
  return c.taps_h * c.channels * ((kRows[1] - 1) * c.stride_w + (c.taps_w - 1) * c.dilation_w + 1);
}

void dense(const ConvRun& run, int64_t begin, int64_t end) {
  const int64_t blocks = ceil_div(run.conv.out_h, run.rows);
  float* window = new float[window_size(run.conv)];
  for (int64_t item = begin; item < end; ++item) {
    const int64_t sample = item / blocks, first = item % blocks * run.rows;
    const int64_t last = least(first + run.rows, run.conv.out_h);
    for (int64_t group = 0; group < run.conv.groups; ++group) {
      for (int64_t panel = 0; panel < run.panels.count(); ++panel) {
        for (int64_t y = first; y < last; ++y) dense_row(run, sample, y, group, panel, window);
      }
    }
  }
  delete[] window;
}

}  // namespace tunable_ops::TO_ISA
