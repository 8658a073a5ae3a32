// The reductions of the backward pass, and the gradient of the activation. The order of every sum depends only on the
// shapes.
#include "launch.cuh"
#include "numeric.cuh"

namespace tunable_ops::cuda {
namespace {

constexpr int kThreads = 256;

// Sums `value` over the threads with the same index modulo `lanes`; thread `lane` < lanes gets the sum.
TO_DEVICE float sum_over_lanes(float* memory, float value, int32_t lanes) {
  const int32_t thread = static_cast<int32_t>(threadIdx.x);
  memory[thread] = value;
  for (int32_t half = kThreads / 2; half >= lanes; half /= 2) {
    block_sync();
    if (thread < half) memory[thread] += memory[thread + half];
  }
  block_sync();
  const float total = thread < lanes ? memory[thread] : 0.0f;
  block_sync();
  return total;
}

template <class T>
TO_KERNEL(kThreads, 1)
activation_grad_kernel(TO_RUN ActivationRun run) {
  const int64_t first = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kVector<T>;
  const T* grad = static_cast<const T*>(run.grad);
  const T* saved = static_cast<const T*>(run.saved);
#pragma unroll
  for (int e = 0; e < kVector<T>; ++e) {
    if (first + e >= run.count) return;
    const float value = to_float(grad[first + e]) * derivative(to_float(saved[first + e]), run.activation);
    static_cast<T*>(run.result)[first + e] = from_float<T>(value);
  }
}

template <class T>
TO_KERNEL(kThreads, 1)
sum_kernel(TO_RUN SumRun run) {
  const Place place = place_of(blockIdx.x, ceil_div(run.outputs, run.lanes), run.segments, 1, run.problems);
  const int32_t thread = static_cast<int32_t>(threadIdx.x), output = place.tile_n * run.lanes + thread % run.lanes;
  const int32_t samples = run.samples / run.problems;
  const Range range = part_of(static_cast<int64_t>(samples) * run.pixels, run.segments, place.tile_m);
  float total = 0;
  if (output < run.outputs) {
    for (int64_t i = range.begin + thread / run.lanes; i < range.end; i += kThreads / run.lanes) {
      const int32_t sample = static_cast<int32_t>(i / run.pixels), pixel = static_cast<int32_t>(i % run.pixels);
      const int64_t at = (place.problem * samples + sample) * run.sample + (pixel * run.pixel + output * run.channel);
      total += to_float(static_cast<const T*>(run.grad_output)[at]);
    }
  }
  total = sum_over_lanes(reinterpret_cast<float*>(shared_memory()), total, run.lanes);
  if (thread < run.lanes && output < run.outputs) {
    run.sums[(static_cast<int64_t>(place.problem) * run.segments + place.tile_m) * run.outputs + output] = total;
  }
}

// A block computes kTapsY x kTapsX taps: 3 x 3, or a piece of a kernel row of any length.
template <class T, int kVector_, int kTapsY, int kTapsX>
TO_KERNEL(kThreads, 2)
depthwise_weight_grad_kernel(TO_RUN WeightGradRun run) {
  const int32_t width = run.lanes * kVector_, taps = run.y.taps * run.x.taps,
                thread = static_cast<int32_t>(threadIdx.x);
  const int32_t pieces = ceil_div(run.x.taps, kTapsX);
  const Place place = place_of(blockIdx.x, ceil_div(run.groups, width), run.segments,
                               ceil_div(run.y.taps, kTapsY) * pieces, run.problems);
  const int32_t lane = thread % run.lanes, channel = place.tile_n * width + lane * kVector_;
  const int32_t first_y = place.group / pieces * kTapsY, first_x = place.group % pieces * kTapsX;
  const int32_t samples = run.samples / run.problems;
  const Range range = part_of(static_cast<int64_t>(samples) * run.y.out * run.x.out, run.segments, place.tile_m);
  float sums[kTapsY][kTapsX][kVector_] = {};
  if (channel < run.groups) {
    for (int64_t index = range.begin + thread / run.lanes; index < range.end; index += kThreads / run.lanes) {
      const Pixel p = pixel_of(static_cast<int32_t>(index), run.y.out, run.x.out);
      const int64_t sample = place.problem * samples + p.sample;
      const T* from_grad = static_cast<const T*>(run.grad_output) + sample * run.target.sample +
                           (p.y * run.target.row + p.x * run.target.pixel + channel * run.target.channel);
      const T* from_input =
          static_cast<const T*>(run.input) + sample * run.source.sample + channel * run.source.channel;
      const auto grad = *reinterpret_cast<const AlignedArray<T, kVector_>*>(from_grad);
#pragma unroll
      for (int r = 0; r < kTapsY; ++r) {
        const int32_t y = p.y * run.y.stride - run.y.pad + (first_y + r) * run.y.dilation;
#pragma unroll
        for (int s = 0; s < kTapsX; ++s) {
          const int32_t x = p.x * run.x.stride - run.x.pad + (first_x + s) * run.x.dilation;
          const bool valid = first_x + s < run.x.taps && y >= 0 && y < run.y.in && x >= 0 && x < run.x.in;
          if (!valid) continue;
          const auto value = *reinterpret_cast<const AlignedArray<T, kVector_>*>(
              from_input + (y * run.source.row + x * run.source.pixel));
#pragma unroll
          for (int e = 0; e < kVector_; ++e)
            sums[r][s][e] = fmaf(to_float(grad.data[e]), to_float(value.data[e]), sums[r][s][e]);
        }
      }
    }
  }
  float* gradient =
      run.gradient + (static_cast<int64_t>(place.problem) * run.segments + place.tile_m) * run.groups * taps;
#pragma unroll
  for (int r = 0; r < kTapsY; ++r) {
#pragma unroll
    for (int s = 0; s < kTapsX; ++s) {
#pragma unroll
      for (int e = 0; e < kVector_; ++e) {
        const float total = sum_over_lanes(reinterpret_cast<float*>(shared_memory()), sums[r][s][e], run.lanes);
        if (thread < run.lanes && channel + e < run.groups && first_x + s < run.x.taps) {
          gradient[static_cast<int64_t>(channel + e) * taps + (first_y + r) * run.x.taps + first_x + s] = total;
        }
      }
    }
  }
}

TO_DEVICE float sum_over_warp(float value) {
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) value += shuffle_xor(value, mask);
  return value;
}

template <class T, int kMaxP>
TO_KERNEL(kContractThreads, 1)
contract_kernel(TO_RUN ContractRun run) {
  const Stack& s = run.stack;
  const int32_t taps = s.taps_h * s.taps_w;
  const int64_t size = static_cast<int64_t>(s.outputs) * taps * s.channels;
  int64_t index[kContractElements], to[kContractElements];
  float values[kContractElements][kMaxP], totals[kContractElements][kMaxP];
#pragma unroll
  for (int e = 0; e < kContractElements; ++e) {
    index[e] = (static_cast<int64_t>(blockIdx.x) * kContractElements + e) * kContractThreads + threadIdx.x;
    const int64_t at = index[e] < size ? index[e] : 0;
    const int64_t channel = at % s.channels, tap = at / s.channels % taps, output = at / s.channels / taps;
    const int64_t from = output * s.output + channel * s.channel + tap / s.taps_w * s.tap_h + tap % s.taps_w * s.tap_w;
    to[e] = output * run.grad_stack.output + channel * run.grad_stack.channel + tap / s.taps_w * run.grad_stack.tap_h +
            tap % s.taps_w * run.grad_stack.tap_w;
#pragma unroll
    for (int p = 0; p < kMaxP; ++p) {
      const bool valid = p < s.kernels && index[e] < size;
      values[e][p] = valid && run.partial ? to_float(static_cast<const T*>(s.data)[p * s.kernel + from]) : 0.0f;
      totals[e][p] = valid && !run.first ? run.total[p * size + index[e]] : 0.0f;
    }
  }
  const int32_t warp = static_cast<int32_t>(blockIdx.x * (kContractThreads / 32) + threadIdx.x / 32);
  for (int32_t b = 0; b < run.problems; ++b) {
    float gradient[kContractElements];
#pragma unroll
    for (int e = 0; e < kContractElements; ++e) {
      CompensatedSum total;
      for (int32_t i = 0; i < run.segments && index[e] < size; ++i) {
        total.add(run.gradient[(static_cast<int64_t>(b) * run.segments + i) * size + index[e]]);
      }
      gradient[e] = total.value();
    }
    const int64_t row = run.first_problem + b;
#pragma unroll
    for (int p = 0; p < kMaxP; ++p) {
      if (p >= s.kernels) break;
      const float alpha = alpha_of(run.alpha, row, p);
      float product = 0;
#pragma unroll
      for (int e = 0; e < kContractElements; ++e) {
        totals[e][p] = fmaf(alpha, gradient[e], totals[e][p]);
        product = fmaf(gradient[e], values[e][p], product);
      }
      if (run.partial) {
        product = sum_over_warp(product);
        if (threadIdx.x % 32 == 0) run.partial[(row * s.kernels + p) * run.partials + warp] = product;
      }
    }
  }
  if (!run.grad_weight) return;
#pragma unroll
  for (int e = 0; e < kContractElements; ++e) {
#pragma unroll
    for (int p = 0; p < kMaxP; ++p) {
      if (p >= s.kernels || index[e] >= size) continue;
      if (run.last) {
        static_cast<T*>(run.grad_weight)[p * run.grad_stack.kernel + to[e]] = from_float<T>(totals[e][p]);
      } else {
        run.total[p * size + index[e]] = totals[e][p];
      }
    }
  }
}

TO_DEVICE float sum_of_output(const FinishRun& run, int64_t problem, int32_t output) {
  CompensatedSum total;
  for (int32_t i = 0; i < run.segments; ++i) total.add(run.sums[(problem * run.segments + i) * run.outputs + output]);
  return total.value();
}

TO_KERNEL(kThreads, 1)
finish_kernel(TO_RUN FinishRun run) {
  const int32_t thread = static_cast<int32_t>(threadIdx.x), kernels = run.alpha.kernels;
  const int64_t alphas = run.grad_alpha ? static_cast<int64_t>(run.problems) * kernels : 0;
  if (blockIdx.x < alphas) {
    const int64_t problem = blockIdx.x / kernels;
    const int32_t p = static_cast<int32_t>(blockIdx.x % kernels);
    CompensatedSum sum;
    for (int32_t i = thread; run.partial && i < run.partials; i += kThreads) {
      sum.add(run.partial[(problem * kernels + p) * run.partials + i]);
    }
    float total = sum.value();
    for (int32_t o = thread; run.sums && o < run.outputs; o += kThreads) {
      const float bias = load_scalar(run.bias, run.type, p * run.bias_kernel + o * run.bias_output);
      total = fmaf(sum_of_output(run, problem, o), bias, total);
    }
    total = sum_over_lanes(reinterpret_cast<float*>(shared_memory()), total, 1);
    if (thread == 0) store_scalar(run.grad_alpha, run.alpha.type, problem * kernels + p, total);
    return;
  }
  const int64_t index = (blockIdx.x - alphas) * kThreads + thread;
  if (index >= static_cast<int64_t>(kernels) * run.outputs) return;
  const int32_t p = static_cast<int32_t>(index / run.outputs), o = static_cast<int32_t>(index % run.outputs);
  float total = 0;
  for (int32_t b = 0; b < run.problems; ++b) total = fmaf(alpha_of(run.alpha, b, p), sum_of_output(run, b, o), total);
  store_scalar(run.grad_bias, run.type, index, total);
}

}  // namespace

