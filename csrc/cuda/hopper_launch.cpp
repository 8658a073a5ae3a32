#include "hopper_launch.h"

#include <dlfcn.h>

#include <cstdio>
#include <map>
#include <mutex>
#include <tuple>
#include <utility>
#include <vector>

#include "cuda_driver.h"
#include "hopper_check.h"
#include "nvrtc.h"

extern "C" int32_t aoti_torch_device_type_cuda();  // Torch's

namespace tunable_ops::cuda {

extern const char* const kHopperSource;  // hopper_kernel.cuh with all that it includes; written by the build

namespace {

// What an instance is compiled for: dtype, shape and activation.
using InstanceKey = std::tuple<Type, int32_t, Activation>;
// What is checked: dtype, direction, channels, outputs, taps and activation.
using LayerKey = std::tuple<Type, bool, int32_t, int32_t, int32_t, int32_t, Activation>;

LayerKey key_of(const ConvRun& conv) {
  return {conv.type, conv.gradient, conv.channels, conv.outputs, conv.y.taps, conv.x.taps, conv.activation};
}

struct Layer {
  HopperBoxes boxes = HopperBoxes::kHalo;
  DriverHandle function = nullptr;
  std::string error;
};

// Throws std::string: what failed.
class Device {
 public:
  explicit Device(int32_t index) {
    driver_ = load_driver(error_);
    if (driver_ == nullptr) return;
    try {
      int device = 0, major = 0, minor = 0;
      check("cuDeviceGet", driver_->cuDeviceGet(&device, index));
      check("cuDeviceGetAttribute", driver_->cuDeviceGetAttribute(&multiprocessors_, kDriverMultiprocessors, device));
      check("cuDeviceGetAttribute", driver_->cuDeviceGetAttribute(&major, kDriverMajor, device));
      check("cuDeviceGetAttribute", driver_->cuDeviceGetAttribute(&minor, kDriverMinor, device));
      is_hopper_ = major == 9 && minor == 0;
      if (!is_hopper_) {
        error_ = "it needs a device of compute capability 9.0; this one has " + std::to_string(major) + "." +
                 std::to_string(minor);
        return;
      }
      check("cuDevicePrimaryCtxRetain", driver_->cuDevicePrimaryCtxRetain(&context_, device));
    } catch (const std::string& error) {
      error_ = error;
    }
  }

  bool is_hopper() const { return is_hopper_; }

  // The layer's kernel, ready or with an error.
  const Layer& layer(const ConvRun& conv) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto [place, is_new] = layers_.try_emplace(key_of(conv));
    Layer& layer = place->second;
    if (!is_new) return layer;
    layer.error = error_;
    if (!layer.error.empty()) return layer;
    try {
      prepare(conv, layer);
    } catch (const std::string& error) {
      layer.error = error;
    }
    return layer;
  }

  void launch(const Layer& layer, const ConvRun& conv, int32_t multiprocessors, void* stream) {
    enter();
    HopperRun run = hopper_run(conv, layer.boxes, multiprocessors);
    encode(run.source, hopper_source(run), conv.type);
    encode(run.target, hopper_target(run), conv.type);
    void* arguments[] = {&run};
    const auto blocks = static_cast<unsigned>(run.tiles_n * run.workers);
    check("cuLaunchKernel",
          driver_->cuLaunchKernel(layer.function, blocks, 1, 1, kHopperThreads, 1, 1,
                                  static_cast<unsigned>(hopper_memory(run).bytes), stream, arguments, nullptr));
  }
  void launch(const Layer& layer, const ConvRun& conv, void* stream) { launch(layer, conv, multiprocessors_, stream); }

 private:
  void check(const char* function, int result) const {
    const std::string error = driver_error(*driver_, function, result);
    if (!error.empty()) throw error;
  }

  // A thread that has not called CUDA yet has no context.
  void enter() const {
    DriverHandle current = nullptr;
    check("cuCtxGetCurrent", driver_->cuCtxGetCurrent(&current));
    if (current != context_) check("cuCtxSetCurrent", driver_->cuCtxSetCurrent(context_));
  }

