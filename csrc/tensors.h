// Shared by the operators' host code: dispatcher calls, allocation, memory formats. Uses only Torch's stable ABI.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <array>
#include <functional>
#include <optional>
#include <tuple>
#include <vector>

#ifndef STABLE_TORCH_ERROR_CODE_CHECK  // the name changed in torch 2.13
#define STABLE_TORCH_ERROR_CODE_CHECK TORCH_ERROR_CODE_CHECK
#endif

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
void call(const char* name, std::array<StableIValue, n>& stack) {
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(name, "", stack.data(), TORCH_ABI_VERSION));
}

// Stands for a gradient that was not requested.
inline Tensor undefined() {
  AtenTensorHandle handle;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_new_uninitialized_tensor(&handle));
  return Tensor(handle);
}

// The strides of a new tensor.
inline Ints strides_of(const Ints& sizes, MemoryFormat format) {
  Ints strides(sizes.size());
  int64_t step = 1;
  const auto append = [&](size_t d) { strides[d] = step, step *= sizes[d] > 1 ? sizes[d] : 1; };
  if (format == MemoryFormat::ChannelsLast) append(1);
  for (size_t d = sizes.size(); d-- > 0;) {
    if (d != 1 || format != MemoryFormat::ChannelsLast) append(d);
  }
  return strides;
}

// A float32 CPU tensor. Allocates through the C interface: 2 us, against 4 us through the dispatcher.
inline Tensor empty(const Ints& sizes, MemoryFormat format = MemoryFormat::Contiguous) {
  const Ints strides = strides_of(sizes, format);
  AtenTensorHandle handle;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(sizes.size(), sizes.data(), strides.data(),
                                                         aoti_torch_dtype_float32(), aoti_torch_device_type_cpu(), 0,
                                                         &handle));
  return Tensor(handle);
}

inline Tensor empty(const Tensor& like, const Ints& sizes, ScalarType type,
                    MemoryFormat format = MemoryFormat::Contiguous) {
  return torch::stable::empty(sizes, type, std::nullopt, like.device(), std::nullopt, format);
}

inline Tensor empty_strided(const Tensor& like, ScalarType type, const Ints& sizes, const Ints& strides) {
  int32_t device, index;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &index));
  AtenTensorHandle handle;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(sizes.size(), sizes.data(), strides.data(),
                                                         to<int32_t>(from(type)), device, index, &handle));
  return Tensor(handle);
}

// Converts to the type, and to the format if one is given. Returns the tensor itself if it is undefined or matches.
inline Tensor to_type(const Tensor& t, ScalarType type, std::optional<MemoryFormat> format = std::nullopt) {
  if (!t.defined() || (t.scalar_type() == type && !format)) return t;
  return torch::stable::to(t, type, std::nullopt, std::nullopt, std::nullopt, false, false, format);
}

// Calls f(T()) with T the C++ type of the dtype.
template <class F>
void with_type(ScalarType type, F f) {
  if (type == ScalarType::Float) return f(float());
  if (type == ScalarType::BFloat16) return f(torch::headeronly::BFloat16());
  if (type == ScalarType::Half) return f(torch::headeronly::Half());
  STD_TORCH_CHECK(false, "tunable_conv2d: dtype must be float32, bfloat16 or float16 for backend 'cpp'");
}

// A contiguous tensor with the shape, dtype and device of `alpha`.
inline Tensor empty_like_alpha(const Tensor& alpha) {
  Ints sizes, strides(alpha.dim());
  for (int64_t d = 0; d < alpha.dim(); ++d) sizes.push_back(alpha.size(d));
  int64_t step = 1;
  for (size_t d = sizes.size(); d-- > 0;) strides[d] = step, step *= std::max<int64_t>(1, sizes[d]);
  return empty_strided(alpha, alpha.scalar_type(), sizes, strides);
}

// True if the given dimensions, ordered from outermost to innermost, are densely packed.
template <size_t n>
bool is_dense(const Tensor& t, const std::array<int, n>& order) {
  int64_t expected = 1;
  for (size_t i = n; i-- > 0;) {
    const int d = order[i];
    if (t.size(d) == 0) return true;
    if (t.size(d) != 1 && t.stride(d) != expected) return false;
    expected *= t.size(d);
  }
  return true;
}

inline bool is_channels_last(const Tensor& t) { return is_dense<4>(t, {0, 2, 3, 1}); }

inline bool kernels_are_channels_last(const Tensor& weight) {
  return !weight.is_contiguous() && is_dense<5>(weight, {0, 1, 3, 4, 2});
}

// Torch's heuristic for tensors that are dense in neither format.
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

// Mirrors `output_format` in Python: the input's format, or the kernels' if the input matches both.
inline MemoryFormat output_format(const Tensor& input, const Tensor& weight) {
  const bool first = is_dense<4>(input, {0, 1, 2, 3}), last = is_channels_last(input);
  if (first && !last) return MemoryFormat::Contiguous;
  if (last && (!first || kernels_are_channels_last(weight))) return MemoryFormat::ChannelsLast;
  return strides_look_channels_last(input) ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
}

// The same memory with other sizes and strides, beginning `offset` elements further on.
inline Tensor view(const Tensor& t, const Ints& sizes, const Ints& strides, int64_t offset = 0) {
  AtenTensorHandle handle;
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch__reinterpret_tensor(t.get(), sizes.size(), sizes.data(), strides.data(), offset, &handle));
  return Tensor(handle);
}

// Returns the tensor itself if it is already dense in the format. Dimensions of size 1 have the strides of a new
// tensor: those that come along mean nothing, but the library chooses its algorithm by them, at times a wrong one
// (docs/known_faults.md).
inline Tensor in_format(const Tensor& t, MemoryFormat format) {
  const bool fits = format == MemoryFormat::ChannelsLast ? is_channels_last(t) : is_dense<4>(t, {0, 1, 2, 3});
  if (!fits) return torch::stable::contiguous(t, format);
  const Ints sizes{t.size(0), t.size(1), t.size(2), t.size(3)}, strides = strides_of(sizes, format);
  for (int d = 0; d < 4; ++d) {
    if (t.stride(d) != strides[d]) return view(t, sizes, strides);
  }
  return t;
}

inline MemoryFormat kernel_format(const Tensor& weight) {
  return kernels_are_channels_last(weight) ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
}

inline Tensor in_channels_last(const Tensor& t) { return in_format(t, MemoryFormat::ChannelsLast); }

// An uninitialised stack with the shape of `weight` and the memory layout of its kernels.
inline Tensor empty_stack_like(const Tensor& weight) {
  Ints sizes, strides(5);
  for (int d = 0; d < 5; ++d) sizes.push_back(weight.size(d));
  const bool last = kernels_are_channels_last(weight);
  int64_t step = 1;
  for (const int d : last ? std::array<int, 5>{2, 4, 3, 1, 0} : std::array<int, 5>{4, 3, 2, 1, 0}) {
    strides[d] = step;
    step *= sizes[d];
  }
  return empty_strided(weight, weight.scalar_type(), sizes, strides);
}

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor>;

}  // namespace tunable_ops
