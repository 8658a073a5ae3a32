// Depthwise convolutions, vectorised over channels. The pixels of a tile share each load of a tap's weights, and the
// taps of a kernel row each load of a pixel.
namespace tunable_ops::TO_ISA {

struct DepthwiseTile {
  const float* input;  // of the first tap of the first pixel, which may lie outside the image
  int64_t in_pixel, in_row, in_column;
  int64_t rows, columns;
  int64_t begin, end;    // the columns of the window that are inside the image, where kTaps is not 0
  const float* weights;  // of the first valid tap
  int64_t weight_row, weight_column;
  const float* bias;
  float* output;
  int64_t out_pixel;
  int64_t channels;
  Activation activation;
};

// One kernel row of any length, stride and dilation.
template <int kPixels, int kVectors, bool kWhole>
inline __attribute__((always_inline)) void depthwise_row(const DepthwiseTile& t, const float* x, const float* w,
                                                         int64_t lanes, Vec (&sums)[kPixels][kVectors]) {
  for (int64_t s = 0; s < t.columns; ++s) {
    Vec weights[kVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) weights[v] = load(w + v * kLanes);
    const float* p = x;
#pragma GCC unroll 8
    for (int m = 0; m < kPixels; ++m, p += t.in_pixel) {
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v)
        sums[m][v] += weights[v] * (kWhole ? load(p + v * kLanes) : load_first(p, lanes));
    }
    x += t.in_column;
    w += t.weight_column;
  }
}

// One kernel row of kTaps adjacent taps with stride 1: each column of the window is loaded once, for all its taps.
template <int kPixels, int kTaps, int kVectors, bool kWhole>
inline __attribute__((always_inline)) void depthwise_window(const DepthwiseTile& t, const float* x, const float* w,
                                                            int64_t lanes, bool inside,
                                                            Vec (&sums)[kPixels][kVectors]) {
  Vec weights[kTaps][kVectors];
#pragma GCC unroll 8
  for (int s = 0; s < kTaps; ++s) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) weights[s][v] = load(w + s * t.weight_column + v * kLanes);
  }
#pragma GCC unroll 16
  for (int i = 0; i < kPixels + kTaps - 1; ++i, x += t.in_pixel) {
    if (!inside && (i < t.begin || i >= t.end)) continue;
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      Vec column = kWhole ? load(x + v * kLanes) : load_first(x, lanes);
      keep(column);
#pragma GCC unroll 8
      for (int s = 0; s < kTaps; ++s) {
        if (i - s >= 0 && i - s < kPixels) sums[i - s][v] += weights[s][v] * column;
      }
    }
  }
}

template <int kPixels, int kTaps, int kVectors, bool kWhole>
inline __attribute__((always_inline)) void depthwise_vectors(const DepthwiseTile& t, int64_t channel, int64_t lanes,
                                                             bool inside) {
  Vec sums[kPixels][kVectors];
#pragma GCC unroll 2
  for (int v = 0; v < kVectors; ++v) {
    const Vec start = t.bias ? load(t.bias + channel + v * kLanes) : Vec{};
#pragma GCC unroll 8
    for (int m = 0; m < kPixels; ++m) sums[m][v] = start;
  }
  const float* x = t.input + channel;
  const float* w = t.weights + channel;
  for (int64_t r = 0; r < t.rows; ++r, x += t.in_row, w += t.weight_row) {
    if constexpr (kTaps == 0) {
      depthwise_row<kPixels, kVectors, kWhole>(t, x, w, lanes, sums);
    } else {
      depthwise_window<kPixels, kTaps, kVectors, kWhole>(t, x, w, lanes, inside, sums);
    }
  }
  float* y = t.output + channel;
#pragma GCC unroll 8
  for (int m = 0; m < kPixels; ++m, y += t.out_pixel) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      const Vec value = activate(sums[m][v], t.activation);
      if (kWhole) {
        store(y + v * kLanes, value);
      } else {
        store_first(y, value, lanes);
      }
    }
  }
}

// Two vectors of four pixels: eight sums hide the latency of two multiply-adds at a time, and the vectors of a pixel
// lie in adjacent lines of the cache. One vector of eight pixels takes 1.15 of the time on a Xeon with AVX-512.
constexpr int kDepthwiseVectors = 2, kDepthwisePixels = 4;

// The last vectors may overlap those before: they compute the same values again.
template <int kPixels, int kTaps, int kVectors>
inline __attribute__((always_inline)) void depthwise_channels(const DepthwiseTile& t, bool inside) {
  constexpr int64_t kStep = kVectors * kLanes;
  const int64_t last = t.channels - kStep;
  for (int64_t channel = 0; channel < last; channel += kStep)
    depthwise_vectors<kPixels, kTaps, kVectors, true>(t, channel, kLanes, inside);
  depthwise_vectors<kPixels, kTaps, kVectors, true>(t, last, kLanes, inside);
}

template <int kPixels, int kTaps>
void depthwise_tile(const DepthwiseTile& tile) {
  const DepthwiseTile t = tile;  // a copy that no store can change
  const bool inside = t.begin == 0 && t.end == kPixels + kTaps - 1;
  if (t.channels < kLanes) {
    depthwise_vectors<kPixels, kTaps, 1, false>(t, 0, t.channels, inside);
  } else if (t.channels < kDepthwiseVectors * kLanes) {
    depthwise_channels<kPixels, kTaps, 1>(t, inside);
  } else if (inside) {
    depthwise_channels<kPixels, kTaps, kDepthwiseVectors>(t, true);
  } else {
    depthwise_channels<kPixels, kTaps, kDepthwiseVectors>(t, false);
  }
}

template <int kTaps, int... kPixels>
struct DepthwiseTable {
  static constexpr void (*functions[])(const DepthwiseTile&) = {nullptr, depthwise_tile<kPixels, kTaps>...};
};

