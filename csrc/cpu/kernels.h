// The interface of the CPU kernels: their arguments, independent of Torch and of the instruction set.
#pragma once

#include <cstdint>

#include "../activation.h"

namespace tunable_ops {

// A convolution of channels_last images, forward or as the gradient of its input. Strides count floats.
struct Conv {
  int64_t batch, groups, channels, outputs;  // channels and outputs of one group
  int64_t in_h, in_w, out_h, out_w;
  int64_t taps_h, taps_w, stride_h, stride_w, dilation_h, dilation_w, pad_h, pad_w;
  int64_t in_sample, in_row, in_pixel;
  int64_t out_sample, out_row, out_pixel;
  Activation activation;
};

// Kernels [P, O, C/groups, kh, kw] with any strides; `data` and the strides can select or flip taps.
struct Stack {
  const float* data;
  int64_t kernels, stride_kernel, stride_group, stride_output, stride_channel, stride_tap_h, stride_tap_w;
};

// The layout of blended kernels. Dense: the outputs of a group are split into panels of `width` vectors (the last panel
// may have fewer), each [taps][channels][width * lanes], zero-padded. Depthwise: one panel [taps][all channels].
// A slice is one tap of one panel, followed by `pad` unused values. For Winograd's filtering the taps are the points.
struct Panels {
  int64_t groups, outputs, channels, taps_h, taps_w, lanes, width;
  int64_t pad = 0;
  int64_t vectors() const { return (outputs + lanes - 1) / lanes; }
  int64_t count() const { return (vectors() + width - 1) / width; }
  int64_t taps() const { return taps_h * taps_w; }
  int64_t slices() const { return groups * count() * taps(); }
  int64_t group_size() const { return taps() * (channels * vectors() * lanes + count() * pad); }
  int64_t size() const { return groups * group_size(); }
  int64_t panel_vectors(int64_t panel) const {
    return vectors() - panel * width < width ? vectors() - panel * width : width;
  }
  int64_t offset(int64_t group, int64_t panel) const {
    return group * group_size() + panel * taps() * (width * lanes * channels + pad);
  }
};

// blended[b] = sum_p alpha[b, p] * stack[p], in panels. Work items: slices; for transformed kernels, blocks of
// winograd_blocks.
struct Blend {
  Panels panels;
  Stack stack;
  int64_t batch;
  const float* alpha;  // [batch, kernels]
  float* blended;      // [batch, panels.size()]
  int64_t taps = 0;    // of transformed kernels: those of a kernel in one dimension, before
};

// Work items: (sample, block of `rows` output rows). With `phases` the groups are those of a dense kernel: each has all
// channels and its own pixels of the output, group g those at row g / phases and column g % phases of every block.
struct ConvRun {
  Conv conv;
  Panels panels;
  const float* input;
  float* output;
  const float* blended;
  int64_t blended_sample;  // stride; 0 if one kernel serves the batch
  const float* bias;       // [batch, groups, vectors * lanes] or null
  int64_t bias_sample;
  int64_t rows;
  int64_t phases = 0, phase_row = 0, phase_pixel = 0;
  bool prefetch_rows = true;  // depthwise: the input row that the next output row needs first
  int64_t input_offset(int64_t group) const { return phases ? 0 : group * conv.channels; }
  int64_t output_offset(int64_t group) const {
    return phases ? group / phases * phase_row + group % phases * phase_pixel : group * conv.outputs;
  }
};

// A convolution by Winograd's filtering. The tiles of the batch are in `spans` of `span` tiles: one if one kernel
// serves the batch, else the samples. Work items: (span, block of tiles); `blocks` blocks of at most `block` tiles per
// span.
struct WinogradRun {
  Conv conv;
  Panels panels;
  const float* input;
  float* output;
  const float* kernels;  // blended and transformed, in panels
  int64_t kernels_span;  // stride
  const float* bias;     // [spans, groups, vectors * lanes] or null
  int64_t bias_span;
  int64_t span, blocks, block;
  int64_t abreast;  // panels whose products are computed at a point before the next point
};

// The gradient of blended kernels by Winograd's filtering. `winograd_grad` sums the products of each segment of a
// span's tiles, work items (span, segment, part of the panels); `winograd_taps` adds the segments, work items (span,
// group, panel).
struct WinogradGradRun {
  Conv conv;
  Panels panels;
  const float* input;
  const float* grad_output;
  float* sums;      // [spans, segments, panels.size()]
  float* gradient;  // [spans], each in panels of the kernels' taps
  int64_t span, segments, parts, block;
};

// G[b, segment] = the gradient of the blended kernel from a segment of the output rows, and the sums of grad_output.
// Work items: (sample, segment, part of the tiles) if dense, (sample, segment) if depthwise.
struct WeightGradRun {
  Conv conv;
  Panels panels;
  const float* input;
  const float* grad_output;
  float* gradient;  // [batch, segments, panels.size()]
  float* sums;      // [batch, segments, groups * vectors * lanes] or null
  int64_t segments;
  int64_t parts;
};

// grad_stack[p] += sum_b alpha[b, p] * G[b] and partial[slice, b, p] = <G[b], stack[p]>. Work items: slices.
struct Contract {
  Panels panels;
  Stack stack;
  Stack grad_stack;  // the layout of grad_data
  float* grad_data;  // or null
  int64_t batch, segments;
  const float* alpha;     // [batch, kernels]
  const float* gradient;  // [batch, segments, panels.size()]
  float* partial;         // [slices, batch, kernels] or null
  bool accumulate;
};

enum class NumberType : int32_t { kFloat, kDouble, kHalf, kBFloat16 };

// out[i] = sum_p alpha[p] * stack[p * stride + i]. Work items: elements.
struct FlatBlend {
  const void* stack;
  NumberType type;
  int64_t kernels, stride;
  const double* alpha;  // [kernels]
  void* out;
  NumberType out_type;
};

// grad[p * grad_stride + i] = alpha[p] * gradient[i] and products[p] += <gradient, stack[p]>. Work items: elements.
struct FlatContract {
  const void* stack;
  NumberType type;  // of the stack and its gradient
  int64_t kernels, stride;
  const double* alpha;
  const void* gradient;
  NumberType gradient_type;
  void* grad;  // or null
  int64_t grad_stride;
};

// One kernel's plane of a map [samples, kernels, pixels]; `step` is the stride between samples.
struct Map {
  int64_t pixels, step, outputs;
};

// target[i, o] = alpha[i] * source[i, o] (+ target[i, o]) and the activation. Work items: pixels of the batch.
struct ScalePixels {
  Map map;
  const float* source;
  float* target;
  int64_t source_step, target_step;  // between pixels
  const float* alpha;
  bool add;
  Activation activation;
};

// dots[i] = sum_o a[i, o] * b[i, o]. Work items: pixels of the batch.
struct PixelDots {
  Map map;
  const float* a;
  const float* b;
  int64_t a_step, b_step;  // between pixels
  float* dots;
};

struct Kernels {
  int64_t lanes, width;
  void (*blend)(const Blend&, int64_t begin, int64_t end);
  void (*dense)(const ConvRun&, int64_t begin, int64_t end);
  void (*depthwise)(const ConvRun&, int64_t begin, int64_t end);
  int64_t (*winograd_blocks)(const Panels&);
  void (*winograd_kernels)(const Blend&, int64_t begin, int64_t end);
  void (*winograd)(const WinogradRun&, int64_t begin, int64_t end);
  void (*winograd_grad)(const WinogradGradRun&, int64_t begin, int64_t end);
  void (*winograd_taps)(const WinogradGradRun&, int64_t begin, int64_t end);
  int64_t (*dense_weight_grad_tiles)(const Panels&);
  void (*dense_weight_grad)(const WeightGradRun&, int64_t begin, int64_t end);
  void (*depthwise_weight_grad)(const WeightGradRun&, int64_t begin, int64_t end);
  void (*contract)(const Contract&, int64_t begin, int64_t end);
  void (*flat_blend)(const FlatBlend&, int64_t begin, int64_t end);
  void (*flat_contract)(const FlatContract&, int64_t begin, int64_t end, double* products);  // products may be null
  void (*scale_pixels)(const ScalePixels&, int64_t begin, int64_t end);
  void (*pixel_dots)(const PixelDots&, int64_t begin, int64_t end);
};

const Kernels& portable_kernels();
#if defined(__x86_64__)
const Kernels& avx2_kernels();
const Kernels& avx512_kernels();
#endif
const Kernels& best_kernels();
// True if this machine's own prefetchers load the rows of a depthwise convolution in time.
bool foresees_rows();
// True if this machine has instructions that multiply values of the type. Otherwise libraries emulate them.
bool multiplies_natively(NumberType type);

}  // namespace tunable_ops