  void prepare(const ConvRun& conv, Layer& layer) {
    enter();
    // Loading code and allocating memory are allowed while another stream is captured, but only in this mode.
    int mode = kDriverRelaxed;
    check("cuThreadExchangeStreamCaptureMode", driver_->cuThreadExchangeStreamCaptureMode(&mode));
    try {
      for (const HopperBoxes boxes : {HopperBoxes::kHalo, HopperBoxes::kColumns}) {
        if (boxes == HopperBoxes::kColumns && conv.x.taps == 1) break;  // the same thing
        const HopperPlan plan = hopper_plan(conv.channels, conv.outputs, conv.y.taps, conv.x.taps, boxes);
        if (plan.slots == 0) continue;
        layer.boxes = boxes;
        layer.function = instance({conv.type, plan.shape, conv.activation});
        layer.error = compare(conv, layer);
        if (layer.error.empty()) break;
        layer.error = "it computes wrong results here (" + layer.error + ")";
      }
    } catch (const std::string& error) {
      layer.error = error;
    }
    driver_->cuThreadExchangeStreamCaptureMode(&mode);
  }

  DriverHandle instance(const InstanceKey& key) {
    const auto found = instances_.find(key);
    if (found != instances_.end()) return found->second;
    const auto [type, shape, activation] = key;
    const std::vector<std::string> options{
        std::string("-DTO_HOPPER_MATH=") + (type == Type::kHalf ? "HopperHalf" : "HopperBFloat16"),
        "-DTO_HOPPER_SHAPE=" + std::to_string(shape),
        "-DTO_HOPPER_ACTIVATION=" + std::to_string(static_cast<int32_t>(activation)),
        "-DTO_HOPPER_RUN_BYTES=" + std::to_string(sizeof(HopperRun))};
    const Cubin cubin = compile_cubin(kHopperSource, options, nvrtc_of_torch(), cache_folder());
    if (!cubin.error.empty()) throw cubin.error;
    DriverHandle module = nullptr, function = nullptr;
    check("cuModuleLoadData", driver_->cuModuleLoadData(&module, cubin.image.data()));
    check("cuModuleGetFunction", driver_->cuModuleGetFunction(&function, module, "hopper_conv_kernel"));
    // Once and to the maximum: a smaller value, set for another launch, could fail this one.
    check("cuFuncSetAttribute", driver_->cuFuncSetAttribute(function, kDriverMaxDynamicShared, kHopperSharedBytes));
    instances_[key] = function;
    return function;
  }

  // Torch's library that is linked with the NVRTC it was built for, and where its packages put NVRTC itself.
  static std::vector<std::string> nvrtc_of_torch() {
    Dl_info info{};
    if (dladdr(reinterpret_cast<void*>(&aoti_torch_device_type_cuda), &info) == 0 || info.dli_fname == nullptr)
      return {};
    const std::string file = info.dli_fname, folder = file.substr(0, file.rfind('/') + 1);
    return {folder + "libcaffe2_nvrtc.so", folder + "../../nvidia/cu13/lib/libnvrtc.so.13",
            folder + "../../nvidia/cuda_nvrtc/lib/libnvrtc.so.12"};
  }

  // Memory and a stream of its own, freed with it.
  struct Scratch {
    const Driver& driver;
    std::vector<DriverPointer> memory;
    DriverHandle stream = nullptr;
    explicit Scratch(const Driver& d) : driver(d) {}
    Scratch(const Scratch&) = delete;
    ~Scratch() {
      for (const DriverPointer pointer : memory) driver.cuMemFree(pointer);
      if (stream != nullptr) driver.cuStreamDestroy(stream);
    }
  };

