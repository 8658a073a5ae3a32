// The emulator must not be more lenient than the hardware: kernels with a seeded fault must fail.
#include <sys/wait.h>
#include <unistd.h>

#include "../cuda/platform.cuh"

using namespace tunable_ops::cuda;

struct Run {
  float* result;
  const float* source;
  bool barrier, wait, all, narrow;
};

// Every thread adds the indices of its two neighbours.
TO_KERNEL(64, 1)
neighbours_kernel(TO_RUN Run run) {
  float* memory = reinterpret_cast<float*>(shared_memory());
  const int thread = static_cast<int>(threadIdx.x);
  memory[thread] = static_cast<float>(thread);
  if (run.barrier) block_sync();
  run.result[thread] = memory[(thread + 1) % 64] + memory[(thread + 63) % 64];
}

// Each warp reads what the other one wrote, a few warp instructions later.
TO_KERNEL(64, 1)
warps_kernel(TO_RUN Run run) {
  float* memory = reinterpret_cast<float*>(shared_memory());
  const int thread = static_cast<int>(threadIdx.x);
  memory[thread] = static_cast<float>(thread);
  if (run.barrier) block_sync();
  float value = 0;
  for (int mask = 16; mask > 0; mask /= 2) value += shuffle_xor(value, mask);
  run.result[thread] = value + memory[(thread + 32) % 64];
}

TO_KERNEL(64, 1)
copy_kernel(TO_RUN Run run) {
  float* memory = reinterpret_cast<float*>(shared_memory());
  const int thread = static_cast<int>(threadIdx.x);
  copy_async(memory + thread * 4, run.source + thread * 4, thread % 2 == 0);
  commit_copies();
  commit_copies();
  if (run.wait) {
    wait_copies<1>();
  } else {
    wait_copies<2>();
  }
  block_sync();
  run.result[thread] = memory[thread * 4];
}

TO_KERNEL(64, 1)
warp_kernel(TO_RUN Run run) {
  const int thread = static_cast<int>(threadIdx.x);
  float value = static_cast<float>(thread);
  if (run.all || thread != 3) {
    for (int mask = 16; mask > 0; mask /= 2) value += shuffle_xor(value, mask);
  }
  run.result[thread] = value;
}

TO_KERNEL(64, 1)
bounds_kernel(TO_RUN Run run) {
  const int thread = static_cast<int>(threadIdx.x);
  copy_async(shared_memory() + thread * 16, run.source, true);
  if (!run.narrow) shared_memory()[1024 + thread] = 0;
}

template <class Kernel>
bool aborts(Kernel kernel, int bytes, const Run& run) {
  const pid_t child = fork();
  if (child == 0) {
    std::freopen("/dev/null", "w", stderr);
    launch(kernel, 1, 64, bytes, nullptr, run);
    _exit(0);
  }
  int status = 0;
  waitpid(child, &status, 0);
  return WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT;
}

int main() {
  float result[64];
  alignas(16) float source[256];
  for (int i = 0; i < 256; ++i) source[i] = static_cast<float>(i);
  int failures = 0;
  auto expect = [&](bool ok, const char* what) {
    if (!ok) std::printf("%s\n", what), ++failures;
  };
  launch(neighbours_kernel, 1, 64, 256, nullptr, Run{result, nullptr, true});
  expect(result[0] == 64 && result[5] == 10, "neighbours");
  launch(neighbours_kernel, 1, 64, 256, nullptr, Run{result, nullptr, false});
  expect(result[5] != result[5], "a missing barrier goes unnoticed");
  launch(warps_kernel, 2, 64, 256, nullptr, Run{result, nullptr, true});
  expect(result[0] == 32 && result[40] == 8, "warps");
  launch(warps_kernel, 1, 64, 256, nullptr, Run{result, nullptr, false});
  expect(result[0] != result[0], "a missing barrier between warps goes unnoticed in ascending order");
  launch(warps_kernel, 2, 64, 256, nullptr, Run{result, nullptr, false});
  expect(result[40] != result[40], "a missing barrier between warps goes unnoticed in descending order");
  launch(copy_kernel, 2, 64, 1024, nullptr, Run{result, source, false, true});
  expect(result[2] == 8 && result[3] == 0, "copies");
  launch(copy_kernel, 1, 64, 1024, nullptr, Run{result, source, false, false});
  expect(result[2] != result[2], "a copy arrives without being waited for");
  launch(warp_kernel, 1, 64, 0, nullptr, Run{result, nullptr, false, false, true});
  expect(result[0] == 496 && result[63] == 496 + 32 * 32, "shuffles");
  expect(aborts(warp_kernel, 0, Run{result, nullptr, false, false, false}),
         "a warp does not wait for a thread that diverged");
  expect(aborts(bounds_kernel, 512, Run{result, source, false, false, false, true}),
         "a copy past the end of shared memory goes unnoticed");
  expect(aborts(bounds_kernel, 1024, Run{result, source, false, false, false, false}),
         "a write past the end of shared memory goes unnoticed");
  expect(!aborts(bounds_kernel, 1024, Run{result, source, false, false, false, true}),
         "a copy inside shared memory aborts");
  std::printf("%d failures\n", failures);
  return failures != 0;
}
