// Available on every machine: vectors of 4 floats (SSE2, NEON).
#include "kernels.h"
#include "workspace.h"

#define TO_ISA portable
#define TO_LANES 4
#define TO_ROWS_1 12
#define TO_ROWS_2 6
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
