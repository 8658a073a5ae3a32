// Compiles CUDA C++ for compute capability 9.0 with NVRTC, which every CUDA build of torch brings, and keeps the
// machine code on disk. Without Torch.
#pragma once

#include <string>
#include <vector>

namespace tunable_ops::cuda {

// Machine code, or why there is none.
struct Cubin {
  std::string image, error;
};

// Args:
//   source: CUDA C++ without includes.
//   options: Of the compiler, beyond the architecture and the language.
//   libraries: Libraries to look for NVRTC in, by path or name; then its usual names are tried.
//   cache: Folder for the machine code; empty to keep none. Files are named by a hash of the source, the options, the
//     architecture and NVRTC's version. One that is damaged or cannot be read or written is ignored.
Cubin compile_cubin(const std::string& source, const std::vector<std::string>& options,
                    const std::vector<std::string>& libraries, const std::string& cache);

// $TUNABLE_OPS_CACHE, else tunable_ops in $XDG_CACHE_HOME or ~/.cache; empty if there is no home.
std::string cache_folder();

}  // namespace tunable_ops::cuda
