// cuda_driver.h against the driver's own header: compiled, never run.
#include "../cuda/cuda_driver.h"

#include <cuda.h>

#include <type_traits>

using namespace tunable_ops::cuda;

static_assert(kDriverMultiprocessors == CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT);
static_assert(kDriverMajor == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR);
static_assert(kDriverMinor == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR);
static_assert(kDriverMaxDynamicShared == CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES);
static_assert(kDriverFloat16 == CU_TENSOR_MAP_DATA_TYPE_FLOAT16);
static_assert(kDriverBFloat16 == CU_TENSOR_MAP_DATA_TYPE_BFLOAT16);
static_assert(kDriverSwizzle32 == CU_TENSOR_MAP_SWIZZLE_32B && kDriverSwizzle64 == CU_TENSOR_MAP_SWIZZLE_64B);
static_assert(kDriverSwizzle128 == CU_TENSOR_MAP_SWIZZLE_128B);
static_assert(kDriverPromotion128 == CU_TENSOR_MAP_L2_PROMOTION_L2_128B);
static_assert(CU_TENSOR_MAP_INTERLEAVE_NONE == 0 && CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE == 0 && CUDA_SUCCESS == 0);
static_assert(kDriverNonBlocking == CU_STREAM_NON_BLOCKING && kDriverRelaxed == CU_STREAM_CAPTURE_MODE_RELAXED);
static_assert(sizeof(CUtensorMap) == 128 && sizeof(CUdeviceptr) == sizeof(DriverPointer));

// Arguments of the same number, sizes and kinds: enums are ints here, handles are pointers.
template <class Own, class Given>
struct SameFunction : std::false_type {};
template <class R, class... A, class S, class... B>
struct SameFunction<R (*)(A...), S (*)(B...)>
    : std::bool_constant<sizeof...(A) == sizeof...(B) && sizeof(R) == sizeof(S) &&
                         ((sizeof(A) == sizeof(B) && std::is_pointer_v<A> == std::is_pointer_v<B>) && ...)> {};

#define TO_SAME(name) static_assert(SameFunction<decltype(Driver::name), decltype(&::name)>::value, #name)
TO_SAME(cuInit);
TO_SAME(cuGetErrorString);
TO_SAME(cuDeviceGet);
TO_SAME(cuDeviceGetAttribute);
TO_SAME(cuDevicePrimaryCtxRetain);
TO_SAME(cuCtxGetCurrent);
TO_SAME(cuCtxSetCurrent);
TO_SAME(cuModuleLoadData);
TO_SAME(cuModuleGetFunction);
TO_SAME(cuFuncSetAttribute);
TO_SAME(cuLaunchKernel);
TO_SAME(cuTensorMapEncodeTiled);
TO_SAME(cuMemsetD8Async);
TO_SAME(cuStreamCreate);
TO_SAME(cuStreamSynchronize);
TO_SAME(cuThreadExchangeStreamCaptureMode);
#undef cuMemAlloc
#undef cuMemFree
#undef cuMemcpyHtoDAsync
#undef cuMemcpyDtoHAsync
#undef cuStreamDestroy
#define TO_SAME_AS(name, symbol) static_assert(SameFunction<decltype(Driver::name), decltype(&::symbol)>::value, #name)
TO_SAME_AS(cuMemAlloc, cuMemAlloc_v2);
TO_SAME_AS(cuMemFree, cuMemFree_v2);
TO_SAME_AS(cuMemcpyHtoDAsync, cuMemcpyHtoDAsync_v2);
TO_SAME_AS(cuMemcpyDtoHAsync, cuMemcpyDtoHAsync_v2);
TO_SAME_AS(cuStreamDestroy, cuStreamDestroy_v2);
