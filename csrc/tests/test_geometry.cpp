// Tests the index arithmetic of the CUDA kernels against loops that follow the definition. Prints failures; exits with
// 1 if there are any.
#include <cstdio>
#include <set>
#include <tuple>
#include <vector>

#include "../cuda/hopper.h"

using namespace tunable_ops::cuda;

static int failures = 0;

static void expect(bool ok, const char* what, int a = 0, int b = 0, int c = 0) {
  if (ok) return;
  if (failures++ < 20) std::printf("%s (%d, %d, %d)\n", what, a, b, c);
}

using Pairs = std::multiset<std::tuple<int, int, int>>;  // (input, tap, output)

static Pairs by_definition(const Extent& e) {
  Pairs pairs;
  for (int out = 0; out < e.out; ++out) {
    for (int tap = 0; tap < e.taps; ++tap) {
      const int in = out * e.stride - e.pad + tap * e.dilation;
      if (in >= 0 && in < e.in) pairs.insert({in, tap, out});
    }
  }
  return pairs;
}

static void collect(const Axis& axis, bool gradient, Pairs& pairs, std::vector<int>& seen) {
  for (int i = 0; i < axis.count; ++i) {
    const int target = axis.destination(i);
    expect(target >= 0 && target < static_cast<int>(seen.size()), "a destination is out of range", i, target);
    ++seen[target];
    for (int t = 0; t < axis.taps; ++t) {
      const int source = axis.source(i) + t * axis.src_step;
      if (source < 0 || source >= axis.src_size) continue;
      pairs.insert(gradient ? std::make_tuple(target, axis.tap(t), source)
                            : std::make_tuple(source, axis.tap(t), target));
    }
  }
}

static void test_axes() {
  for (int in = 1; in <= 9; ++in) {
    for (int taps = 1; taps <= 5; ++taps) {
      for (int stride = 1; stride <= 5; ++stride) {
        for (int dilation = 1; dilation <= 4; ++dilation) {
          for (int pad = 0; pad <= 4; ++pad) {
            const int span = in + 2 * pad - dilation * (taps - 1) - 1;
            if (span < 0) continue;
            const Extent e{in, span / stride + 1, taps, stride, dilation, pad};
            const Pairs expected = by_definition(e);
            Pairs forward, gradient;
            std::vector<int> outputs(e.out), inputs(e.in);
            collect(forward_axis(e), false, forward, outputs);
            for (int phase = 0; phase < stride; ++phase) {
              const Axis axis = gradient_axis(e, phase);
              expect(axis.src_step >= 0 && axis.count <= gradient_axis(e, 0).count, "a phase is larger than the first",
                     in, phase);
              collect(axis, true, gradient, inputs);
            }
            expect(forward == expected, "forward taps", in, taps, stride * 100 + dilation * 10 + pad);
            expect(gradient == expected, "gradient taps", in, taps, stride * 100 + dilation * 10 + pad);
            for (int n : outputs) expect(n == 1, "an output is not written exactly once", in, taps, n);
            for (int n : inputs) expect(n == 1, "an input is not written exactly once", in, taps, n);
          }
        }
      }
    }
  }
}

static void test_places() {
  int64_t block = 0;
  for (int phase = 0; phase < 2; ++phase) {
    for (int problem = 0; problem < 3; ++problem) {
      for (int group = 0; group < 4; ++group) {
        for (int m = 0; m < 5; ++m) {
          for (int n = 0; n < 3; ++n, ++block) {
            const Place p = place_of(block, 3, 5, 4, 3);
            expect(p.tile_n == n && p.tile_m == m && p.group == group && p.problem == problem && p.phase == phase,
                   "place");
          }
        }
      }
    }
  }
  const Place far = place_of((int64_t{1} << 33) + 7, 1 << 20, 1 << 10, 2, 4);
  expect(far.tile_n == 7 && far.phase == 1, "a block index beyond 32 bits", far.tile_n, far.phase);
  int index = 0;
  for (int sample = 0; sample < 3; ++sample) {
    for (int y = 0; y < 5; ++y) {
      for (int x = 0; x < 7; ++x, ++index) {
        const Pixel p = pixel_of(index, 5, 7);
        expect(p.sample == sample && p.y == y && p.x == x, "pixel", index);
      }
    }
  }
}

