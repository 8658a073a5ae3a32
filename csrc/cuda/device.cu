// Compiled by nvcc: the .cpp files are built without CUDA headers.
#include <cuda_runtime.h>

#include "params.h"

namespace tunable_ops::cuda {

const char* use_device(int32_t index) {
  const cudaError_t error = cudaSetDevice(index);
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace tunable_ops::cuda
