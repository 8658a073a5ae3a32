// The functions of the CUDA driver that launch a kernel, looked up when they are first needed: neither its header nor
// its library is needed to build. Numbers are those of cuda.h. Without Torch.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace tunable_ops::cuda {

using DriverPointer = uint64_t;  // CUdeviceptr
// CUcontext, CUmodule, CUfunction and CUstream are pointers; a CUdevice and a CUresult are ints.
using DriverHandle = void*;

struct Driver {
  int (*cuInit)(unsigned);
  int (*cuGetErrorString)(int, const char**);
  int (*cuDeviceGet)(int*, int);
  int (*cuDeviceGetAttribute)(int*, int, int);
  int (*cuDevicePrimaryCtxRetain)(DriverHandle*, int);
  int (*cuCtxGetCurrent)(DriverHandle*);
  int (*cuCtxSetCurrent)(DriverHandle);
  int (*cuModuleLoadData)(DriverHandle*, const void*);
  int (*cuModuleGetFunction)(DriverHandle*, DriverHandle, const char*);
  int (*cuFuncSetAttribute)(DriverHandle, int, int);
  int (*cuLaunchKernel)(DriverHandle, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
                        DriverHandle, void**, void**);
  int (*cuTensorMapEncodeTiled)(void*, int, uint32_t, void*, const uint64_t*, const uint64_t*, const uint32_t*,
                                const uint32_t*, int, int, int, int);
  int (*cuMemAlloc)(DriverPointer*, size_t);
  int (*cuMemFree)(DriverPointer);
  int (*cuMemcpyHtoDAsync)(DriverPointer, const void*, size_t, DriverHandle);
  int (*cuMemcpyDtoHAsync)(void*, DriverPointer, size_t, DriverHandle);
  int (*cuMemsetD8Async)(DriverPointer, unsigned char, size_t, DriverHandle);
  int (*cuStreamCreate)(DriverHandle*, unsigned);
  int (*cuStreamSynchronize)(DriverHandle);
  int (*cuStreamDestroy)(DriverHandle);
  int (*cuThreadExchangeStreamCaptureMode)(int*);
};

constexpr int kDriverMultiprocessors = 16, kDriverMajor = 75, kDriverMinor = 76;  // device attributes
constexpr int kDriverMaxDynamicShared = 8;                                        // function attribute
constexpr int kDriverFloat16 = 6, kDriverBFloat16 = 9;                            // types of a tensor map
constexpr int kDriverSwizzle32 = 1, kDriverSwizzle64 = 2, kDriverSwizzle128 = 3;
constexpr int kDriverPromotion128 = 2;  // L2 promotion
constexpr int kDriverNonBlocking = 1;   // stream flag
constexpr int kDriverRelaxed = 2;       // capture mode

// Returns the driver, or null and says in `error` why there is none.
const Driver* load_driver(std::string& error);

// Returns an empty string for success, else what failed.
std::string driver_error(const Driver& driver, const char* function, int result);

}  // namespace tunable_ops::cuda