template <int kTaps>
inline void depthwise_tile_of(const DepthwiseTile& tile, int64_t pixels) {
  DepthwiseTable<kTaps, 1, 2, 3, 4>::functions[pixels](tile);
}

// Output pixels [x, x_end) of one row, for kernels of kTaps adjacent taps with stride 1. `next` is the row of the input
// that the next row of the output needs first, or null: tiles read two vectors of channels at a time, in strides that
// the processor does not foresee.
template <int kTaps>
inline void depthwise_windows(const Conv& c, DepthwiseTile tile, const float* image, const float* next, float* output,
                              int64_t x, int64_t x_end) {
  while (x < x_end) {
    const int64_t pixels = min(kDepthwisePixels, x_end - x), start = x - c.pad_w;
    if (next) prefetch(next + x * c.in_pixel, min(pixels, c.in_w - x) * c.in_pixel);
    if (x + pixels < x_end) prefetch_to_write(output + (x + pixels) * c.out_pixel, pixels * c.out_pixel);
    tile.input = image + start * c.in_pixel;
    tile.begin = max(0, -start);
    tile.end = min(pixels + kTaps - 1, c.in_w - start);
    tile.output = output + x * c.out_pixel;
    depthwise_tile_of<kTaps>(tile, pixels);
    x += pixels;
  }
}

// The same for any kernel.
inline void depthwise_pixels(const Conv& c, DepthwiseTile tile, const float* image, float* output, int64_t x,
                             int64_t x_end) {
  const float* weights = tile.weights;
  // From `inner_end` on, pixels have taps beyond the right border.
  const int64_t room = c.in_w + c.pad_w - (c.taps_w - 1) * c.dilation_w - 1;
  const int64_t inner_end = room < 0 ? 0 : min(x_end, room / c.stride_w + 1);
  while (x < x_end) {
    const int64_t start = x * c.stride_w - c.pad_w;
    const bool inside = start >= 0 && x < inner_end;
    const int64_t pixels = inside ? min(kDepthwisePixels, inner_end - x) : 1;
    const Range columns = inside ? Range{0, c.taps_w} : valid_taps(start, c.in_w, c.taps_w, c.dilation_w);
    tile.input = image + (start + columns.begin * c.dilation_w) * c.in_pixel;
    tile.weights = weights + columns.begin * tile.weight_column;
    tile.columns = columns.end - columns.begin;
    tile.output = output + x * c.out_pixel;
    depthwise_tile_of<0>(tile, pixels);
    x += pixels;
  }
}

// Output pixels [x, x_end) of one row.
inline void depthwise_strip(const ConvRun& run, int64_t sample, int64_t y, int64_t x, int64_t x_end) {
  const Conv& c = run.conv;
  const int64_t row_size = run.panels.vectors() * kLanes;
  const Range rows = valid_taps(y * c.stride_h - c.pad_h, c.in_h, c.taps_h, c.dilation_h);
  const int64_t top = y * c.stride_h - c.pad_h + rows.begin * c.dilation_h;
  const float* image = run.input + sample * c.in_sample + top * c.in_row;
  DepthwiseTile tile;
  tile.in_pixel = c.in_pixel * c.stride_w;
  tile.in_row = c.in_row * c.dilation_h;
  tile.in_column = c.in_pixel * c.dilation_w;
  tile.rows = rows.end - rows.begin;
  tile.begin = tile.end = 0;
  tile.weights = run.blended + sample * run.blended_sample + rows.begin * c.taps_w * row_size;
  tile.weight_row = c.taps_w * row_size;
  tile.weight_column = row_size;
  tile.bias = run.bias ? run.bias + sample * run.bias_sample : nullptr;
  tile.out_pixel = c.out_pixel;
  tile.channels = c.groups;
  tile.activation = c.activation;
  float* output = run.output + sample * c.out_sample + y * c.out_row;
  const bool adjacent = c.stride_w == 1 && c.dilation_w == 1;
  const int64_t below = y * c.stride_h - c.pad_h + c.taps_h * c.dilation_h;
  const bool prefetches = run.prefetch_rows && below >= 0 && below < c.in_h;
  const float* next = prefetches ? run.input + sample * c.in_sample + below * c.in_row : nullptr;
  if (adjacent && c.taps_w == 3) {
    depthwise_windows<3>(c, tile, image, next, output, x, x_end);
  } else if (adjacent && c.taps_w == 5) {
    depthwise_windows<5>(c, tile, image, next, output, x, x_end);
  } else if (adjacent && c.taps_w == 7) {
    depthwise_windows<7>(c, tile, image, next, output, x, x_end);
  } else {
    depthwise_pixels(c, tile, image, output, x, x_end);
  }
}

// Floats of the input rows that a strip keeps in the L2 cache from one output row to the next.
constexpr int64_t kStripFloats = 64 * 1024 / 4;

void depthwise(const ConvRun& run, int64_t begin, int64_t end) {
  const Conv& c = run.conv;
  const int64_t blocks = ceil_div(c.out_h, run.rows);
  const int64_t fits = kStripFloats / max(1, c.taps_h * c.in_pixel * c.stride_w);
  const int64_t strip = max(1, fits / kDepthwisePixels) * kDepthwisePixels;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t sample = item / blocks, first = item % blocks * run.rows;
    const int64_t last = min(first + run.rows, c.out_h);
    for (int64_t x = 0; x < c.out_w;) {
      const int64_t x_end = min(c.out_w, x + strip);
      for (int64_t y = first; y < last; ++y) depthwise_strip(run, sample, y, x, x_end);
      x = x_end;
    }
  }
}

}  // namespace tunable_ops::TO_ISA