const char* launch_activation_grad(const ActivationRun& run, void* stream) {
  return for_type(run.type, [&](auto zero) {
    using T = decltype(zero);
    return launch(activation_grad_kernel<T>, ceil_div<int64_t>(run.count, kThreads * kVector<T>), kThreads, 0, stream,
                  run);
  });
}

const char* launch_sum(const SumRun& run, void* stream) {
  const int64_t blocks = static_cast<int64_t>(ceil_div(run.outputs, run.lanes)) * run.segments * run.problems;
  return for_type(run.type, [&](auto zero) {
    return launch(sum_kernel<decltype(zero)>, blocks, kThreads, kThreads * 4, stream, run);
  });
}

template <class T, int kVector_, int kTapsY, int kTapsX>
static const char* launch_depthwise_weight_grad_taps(const WeightGradRun& run, void* stream) {
  const int64_t blocks = ceil_div<int64_t>(run.groups, run.lanes * kVector_) * run.segments *
                         ceil_div(run.y.taps, kTapsY) * ceil_div(run.x.taps, kTapsX) * run.problems;
  return launch(depthwise_weight_grad_kernel<T, kVector_, kTapsY, kTapsX>, blocks, kThreads, kThreads * 4, stream, run);
}

const char* launch_depthwise_weight_grad(const WeightGradRun& run, void* stream) {
  const bool three = run.y.taps == 3 && run.x.taps == 3;
  return for_type(run.type, [&](auto zero) {
    using T = decltype(zero);
    if (!run.vectors) return launch_depthwise_weight_grad_taps<T, 1, 1, 7>(run, stream);
    // Nine taps of four channels: with eight channels, two blocks would not fit into the registers.
    return three ? launch_depthwise_weight_grad_taps<T, 4, 3, 3>(run, stream)
                 : launch_depthwise_weight_grad_taps<T, kVector<T>, 1, 7>(run, stream);
  });
}

const char* launch_contract(const ContractRun& run, void* stream) {
  const int64_t size =
      static_cast<int64_t>(run.stack.outputs) * run.stack.channels * run.stack.taps_h * run.stack.taps_w;
  const int64_t blocks = contract_warps(size) / (kContractThreads / 32);
  return for_type(run.type, [&](auto zero) {
    using T = decltype(zero);
    if (run.stack.kernels <= 2) return launch(contract_kernel<T, 2>, blocks, kContractThreads, 0, stream, run);
    if (run.stack.kernels <= 4) return launch(contract_kernel<T, 4>, blocks, kContractThreads, 0, stream, run);
    return launch(contract_kernel<T, kMaxKernels>, blocks, kContractThreads, 0, stream, run);
  });
}

const char* launch_finish(const FinishRun& run, void* stream) {
  const int64_t alphas = run.grad_alpha ? static_cast<int64_t>(run.problems) * run.alpha.kernels : 0;
  const int64_t biases =
      run.grad_bias ? ceil_div<int64_t>(static_cast<int64_t>(run.alpha.kernels) * run.outputs, kThreads) : 0;
  return launch(finish_kernel, alphas + biases, kThreads, kThreads * 4, stream, run);
}

}  // namespace tunable_ops::cuda
