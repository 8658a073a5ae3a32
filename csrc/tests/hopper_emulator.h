// Emulates hopper_platform.cuh. Decodes addresses, swizzles and descriptors as the hardware manual specifies. In even
// blocks, boxes arrive at once and products run when waited for, which exposes slots that are filled too early. In odd
// blocks, boxes arrive when waited for and products run at once, which exposes slots that are read too early. Stores
// read shared memory when waited for in even blocks, and at once in odd ones.
#pragma once

#include <algorithm>

#include "../cuda/hopper.h"
#include "../cuda/numeric.cuh"

namespace tunable_ops::cuda {
namespace emulator {

struct Map {
  char* data;
  int32_t sizes[4], box[3];  // samples, rows, columns, channels; rows, columns, channels
  int64_t strides[3];        // bytes
};
static_assert(sizeof(Map) <= sizeof(TensorMap), "must fit into a TensorMap");

inline bool late_products() { return block().block.x % 2 == 0; }

inline Counter& counter(const uint64_t* barrier) {
  Block& b = block();
  const auto found = b.counters.find(barrier);
  if (found == b.counters.end()) fail("a barrier was not initialised");
  return found->second;
}

inline void advance(Counter& c) {
  if (c.arrivals > 0 || c.bytes != 0) return;
  c.arrivals = c.expected;
  c.parity ^= 1;
  ++block().progress;
}

inline void arrive(Counter& c) {
  if (--c.arrivals < 0) fail("a barrier received more arrivals than expected");
  ++block().progress;
  advance(c);
}

// Calls f(address in the image or null outside it, address in shared memory) for every element of a box; returns its
// size in bytes.
template <class F>
int64_t for_box(const unsigned char* box, const Map& map, int32_t channel, int32_t column, int32_t row, int32_t sample,
                F f) {
  const int64_t offset = box - block().shared, row_bytes = map.box[2] * 2, span = row_bytes / 16;
  if (offset % 1024 != 0) fail("a box at an address that is not aligned to 1024 bytes");
  const int64_t bytes = map.box[0] * map.box[1] * row_bytes;
  if (offset < 0 || offset + bytes > block().shared_bytes) fail("a box outside shared memory");
  if (sample < 0 || sample >= map.sizes[0]) fail("a box of a sample that is not there");
  int64_t at = offset;
  for (int32_t r = row; r < row + map.box[0]; ++r) {
    for (int32_t x = column; x < column + map.box[1]; ++x) {
      for (int32_t c = channel; c < channel + map.box[2]; ++c, at += 2) {
        const bool inside = r >= 0 && r < map.sizes[1] && x >= 0 && x < map.sizes[2] && c >= 0 && c < map.sizes[3];
        char* outer = map.data + sample * map.strides[0] + r * map.strides[1] + x * map.strides[2] + c * 2;
        // XOR the chunk's index with the address bits from 7 up.
        const int64_t chunk = at / 16 % span, swap = at / 128 % span;
        f(inside ? outer : nullptr, block().shared + (at - at % row_bytes) + (chunk ^ swap) * 16 + at % 16);
      }
    }
  }
  return bytes;
}

// Writes the box, with zeros outside the image; returns its size in bytes.
inline int64_t copy_box(unsigned char* target, const Map& map, int32_t channel, int32_t column, int32_t row,
                        int32_t sample) {
  return for_box(target, map, channel, column, row, sample, [](const char* outer, unsigned char* inner) {
    outer != nullptr ? std::memcpy(inner, outer, 2) : std::memset(inner, 0, 2);
  });
}

// Reads 16 elements along K of one row of an operand.
template <class Decode>
void read_row(uint64_t matrix, int32_t row, Decode decode, float (&values)[16]) {
  const int64_t start = static_cast<int64_t>(matrix & 0x3fff) << 4;
  const int64_t group = static_cast<int64_t>(matrix >> 32 & 0x3fff) << 4;
  const int mode = static_cast<int>(matrix >> 62);
  if (mode == 0) fail("an operand without a swizzle");
  if ((matrix >> 49 & 7) != 0) fail("an operand in patterns that do not start at multiples of 1024 bytes");
  const int64_t span = mode == 1 ? 128 : mode == 2 ? 64 : 32;
  for (int half = 0; half < 2; ++half) {
    int64_t at = start + row / 8 * group + row % 8 * span + half * 16;
    at ^= (at / 128 % (span / 16)) * 16;
    if (at + 16 > block().shared_bytes) fail("an operand outside shared memory");
    uint16_t bits[8];
    std::memcpy(bits, block().shared + at, 16);
    for (int k = 0; k < 8; ++k) values[half * 8 + k] = decode(bits[k]);
  }
}

template <int n, class Decode>
void multiply_lane(float (&c)[n], uint32_t thread, uint64_t a, uint64_t b, bool accumulate, Decode decode) {
  const int lane = static_cast<int>(thread) % 32, first = static_cast<int>(thread) / 32 % 4 * 16 + lane / 4;
  float rows[2][16], column[16];
  for (int half = 0; half < 2; ++half) read_row(a, first + half * 8, decode, rows[half]);
  for (int j = 0; j < n / 4; ++j) {
    for (int i = 0; i < 2; ++i) {
      read_row(b, j * 8 + lane % 4 * 2 + i, decode, column);
      for (int half = 0; half < 2; ++half) {
        float& sum = c[j * 4 + half * 2 + i];
        double total = accumulate ? sum : 0.0;
        for (int k = 0; k < 16; ++k) total += static_cast<double>(rows[half][k]) * column[k];
        sum = static_cast<float>(total);
      }
    }
  }
}

struct Matrices {
  uint64_t a, b;
};

template <int n, class Decode>
void multiply_async(float (&c)[n], uint64_t a, uint64_t b, bool accumulate, Decode decode) {
  collective<Matrices, int>({a, b}, [](const Matrices* given, int* results) {
    for (int i = 0; i < 32; ++i) {
      if (given[i].a != given[0].a || given[i].b != given[0].b)
        fail("the lanes of a warp pass different operands to a product");
      results[i] = 0;
    }
  });
  const uint32_t thread = block().thread.x;
  auto compute = [&c, thread, a, b, accumulate, decode] { multiply_lane(c, thread, a, b, accumulate, decode); };
  if (late_products()) {
    block().fibers[thread].products.back().push_back(compute);
  } else {
    compute();
  }
}

}  // namespace emulator

inline int32_t warp_uniform(int32_t value) { return value; }
inline void warp_sync() {
  emulator::collective<int, int>(0, [](const int*, int* results) { std::fill(results, results + 32, 0); });
}
inline uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(static_cast<const unsigned char*>(pointer) - emulator::block().shared);
}

