// The wgmma kernel in the emulator.
#pragma once

#include "../cuda/hopper_launch.h"

namespace tunable_ops::cuda {

// Which boxes the kernel streams.
extern HopperBoxes emulated_boxes;

// Runs the check of the kernel's first use. `fault` changes one value of the input behind the check's back.
std::string check_hopper_emulated(const ConvRun& like, HopperBoxes boxes, bool fault);

}  // namespace tunable_ops::cuda
