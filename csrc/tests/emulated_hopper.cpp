// Launches of the wgmma kernel in the emulator, instead of hopper_launch.cpp.
#include "emulated_hopper.h"

#include "../cuda/hopper_check.h"
#include "../cuda/hopper_conv.cuh"

namespace tunable_ops::cuda {
namespace {

constexpr int32_t kMultiprocessors = 4;  // few, so that a block gets several tiles and samples

template <class Tile>
void hopper_conv_kernel(const HopperRun run) {
  hopper_conv<Tile>(run);
}

template <class Math, int kShape = 0>
const char* launch_shape(const HopperRun& run) {
  if constexpr (kShape < static_cast<int>(sizeof(kHopperShapes) / sizeof(HopperShape))) {
    if (run.plan.shape != kShape) return launch_shape<Math, kShape + 1>(run);
    const int64_t blocks = static_cast<int64_t>(run.tiles_n) * run.workers;
    return launch(hopper_conv_kernel<HopperTile<Math, kShape, kAnyActivation>>, blocks, kHopperThreads,
                  hopper_memory(run).bytes, nullptr, run);
  }
  return "no tile shape supports the layer";
}

std::string launch_emulated(const ConvRun& conv, HopperBoxes boxes, int32_t multiprocessors) {
  HopperRun run = hopper_run(conv, boxes, multiprocessors);
  for (const auto& [map, image] : {std::pair(&run.source, hopper_source(run)), {&run.target, hopper_target(run)}}) {
    if (const char* error = make_map(*map, image)) return error;
  }
  const bool half = conv.type == Type::kHalf;
  const char* error = half ? launch_shape<HopperHalf>(run) : launch_shape<HopperBFloat16>(run);
  return error == nullptr ? "" : error;
}

}  // namespace

HopperBoxes emulated_boxes = HopperBoxes::kHalo;

std::string prepare_hopper(const ConvRun& conv, int32_t) { return check_hopper_emulated(conv, emulated_boxes, false); }

std::string launch_hopper(const ConvRun& conv, int32_t, void*) {
  return launch_emulated(conv, emulated_boxes, kMultiprocessors);
}

bool hopper_is_default(const ConvRun&, int32_t) { return false; }

std::string check_hopper_emulated(const ConvRun& like, HopperBoxes boxes, bool fault) {
  HopperCheck test(like);
  std::vector<uint16_t> input = test.input;
  if (fault) input[input.size() / 2] = 0x4000;  // 2
  ConvRun& conv = test.conv;
  conv.input = input.data();
  conv.weight = test.weight.data();
  conv.bias = test.bias.empty() ? nullptr : test.bias.data();
  conv.alpha.data = test.alpha.data();
  conv.output = test.output.data();
  std::fill(test.output.begin(), test.output.end(), uint16_t{0xffff});
  const std::string error = launch_emulated(conv, boxes, HopperCheck::kMultiprocessors);
  return error.empty() ? test.difference() : error;
}

}  // namespace tunable_ops::cuda