inline void named_sync(int32_t number, int32_t threads) {
  emulator::Block& b = emulator::block();
  const int generation = b.named_generation[number];
  if (++b.named_arrived[number] == threads) {
    b.named_arrived[number] = 0;
    ++b.named_generation[number];
    ++b.progress;
  }
  while (b.named_generation[number] == generation) emulator::yield();
}

inline void barrier_init(uint64_t* barrier, int32_t arrivals) {
  emulator::Counter& c = emulator::block().counters[barrier];
  c.expected = c.arrivals = arrivals;
}
inline void barrier_init_fence() {}
inline void barrier_arrive(uint64_t* barrier) { emulator::arrive(emulator::counter(barrier)); }
inline void barrier_arrive_expecting(uint64_t* barrier, int32_t bytes) {
  emulator::counter(barrier).bytes += bytes;
  emulator::arrive(emulator::counter(barrier));
}

inline void barrier_wait(uint64_t* barrier, int32_t parity) {
  emulator::Counter& c = emulator::counter(barrier);
  while (c.parity == parity) {
    if (c.boxes.empty()) {
      emulator::yield();
      continue;
    }
    for (const auto& box : c.boxes) c.bytes -= box();
    c.boxes.clear();
    emulator::advance(c);
  }
}

inline void prefetch_map(const TensorMap&) {}
template <int kRegisters>
void release_registers() {}
template <int kRegisters>
void take_registers() {}

