// Gradient of the blended kernel: outer products of input channels and output gradients, summed over pixels. Each tile
// sums a block of rows from zero and adds it to memory once: short partial sums limit the fp32 rounding error, and the
// order of the additions depends only on the shape.
namespace tunable_ops::TO_ISA {

// The output positions [begin, end) at which a tap falls inside the image.
inline Range valid_outputs(int64_t tap, int64_t dilation, int64_t stride, int64_t pad, int64_t size, int64_t count) {
  const int64_t offset = tap * dilation - pad;
  const int64_t begin = offset >= 0 ? 0 : ceil_div(-offset, stride);
  const int64_t end = offset >= size ? 0 : min(count, (size - 1 - offset) / stride + 1);
  return {begin, max(begin, end)};
}

struct GradTile {
  const float* input;  // at the tap of the first pixel and the tile's first channel
  const float* grad;
  int64_t rows, pixels;
  int64_t in_row, in_pixel, grad_row, grad_pixel;
  float* target;  // [channels][vectors * lanes]
  int64_t lanes;  // of the last vector
  bool first;     // the target is uninitialised
};

template <bool kWhole, int kVectors>
inline Vec load_grad(const float* p, int v, int64_t lanes) {
  return kWhole || v + 1 < kVectors ? load(p + v * kLanes) : load_first(p + v * kLanes, lanes);
}

template <int kChannels, int kVectors, bool kWhole>
inline void grad_tile_of(const GradTile& t) {
  Vec sums[kChannels][kVectors];
#pragma GCC unroll 32
  for (int m = 0; m < kChannels; ++m) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) sums[m][v] = Vec{};
  }
  for (int64_t y = 0; y < t.rows; ++y) {
    const float* x = t.input + y * t.in_row;
    const float* g = t.grad + y * t.grad_row;
    for (int64_t i = 0; i < t.pixels; ++i) {
      Vec grads[kVectors];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) grads[v] = load_grad<kWhole, kVectors>(g, v, t.lanes);
#pragma GCC unroll 32
      for (int m = 0; m < kChannels; ++m) {
        const Vec value = broadcast(x[m]);
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) sums[m][v] += value * grads[v];
      }
      asm volatile("" ::: "memory");
      x += t.in_pixel;
      g += t.grad_pixel;
    }
  }
#pragma GCC unroll 32
  for (int m = 0; m < kChannels; ++m) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      float* to = t.target + (m * kVectors + v) * kLanes;
      store(to, t.first ? sums[m][v] : sums[m][v] + load(to));
    }
  }
}

template <int kChannels, int kVectors>
void grad_tile(const GradTile& t) {
  if (t.lanes == kLanes) {
    grad_tile_of<kChannels, kVectors, true>(t);
  } else {
    grad_tile_of<kChannels, kVectors, false>(t);
  }
}

using GradFunction = void (*)(const GradTile&);

template <int kVectors, int... kChannels>
struct GradTable {
  static constexpr GradFunction functions[] = {nullptr, grad_tile<kChannels, kVectors>...};
};

inline GradFunction grad_function(int64_t vectors, int64_t channels) {
  return vectors == 2 ? GradTable<2, TO_COUNT(TO_ROWS_2)>::functions[channels]
                      : GradTable<1, TO_COUNT(TO_ROWS_1)>::functions[channels];
}

inline int64_t channel_tiles(const Panels& p, int64_t panel) {
  return ceil_div(p.channels, kRows[p.panel_vectors(panel)]);
}

// Tiles of one sample: (panel, tap, block of channels), and one per panel for the sums of its gradients.
int64_t dense_weight_grad_tiles(const Panels& p) {
  int64_t count = 0;
  for (int64_t panel = 0; panel < p.count(); ++panel) count += p.taps() * channel_tiles(p, panel) + 1;
  return count * p.groups;
}

// The current position: a sample, a block [y, y_end) of output rows, a panel.
struct GradPlace {
  const float* input;
  const float* grad;
  float* gradient;
  float* sums;
  int64_t y, y_end, group, panel, vectors, lanes;
  bool first;
};