static void test_parts() {
  for (int64_t count : {0, 1, 5, 64, 1000003}) {
    for (int parts : {1, 2, 3, 7, 64}) {
      int64_t at = 0;
      for (int i = 0; i < parts; ++i) {
        const Range r = part_of(count, parts, i);
        expect(r.begin == at && r.end >= r.begin && r.end - r.begin <= count / parts + 1, "part",
               static_cast<int>(count), parts, i);
        at = r.end;
      }
      expect(at == count, "parts do not add up", static_cast<int>(count), parts);
    }
  }
  expect(ceil_div(0, 4) == 0 && ceil_div(1, 4) == 1 && ceil_div(8, 4) == 2, "ceil_div");
  expect(greatest_common_divisor(12, 18) == 6 && greatest_common_divisor(7, 1) == 1, "greatest_common_divisor");
  expect(contract_warps(1) == 8 && contract_warps(1024) == 8 && contract_warps(1025) == 16, "contract_warps");
}

// Every chunk has a unique offset, and simultaneous accesses of a warp hit different banks.
static void test_swizzles() {
  std::set<int> rows, halves, words;
  for (int row = 0; row < 128; ++row) {
    for (int chunk = 0; chunk < 4; ++chunk) rows.insert(row_chunk_offset(row, chunk));
  }
  for (int row = 0; row < 32; ++row) {
    for (int chunk = 0; chunk < 8; ++chunk) halves.insert(pixel_chunk_offset<2>(row, chunk));
  }
  for (int row = 0; row < 16; ++row) {
    for (int chunk = 0; chunk < 16; ++chunk) words.insert(pixel_chunk_offset<4>(row, chunk));
  }
  expect(rows.size() == 512 && *rows.rbegin() == 512 * 16 - 16, "row chunks");
  expect(halves.size() == 256 && *halves.rbegin() == 4096 - 16, "chunks of 16-bit pixels");
  expect(words.size() == 256 && *words.rbegin() == 4096 - 16, "chunks of 32-bit pixels");
  for (int first = 0; first < 32; first += 8) {
    for (int chunk = 0; chunk < 8; ++chunk) {
      std::set<int> a, b;
      for (int row = first; row < first + 8; ++row) {
        a.insert(row_chunk_offset(row, chunk % 4) / 16 % 8);
        b.insert(pixel_chunk_offset<2>(row, chunk) / 16 % 8);
      }
      expect(a.size() == 8 && b.size() == 8, "eight rows of one chunk share banks", first, chunk);
    }
  }
  for (int first = 0; first < 16; first += 4) {
    for (int chunk = 0; chunk < 16; chunk += 2) {
      std::set<int> banks;
      for (int row = first; row < first + 4; ++row) {
        banks.insert(pixel_chunk_offset<4>(row, chunk) / 16 % 8);
        banks.insert(pixel_chunk_offset<4>(row, chunk + 1) / 16 % 8);
      }
      expect(banks.size() == 8, "four rows of two chunks share banks", first, chunk);
    }
  }
}

