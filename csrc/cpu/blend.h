// Blends the caller's kernels into panels, and contracts gradients of panels into gradients of kernels and alpha.
namespace tunable_ops::TO_ISA {

// A slice: its offset in the panels and in a kernel of the stack, and the outputs it holds.
struct Slice {
  int64_t offset, size, outputs, width, position;
};

inline Slice locate(const Panels& p, const Stack& stack, int64_t index) {
  const int64_t tap = index % p.taps(), panel = index / p.taps() % p.count(), group = index / p.taps() / p.count();
  Slice s;
  s.width = p.panel_vectors(panel) * p.lanes;
  s.size = p.channels * s.width;
  s.offset = p.offset(group, panel) + tap * s.size;
  s.outputs = min(s.width, p.outputs - panel * p.width * p.lanes);
  s.position = group * stack.stride_group + panel * p.width * p.lanes * stack.stride_output +
               tap / p.taps_w * stack.stride_tap_h + tap % p.taps_w * stack.stride_tap_w;
  return s;
}

// to[i][j] = from[j][i] for kLanes x kLanes values, in rows that are `step` and `to_step` apart.
inline void transpose(const float* from, int64_t step, float* to, int64_t to_step) {
#if defined(__clang__)
  for (int64_t i = 0; i < kLanes; ++i) {
    for (int64_t j = 0; j < kLanes; ++j) to[i * to_step + j] = from[j * step + i];
  }
#else
  typedef int Places __attribute__((vector_size(TO_LANES * 4)));
  Places low = {}, high = {};
  for (int i = 0; i < TO_LANES; ++i) {
    low[i] = i / 2 + (i % 2) * TO_LANES;
    high[i] = low[i] + TO_LANES / 2;
  }
  Vec rows[kLanes], next[kLanes];
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) rows[i] = load(from + i * step);
#pragma GCC unroll 4
  for (int n = 1; n < kLanes; n *= 2) {  // interleaves the halves of the rows log2(kLanes) times
#pragma GCC unroll 16
    for (int i = 0; i < kLanes / 2; ++i) {
      next[2 * i] = __builtin_shuffle(rows[i], rows[i + kLanes / 2], low);
      next[2 * i + 1] = __builtin_shuffle(rows[i], rows[i + kLanes / 2], high);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) rows[i] = next[i];
  }
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) store(to + i * to_step, rows[i]);
#endif
}

// Reads [channels][width] from one kernel of the stack, zero-padded after the outputs.
inline void gather(const Stack& stack, const Slice& s, int64_t channels, const float* source, float* slice) {
  // Whole blocks of channels and outputs where an output's channels lie together.
  const bool blocks = stack.stride_channel == 1;
  const int64_t block_channels = blocks ? channels / kLanes * kLanes : 0;
  const int64_t block_outputs = blocks ? s.outputs / kLanes * kLanes : 0;
  for (int64_t o = 0; o < block_outputs; o += kLanes) {
    for (int64_t c = 0; c < block_channels; c += kLanes)
      transpose(source + o * stack.stride_output + c, stack.stride_output, slice + c * s.width + o, s.width);
  }
  for (int64_t c = 0; c < channels; ++c, slice += s.width) {
    const float* from = source + c * stack.stride_channel;
    for (int64_t o = c < block_channels ? block_outputs : 0; o < s.outputs; ++o)
      slice[o] = from[o * stack.stride_output];
    for (int64_t o = s.outputs; o < s.width; ++o) slice[o] = 0;
  }
}

// The size of a slice is a multiple of kLanes.
inline void scale_add(float* target, const float* source, float factor, int64_t size, bool first) {
  const Vec f = broadcast(factor);
  if (first) {
    for (int64_t i = 0; i < size; i += kLanes) store(target + i, f * load(source + i));
  } else {
    for (int64_t i = 0; i < size; i += kLanes) store(target + i, load(target + i) + f * load(source + i));
  }
}

