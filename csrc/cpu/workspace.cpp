#include "workspace.h"

#include <cstdint>
#include <cstdlib>
#include <new>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace tunable_ops {
namespace {

constexpr size_t kLine = 64, kHugePage = 2 << 20, kLarge = 4 << 20;

}  // namespace

Workspace::Workspace(int64_t floats) {
#ifdef __SANITIZE_ADDRESS__
  constexpr size_t kLarge = SIZE_MAX;  // what is reserved for the alignment would hide wrong accesses
#endif
  const size_t bytes = floats * sizeof(float), alignment = bytes >= kLarge ? kHugePage : kLine;
  // Aligned by hand: before version 2.38, glibc does not reuse memory freed from aligned_alloc.
  memory_ = std::malloc(bytes + kLine + alignment);
  if (!memory_) throw std::bad_alloc();
  const uintptr_t first = (reinterpret_cast<uintptr_t>(memory_) + alignment - 1) / alignment * alignment;
  data_ = reinterpret_cast<float*>(first);
#ifdef MADV_HUGEPAGE
  if (bytes >= kLarge) madvise(data_, bytes / kHugePage * kHugePage, MADV_HUGEPAGE);  // if refused, pages stay small
#endif
}

Workspace::~Workspace() { std::free(memory_); }

}  // namespace tunable_ops
