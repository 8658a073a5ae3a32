// Defines the table of kernels for the instruction set TO_ISA.
namespace tunable_ops {

#define TO_JOIN_(a, b) a##b
#define TO_JOIN(a, b) TO_JOIN_(a, b)

const Kernels& TO_JOIN(TO_ISA, _kernels)() {
  static constexpr Kernels kernels = {
      TO_ISA::kLanes,
      TO_ISA::kWidth,
      TO_ISA::blend,
      TO_ISA::dense,
      TO_ISA::depthwise,
      TO_ISA::winograd_blocks,
      TO_ISA::winograd_kernels,
      TO_ISA::winograd,
      TO_ISA::winograd_grad,
      TO_ISA::winograd_taps,
      TO_ISA::dense_weight_grad_tiles,
      TO_ISA::dense_weight_grad,
      TO_ISA::depthwise_weight_grad,
      TO_ISA::contract,
      TO_ISA::flat_blend,
      TO_ISA::flat_contract,
      TO_ISA::scale_pixels,
      TO_ISA::pixel_dots,
  };
  return kernels;
}

}  // namespace tunable_ops