template <class T>
inline float dot(const T* a, const T* b, int64_t size) {
  Vec sums[4] = {};
  int64_t i = 0;
  for (; i + 4 * kLanes <= size; i += 4 * kLanes) {
    for (int v = 0; v < 4; ++v) sums[v] += load(a + i + v * kLanes) * load(b + i + v * kLanes);
  }
  for (; i + kLanes <= size; i += kLanes) sums[0] += load(a + i) * load(b + i);
  if (i < size) sums[1] += load_first(a + i, size - i) * load_first(b + i, size - i);
  return sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

void blend(const Blend& args, int64_t begin, int64_t end) {
  const Panels& panels = args.panels;
  const int64_t kernels = args.stack.kernels;
  const int64_t largest = panels.channels * max(panels.width * panels.lanes, 0);
  float* slices = new float[kernels * largest];
  for (int64_t item = begin; item < end; ++item) {
    const Slice s = locate(panels, args.stack, item);
    for (int64_t p = 0; p < kernels; ++p) {
      gather(args.stack, s, panels.channels, args.stack.data + s.position + p * args.stack.stride_kernel,
             slices + p * s.size);
    }
    for (int64_t b = 0; b < args.batch; ++b) {
      float* target = args.blended + b * panels.size() + s.offset;
      for (int64_t p = 0; p < kernels; ++p) {
        scale_add(target, slices + p * s.size, args.alpha[b * kernels + p], s.size, p == 0);
      }
    }
  }
  delete[] slices;
}

// Writes [channels][width] to where `gather` would read it.
inline void scatter(const Stack& stack, const Slice& s, int64_t channels, const float* slice, float* target) {
  const bool blocks = stack.stride_channel == 1;
  const int64_t block_channels = blocks ? channels / kLanes * kLanes : 0;
  const int64_t block_outputs = blocks ? s.outputs / kLanes * kLanes : 0;
  for (int64_t o = 0; o < block_outputs; o += kLanes) {
    for (int64_t c = 0; c < block_channels; c += kLanes)
      transpose(slice + c * s.width + o, s.width, target + o * stack.stride_output + c, stack.stride_output);
  }
  for (int64_t o = 0; o < s.outputs; ++o) {
    float* to = target + o * stack.stride_output;
    for (int64_t c = o < block_outputs ? block_channels : 0; c < channels; ++c)
      to[c * stack.stride_channel] = slice[c * s.width + o];
  }
}

void contract(const Contract& args, int64_t begin, int64_t end) {
  const Panels& panels = args.panels;
  const int64_t kernels = args.stack.kernels, size = panels.size();
  const int64_t largest = panels.channels * panels.width * panels.lanes;
  float* slices = new float[(2 * kernels + 1) * largest];
  float* grads = slices + kernels * largest;
  float* whole = grads + kernels * largest;
  for (int64_t item = begin; item < end; ++item) {
    const Slice s = locate(panels, args.stack, item);
    if (args.partial) {
      for (int64_t p = 0; p < kernels; ++p) {
        gather(args.stack, s, panels.channels, args.stack.data + s.position + p * args.stack.stride_kernel,
               slices + p * s.size);
      }
    }
    const Slice to = args.grad_data ? locate(panels, args.grad_stack, item) : s;
    float* const target = args.grad_data + (args.grad_data ? to.position : 0);
    if (args.grad_data && args.accumulate) {  // as if one call had all samples, to the last bit
      for (int64_t p = 0; p < kernels; ++p) {
        gather(args.grad_stack, to, panels.channels, target + p * args.grad_stack.stride_kernel, grads + p * s.size);
      }
    }
    for (int64_t b = 0; b < args.batch; ++b) {
      const bool first = b == 0 && !args.accumulate;
      const float* gradient = args.gradient + b * args.segments * size + s.offset;
      if (args.segments > 1) {
        scale_add(whole, gradient, 1.0f, s.size, true);
        for (int64_t i = 1; i < args.segments; ++i) scale_add(whole, gradient + i * size, 1.0f, s.size, false);
        gradient = whole;
      }
      for (int64_t p = 0; p < kernels; ++p) {
        if (args.partial)
          args.partial[(item * args.batch + b) * kernels + p] = dot(gradient, slices + p * s.size, s.size);
        if (args.grad_data) scale_add(grads + p * s.size, gradient, args.alpha[b * kernels + p], s.size, first);
      }
    }
    for (int64_t p = 0; args.grad_data && p < kernels; ++p) {
      scatter(args.grad_stack, to, panels.channels, grads + p * s.size, target + p * args.grad_stack.stride_kernel);
    }
  }
  delete[] slices;
}

}  // namespace tunable_ops::TO_ISA