inline void tap_gradient(const WeightGradRun& run, const GradPlace& at, int64_t tap, int64_t begin, int64_t end) {
  const Conv& c = run.conv;
  const int64_t r = tap / c.taps_w, s = tap % c.taps_w;
  const Range rows = valid_outputs(r, c.dilation_h, c.stride_h, c.pad_h, c.in_h, c.out_h);
  const Range columns = valid_outputs(s, c.dilation_w, c.stride_w, c.pad_w, c.in_w, c.out_w);
  const int64_t y = max(at.y, rows.begin);
  GradTile tile;
  tile.rows = max(0, min(at.y_end, rows.end) - y);
  tile.pixels = columns.end - columns.begin;
  tile.in_row = c.stride_h * c.in_row;
  tile.in_pixel = c.stride_w * c.in_pixel;
  tile.grad_row = c.out_row;
  tile.grad_pixel = c.out_pixel;
  tile.lanes = at.lanes;
  tile.first = at.first;
  if (tile.rows > 0 && tile.pixels > 0) {
    tile.input = at.input + (y * c.stride_h - c.pad_h + r * c.dilation_h) * c.in_row +
                 (columns.begin * c.stride_w - c.pad_w + s * c.dilation_w) * c.in_pixel;
    tile.grad = at.grad + y * c.out_row + columns.begin * c.out_pixel;
  } else {
    tile.rows = 0;
    tile.input = at.input;
    tile.grad = at.grad;
  }
  const int64_t count = channel_tiles(run.panels, at.panel), channels = c.channels;
  const int64_t width = at.vectors * kLanes;
  for (int64_t i = 0, first = 0; i < end; ++i) {
    const int64_t size = channels / count + (i < channels % count);
    if (i >= begin) {
      GradTile part = tile;
      part.input += first;
      part.target = at.gradient + (tap * channels + first) * width;
      grad_function(at.vectors, size)(part);
    }
    first += size;
  }
}

// Sums a panel's output gradients over the block of rows.
inline void sum_gradients(const WeightGradRun& run, const GradPlace& at) {
  const Conv& c = run.conv;
  if (!at.sums) return;
  for (int64_t v = 0; v < at.vectors; ++v) {
    const int64_t lanes = v + 1 < at.vectors ? kLanes : at.lanes;
    Vec total = {};
    for (int64_t y = at.y; y < at.y_end; ++y) {
      const float* g = at.grad + y * c.out_row + v * kLanes;
      Vec row = {};
      for (int64_t x = 0; x < c.out_w; ++x)
        row += lanes == kLanes ? load(g + x * c.out_pixel) : load_first(g + x * c.out_pixel, lanes);
      total += row;
    }
    float* to = at.sums + v * kLanes;
    store(to, at.first ? total : total + load(to));
  }
}

// Computes tiles [begin, end) of one sample over one block of rows.
inline void block_gradient(const WeightGradRun& run, GradPlace at, int64_t begin, int64_t end) {
  const Panels& p = run.panels;
  const GradPlace start = at;
  int64_t index = 0;
  for (at.group = 0; at.group < p.groups; ++at.group) {
    for (at.panel = 0; at.panel < p.count(); ++at.panel) {
      const int64_t tiles = channel_tiles(p, at.panel), outputs = at.panel * p.width * kLanes;
      at.vectors = p.panel_vectors(at.panel);
      at.lanes = min(kLanes, p.outputs - outputs - (at.vectors - 1) * kLanes);
      at.input = start.input + at.group * p.channels;
      at.grad = start.grad + at.group * p.outputs + outputs;
      at.gradient = start.gradient + p.offset(at.group, at.panel);
      at.sums = start.sums ? start.sums + at.group * p.vectors() * kLanes + outputs : nullptr;
      for (int64_t tap = 0; tap < p.taps(); ++tap, index += tiles) {
        const int64_t from = max(0, begin - index), to = min(tiles, end - index);
        if (from < to && start.gradient) tap_gradient(run, at, tap, from, to);
      }
      if (index >= begin && index < end) sum_gradients(run, at);
      ++index;
    }
  }
}

// Enough pixels to amortise loading and storing the accumulators, few enough that a block stays in the cache.
constexpr int64_t kGradPixels = 96;

void dense_weight_grad(const WeightGradRun& run, int64_t begin, int64_t end) {
  const Conv& c = run.conv;
  const int64_t tiles = dense_weight_grad_tiles(run.panels);
  const int64_t block = max(1, kGradPixels / max(1, c.out_w)), sums_size = c.groups * run.panels.vectors() * kLanes;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t part = item % run.parts, index = item / run.parts;  // index: sample and segment
    const int64_t segment = index % run.segments, sample = index / run.segments;
    const int64_t y_begin = c.out_h * segment / run.segments, y_end = c.out_h * (segment + 1) / run.segments;
    GradPlace at;
    at.input = run.input + sample * c.in_sample;
    at.grad = run.grad_output + sample * c.out_sample;
    at.gradient = run.gradient ? run.gradient + index * run.panels.size() : nullptr;
    at.sums = run.sums ? run.sums + index * sums_size : nullptr;
    for (int64_t y = y_begin; y < y_end; y += block) {
      at.y = y;
      at.y_end = min(y + block, y_end);
      at.first = y == y_begin;
      block_gradient(run, at, tiles * part / run.parts, tiles * (part + 1) / run.parts);
    }
  }
}

