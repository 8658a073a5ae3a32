// Depthwise convolutions, vectorised over channels. The pixels of a tile share each load of a tap's weights.
namespace tunable_ops::TO_ISA {

struct DepthwiseTile {
  const float* input;
  int64_t in_pixel, in_row, in_column;
  int64_t rows, columns;
  const float* weights;  // of the first valid tap
  int64_t weight_row, weight_column;
  const float* bias;
  float* output;
  int64_t out_pixel;
  int64_t channels;
  Activation activation;
};

template <int kPixels, bool kWhole>
inline void depthwise_vector(const DepthwiseTile& t, int64_t channel, int64_t lanes) {
  Vec sums[kPixels];
  const Vec start = t.bias ? load(t.bias + channel) : Vec{};
#pragma GCC unroll 8
  for (int m = 0; m < kPixels; ++m) sums[m] = start;
  for (int64_t r = 0; r < t.rows; ++r) {
    const float* x = t.input + r * t.in_row + channel;
    const float* w = t.weights + r * t.weight_row + channel;
    for (int64_t s = 0; s < t.columns; ++s) {
      const Vec weight = load(w);
#pragma GCC unroll 8
      for (int m = 0; m < kPixels; ++m) {
        const float* p = x + m * t.in_pixel;
        sums[m] += weight * (kWhole ? load(p) : load_first(p, lanes));
      }
      x += t.in_column;
      w += t.weight_column;
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < kPixels; ++m) {
    float* y = t.output + m * t.out_pixel + channel;
    const Vec value = activate(sums[m], t.activation);
    if (kWhole) {
      store(y, value);
    } else {
      store_first(y, value, lanes);
    }
  }
}

template <int kPixels>
inline void depthwise_tile(const DepthwiseTile& t) {
  int64_t channel = 0;
  for (; channel + kLanes <= t.channels; channel += kLanes) depthwise_vector<kPixels, true>(t, channel, kLanes);
  if (channel < t.channels) depthwise_vector<kPixels, false>(t, channel, t.channels - channel);
}

constexpr int kDepthwisePixels = 8;

inline void depthwise_tile_of(const DepthwiseTile& tile, int64_t pixels) {
  using Function = void (*)(const DepthwiseTile&);
  static constexpr Function functions[kDepthwisePixels + 1] = {
      nullptr,           depthwise_tile<1>, depthwise_tile<2>, depthwise_tile<3>, depthwise_tile<4>,
      depthwise_tile<5>, depthwise_tile<6>, depthwise_tile<7>, depthwise_tile<8>,
  };
  functions[pixels](tile);
}

// Output pixels [x, x_end) of one row.
inline void depthwise_strip(const ConvRun& run, int64_t sample, int64_t y, int64_t x, int64_t x_end) {
  const Conv& c = run.conv;
  const int64_t row_size = run.panels.vectors() * kLanes;
  const Range rows = valid_taps(y * c.stride_h - c.pad_h, c.in_h, c.taps_h, c.dilation_h);
  const int64_t top = y * c.stride_h - c.pad_h + rows.begin * c.dilation_h;
  const float* image = run.input + sample * c.in_sample + top * c.in_row;
  const float* weights = run.blended + sample * run.blended_sample + rows.begin * c.taps_w * row_size;
  DepthwiseTile tile;
  tile.in_pixel = c.in_pixel * c.stride_w;
  tile.in_row = c.in_row * c.dilation_h;
  tile.in_column = c.in_pixel * c.dilation_w;
  tile.rows = rows.end - rows.begin;
  tile.weight_row = c.taps_w * row_size;
  tile.weight_column = row_size;
  tile.bias = run.bias ? run.bias + sample * run.bias_sample : nullptr;
  tile.out_pixel = c.out_pixel;
  tile.channels = c.groups;
  tile.activation = c.activation;
  float* output = run.output + sample * c.out_sample + y * c.out_row;
  // From `inner_end` on, pixels have taps beyond the right border.
  const int64_t room = c.in_w + c.pad_w - (c.taps_w - 1) * c.dilation_w - 1;
  const int64_t inner_end = room < 0 ? 0 : min(x_end, room / c.stride_w + 1);
  while (x < x_end) {
    const int64_t start = x * c.stride_w - c.pad_w;
    tile.output = output + x * c.out_pixel;
    if (start >= 0 && x < inner_end) {
      const int64_t pixels = min(kDepthwisePixels, inner_end - x);
      tile.input = image + start * c.in_pixel;
      tile.weights = weights;
      tile.columns = c.taps_w;
      depthwise_tile_of(tile, pixels);
      x += pixels;
      continue;
    }
    const Range columns = valid_taps(start, c.in_w, c.taps_w, c.dilation_w);
    tile.input = image + (start + columns.begin * c.dilation_w) * c.in_pixel;
    tile.weights = weights + columns.begin * row_size;
    tile.columns = columns.end - columns.begin;
    depthwise_tile<1>(tile);
    ++x;
  }
}

// Floats of the input rows that a strip keeps in the L1 cache from one output row to the next.
constexpr int64_t kStripFloats = 16 * 1024 / 4;

void depthwise(const ConvRun& run, int64_t begin, int64_t end) {
  const Conv& c = run.conv;
  const int64_t blocks = ceil_div(c.out_h, run.rows);
  const int64_t fits = kStripFloats / max(1, c.taps_h * c.in_pixel * c.stride_w);
  const int64_t strip = max(1, fits / kDepthwisePixels) * kDepthwisePixels;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t sample = item / blocks, first = item % blocks * run.rows;
    const int64_t last = min(first + run.rows, c.out_h);
    for (int64_t x = 0; x < c.out_w;) {
      // The first strip is one pixel wider, so that the others start at a whole tile.
      const int64_t x_end = min(c.out_w, x + strip + (x == 0));
      for (int64_t y = first; y < last; ++y) depthwise_strip(run, sample, y, x, x_end);
      x = x_end;
    }
  }
}

}  // namespace tunable_ops::TO_ISA
