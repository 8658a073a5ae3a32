// The wgmma kernel's check of its first use, run by the emulator: the kernel passes for every tile shape, in both
// directions and with both kinds of boxes, and a single wrong pixel fails.
#include <cstdio>

#include "emulated_hopper.h"

using namespace tunable_ops::cuda;

struct Layer {
  int32_t channels, outputs, taps_h, taps_w;
};

// At least one for each shape; tails of channels and outputs; kernels that are not square.
constexpr Layer kLayers[] = {{8, 40, 3, 3},  {16, 8, 7, 5},  {24, 32, 3, 2},  {32, 56, 1, 2},
                             {64, 64, 3, 3}, {72, 64, 2, 3}, {64, 120, 3, 3}, {64, 136, 1, 1}};

static ConvRun conv_of(const Layer& layer, bool gradient, Type type) {
  ConvRun conv{};
  conv.y = {0, 0, layer.taps_h, 1, 1, 0};
  conv.x = {0, 0, layer.taps_w, 1, 1, 0};
  conv.gradient = gradient;
  conv.groups = 1;
  conv.channels = layer.channels;
  conv.outputs = layer.outputs;
  conv.fused = conv.vectors = conv.vector_stores = true;
  conv.type = type;
  return conv;
}

int main() {
  int failures = 0, number = 0;
  for (const Layer& layer : kLayers) {
    for (int i = 0; i < 4; ++i, ++number) {
      const HopperBoxes boxes = i / 2 == 0 ? HopperBoxes::kHalo : HopperBoxes::kColumns;
      ConvRun conv = conv_of(layer, i % 2 != 0, number % 3 == 0 ? Type::kBFloat16 : Type::kHalf);
      conv.activation = static_cast<tunable_ops::Activation>(number % 5);
      const char* rule = hopper_unsupported(conv);
      const std::string error = rule != nullptr ? rule : check_hopper_emulated(conv, boxes, false);
      const HopperPlan plan = hopper_plan(layer.channels, layer.outputs, layer.taps_h, layer.taps_w, boxes);
      std::printf("%d x %d, %d x %d taps, direction %d, boxes %d, shape %d, slots %d: %s\n", layer.channels,
                  layer.outputs, layer.taps_h, layer.taps_w, i % 2, i / 2, plan.shape, plan.slots,
                  error.empty() ? "right" : error.c_str());
      if (!error.empty()) ++failures;
    }
  }
  const bool seen = !check_hopper_emulated(conv_of(kLayers[0], false, Type::kHalf), HopperBoxes::kHalo, true).empty();
  if (!seen) std::printf("a wrong pixel passes the check\n"), ++failures;
  std::printf("%d failures\n", failures);
  return failures != 0;
}
