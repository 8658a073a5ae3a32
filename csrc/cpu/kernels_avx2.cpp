// AVX2 with FMA: 16 registers of 8 floats.
#include "kernels.h"
#include "workspace.h"

#if defined(__x86_64__)
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif

#define TO_ISA avx2
#define TO_LANES 8
#define TO_ROWS_1 12
#define TO_ROWS_2 6
#define TO_AVX2
#include "simd.h"
#include "dense.h"
#include "depthwise.h"
#include "weight_grad.h"
#include "blend.h"
#include "winograd_kernels.h"
#include "winograd.h"
#include "winograd_grad.h"
#include "flat.h"
#include "map_kernels.h"
#include "kernel_table.h"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
