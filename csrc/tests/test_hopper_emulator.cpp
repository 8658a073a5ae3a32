// The emulated boxes, barriers and products must not be more lenient than the hardware: kernels with a seeded fault
// must fail.
#include <sys/wait.h>
#include <unistd.h>

#include <vector>

#include "../cuda/hopper_platform.cuh"

using namespace tunable_ops::cuda;

constexpr int kSlot = kHopperPixels * 128, kPanel = 32 * 128, kSums = 64 * 32;

struct alignas(128) Run {
  TensorMap map;
  float* result;
  bool full, products, empty;  // what the kernel waits for
};

// Two steps: 64 pixels of 64 channels times the first 32 columns of the identity, through one slot.
TO_KERNEL(160, 1)
steps_kernel(TO_RUN Run run) {
  unsigned char* memory = shared_memory();
  auto* full = reinterpret_cast<uint64_t*>(memory + kSlot + kPanel);
  uint64_t* empty = full + 1;
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  if (thread == 0) {
    barrier_init(full, 1);
    barrier_init(empty, 4);
  }
  for (int i = thread; i < 32 * 64; i += 160) {
    const int chunk = swizzled(i / 8 * 16, 128);
    *reinterpret_cast<uint16_t*>(memory + kSlot + chunk + i % 8 * 2) = float_to_half(i / 64 == i % 64 ? 1.0f : 0.0f);
  }
  block_sync();
  if (warp == 4) {
    for (int step = 0; lane == 0 && step < 2; ++step) {
      if (run.empty) barrier_wait(empty, step ^ 1);
      barrier_arrive_expecting(full, kSlot);
      load_box(memory, run.map, full, 0, step * kHopperPixels, 0, 0);
    }
    return;
  }
  for (int step = 0; step < 2; ++step) {
    float sums[16] = {};
    if (run.full) barrier_wait(full, step);
    for (int k = 0; k < 4; ++k) {
      const uint64_t row = matrix_descriptor(shared_address(memory), 128) + k * kDescriptorStep;
      const uint64_t kernel = matrix_descriptor(shared_address(memory) + kSlot, 128) + k * kDescriptorStep;
      multiply_async_half(sums, row, kernel, true);
    }
    products_commit();
    if (run.products) products_wait<0>();
    float* result = run.result + (static_cast<int>(blockIdx.x) * 2 + step) * kSums;
    for (int i = 0; i < 16; ++i) {
      const int row = warp * 16 + lane / 4 + i / 2 % 2 * 8, column = i / 4 * 8 + lane % 4 * 2 + i % 2;
      result[row * 32 + column] = sums[i];
    }
    products_wait<0>();
    if (lane == 0) barrier_arrive(empty);
  }
}

struct alignas(128) StoreRun {
  TensorMap map;
  bool reads, all;  // what the kernel waits for
};

// Stores 16 pixels of 32 channels three times, all through the same memory: pixel p of store i holds 100 * i + p.
TO_KERNEL(32, 1)
stores_kernel(TO_RUN StoreRun run) {
  unsigned char* memory = shared_memory();
  const int lane = static_cast<int>(threadIdx.x);
  for (int i = 0; i < 3; ++i) {
    if (lane == 0 && run.reads) stores_wait_reads<0>();
    warp_sync();
    for (int n = lane; n < 16 * 32; n += 32) {
      const int to = swizzled(n / 8 * 16, 64) + n % 8 * 2;
      *reinterpret_cast<uint16_t*>(memory + to) = float_to_half(static_cast<float>(100 * i + n / 32));
    }
    shared_fence();
    warp_sync();
    if (lane != 0) continue;
    store_box(run.map, memory, static_cast<int>(blockIdx.x) * 32, i * 16, 0, 0);
    stores_commit();
  }
  if (lane == 0 && run.all) stores_wait_all();
}

static std::vector<uint16_t> image;  // 100 pixels of 40 channels

// True if both blocks, even and odd, hold the first 32 channels of every pixel and zeros outside the image.
static bool is_right(const std::vector<float>& result) {
  for (int i = 0; i < 4 * kSums; ++i) {
    const int pixel = i / 32 % 128, channel = i % 32;
    const float expected = pixel < 100 ? half_to_float(image[pixel * 40 + channel]) : 0.0f;
    if (result[i] != expected) return false;
  }
  return true;
}

// Runs in a separate process: a fault may abort the emulator, which counts as noticed.
static bool passes(bool full, bool products, bool empty) {
  const pid_t child = fork();
  if (child == 0) {
    std::freopen("/dev/null", "w", stderr);
    std::vector<float> result(4 * kSums, -1.0f);
    Run run{{}, result.data(), full, products, empty};
    if (make_map(run.map, {image.data(), 1, 1, 100, 40, 4000, 4000, 40, 1, kHopperPixels, 64})) _exit(2);
    launch(steps_kernel, 2, 160, kSlot + kPanel + 16, nullptr, run);
    _exit(is_right(result) ? 0 : 1);
  }
  int status = 0;
  waitpid(child, &status, 0);
  return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

// The image has 40 pixels of 40 channels: the last box of pixels and the second block's channels are cut.
static bool stores_pass(bool reads, bool all) {
  const pid_t child = fork();
  if (child == 0) {
    std::freopen("/dev/null", "w", stderr);
    alignas(16) static uint16_t stored[48 * 40];
    StoreRun run{{}, reads, all};
    if (make_map(run.map, {stored, 1, 1, 40, 40, 1600, 1600, 40, 1, 16, 32})) _exit(2);
    launch(stores_kernel, 2, 32, 1024, nullptr, run);
    for (int i = 0; i < 48 * 40; ++i) {
      const int pixel = i / 40, value = pixel < 40 ? 100 * (pixel / 16) + pixel % 16 : 0;
      if (half_to_float(stored[i]) != static_cast<float>(value)) _exit(1);
    }
    _exit(0);
  }
  int status = 0;
  waitpid(child, &status, 0);
  return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

int main() {
  alignas(16) static uint16_t values[4000];
  for (int i = 0; i < 4000; ++i) values[i] = float_to_half(static_cast<float>(i % 1999));
  image.assign(values, values + 4000);
  int failures = 0;
  auto expect = [&](bool ok, const char* what) {
    if (!ok) std::printf("%s\n", what), ++failures;
  };
  expect(passes(true, true, true), "boxes, swizzles and products");
  expect(!passes(false, true, true), "a missing wait for a box goes unnoticed");
  expect(!passes(true, false, true), "a missing wait for products goes unnoticed");
  expect(!passes(true, true, false), "a slot that is filled too early goes unnoticed");
  expect(stores_pass(true, true), "stores");
  expect(!stores_pass(false, true), "memory that is written before its store has read it goes unnoticed");
  expect(!stores_pass(true, false), "a thread that ends before its stores goes unnoticed");
  std::printf("%d failures\n", failures);
  return failures != 0;
}
