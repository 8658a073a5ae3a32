#include "nvrtc.h"

#include <dlfcn.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <system_error>

namespace tunable_ops::cuda {
namespace {

namespace fs = std::filesystem;
const char* const kOptions[] = {"--gpu-architecture=sm_90a", "--std=c++17", "--device-as-default-execution-space"};

struct Nvrtc {
  using Program = void*;
  int (*nvrtcVersion)(int*, int*);
  const char* (*nvrtcGetErrorString)(int);
  int (*nvrtcCreateProgram)(Program*, const char*, const char*, int, const char* const*, const char* const*);
  int (*nvrtcCompileProgram)(Program, int, const char* const*);
  int (*nvrtcGetProgramLogSize)(Program, size_t*);
  int (*nvrtcGetProgramLog)(Program, char*);
  int (*nvrtcGetCUBINSize)(Program, size_t*);
  int (*nvrtcGetCUBIN)(Program, char*);
  int (*nvrtcDestroyProgram)(Program*);

  template <class F>
  static bool find(void* library, const char* name, F& function) {
    function = reinterpret_cast<F>(dlsym(library, name));
    return function != nullptr;
  }

  bool find_all(void* library) {
    return find(library, "nvrtcVersion", nvrtcVersion) && find(library, "nvrtcGetErrorString", nvrtcGetErrorString) &&
           find(library, "nvrtcCreateProgram", nvrtcCreateProgram) &&
           find(library, "nvrtcCompileProgram", nvrtcCompileProgram) &&
           find(library, "nvrtcGetProgramLogSize", nvrtcGetProgramLogSize) &&
           find(library, "nvrtcGetProgramLog", nvrtcGetProgramLog) &&
           find(library, "nvrtcGetCUBINSize", nvrtcGetCUBINSize) && find(library, "nvrtcGetCUBIN", nvrtcGetCUBIN) &&
           find(library, "nvrtcDestroyProgram", nvrtcDestroyProgram);
  }

  // Loads the part of NVRTC that it looks for when it compiles: some versions do not find it beside themselves.
  void load_builtins(int major, int minor) const {
    Dl_info info{};
    if (dladdr(reinterpret_cast<void*>(nvrtcVersion), &info) == 0 || info.dli_fname == nullptr) return;
    const std::string version = std::to_string(major) + "." + std::to_string(minor);
    const fs::path path = fs::path(info.dli_fname).parent_path() / ("libnvrtc-builtins.so." + version);
    dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);  // if this fails, the compilation says what is missing
  }

  // Finds the functions in a library or in what it depends on.
  bool load(std::vector<std::string> libraries) {
    for (const char* name : {"libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"}) libraries.emplace_back(name);
    for (const std::string& name : libraries) {
      void* library = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
      if (library != nullptr && find_all(library)) return true;
    }
    return false;
  }
};

// 128 bits of FNV-1a, as two streams with different seeds: tells versions of a source apart, no protection.
std::string hash_of(const std::string& text) {
  std::ostringstream result;
  for (const uint64_t seed : {0xcbf29ce484222325u, 0x84222325cbf29ce4u}) {
    uint64_t hash = seed;
    for (const unsigned char c : text) hash = (hash ^ c) * 0x100000001b3u;
    result.width(16);
    result.fill('0');
    result << std::hex << hash;
  }
  return result.str();
}

// A file holds the hash of the machine code, then the code.
std::string read_file(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream content;
  content << file.rdbuf();
  const std::string text = content.str();
  if (!file || text.size() <= 32 || hash_of(text.substr(32)) != text.substr(0, 32)) return {};
  return text.substr(32);
}

// Another process may write the same file: it appears under its name only when it is complete.
void write_file(const fs::path& path, const std::string& image) {
  std::error_code error;
  fs::create_directories(path.parent_path(), error);
  fs::path partial = path;
  partial += "." + std::to_string(getpid());
  {
    std::ofstream file(partial, std::ios::binary);
    file << hash_of(image) << image;
    if (!file.flush()) error = std::make_error_code(std::errc::io_error);
  }
  if (!error) fs::rename(partial, path, error);
  if (error) fs::remove(partial, error);
}

// Asks for a size, then for the text.
std::string text_of(Nvrtc::Program program, int (*size_of)(Nvrtc::Program, size_t*),
                    int (*get)(Nvrtc::Program, char*)) {
  size_t size = 0;
  if (size_of(program, &size) != 0) return {};
  std::string text(size, '\0');
  return size > 0 && get(program, text.data()) == 0 ? text : std::string();
}

Cubin compile(const Nvrtc& nvrtc, const std::string& source, const std::vector<const char*>& options) {
  Nvrtc::Program program = nullptr;
  int result = nvrtc.nvrtcCreateProgram(&program, source.c_str(), "tunable_conv2d.cu", 0, nullptr, nullptr);
  if (result != 0) return {{}, std::string("NVRTC failed: ") + nvrtc.nvrtcGetErrorString(result)};
  Cubin cubin;
  result = nvrtc.nvrtcCompileProgram(program, static_cast<int>(options.size()), options.data());
  if (result == 0) cubin.image = text_of(program, nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN);
  if (cubin.image.empty()) {
    cubin.error = std::string("NVRTC failed: ") + nvrtc.nvrtcGetErrorString(result) + "\n" +
                  text_of(program, nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog);
  }
  nvrtc.nvrtcDestroyProgram(&program);
  return cubin;
}

}  // namespace

Cubin compile_cubin(const std::string& source, const std::vector<std::string>& options,
                    const std::vector<std::string>& libraries, const std::string& cache) {
  Nvrtc nvrtc{};
  int major = 0, minor = 0;
  if (!nvrtc.load(libraries) || nvrtc.nvrtcVersion(&major, &minor) != 0)
    return {{}, "there is no NVRTC (libnvrtc.so), which CUDA builds of torch bring"};
  std::string key = source + "\n" + std::to_string(major) + "." + std::to_string(minor);
  std::vector<const char*> arguments(std::begin(kOptions), std::end(kOptions));
  for (const std::string& option : options) arguments.push_back(option.c_str());
  for (const char* argument : arguments) key += std::string("\n") + argument;
  const fs::path path = cache.empty() ? fs::path() : fs::path(cache) / ("wgmma-" + hash_of(key) + ".cubin");
  if (!cache.empty()) {
    const std::string image = read_file(path);
    if (!image.empty()) return {image, {}};
  }
  nvrtc.load_builtins(major, minor);
  const Cubin cubin = compile(nvrtc, source, arguments);
  if (cubin.error.empty() && !cache.empty()) write_file(path, cubin.image);
  return cubin;
}

std::string cache_folder() {
  const auto variable = [](const char* name) {
    const char* value = std::getenv(name);
    return std::string(value == nullptr ? "" : value);
  };
  if (const std::string own = variable("TUNABLE_OPS_CACHE"); !own.empty()) return own;
  if (const std::string caches = variable("XDG_CACHE_HOME"); !caches.empty()) return caches + "/tunable_ops";
  const std::string home = variable("HOME");
  return home.empty() ? home : home + "/.cache/tunable_ops";
}

}  // namespace tunable_ops::cuda
