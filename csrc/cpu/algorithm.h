// The algorithm of convolutions on a CPU: a setting of the process, and the choice for a call. Independent of Torch.
#pragma once

#include <cstdint>

#include "kernels.h"

namespace tunable_ops {

// The codes are those of tunable_ops/algorithm.py.
enum class Algorithm : int64_t { kDefault = 0, kDirect = 1, kWinograd2 = 2, kWinograd4 = 3 };

Algorithm chosen_algorithm();
Algorithm choose_algorithm(Algorithm algorithm);  // returns the one before

// True for what Winograd's filtering serves: 3x3 and 5x5 kernels without stride and dilation, not depthwise.
bool winograd_serves(const Conv& conv, bool depthwise);

// The size of the tiles of outputs that a convolution is computed in by Winograd's filtering: 2 or 4; 0 if directly.
// `blends` is the number of kernels that are transformed for the batch. Depends on the shape and the setting alone.
int64_t winograd_tile(const Conv& conv, bool depthwise, int64_t blends);

// True where transforming one kernel takes a good part of a call: where reading it transformed from far away pays.
bool pays_to_keep(const Conv& conv, int64_t tile);

}  // namespace tunable_ops
