// Compiles the wgmma kernel as the operators do at its first use. Arguments: NVRTC, the cache's folder, the file for
// the machine code, then options.
#include <cstdio>
#include <fstream>
#include <iostream>

#include "../cuda/hopper.h"
#include "../cuda/nvrtc.h"

namespace tunable_ops::cuda {
extern const char* const kHopperSource;
}

int main(int count, char** arguments) {
  if (count < 4) return 2;
  using namespace tunable_ops::cuda;
  std::vector<std::string> options{"-DTO_HOPPER_RUN_BYTES=" + std::to_string(sizeof(HopperRun))};
  options.insert(options.end(), arguments + 4, arguments + count);
  const Cubin cubin = compile_cubin(kHopperSource, options, {arguments[1]}, arguments[2]);
  std::cout << cubin.error;
  if (!cubin.error.empty()) return 1;
  std::ofstream(arguments[3], std::ios::binary) << cubin.image;
  return 0;
}
