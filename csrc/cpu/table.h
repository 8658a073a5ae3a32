// The table of one instruction set's kernels.
namespace tunable_ops {

#define TO_JOIN_(a, b) a##b
#define TO_JOIN(a, b) TO_JOIN_(a, b)
#define TO_TEXT_(a) #a
#define TO_TEXT(a) TO_TEXT_(a)

const Kernels& TO_JOIN(TO_ISA, _kernels)() {
  static constexpr Kernels kernels = {
      TO_TEXT(TO_ISA),
      TO_ISA::kLanes,
      TO_ISA::kWidth,
      TO_ISA::blend,
      TO_ISA::dense,
      TO_ISA::depthwise,
      TO_ISA::dense_weight_grad_tiles,
      TO_ISA::dense_weight_grad,
      TO_ISA::depthwise_weight_grad,
      TO_ISA::contract,
      TO_ISA::flat_blend,
      TO_ISA::flat_contract,
      TO_ISA::weigh,
      TO_ISA::pixel_dots,
  };
  return kernels;
}

}  // namespace tunable_ops