inline uint32_t pack_half(float low, float high) {
  return float_to_half(low) | static_cast<uint32_t>(float_to_half(high)) << 16;
}
inline uint32_t pack_bfloat16(float low, float high) {
  return float_to_bfloat16(low) | static_cast<uint32_t>(float_to_bfloat16(high)) << 16;
}

inline void store_box(const TensorMap& given, const void* source, int32_t channel, int32_t column, int32_t row,
                      int32_t sample) {
  emulator::Map map;
  std::memcpy(&map, &given, sizeof(map));
  const auto store = [=] {
    emulator::for_box(static_cast<const unsigned char*>(source), map, channel, column, row, sample,
                      [](char* outer, const unsigned char* inner) {
                        if (outer != nullptr) std::memcpy(outer, inner, 2);
                      });
  };
  emulator::Block& b = emulator::block();
  b.fibers[b.thread.x].stores.back().push_back(emulator::late_products() ? std::function<void()>(store) : [] {});
  if (!emulator::late_products()) store();
}
inline void stores_commit() {
  emulator::Block& b = emulator::block();
  b.fibers[b.thread.x].stores.emplace_back();
}
template <int kPending>
void stores_wait_reads() {
  emulator::Block& b = emulator::block();
  auto& groups = b.fibers[b.thread.x].stores;
  while (static_cast<int>(groups.size()) - 1 > kPending) {
    for (const auto& store : groups.front()) store();
    groups.erase(groups.begin());
  }
}
inline void stores_wait_all() { stores_wait_reads<0>(); }

inline void load_box(void* target, const TensorMap& given, uint64_t* barrier, int32_t channel, int32_t column,
                     int32_t row, int32_t sample) {
  emulator::Map map;
  std::memcpy(&map, &given, sizeof(map));
  auto box = [=] { return emulator::copy_box(static_cast<unsigned char*>(target), map, channel, column, row, sample); };
  emulator::Counter& c = emulator::counter(barrier);
  if (emulator::late_products()) {
    c.bytes -= box();
    emulator::advance(c);
  } else {
    c.boxes.push_back(box);
  }
}

inline void shared_fence() {}
inline void products_begin() {}
inline void products_commit() {
  emulator::Block& b = emulator::block();
  b.fibers[b.thread.x].products.emplace_back();
}
template <int kPending>
void products_wait() {
  emulator::Block& b = emulator::block();
  auto& groups = b.fibers[b.thread.x].products;
  while (static_cast<int>(groups.size()) - 1 > kPending) {
    for (const auto& compute : groups.front()) compute();
    groups.erase(groups.begin());
  }
}
template <int n>
void products_pin(float (&)[n]) {}

template <int n>
void multiply_async_half(float (&c)[n], uint64_t a, uint64_t b, bool accumulate) {
  emulator::multiply_async(c, a, b, accumulate, [](uint16_t bits) { return half_to_float(bits); });
}
template <int n>
void multiply_async_bfloat16(float (&c)[n], uint64_t a, uint64_t b, bool accumulate) {
  emulator::multiply_async(c, a, b, accumulate,
                           [](uint16_t bits) { return bits_to_float(static_cast<uint32_t>(bits) << 16); });
}

inline const char* make_map(TensorMap& map, const ImageMap& image) {
  if (reinterpret_cast<uintptr_t>(image.data) % 16 != 0) return "the image is not aligned to 16 bytes";
  if (image.box_rows > 256 || image.box_columns > 256) return "the box has more than 256 rows or columns";
  emulator::Map own{const_cast<char*>(static_cast<const char*>(image.data)),
                    {image.samples, image.height, image.width, image.channels},
                    {image.box_rows, image.box_columns, image.box_channels},
                    {image.sample * 2, image.row * 2, image.pixel * 2}};
  for (const int64_t stride : own.strides) {
    if (stride % 16 != 0) return "the strides of the image are not multiples of 16 bytes";
  }
  std::memcpy(&map, &own, sizeof(own));
  return nullptr;
}

}  // namespace tunable_ops::cuda
