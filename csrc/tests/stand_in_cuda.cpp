// A CUDA driver without a GPU, as libcuda.so.1: it takes modules and launches, runs nothing, and notes every launch
// with the values of its parameters, whose sizes it reads from the machine code. bench/stand_in_driver.py loads it.
#include <cstdint>
#include <cstring>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#define EXPORTED extern "C" __attribute__((visibility("default")))

namespace {

struct Function {
  std::vector<uint32_t> sizes;  // bytes of its parameters
};

std::mutex mutex;
std::vector<Function*> functions;             // never freed
std::vector<std::vector<uint64_t>> launches;  // function, grid, block, shared memory, stream, parameters
bool keeps = true;
uint64_t count = 0;
void* stream = nullptr;
thread_local void* context = nullptr;

template <class T>
T read(const char* from) {
  T value;
  std::memcpy(&value, from, sizeof(T));
  return value;
}

// The sizes of a kernel's parameters, from the section .nv.info.NAME of an ELF image.
std::vector<uint32_t> sizes_of(const char* image, const std::string& kernel) {
  const char* sections = image + read<uint64_t>(image + 0x28);
  const auto step = read<uint16_t>(image + 0x3a), number = read<uint16_t>(image + 0x3c);
  const char* names = image + read<uint64_t>(sections + step * read<uint16_t>(image + 0x3e) + 0x18);
  std::map<uint16_t, uint32_t> sizes;
  for (int i = 0; i < number; ++i) {
    const char* section = sections + step * i;
    if (names + read<uint32_t>(section) != ".nv.info." + kernel) continue;
    const char* at = image + read<uint64_t>(section + 0x18);
    const char* end = at + read<uint64_t>(section + 0x20);
    while (at < end) {
      const bool has_size = at[0] == 4;
      if (has_size && at[1] == 0x17) sizes[read<uint16_t>(at + 8)] = read<uint32_t>(at + 12) >> 18;
      at += 4 + (has_size ? read<uint16_t>(at + 2) : 0);
    }
  }
  std::vector<uint32_t> found;
  for (const auto& [ordinal, size] : sizes) found.push_back(size);
  return found;
}

int launch(const unsigned* shape, void* on, void* function, void** parameters) {
  if (context == nullptr) return 201;  // CUDA_ERROR_INVALID_CONTEXT
  const std::lock_guard<std::mutex> lock(mutex);
  ++count;
  if (!keeps) return 0;
  std::vector<uint64_t> row{reinterpret_cast<uint64_t>(function)};
  row.insert(row.end(), shape, shape + 7);
  row.push_back(reinterpret_cast<uint64_t>(on));
  const auto& sizes = static_cast<Function*>(function)->sizes;
  for (size_t i = 0; i < sizes.size(); ++i) {
    uint64_t value = 0;
    std::memcpy(&value, parameters[i], sizes[i]);
    row.push_back(value);
  }
  launches.push_back(row);
  return 0;
}

struct Config {  // CUlaunchConfig
  unsigned shape[7];
  void* stream;
  void* attributes;
  unsigned number;
};

}  // namespace

EXPORTED int cuInit(unsigned) { return 0; }
EXPORTED int cuDriverGetVersion(int* version) { return *version = 13000, 0; }
EXPORTED int cuGetErrorString(int error, const char** text) {
  return *text = error == 201 ? "invalid device context" : "an error of the stand-in", 0;
}
EXPORTED int cuDeviceGet(int* device, int index) { return *device = index, 0; }
EXPORTED int cuDeviceGetAttribute(int* value, int, int) { return *value = 227 << 10, 0; }
EXPORTED int cuDevicePrimaryCtxRetain(void** made, int device) {
  return *made = reinterpret_cast<void*>(uintptr_t{0x100} + static_cast<unsigned>(device)), 0;
}
EXPORTED int cuCtxGetCurrent(void** current) { return *current = context, 0; }
EXPORTED int cuCtxSetCurrent(void* current) { return context = current, 0; }
EXPORTED int cuModuleLoadData(void** module, const void* image) { return *module = const_cast<void*>(image), 0; }
EXPORTED int cuModuleGetFunction(void** function, void* module, const char* name) {
  const std::lock_guard<std::mutex> lock(mutex);
  functions.push_back(new Function{sizes_of(static_cast<const char*>(module), name)});
  *function = functions.back();
  return functions.back()->sizes.empty() ? 500 : 0;
}
EXPORTED int cuFuncGetAttribute(int* value, int, void*) { return *value = 1024, 0; }
EXPORTED int cuFuncSetAttribute(void*, int, int) { return 0; }
EXPORTED int cuFuncSetCacheConfig(void*, int) { return 0; }
EXPORTED int cuLaunchKernel(void* function, unsigned x, unsigned y, unsigned z, unsigned bx, unsigned by, unsigned bz,
                            unsigned shared, void* on, void** parameters, void**) {
  const unsigned shape[7] = {x, y, z, bx, by, bz, shared};
  return launch(shape, on, function, parameters);
}
EXPORTED int cuLaunchKernelEx(const Config* config, void* function, void** parameters, void**) {
  return config->number != 0 ? 1 : launch(config->shape, config->stream, function, parameters);
}
EXPORTED int cuPointerGetAttribute(void* value, int, uint64_t pointer) {
  std::memcpy(value, &pointer, sizeof(pointer));
  return 0;
}

#define TO_REFUSE(name) \
  EXPORTED int name() { return 801; }  // CUDA_ERROR_NOT_SUPPORTED
TO_REFUSE(cuTensorMapEncodeTiled)
TO_REFUSE(cuTensorMapEncodeIm2col)
TO_REFUSE(cuOccupancyMaxActiveClusters)
TO_REFUSE(cuCtxGetLimit)
TO_REFUSE(cuCtxSetLimit)
TO_REFUSE(cuMemAlloc_v2)
TO_REFUSE(cuMemFree_v2)
TO_REFUSE(cuMemcpyHtoDAsync_v2)
TO_REFUSE(cuMemcpyDtoHAsync_v2)
TO_REFUSE(cuMemsetD8Async)
TO_REFUSE(cuStreamCreate)
TO_REFUSE(cuStreamSynchronize)
TO_REFUSE(cuStreamDestroy_v2)
TO_REFUSE(cuThreadExchangeStreamCaptureMode)

// In the place of aoti_torch_get_current_cuda_stream, which needs a GPU or, in a torch without CUDA, is not there.
EXPORTED int32_t stand_in_current_stream(int32_t, void** current) { return *current = stream, 0; }

EXPORTED void stand_in_stream(uint64_t current) { stream = reinterpret_cast<void*>(current); }
EXPORTED uint64_t stand_in_count() { return count; }
EXPORTED void stand_in_keep(int wanted) {
  const std::lock_guard<std::mutex> lock(mutex);
  keeps = wanted != 0;
  launches.clear();
}
EXPORTED uint64_t stand_in_kept() { return launches.size(); }
// Copies a launch of up to `most` values; returns how many it has.
EXPORTED uint64_t stand_in_read(uint64_t index, uint64_t* values, uint64_t most) {
  const std::lock_guard<std::mutex> lock(mutex);
  const auto& row = launches.at(index);
  std::memcpy(values, row.data(), (row.size() < most ? row.size() : most) * sizeof(uint64_t));
  return row.size();
}
