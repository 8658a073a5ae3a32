// Memory of a call of the CPU operators. Does not depend on Torch, nor on an instruction set.
#pragma once

#include <cstdint>

namespace tunable_ops {

// Uninitialised memory, aligned to a cache line and followed by a spare one, since vectors may read past the end. From
// 4 MB on it asks the kernel for huge pages: with pages of 4 KiB, faults and misses of the TLB take half of the time in
// which kernels of 256 to 512 channels are transformed.
class Workspace {
 public:
  explicit Workspace(int64_t floats);
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  ~Workspace();
  float* get() const { return data_; }

 private:
  void* memory_;
  float* data_;
};

}  // namespace tunable_ops
