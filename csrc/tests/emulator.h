// Runs the CUDA kernels' own source on the host, one block at a time, with a fiber per thread. Slow, but exact about
// indices and pessimistic: shared memory starts as NaN, asynchronous copies arrive only when waited for, and threads
// run alternately in ascending and descending order, so that a missing barrier produces a wrong value.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <vector>

#define TO_DEVICE inline
#define TO_KERNEL(threads, blocks) void
#define TO_RUN const

namespace tunable_ops::cuda {
namespace emulator {

struct Index {
  uint32_t x;
};

[[noreturn]] inline void fail(const char* what) {
  std::fprintf(stderr, "emulator: %s\n", what);
  std::abort();
}

struct Copy {
  void* target;
  const void* source;
  bool valid;
};

// A barrier in shared memory that counts arrivals and bytes. `boxes` holds the pending copies that it waits for.
struct Counter {
  int expected = 0, arrivals = 0, parity = 0;
  int64_t bytes = 0;
  std::vector<std::function<int64_t()>> boxes;
};

struct Fiber {
  static constexpr size_t kStack = 128 << 10;
  std::unique_ptr<char[]> stack{new char[kStack]};
  ucontext_t start;
  jmp_buf at;
  bool fresh = false, done = false;
  std::vector<std::vector<Copy>> copies;                             // groups; the last one is not yet committed
  std::vector<std::vector<std::function<void()>>> products, stores;  // as above
};

struct Warp {
  int arrived = 0, generation = 0;
  alignas(16) unsigned char given[32][64], results[32][64];
};

struct Block {
  Index thread{0}, block{0};
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  std::vector<unsigned char> memory;
  unsigned char* shared = nullptr;
  int64_t shared_bytes = 0;
  int alive = 0, arrived = 0, generation = 0;
  std::map<const void*, Counter> counters;
  int named_arrived[16] = {}, named_generation[16] = {};
  int64_t progress = 0;
  jmp_buf scheduler;
  std::function<void()> body;
};

inline Block& block() {
  static Block b;
  return b;
}

inline void yield() {
  Block& b = block();
  const uint32_t self = b.thread.x;
  if (_setjmp(b.fibers[self].at) == 0) _longjmp(b.scheduler, 1);
  b.thread.x = self;
}

inline void release_barrier() {
  Block& b = block();
  if (b.arrived == 0 || b.arrived < b.alive) return;
  b.arrived = 0;
  ++b.generation;
  ++b.progress;
}

inline void enter() {
  Block& b = block();
  b.body();
  Fiber& f = b.fibers[b.thread.x];
  if (f.stores.size() > 1 || !f.stores.back().empty()) fail("a thread ends before its stores do");
  f.done = true;
  --b.alive;
  ++b.progress;
  release_barrier();
  _longjmp(b.scheduler, 1);
}

inline void resume(int i) {
  Block& b = block();
  if (_setjmp(b.scheduler) != 0) return;
  b.thread.x = static_cast<uint32_t>(i);
  Fiber& f = b.fibers[i];
  if (!f.fresh) _longjmp(f.at, 1);
  f.fresh = false;
  setcontext(&f.start);
}

constexpr int kCanary = 256, kAlignment = 1024;

inline void run_block(int threads) {
  Block& b = block();
  if (static_cast<int>(b.fibers.size()) < threads) b.fibers = std::vector<Fiber>(threads);
  b.warps.assign((threads + 31) / 32, Warp());
  b.memory.assign(b.shared_bytes + 2 * kCanary + kAlignment, 0xff);
  b.shared = b.memory.data() + kCanary;
  b.shared += (kAlignment - reinterpret_cast<uintptr_t>(b.shared) % kAlignment) % kAlignment;
  b.counters.clear();
  b.alive = threads;
  b.arrived = b.generation = 0;
  for (int i = 0; i < threads; ++i) {
    Fiber& f = b.fibers[i];
    getcontext(&f.start);
    f.start.uc_stack = {f.stack.get(), 0, Fiber::kStack};
    f.start.uc_link = nullptr;
    makecontext(&f.start, &enter, 0);
    f.fresh = true;
    f.done = false;
    f.copies.assign(1, {});
    f.products.assign(1, {});
    f.stores.assign(1, {});
  }
  for (volatile int64_t pass = b.block.x; b.alive > 0; ++pass) {
    const volatile int64_t before = b.progress;
    // A warp runs until it is blocked: it overtakes the others wherever no barrier stops it.
    for (volatile int w = 0; w < static_cast<int>(b.warps.size()); ++w) {
      const int first = 32 * static_cast<int>(pass % 2 ? b.warps.size() - 1 - w : static_cast<size_t>(w));
      volatile int64_t last;
      do {
        last = b.progress;
        for (volatile int i = 0; i < 32; ++i) {
          const int next = first + (pass % 2 ? 31 - i : static_cast<int>(i));
          if (next < threads && !b.fibers[next].done) resume(next);
        }
      } while (b.progress != last);
    }
    if (b.progress == before) fail("deadlock: a barrier or a warp waits for threads that never arrive");
  }
  for (int i = 0; i < kCanary; ++i) {
    if (b.shared[b.shared_bytes + i] != 0xff) fail("a write past the end of shared memory");
  }
}

inline void check_shared(const void* pointer) {
  const Block& b = block();
  const auto* at = static_cast<const unsigned char*>(pointer);
  if (at < b.shared || at + 16 > b.shared + b.shared_bytes) fail("an access outside shared memory");
  if (reinterpret_cast<uintptr_t>(at) % 16 != 0) fail("a shared memory access that is not aligned to 16 bytes");
}

// Each lane provides a value; the last one to arrive computes the results of all lanes.
template <class Given, class Result, class F>
Result collective(const Given& given, F compute) {
  static_assert(sizeof(Given) <= 64 && sizeof(Result) <= 64, "must fit into a lane's slot");
  Block& b = block();
  Warp& w = b.warps[b.thread.x / 32];
  const int lane = b.thread.x % 32;
  std::memcpy(w.given[lane], &given, sizeof(Given));
  if (++w.arrived == 32) {
    Given all[32];
    Result results[32];
    for (int i = 0; i < 32; ++i) std::memcpy(&all[i], w.given[i], sizeof(Given));
    compute(all, results);
    for (int i = 0; i < 32; ++i) std::memcpy(w.results[i], &results[i], sizeof(Result));
    w.arrived = 0;
    ++w.generation;
    ++b.progress;
  } else {
    const int generation = w.generation;
    while (w.generation == generation) yield();
  }
  Result result;
  std::memcpy(&result, w.results[lane], sizeof(Result));
  return result;
}

}  // namespace emulator

#define threadIdx (::tunable_ops::cuda::emulator::block().thread)
#define blockIdx (::tunable_ops::cuda::emulator::block().block)

inline unsigned char* shared_memory() { return emulator::block().shared; }

inline float bits_to_float(uint32_t bits) {
  float v;
  std::memcpy(&v, &bits, 4);
  return v;
}

inline uint32_t float_to_bits(float v) {
  uint32_t bits;
  std::memcpy(&bits, &v, 4);
  return bits;
}

// A table of all half values: on machines without an instruction, each conversion is a slow function call.
inline const std::vector<float> half_values = [] {
  std::vector<float> values(1 << 16);
  for (int i = 0; i < 1 << 16; ++i) {
    const auto bits = static_cast<uint16_t>(i);
    _Float16 v;
    std::memcpy(&v, &bits, 2);
    values[i] = static_cast<float>(v);
  }
  return values;
}();
inline float half_to_float(uint16_t bits) { return half_values[bits]; }

inline uint16_t float_to_half(float value) {
  const auto v = static_cast<_Float16>(value);
  uint16_t bits;
  std::memcpy(&bits, &v, 2);
  return bits;
}

inline uint16_t float_to_bfloat16(float v) {
  const uint32_t bits = float_to_bits(v);
  if (std::isnan(v)) return 0x7fff;
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline uint32_t to_tf32(uint32_t bits) { return (bits + 0x1000) & ~0x1fffu; }

inline void block_sync() {
  emulator::Block& b = emulator::block();
  const int generation = b.generation;
  ++b.arrived;
  emulator::release_barrier();
  while (b.generation == generation) emulator::yield();
}

inline float shuffle_xor(float v, int32_t mask) {
  return emulator::collective<float, float>(v, [mask](const float* given, float* results) {
    for (int i = 0; i < 32; ++i) results[i] = given[i ^ mask];
  });
}

inline void copy_async(void* target, const void* source, bool valid) {
  emulator::check_shared(target);
  if (reinterpret_cast<uintptr_t>(source) % 16 != 0)
    emulator::fail("a copy from an address that is not aligned to 16 bytes");
  emulator::Block& b = emulator::block();
  b.fibers[b.thread.x].copies.back().push_back({target, source, valid});
}

inline void commit_copies() {
  emulator::Block& b = emulator::block();
  b.fibers[b.thread.x].copies.emplace_back();
}

template <int kPending>
void wait_copies() {
  emulator::Block& b = emulator::block();
  auto& groups = b.fibers[b.thread.x].copies;
  while (static_cast<int>(groups.size()) - 1 > kPending) {
    for (const emulator::Copy& c : groups.front()) {
      if (c.valid) {
        std::memcpy(c.target, c.source, 16);
      } else {
        std::memset(c.target, 0, 16);
      }
    }
    groups.erase(groups.begin());
  }
}

struct FourWords {
  uint32_t r[4];
};

inline void load_matrices(uint32_t (&r)[4], const void* row) {
  emulator::check_shared(row);
  const auto result =
      emulator::collective<const void*, FourWords>(row, [](const void* const* rows, FourWords* results) {
        for (int l = 0; l < 32; ++l) {
          for (int i = 0; i < 4; ++i) {
            std::memcpy(&results[l].r[i], static_cast<const char*>(rows[i * 8 + l / 4]) + l % 4 * 4, 4);
          }
        }
      });
  std::memcpy(r, result.r, 16);
}

inline void load_matrices_transposed(uint32_t (&r)[4], const void* row) {
  emulator::check_shared(row);
  const auto result =
      emulator::collective<const void*, FourWords>(row, [](const void* const* rows, FourWords* results) {
        for (int l = 0; l < 32; ++l) {
          for (int i = 0; i < 4; ++i) {
            uint16_t low, high;
            std::memcpy(&low, static_cast<const char*>(rows[i * 8 + l % 4 * 2]) + l / 4 * 2, 2);
            std::memcpy(&high, static_cast<const char*>(rows[i * 8 + l % 4 * 2 + 1]) + l / 4 * 2, 2);
            results[l].r[i] = low | static_cast<uint32_t>(high) << 16;
          }
        }
      });
  std::memcpy(r, result.r, 16);
}

struct Fragments {
  float c[4];
  uint32_t a[4], b[2];
};

// kWide: values per 32-bit word. Value k of a row is in word k / kWide / 4 of thread k / kWide % 4.
template <int kWide, class Decode>
void multiply(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Decode decode) {
  Fragments given;
  std::memcpy(given.c, c, 16);
  std::memcpy(given.a, a, 16);
  std::memcpy(given.b, b, 8);
  struct Four {
    float c[4];
  };
  const auto result = emulator::collective<Fragments, Four>(given, [decode](const Fragments* f, Four* results) {
    double rows[16][8 * kWide], columns[8][8 * kWide];
    for (int k = 0; k < 8 * kWide; ++k) {
      const int thread = k / kWide % 4, high = k / kWide / 4;
      for (int m = 0; m < 16; ++m) rows[m][k] = decode(f[m % 8 * 4 + thread].a[high * 2 + m / 8], k % kWide);
      for (int n = 0; n < 8; ++n) columns[n][k] = decode(f[n * 4 + thread].b[high], k % kWide);
    }
    for (int m = 0; m < 16; ++m) {
      for (int n = 0; n < 8; ++n) {
        double total = f[m % 8 * 4 + n / 2].c[m / 8 * 2 + n % 2];
        for (int k = 0; k < 8 * kWide; ++k) total += rows[m][k] * columns[n][k];
        results[m % 8 * 4 + n / 2].c[m / 8 * 2 + n % 2] = static_cast<float>(total);
      }
    }
  });
  std::memcpy(c, result.c, 16);
}

inline void multiply_half(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  multiply<2>(c, a, b, [](uint32_t word, int i) { return half_to_float(static_cast<uint16_t>(word >> 16 * i)); });
}

inline void multiply_bfloat16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  multiply<2>(c, a, b, [](uint32_t word, int i) { return bits_to_float(word >> 16 * i << 16); });
}

inline void multiply_tf32(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  multiply<1>(c, a, b, [](uint32_t word, int) { return bits_to_float(word & ~0x1fffu); });
}

template <class Run>
const char* launch(void (*kernel)(Run), int64_t blocks, int32_t threads, int32_t shared_bytes, void*, const Run& run) {
  emulator::Block& b = emulator::block();
  b.body = [kernel, &run] { kernel(run); };
  b.shared_bytes = shared_bytes;
  for (int64_t i = 0; i < blocks; ++i) {
    b.block.x = static_cast<uint32_t>(i);
    emulator::run_block(threads);
  }
  return nullptr;
}

}  // namespace tunable_ops::cuda
