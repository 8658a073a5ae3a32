// Launches kernels that nvcc compiles. Other compilers get the emulator's launch.
#pragma once

#include "platform.cuh"

#if defined(__CUDACC__)

#include <cuda_runtime.h>

namespace tunable_ops::cuda {

// Allows a kernel the device's largest block of shared memory, whatever the launch asks for: threads that launch the
// same kernel with different sizes would otherwise set smaller limits between each other's calls.
inline cudaError_t allow_most_shared_memory(const void* kernel) {
  int device = 0, most = 0;
  cudaFuncAttributes attributes{};
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (error == cudaSuccess) error = cudaFuncGetAttributes(&attributes, kernel);
  if (error != cudaSuccess) return error;
  most -= static_cast<int>(attributes.sharedSizeBytes);
  if (attributes.maxDynamicSharedSizeBytes >= most) return cudaSuccess;
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most);
}

// Launches a one-dimensional grid. Returns null or an error message.
template <class Run>
const char* launch(void (*kernel)(Run), int64_t blocks, int32_t threads, int32_t shared_bytes, void* stream,
                   const Run& run) {
  if (blocks == 0) return nullptr;
  if (blocks > INT32_MAX) return "the grid has more than 2^31 - 1 blocks";
  const void* function = reinterpret_cast<const void*>(kernel);
  if (shared_bytes > 48 * 1024) {
    const cudaError_t error = allow_most_shared_memory(function);
    if (error != cudaSuccess) return cudaGetErrorString(error);
  }
  void* arguments[] = {const_cast<Run*>(&run)};
  const cudaError_t error = cudaLaunchKernel(function, dim3(static_cast<unsigned>(blocks)), dim3(threads), arguments,
                                             shared_bytes, static_cast<cudaStream_t>(stream));
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace tunable_ops::cuda

#endif