  // Runs the check; returns an empty string or the first difference.
  std::string compare(const ConvRun& like, const Layer& layer) {
    HopperCheck test(like);
    Scratch scratch(*driver_);
    check("cuStreamCreate", driver_->cuStreamCreate(&scratch.stream, kDriverNonBlocking));
    const auto copy = [&](const auto& values) {
      const size_t bytes = values.size() * sizeof(values[0]);
      DriverPointer pointer = 0;
      if (bytes == 0) return static_cast<void*>(nullptr);
      check("cuMemAlloc", driver_->cuMemAlloc(&pointer, bytes));
      scratch.memory.push_back(pointer);
      check("cuMemcpyHtoDAsync", driver_->cuMemcpyHtoDAsync(pointer, values.data(), bytes, scratch.stream));
      return reinterpret_cast<void*>(pointer);
    };
    ConvRun& conv = test.conv;
    conv.input = copy(test.input);
    conv.weight = copy(test.weight);
    conv.bias = copy(test.bias);
    conv.alpha.data = copy(test.alpha);
    conv.output = copy(test.output);
    const auto output = reinterpret_cast<DriverPointer>(conv.output);
    const size_t bytes = test.output.size() * 2;
    check("cuMemsetD8Async", driver_->cuMemsetD8Async(output, 0xff, bytes, scratch.stream));  // NaN
    launch(layer, conv, HopperCheck::kMultiprocessors, scratch.stream);
    check("cuMemcpyDtoHAsync", driver_->cuMemcpyDtoHAsync(test.output.data(), output, bytes, scratch.stream));
    check("cuStreamSynchronize", driver_->cuStreamSynchronize(scratch.stream));
    return test.difference();
  }

  void encode(TensorMap& map, const ImageMap& image, Type type) const {
    const uint64_t sizes[4] = {static_cast<uint64_t>(image.channels), static_cast<uint64_t>(image.width),
                               static_cast<uint64_t>(image.height), static_cast<uint64_t>(image.samples)};
    const uint64_t strides[3] = {static_cast<uint64_t>(image.pixel * 2), static_cast<uint64_t>(image.row * 2),
                                 static_cast<uint64_t>(image.sample * 2)};  // bytes
    const uint32_t box[4] = {static_cast<uint32_t>(image.box_channels), static_cast<uint32_t>(image.box_columns),
                             static_cast<uint32_t>(image.box_rows), 1};
    const uint32_t every[4] = {1, 1, 1, 1};
    const int32_t bytes = image.box_channels * 2;
    const int swizzle = bytes == 128 ? kDriverSwizzle128 : bytes == 64 ? kDriverSwizzle64 : kDriverSwizzle32;
    check("cuTensorMapEncodeTiled",
          driver_->cuTensorMapEncodeTiled(&map, type == Type::kHalf ? kDriverFloat16 : kDriverBFloat16, 4,
                                          const_cast<void*>(image.data), sizes, strides, box, every, 0, swizzle,
                                          kDriverPromotion128, 0));
  }

  std::mutex mutex_;
  const Driver* driver_ = nullptr;
  DriverHandle context_ = nullptr;
  int multiprocessors_ = 0;
  bool is_hopper_ = false;
  std::string error_;
  std::map<InstanceKey, DriverHandle> instances_;
  std::map<LayerKey, Layer> layers_;  // never erased, so that references stay
};

Device& device_of(int32_t index) {
  static std::mutex mutex;
  static std::map<int32_t, Device> devices;
  const std::lock_guard<std::mutex> lock(mutex);
  return devices.try_emplace(index, index).first->second;
}

}  // namespace

std::string prepare_hopper(const ConvRun& conv, int32_t device) {
  if (const char* rule = hopper_unsupported(conv)) return std::string("it must be given ") + rule;
  return device_of(device).layer(conv).error;
}

std::string launch_hopper(const ConvRun& conv, int32_t device, void* stream) {
  const std::string error = prepare_hopper(conv, device);
  if (!error.empty()) return error;
  try {
    Device& on = device_of(device);
    on.launch(on.layer(conv), conv, stream);
  } catch (const std::string& failure) {
    return failure;
  }
  return {};
}

bool hopper_is_default(const ConvRun& conv, int32_t device) {
  if (conv.channels > kHopperDefaultChannels || conv.outputs > kHopperDefaultChannels) return false;
  if (hopper_unsupported(conv) != nullptr || !device_of(device).is_hopper()) return false;
  const std::string error = prepare_hopper(conv, device);
  static std::once_flag said;
  if (!error.empty()) {
    std::call_once(said, [&] {
      std::fprintf(stderr, "tunable_conv2d: the wgmma kernel is left out, slower ones run instead: %s\n",
                   error.c_str());
    });
  }
  return error.empty();
}

}  // namespace tunable_ops::cuda
