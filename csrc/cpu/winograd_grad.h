// The gradient of kernels by Winograd's filtering, the transpose of winograd.h in the kernels:
// grad_w = G^T [sum over tiles of (A grad A^T) * (B^T x B)] G, where the sum is a matrix product per point.
namespace tunable_ops::TO_ISA {

// Transforms the output gradient of a tile for one vector of outputs; `rows` x `columns` of it are inside the image.
template <class F>
inline void transform_gradient(const Conv& c, const float* grad, int64_t rows, int64_t columns, int64_t lanes,
                               float* to, int64_t point) {
  constexpr int kPoints = F::kPoints;
  Vec half[kPoints][F::kOut];
#pragma GCC unroll 4
  for (int j = 0; j < F::kOut; ++j) {
    Vec column[F::kOut], t[kPoints];
#pragma GCC unroll 4
    for (int i = 0; i < F::kOut; ++i) {
      const float* from = grad + i * c.out_row + j * c.out_pixel;
      column[i] = i >= rows || j >= columns ? Vec{} : lanes == kLanes ? load(from) : load_first(from, lanes);
    }
    F::gradient(column, t);
#pragma GCC unroll 6
    for (int i = 0; i < kPoints; ++i) half[i][j] = t[i];
  }
#pragma GCC unroll 6
  for (int i = 0; i < kPoints; ++i) {
    Vec t[kPoints];
    F::gradient(half[i], t);
#pragma GCC unroll 6
    for (int j = 0; j < kPoints; ++j) store(to + (i * kPoints + j) * point, t[j]);
  }
}

// Adds the products of a block of tiles at a point to those of a panel. The block has the outputs from `output` on.
inline void add_products(const TileBlock& block, const Panels& p, int64_t group, int64_t point, int64_t panel,
                         int64_t output, bool first, float* sums) {
  const int64_t vectors = p.panel_vectors(panel), width = vectors * kLanes, tiles = channel_tiles(p, panel);
  GradTile tile;
  tile.rows = 1;
  tile.pixels = block.count;
  tile.in_row = tile.grad_row = 0;
  tile.in_pixel = block.channels;
  tile.grad_pixel = block.width;
  tile.lanes = kLanes;
  tile.first = first;
  float* target = sums + p.offset(group, panel) + point * (p.channels * width + p.pad);
  for (int64_t i = 0; i < tiles; ++i) {
    const int64_t channel = p.channels * i / tiles, channels = p.channels * (i + 1) / tiles - channel;
    tile.input = block.inputs + point * block.in_point + channel;
    tile.grad = block.products + point * block.out_point + panel * p.width * kLanes - output;
    tile.target = target + channel * width;
    grad_function(vectors, channels)(tile);
  }
}

template <class F>
void winograd_grad_of(const WinogradGradRun& run, int64_t begin, int64_t end) {
  constexpr int64_t kPoints = F::kPoints, kSquare = kPoints * kPoints;
  const Conv& c = run.conv;
  const Panels& p = run.panels;
  const int64_t widest = min(ceil_div(p.count(), run.parts) * p.width, p.vectors()) * kLanes;
  TileMemory memory(run.block, c.channels, widest, kSquare);
  TileBlock& block = memory.block;
  block.width = widest;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t sum = item / run.parts, part = item % run.parts;
    const int64_t span = sum / run.segments, segment = sum % run.segments;
    const int64_t first_panel = p.count() * part / run.parts, last_panel = p.count() * (part + 1) / run.parts;
    const int64_t first_output = first_panel * p.width * kLanes;
    const int64_t last_output = min(last_panel * p.width * kLanes, c.outputs);
    const int64_t first = run.span * segment / run.segments, last = run.span * (segment + 1) / run.segments;
    for (int64_t at = first; at < last; at += run.block) {
      block.count = min(run.block, last - at);
      for (int64_t group = 0; group < c.groups; ++group) {
        for (int64_t i = 0; i < block.count; ++i) {
          const TilePlace place = place_of<F>(c, span * run.span + at + i);
          transform_input<F>(c, run.input + place.sample * c.in_sample + group * c.channels, place.y - c.pad_h,
                             place.x - c.pad_w, memory.zeros, block.inputs + i * block.channels, block.in_point);
          const float* grad = run.grad_output + place.sample * c.out_sample + place.y * c.out_row +
                              place.x * c.out_pixel + group * c.outputs;
          for (int64_t output = first_output; output < last_output; output += kLanes)
            transform_gradient<F>(c, grad + output, c.out_h - place.y, c.out_w - place.x,
                                  min(kLanes, c.outputs - output),
                                  block.products + i * block.width + output - first_output, block.out_point);
        }
        for (int64_t point = 0; point < kSquare; ++point) {
          for (int64_t panel = first_panel; panel < last_panel; ++panel)
            add_products(block, p, group, point, panel, first_output, at == first, run.sums + sum * p.size());
        }
      }
    }
  }
}

void winograd_grad(const WinogradGradRun& run, int64_t begin, int64_t end) {
  with_filtering(run.panels.taps_h, run.conv.taps_h,
                 [&](auto filtering) { winograd_grad_of<decltype(filtering)>(run, begin, end); });
}

// Adds the segments of one kernel per lane and transforms their sum to its taps.
template <class F>
inline void transform_sums(const float* sums, int64_t segments, int64_t size, int64_t point, float* to, int64_t tap) {
  constexpr int kPoints = F::kPoints;
  constexpr int kTaps = F::kTaps;
  Vec half[kTaps][kPoints];
#pragma GCC unroll 6
  for (int j = 0; j < kPoints; ++j) {
    Vec column[kPoints], t[kTaps];
#pragma GCC unroll 6
    for (int i = 0; i < kPoints; ++i) {
      const float* from = sums + (i * kPoints + j) * point;
      column[i] = load(from);
      for (int64_t s = 1; s < segments; ++s) column[i] += load(from + s * size);
    }
    F::taps(column, t);
#pragma GCC unroll 5
    for (int i = 0; i < kTaps; ++i) half[i][j] = t[i];
  }
#pragma GCC unroll 5
  for (int i = 0; i < kTaps; ++i) {
    Vec t[kTaps];
    F::taps(half[i], t);
#pragma GCC unroll 5
    for (int j = 0; j < kTaps; ++j) store(to + (i * kTaps + j) * tap, t[j]);
  }
}

// Work items: (span, group, panel).
void winograd_taps(const WinogradGradRun& run, int64_t begin, int64_t end) {
  const Panels& p = run.panels;
  Panels taps = p;
  taps.taps_h = taps.taps_w = run.conv.taps_h, taps.pad = 0;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t panel = item % p.count(), group = item / p.count() % p.groups, span = item / p.count() / p.groups;
    const int64_t tap = p.channels * p.panel_vectors(panel) * kLanes;
    const float* sums = run.sums + span * run.segments * p.size() + p.offset(group, panel);
    float* to = run.gradient + span * taps.size() + taps.offset(group, panel);
    with_filtering(p.taps_h, run.conv.taps_h, [&](auto filtering) {
      for (int64_t i = 0; i < tap; i += kLanes)
        transform_sums<decltype(filtering)>(sums + i, run.segments, p.size(), tap + p.pad, to + i, tap);
    });
  }
}

}  // namespace tunable_ops::TO_ISA
