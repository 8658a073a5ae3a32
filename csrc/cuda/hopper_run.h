// From a convolution to a run of the wgmma kernel. Without Torch and CUDA.
#pragma once

#include "hopper.h"

namespace tunable_ops::cuda {

// Returns null, or the requirement of the wgmma kernel that this run does not meet.
const char* hopper_unsupported(const ConvRun& run);

// Up to this many channels and outputs the kernel is chosen where nothing was measured: beyond, the library's
// convolutions approach the hardware's peak.
constexpr int32_t kHopperDefaultChannels = 128;

// Everything but the tensor maps. The convolution must be supported.
HopperRun hopper_run(const ConvRun& conv, HopperBoxes boxes, int32_t multiprocessors);
ImageMap hopper_source(const HopperRun& run);
ImageMap hopper_target(const HopperRun& run);

}  // namespace tunable_ops::cuda
