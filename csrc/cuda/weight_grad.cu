#include "weight_grad.cuh"

namespace tunable_ops::cuda {

const char* launch_weight_grad(const WeightGradRun& run, void* stream) {
  if (run.type == Type::kHalf) return launch_grad<TensorGradTile<HalfMath>>(run, stream);
  if (run.type == Type::kBFloat16) return launch_grad<TensorGradTile<BFloat16Math>>(run, stream);
  return run.tf32 ? launch_grad<TensorGradTile<Tf32Math>>(run, stream) : launch_grad<FloatGradTile>(run, stream);
}

int64_t weight_grad_tiles(const WeightGradRun& run) {
  const int64_t tiles = run.vectors ? GradGrid<true>(run).tiles_n : GradGrid<false>(run).tiles_n;
  return tiles * GradGrid<true>(run).tiles_m * run.groups;
}

}  // namespace tunable_ops::cuda
