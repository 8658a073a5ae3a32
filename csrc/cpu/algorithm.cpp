#include "algorithm.h"

#include <atomic>

namespace tunable_ops {
namespace {

std::atomic<Algorithm> chosen{Algorithm::kDefault};

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Costs in multiply-adds of the direct kernel; measured with AVX-512 on Zen 4 and rounded up to what AVX2 takes there.
// Those of 5x5 are estimates.
struct Costs {
  int64_t tile;        // transforms per tile and channel, of inputs or outputs
  int64_t transform;   // per kernel of a channel and an output: gather, blend, transform
  int64_t most_bytes;  // of transformed kernels; 40 MB are 512 x 512 with tiles of 4x4, the largest that were measured
  // Of a call for which transformed kernels are kept. In networks of 3x3 layers that are larger than the L2 cache that
  // saves 0.17 of the time at 64 tiles of 4x4 (128 channels), and nothing at 256 (64). The others follow by estimates.
  int64_t most_tiles;
};
constexpr Costs kCosts[] = {{120, 320, 40 << 20, 160}, {400, 400, 40 << 20, 96}, {340, 900, 40 << 20, 200}};

// Tiles of 2x2 and 4x4 for 3x3 kernels, and of 2x2 for 5x5.
const Costs& costs_of(const Conv& c, int64_t tile) { return kCosts[c.taps_h == 5 ? 2 : tile == 4]; }

// Of transformed kernels: more of them are written and read from far away, at a cost per kernel (Ice Lake, 256 and 512
// channels); a training step does so three times.
constexpr int64_t kNearBytes = 4 << 20, kFar = 1000, kFarBytes = 16 << 20, kFarther = 2800;

double winograd_cost(const Conv& c, int64_t tile, int64_t lanes, int64_t blends) {
  const Costs& costs = costs_of(c, tile);
  const int64_t channels = ceil_div(c.channels, lanes) * lanes, outputs = ceil_div(c.outputs, lanes) * lanes;
  const int64_t points = (tile + c.taps_h - 1) * (tile + c.taps_h - 1);
  const double kernels = static_cast<double>(c.channels) * outputs;
  const double bytes = 4 * points * kernels * c.groups;
  if (bytes > costs.most_bytes) return -1;
  const int64_t transform = costs.transform + (bytes > kFarBytes ? kFarther : bytes >= kNearBytes ? kFar : 0);
  const double tiles = static_cast<double>(c.batch) * ceil_div(c.out_h, tile) * ceil_div(c.out_w, tile);
  return c.groups * (tiles * (points * kernels + costs.tile * (channels + outputs)) + blends * kernels * transform);
}

}  // namespace

Algorithm chosen_algorithm() { return chosen.load(std::memory_order_relaxed); }

Algorithm choose_algorithm(Algorithm algorithm) { return chosen.exchange(algorithm); }

bool winograd_serves(const Conv& c, bool depthwise) {
  return !depthwise && c.taps_h == c.taps_w && (c.taps_h == 3 || c.taps_h == 5) && c.stride_h == 1 && c.stride_w == 1 &&
         c.dilation_h == 1 && c.dilation_w == 1;
}

int64_t winograd_tile(const Conv& c, bool depthwise, int64_t blends) {
  const Algorithm named = chosen_algorithm();
  if (named == Algorithm::kDirect || !winograd_serves(c, depthwise)) return 0;
  if (named == Algorithm::kWinograd2) return 2;
  if (named == Algorithm::kWinograd4) return c.taps_h == 3 ? 4 : 0;
  const int64_t lanes = best_kernels().lanes, outputs = ceil_div(c.outputs, lanes) * lanes;
  // By a clear margin: these are estimates, and the direct kernel is closer to the exact result.
  double least = 0.85 * c.taps_h * c.taps_w * c.channels * outputs * c.groups * c.batch * c.out_h * c.out_w;
  int64_t best = 0;
  for (int64_t tile = 2; tile <= (c.taps_h == 3 ? 4 : 2); tile += 2) {
    const double cost = winograd_cost(c, tile, lanes, blends);
    if (cost >= 0 && cost < least) least = cost, best = tile;
  }
  return best;
}

bool pays_to_keep(const Conv& c, int64_t tile) {
  return c.batch * ceil_div(c.out_h, tile) * ceil_div(c.out_w, tile) <= costs_of(c, tile).most_tiles;
}

}  // namespace tunable_ops
