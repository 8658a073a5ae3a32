// What the operators' host code shares: calls of other operators, allocation, memory formats. Stable ABI alone.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <array>
#include <functional>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

namespace tunable_ops {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using torch::stable::detail::from;
using torch::stable::detail::to;
using Ints = std::vector<int64_t>;

inline void parallel_for(int64_t count, int64_t grain, const std::function<void(int64_t, int64_t)>& f) {
  torch::stable::parallel_for(0, count, grain, f);
}

template <size_t n>
void call(const char* name, const char* overload, std::array<StableIValue, n>& stack) {
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(name, overload, stack.data(), TORCH_ABI_VERSION));
}

inline Tensor empty(const Ints& sizes, MemoryFormat format = MemoryFormat::Contiguous) {
  return torch::stable::empty(sizes, ScalarType::Float, std::nullopt, std::nullopt, std::nullopt, format);
}

// True where the strides of a [B, C, H, W] tensor are those of a dense one with the dimensions in this order.
inline bool is_dense(const Tensor& t, std::array<int, 4> order) {
  int64_t expected = 1;
  for (int i = 3; i >= 0; --i) {
    const int d = order[i];
    if (t.size(d) == 0) return true;
    if (t.size(d) == 1) continue;
    if (t.stride(d) != expected) return false;
    expected *= t.size(d);
  }
  return true;
}

// torch's own guess for tensors that are dense in neither format.
inline bool strides_look_channels_last(const Tensor& t) {
  int64_t least = 0;
  if (t.stride(1) == 0) return false;
  for (const int d : {1, 3, 2, 0}) {
    if (t.size(d) == 0 || t.stride(d) < least) return false;
    if (d == 0 && least == t.stride(1)) return false;
    least = t.stride(d);
    if (t.size(d) > 1) least *= t.size(d);
  }
  return true;
}

inline bool kernels_are_channels_last(const Tensor& weight) {
  if (weight.is_contiguous()) return false;
  int64_t expected = 1;
  for (const int d : {2, 4, 3, 1, 0}) {
    if (weight.size(d) != 1 && weight.stride(d) != expected) return false;
    expected *= weight.size(d);
  }
  return true;
}

// As `output_format` of the Python side: the input's format, the kernels' where the input fits both.
inline MemoryFormat output_format(const Tensor& input, const Tensor& weight) {
  const bool first = is_dense(input, {0, 1, 2, 3}), last = is_dense(input, {0, 2, 3, 1});
  if (first && !last) return MemoryFormat::Contiguous;
  if (last && (!first || kernels_are_channels_last(weight))) return MemoryFormat::ChannelsLast;
  return strides_look_channels_last(input) ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
}

inline Tensor in_channels_last(const Tensor& t) {
  return is_dense(t, {0, 2, 3, 1}) ? t : torch::stable::contiguous(t, MemoryFormat::ChannelsLast);
}

inline Tensor empty_strided(const Ints& sizes, const Ints& strides) {
  std::array<StableIValue, 6> stack{from(sizes),        from(strides),      from(std::optional(ScalarType::Float)),
                                    from(std::nullopt), from(std::nullopt), from(std::nullopt)};
  call("aten::empty_strided", "", stack);
  return to<Tensor>(stack[0]);
}

// An uninitialised stack with the shape and the kernels' layout of `weight`.
inline Tensor empty_stack_like(const Tensor& weight) {
  Ints sizes, strides(5);
  for (int d = 0; d < 5; ++d) sizes.push_back(weight.size(d));
  const bool last = kernels_are_channels_last(weight);
  int64_t step = 1;
  for (const int d : last ? std::array<int, 5>{2, 4, 3, 1, 0} : std::array<int, 5>{4, 3, 2, 1, 0}) {
    strides[d] = step;
    step *= sizes[d];
  }
  return empty_strided(sizes, strides);
}

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor>;

}  // namespace tunable_ops
