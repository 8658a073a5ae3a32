// Compiles the wgmma kernel for a device when it is first needed, checks it there, and launches it.
#pragma once

#include <string>

#include "hopper_run.h"

namespace tunable_ops::cuda {

// Makes the kernel for such a convolution ready: compiles it, or reads the machine code that an earlier process
// compiled, and compares its results on small integers with a loop on the host. Returns an empty string, or why the
// kernel cannot be used; both are remembered. Waits for the device at the first call; may be called while a graph is
// captured.
std::string prepare_hopper(const ConvRun& conv, int32_t device);

// Launches on `stream`, after `prepare_hopper` where that was not called. Returns an empty string or an error message.
std::string launch_hopper(const ConvRun& conv, int32_t device, void* stream);

// True if the kernel serves the convolution, is ready, and is to be used where nothing was measured. Says once on
// stderr why a kernel that should be ready is not.
bool hopper_is_default(const ConvRun& conv, int32_t device);

}  // namespace tunable_ops::cuda