static void test_hopper_plans() {
  for (int channels = 8; channels <= 264; channels += 8) {
    for (int outputs = 8; outputs <= 264; outputs += 8) {
      for (int taps = 1; taps <= 7; taps += 2) {
        const HopperBoxes boxes = (channels + outputs) % 16 == 0 ? HopperBoxes::kHalo : HopperBoxes::kColumns;
        const HopperPlan plan = hopper_plan(channels, outputs, taps, taps, boxes);
        if (plan.slots == 0) continue;
        const HopperShape shape = kHopperShapes[plan.shape];
        const HopperMemory m(shape, taps, taps, plan.shifts, plan.chunks, plan.slots);
        expect(plan.shifts == hopper_shifts(boxes, taps), "another number of column shifts", plan.shifts, taps);
        expect(m.box <= m.slot && m.box == (shape.tile_rows() + taps - 1) * m.columns * shape.row_bytes(),
               "a box has another size", channels, outputs, taps);
        expect(plan.slots >= 2 && m.bytes <= kHopperSharedBytes, "the block does not fit", channels, outputs, taps);
        expect(plan.chunks * shape.channels >= channels, "the chunks do not hold all channels", channels, outputs,
               taps);
        expect(m.slot % 1024 == 0 && m.panel % 1024 == 0, "tiles are not aligned to the swizzle pattern", channels,
               outputs, taps);
        expect(m.stage % 1024 == 0 && m.bias % 16 == 0 && m.alpha % 4 == 0 && m.barriers % 8 == 0, "alignment",
               channels, outputs, taps);
        expect(shape.tile_rows() + taps - 1 <= 256 && m.columns <= 256, "a box has more than 256 rows or columns",
               channels, outputs, taps);
      }
    }
  }
  const HopperShape usual = kHopperShapes[hopper_plan(64, 64, 3, 3).shape];
  expect(usual.channels == 64 && usual.outputs == 64 && usual.rows == 3,
         "64 channels do not use the shape 64 x 64 with three rows");
  expect(hopper_plan(64, 64, 3, 3).slots == 2, "64 channels do not leave two slots for boxes with a halo");
  const HopperPlan wide = hopper_plan(128, 128, 3, 3);
  expect(wide.slots >= 2 && wide.chunks == 4, "128 channels and outputs are not served");
  expect(hopper_plan(16, 16, 3, 3).slots == kHopperMaxSlots, "few channels do not get every slot");
  expect(hopper_plan(512, 8, 3, 3).slots == 0, "a panel that does not fit is accepted");
}

static void test_hopper_tiles() {
  HopperRun run{};
  run.tiles_h = 3, run.tiles_w = 2, run.workers = 4;
  std::set<std::tuple<int, int, int>> seen;
  const int rows = 6, samples = 5, count = samples * run.tiles_h * run.tiles_w;
  int sample = 0;
  for (int worker = 0; worker < run.workers; ++worker) {
    const Range range = part_of(count, run.workers, worker);
    for (int64_t tile = range.begin; tile < range.end; ++tile) {
      const HopperPlace at = hopper_place(static_cast<int32_t>(tile), run, rows);
      expect(at.sample >= sample, "samples do not ascend", at.sample, sample);
      sample = at.sample;
      expect(at.row % rows == 0 && at.column % kHopperPixels == 0, "a tile is off the grid", at.row, at.column);
      seen.insert({at.sample, at.row / rows, at.column / kHopperPixels});
    }
  }
  expect(static_cast<int>(seen.size()) == count, "tiles are missing or repeated", static_cast<int>(seen.size()), count);
}

static void test_hopper_swizzles() {
  for (const int row_bytes : {32, 64, 128}) {
    std::set<int> seen;
    for (int offset = 0; offset < 4096; offset += 16) {
      const int to = swizzled(offset, row_bytes);
      expect(to / row_bytes == offset / row_bytes, "a chunk leaves its row", row_bytes, offset, to);
      seen.insert(to);
    }
    expect(seen.size() == 256, "chunks collide", row_bytes);
    for (int row = 0; row < 64; row += 8) {
      std::set<int> banks;
      for (int i = 0; i < 8; ++i) banks.insert(swizzled((row + i) * row_bytes, row_bytes) / 16 % 8);
      expect(banks.size() == 8, "eight rows of one chunk share banks in a swizzle mode", row_bytes, row);
    }
  }
  // Bits 0-13: address; 16-29: 1, unused with a swizzle; 32-45: stride between groups of eight rows; 62-63: mode.
  expect(matrix_descriptor(0x12400, 128) == (uint64_t{1} << 62 | uint64_t{64} << 32 | 1 << 16 | 0x1240), "128 bytes");
  expect(matrix_descriptor(0x400, 64) == (uint64_t{2} << 62 | uint64_t{32} << 32 | 1 << 16 | 0x40), "64 bytes");
  expect(matrix_descriptor(0x400, 32) == (uint64_t{3} << 62 | uint64_t{16} << 32 | 1 << 16 | 0x40), "32 bytes");
}

int main() {
  test_hopper_plans();
  test_hopper_tiles();
  test_hopper_swizzles();
  test_axes();
  test_places();
  test_parts();
  test_swizzles();
  std::printf("%d failures\n", failures);
  return failures != 0;
}
