#include "cuda_driver.h"

#include <dlfcn.h>

namespace tunable_ops::cuda {
namespace {

struct Loaded {
  Driver driver{};
  std::string error;

  template <class F>
  void find(void* library, const char* name, F& function) {
    function = reinterpret_cast<F>(dlsym(library, name));
    if (function == nullptr && error.empty()) error = std::string("the CUDA driver is too old: it has no ") + name;
  }

  Loaded() {
    void* library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
      error = "there is no CUDA driver (libcuda.so.1)";
      return;
    }
#define TO_FIND(name) find(library, #name, driver.name)
#define TO_FIND_AS(name, symbol) find(library, symbol, driver.name)
    TO_FIND(cuInit);
    TO_FIND(cuGetErrorString);
    TO_FIND(cuDeviceGet);
    TO_FIND(cuDeviceGetAttribute);
    TO_FIND(cuDevicePrimaryCtxRetain);
    TO_FIND(cuCtxGetCurrent);
    TO_FIND(cuCtxSetCurrent);
    TO_FIND(cuModuleLoadData);
    TO_FIND(cuModuleGetFunction);
    TO_FIND(cuFuncSetAttribute);
    TO_FIND(cuLaunchKernel);
    TO_FIND(cuTensorMapEncodeTiled);
    TO_FIND_AS(cuMemAlloc, "cuMemAlloc_v2");
    TO_FIND_AS(cuMemFree, "cuMemFree_v2");
    TO_FIND_AS(cuMemcpyHtoDAsync, "cuMemcpyHtoDAsync_v2");
    TO_FIND_AS(cuMemcpyDtoHAsync, "cuMemcpyDtoHAsync_v2");
    TO_FIND(cuMemsetD8Async);
    TO_FIND(cuStreamCreate);
    TO_FIND(cuStreamSynchronize);
    TO_FIND_AS(cuStreamDestroy, "cuStreamDestroy_v2");
    TO_FIND(cuThreadExchangeStreamCaptureMode);
#undef TO_FIND_AS
#undef TO_FIND
    if (error.empty()) error = driver_error(driver, "cuInit", driver.cuInit(0));
  }
};

}  // namespace

const Driver* load_driver(std::string& error) {
  static const Loaded loaded;
  error = loaded.error;
  return error.empty() ? &loaded.driver : nullptr;
}

std::string driver_error(const Driver& driver, const char* function, int result) {
  if (result == 0) return {};
  const char* text = nullptr;
  if (driver.cuGetErrorString(result, &text) != 0 || text == nullptr) text = "an unknown error";
  return std::string(function) + ": " + text;
}

}  // namespace tunable_ops::cuda
