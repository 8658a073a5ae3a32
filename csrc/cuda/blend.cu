// The blend as a separate pass, for any strides and number of kernels. Also transposes kernels for the input gradient.
#include "launch.cuh"
#include "numeric.cuh"

namespace tunable_ops::cuda {
namespace {

constexpr int kThreads = 256;

template <class T, int kMaxP>
TO_KERNEL(kThreads, 1)
blend_kernel(TO_RUN BlendRun run) {
  const Stack& s = run.stack;
  const int32_t taps = s.taps_h * s.taps_w, outputs = s.outputs / run.groups;
  const int32_t outer = run.transposed ? s.channels : outputs, inner = run.transposed ? outputs : s.channels;
  const int32_t size = run.groups * outer * taps * inner;
  const int64_t flat = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (flat >= size) return;
  const int32_t index = static_cast<int32_t>(flat), at_inner = index % inner, tap = index / inner % taps;
  const int32_t at_outer = index / inner / taps % outer, group = index / inner / taps / outer;
  const int32_t output = group * outputs + (run.transposed ? at_inner : at_outer);
  const int32_t channel = run.transposed ? at_outer : at_inner;
  const int64_t from = output * s.output + channel * s.channel + tap / s.taps_w * s.tap_h + tap % s.taps_w * s.tap_w;
  float values[kMaxP];
#pragma unroll
  for (int p = 0; p < kMaxP; ++p) {
    values[p] = p < s.kernels ? to_float(static_cast<const T*>(s.data)[p * s.kernel + from]) : 0.0f;
  }
  for (int32_t row = 0; row < run.rows; ++row) {
    float total = 0;
#pragma unroll
    for (int p = 0; p < kMaxP; ++p) {
      if (p < s.kernels) total = fmaf(alpha_of(run.alpha, row, p), values[p], total);
    }
    static_cast<T*>(run.blended)[static_cast<int64_t>(row) * size + index] = from_float<T>(total);
  }
}

}  // namespace

const char* launch_blend(const BlendRun& run, void* stream) {
  const int64_t size =
      static_cast<int64_t>(run.stack.outputs) * run.stack.channels * run.stack.taps_h * run.stack.taps_w;
  const int64_t blocks = ceil_div<int64_t>(size, kThreads);
  return for_type(run.type, [&](auto zero) {
    using T = decltype(zero);
    if (run.stack.kernels <= 4) return launch(blend_kernel<T, 4>, blocks, kThreads, 0, stream, run);
    return launch(blend_kernel<T, kMaxKernels>, blocks, kThreads, 0, stream, run);
  });
}

}  // namespace tunable_ops::cuda