// One tap of one row for a vector of channels; two accumulators shorten the dependency chain.
template <bool kWhole>
inline Vec depthwise_dot(const float* x, const float* g, int64_t count, int64_t in_pixel, int64_t grad_pixel,
                         int64_t lanes) {
  Vec even = {}, odd = {};
  int64_t i = 0;
  for (; i + 2 <= count; i += 2) {
    even += (kWhole ? load(x) : load_first(x, lanes)) * (kWhole ? load(g) : load_first(g, lanes));
    x += in_pixel;
    g += grad_pixel;
    odd += (kWhole ? load(x) : load_first(x, lanes)) * (kWhole ? load(g) : load_first(g, lanes));
    x += in_pixel;
    g += grad_pixel;
  }
  if (i < count) even += (kWhole ? load(x) : load_first(x, lanes)) * (kWhole ? load(g) : load_first(g, lanes));
  return even + odd;
}

// Three adjacent taps share each load of the gradient.
inline void depthwise_dot3(const float* x, const float* g, int64_t count, int64_t in_pixel, int64_t column,
                           int64_t grad_pixel, Vec* sums) {
  Vec even[3] = {}, odd[3] = {};
  int64_t i = 0;
  for (; i + 2 <= count; i += 2, x += 2 * in_pixel, g += 2 * grad_pixel) {
    const Vec first = load(g), second = load(g + grad_pixel);
#pragma GCC unroll 3
    for (int s = 0; s < 3; ++s) {
      even[s] += load(x + s * column) * first;
      odd[s] += load(x + in_pixel + s * column) * second;
    }
  }
  for (int s = 0; s < 3; ++s) {
    if (i < count) even[s] += load(x + s * column) * load(g);
    sums[s] += even[s] + odd[s];
  }
}

// Adds the taps of one kernel row over one output row to target [taps_w][all channels]. `columns` holds the output
// columns at which each tap falls inside the image.
inline void depthwise_row_gradient(const Conv& c, const Range* columns, const float* input, const float* grad,
                                   int64_t channel, int64_t lanes, float* target, int64_t row_size) {
  const int64_t in_pixel = c.stride_w * c.in_pixel, column = c.dilation_w * c.in_pixel;
  for (int64_t s = 0; s < c.taps_w;) {
    const float* x = input + (s * c.dilation_w - c.pad_w) * c.in_pixel + channel;  // of output column 0
    const float* g = grad + channel;
    float* to = target + s * row_size + channel;
    if (lanes == kLanes && s + 3 <= c.taps_w) {
      const int64_t begin = columns[s].begin, end = columns[s + 2].end;  // where all three taps are valid
      if (begin < end) {
        Vec sums[3] = {};
        depthwise_dot3(x + begin * in_pixel, g + begin * c.out_pixel, end - begin, in_pixel, column, c.out_pixel, sums);
        for (int64_t i = 0; i < 3; ++i) {  // and the remaining columns at the borders
          for (int64_t o = columns[s + i].begin; o < begin; ++o) {
            sums[i] += load(x + o * in_pixel + i * column) * load(g + o * c.out_pixel);
          }
          for (int64_t o = end; o < columns[s + i].end; ++o) {
            sums[i] += load(x + o * in_pixel + i * column) * load(g + o * c.out_pixel);
          }
          store(to + i * row_size, load(to + i * row_size) + sums[i]);
        }
        s += 3;
        continue;
      }
    }
    const int64_t begin = columns[s].begin, count = columns[s].end - begin;
    if (count > 0) {
      x += begin * in_pixel;
      g += begin * c.out_pixel;
      const Vec dot = lanes == kLanes ? depthwise_dot<true>(x, g, count, in_pixel, c.out_pixel, lanes)
                                      : depthwise_dot<false>(x, g, count, in_pixel, c.out_pixel, lanes);
      store(to, load(to) + dot);  // panels are padded to whole vectors
    }
    ++s;
  }
}

// All taps of 3x3 kernels over one output row whose windows are inside the image vertically: they share each load of
// the gradient. `input` is the first of the three rows.
inline void depthwise_square_gradient(const Conv& c, const Range* columns, const float* input, const float* grad,
                                      int64_t channel, float* target, int64_t row_size) {
  const int64_t in_pixel = c.stride_w * c.in_pixel, column = c.dilation_w * c.in_pixel, row = c.dilation_h * c.in_row;
  const int64_t begin = columns[0].begin, end = max(begin, columns[2].end);  // where all taps are valid
  const float* first = input - c.pad_w * c.in_pixel + channel;               // of output column 0
  const float* g = grad + channel;
  Vec sums[3][3] = {};
  const float* x = first + begin * in_pixel;
  for (int64_t o = begin; o < end; ++o, x += in_pixel) {
    const Vec value = load(g + o * c.out_pixel);
#pragma GCC unroll 3
    for (int r = 0; r < 3; ++r) {
#pragma GCC unroll 3
      for (int s = 0; s < 3; ++s) sums[r][s] += load(x + r * row + s * column) * value;
    }
  }
#pragma GCC unroll 3
  for (int s = 0; s < 3; ++s) {  // and the remaining columns at the borders
    const Range left{columns[s].begin, min(begin, columns[s].end)}, right{max(end, columns[s].begin), columns[s].end};
    const Range borders[] = {left, right};
    for (const Range& border : borders) {
      for (int64_t o = border.begin; o < border.end; ++o) {
#pragma GCC unroll 3
        for (int r = 0; r < 3; ++r)
          sums[r][s] += load(first + o * in_pixel + r * row + s * column) * load(g + o * c.out_pixel);
      }
    }
#pragma GCC unroll 3
    for (int r = 0; r < 3; ++r) {
      float* to = target + (3 * r + s) * row_size + channel;
      store(to, load(to) + sums[r][s]);
    }
  }
}

void depthwise_weight_grad(const WeightGradRun& run, int64_t begin, int64_t end) {
  const Conv& c = run.conv;
  const int64_t row_size = run.panels.vectors() * kLanes;
  Range* columns = new Range[c.taps_w];
  for (int64_t s = 0; s < c.taps_w; ++s) {
    columns[s] = valid_outputs(s, c.dilation_w, c.stride_w, c.pad_w, c.in_w, c.out_w);
  }
  for (int64_t item = begin; item < end; ++item) {
    const int64_t segment = item % run.segments, sample = item / run.segments;
    float* gradient = run.gradient + item * run.panels.size();
    float* sums = run.sums ? run.sums + item * row_size : nullptr;
    for (int64_t i = 0; run.gradient && i < run.panels.size(); ++i) gradient[i] = 0;
    for (int64_t i = 0; sums && i < row_size; ++i) sums[i] = 0;
    const int64_t y_end = c.out_h * (segment + 1) / run.segments;
    for (int64_t y = c.out_h * segment / run.segments; y < y_end; ++y) {
      const float* grad = run.grad_output + sample * c.out_sample + y * c.out_row;
      const Range rows = valid_taps(y * c.stride_h - c.pad_h, c.in_h, c.taps_h, c.dilation_h);
      const float* image = run.input + sample * c.in_sample;
      const int64_t top = y * c.stride_h - c.pad_h, below = top + c.taps_h * c.dilation_h;
      const bool square = c.taps_h == 3 && c.taps_w == 3 && rows.begin == 0 && rows.end == 3;
      for (int64_t channel = 0; channel < c.groups; channel += kLanes) {
        const int64_t lanes = min(kLanes, c.groups - channel);
        // A part of the rows that come next: the strides of this loop are not foreseen by the processor.
        if (below >= 0 && below < c.in_h) prefetch(image + below * c.in_row + channel * c.in_w, lanes * c.in_w);
        if (y + 1 < y_end) prefetch(grad + c.out_row + channel * c.out_w, lanes * c.out_w);
        if (run.gradient && square && lanes == kLanes) {
          depthwise_square_gradient(c, columns, image + top * c.in_row, grad, channel, gradient, row_size);
        } else if (run.gradient) {
          for (int64_t r = rows.begin; r < rows.end; ++r)
            depthwise_row_gradient(c, columns, image + (top + r * c.dilation_h) * c.in_row, grad, channel, lanes,
                                   gradient + r * c.taps_w * row_size, row_size);
        }
        if (!sums) continue;
        Vec total = {};
        for (int64_t x = 0; x < c.out_w; ++x) {
          const float* g = grad + x * c.out_pixel + channel;
          total += lanes == kLanes ? load(g) : load_first(g, lanes);
        }
        store(sums + channel, load(sums + channel) + total);
      }
    }
  }
  delete[] columns;
}

}  // namespace tunable_ops::TO_ISA
