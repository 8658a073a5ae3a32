"""The work of whole calls: the launches of an algorithm for a problem, and those of the library.

The library's kernels are counted as implicit products too, with tiles of 128 by up to 128 and nothing to blend; its
depthwise kernels, as moving everything twice. What was measured of the library elsewhere varies more than the two sets
of rates in `roofline` do. As in `roofline_kernels`, nothing that chooses is imported.
"""

from collections.abc import Callable

from tunable_ops.triton_kernels.contraction import choose_tiles
from tunable_ops.triton_kernels.launch import Config, cdiv
from tunable_ops.triton_kernels.roofline import FAST, MEMORY_TRIPS, Work
from tunable_ops.triton_kernels.roofline_blends import (
    blend_work,
    contract_sum_work,
    contract_work,
    network_blend_work,
    network_contract_work,
    network_sum_work,
)
from tunable_ops.triton_kernels.roofline_kernels import product_work, work_of
from tunable_ops.triton_kernels.roofline_sizes import Sizes, item_size
from tunable_ops.triton_kernels.roofline_wgmma import wgmma_work

# Name of a Triton kernel (or "hopper_conv_kernel", CUDA's): the function that counts its work.
FAMILIES = {
    "_tunable_conv2d_forward_kernel": work_of,
    "_tunable_conv2d_pointwise_kernel": work_of,
    "_tunable_conv2d_map_input_kernel": work_of,
    "_tunable_conv2d_depthwise_kernel": work_of,
    "_tunable_conv2d_depthwise_rows_kernel": work_of,
    "_tunable_conv2d_weight_kernel": work_of,
    "_tunable_conv2d_depthwise_weight_kernel": work_of,
    "_tunable_conv2d_depthwise_weight_rows_kernel": work_of,
    "_tunable_parameter_forward_kernel": blend_work,
    "_tunable_parameter_backward_kernel": contract_work,
    "_tunable_parameter_sum_kernel": contract_sum_work,
    "_tunable_parameters_forward_kernel": network_blend_work,
    "_tunable_parameters_backward_kernel": network_contract_work,
    "_tunable_parameters_sum_kernel": network_sum_work,
    "hopper_conv_kernel": wgmma_work,
}
# Bytes of blended kernels or of their gradients at a time, in fp32, as the torch backend bounds them.
WORKSPACE = 64 << 20


def convolution_calls(problem: Sizes, algorithm: str, config: Config, bias: bool) -> list[Work]:
    """Return the launches of a forward pass or an input gradient.

    Args:
        problem: In the direction "forward" or "input".
        algorithm: "fused", "premix", "library" (shared alpha) or "wgmma".
        config: Tile sizes of our kernel.
        bias: True to add one.

    Raises:
        ValueError: A problem that does not fit the wgmma kernel.
    """
    if algorithm == "wgmma":
        work = wgmma_work(problem, FAST.multiprocessors)
        if work is None:
            raise ValueError(f"roofline: a problem must fit the wgmma kernel; got {problem}")
        return [work]
    if algorithm == "fused":
        return work_of(problem, config)
    size = elements(problem)
    outputs = problem.outputs * problem.groups if bias else 0
    if problem.alpha == "shared":
        blend = blend_work(size, outputs, 1, problem.kernels, problem.dtype)
        if algorithm == "library":
            return [blend, *library_calls(problem, bias)]
        return [blend, *blended_calls(problem, config)]
    found = []
    for count in _chunks(problem, item_size(problem.dtype)):
        found.append(blend_work(size, outputs, count, problem.kernels, problem.dtype))
        found += work_of(problem._replace(alpha="none", batch=count, kernels=count), config)
    return found


def blended_calls(problem: Sizes, config: Config) -> list[Work]:
    """Return the launches of our kernel for a forward pass whose one kernel is blended already, bias included."""
    one = problem._replace(alpha="none", kernels=1)
    if problem.kind == "depthwise":
        return work_of(one, config)
    height, width = problem.size  # the batch is one long sample
    return work_of(one._replace(batch=1, size=(problem.batch * height, width)), config)


def kernel_gradient_calls(
    problem: Sizes, algorithm: str, config: Config, splits_of: Callable[[int], int]
) -> list[Work]:
    """Return the launches of the gradients of weight, bias and alpha.

    Args:
        problem: In the direction "weight".
        algorithm: "fused", or "library" for its weight gradient of a shared alpha.
        config: Tile sizes of our kernel.
        splits_of: Largest number of partial sums of a chunk of samples -> how many are made.
    """
    size, outputs = elements(problem), problem.outputs * problem.groups
    shared = problem.alpha == "shared"
    chunks, samples = ([1], 1) if shared else (_chunks(problem), problem.batch)
    splits = 1 if algorithm == "library" else splits_of(max(1, WORKSPACE // (4 * size * chunks[0])))
    tiles = choose_tiles(size, chunks[0] * splits, problem.kernels, FAST.multiprocessors)
    contraction = (splits, problem.kernels, problem.dtype, tiles)
    found = []
    for index, count in enumerate(chunks):
        if algorithm == "library":
            found += [*library_calls(problem, bias=False), _sum_of_grad_output(problem)]
        else:
            part = problem if shared else problem._replace(batch=count)
            found += [_with_bias(work, part, config, splits) for work in work_of(part, config, splits)]
        found.append(contract_work(size, outputs, count, *contraction, again=index > 0))
    summed = tiles.slots > 1 or len(chunks) > 1
    return [*found, contract_sum_work(size, outputs, samples, *contraction, summed)]


def _with_bias(work: Work, problem: Sizes, config: Config, splits: int) -> Work:
    """Add the sums of grad_output to a weight gradient: a tile more along N, or on the way where it is depthwise."""
    outputs, sums = problem.outputs * problem.groups, 1 if problem.alpha == "shared" else problem.batch
    pixels, written = problem.batch * problem.size[0] * problem.size[1], 4 * sums * splits * outputs
    if problem.kind == "depthwise":
        lanes = work.lanes + pixels * outputs
        return work._replace(l2=work.l2 + written, lanes=lanes, workspace=work.workspace + written)
    read = pixels * outputs * item_size(problem.dtype)
    tiles = problem.groups * cdiv(problem.outputs, config.block_m) * splits * sums
    return work._replace(blocks=work.blocks + tiles, l2=work.l2 + read + written, workspace=work.workspace + written)


def plain_kernel_gradient_calls(problem: Sizes) -> list[Work]:
    """Return the launches of the plain layer's gradients of weight and bias."""
    return [*library_calls(problem, bias=False), _sum_of_grad_output(problem)]


def _sum_of_grad_output(problem: Sizes) -> Work:
    pixels = problem.batch * problem.size[0] * problem.size[1]
    return pass_work("sum of grad_output", pixels * problem.outputs * problem.groups * item_size(problem.dtype))


def _chunks(problem: Sizes, item: int = 4) -> list[int]:
    """Return the samples whose kernels are blended, or whose gradients are summed, at a time."""
    most = max(1, WORKSPACE // (item * elements(problem)))
    return [min(most, problem.batch - start) for start in range(0, problem.batch, most)]


def elements(problem: Sizes) -> int:
    """Return the elements of one kernel of all groups."""
    return problem.inputs * problem.outputs * problem.groups * problem.taps[0] * problem.taps[1]


def pass_work(name: str, bytes_moved: int) -> Work:
    """Count a pass over tensors that the launch before has left in L2, if it holds them: an addition, a sum."""
    blocks = max(1, cdiv(bytes_moved, 16 * 256 * 4))
    return Work(name, blocks, l2=bytes_moved, workspace=bytes_moved, chain=MEMORY_TRIPS, resident=8)


def library_calls(problem: Sizes, bias: bool) -> list[Work]:
    """Return the launches of the library's convolution in a direction, with one kernel; a bias takes a pass."""
    item, (height, width) = item_size(problem.dtype), problem.size
    y = problem.batch * height * width * problem.outputs * problem.groups * item
    added = [pass_work("bias", 2 * y)] if bias else []
    one = problem._replace(alpha="shared", kernels=1)
    if problem.kind == "depthwise":
        once = work_of(one, Config(16, 8, 64, 2, 1), splits=64)[0]
        return [once._replace(kernel="library depthwise", memory=2 * once.memory, chain=0), *added]
    if problem.direction == "weight":
        columns = problem.inputs * problem.taps[0] * problem.taps[1]
        tile = Config(min(128, _power(problem.outputs)), 128, 64, 8, 3)
        tiles = cdiv(problem.outputs, tile.block_m) * cdiv(columns, tile.block_n) * problem.groups
        splits = max(1, cdiv(2 * FAST.multiprocessors, tiles))
        partial = 4 * splits * elements(problem)
        gradient = work_of(one, tile, splits)[0]._replace(kernel="library weight gradient")
        return [gradient, pass_work("sum of parts", partial)]
    tile = Config(128, min(128, max(16, _power(problem.outputs))), 64, 8, 3)
    work = product_work("library", one._replace(alpha="none"), tile, problem.taps, problem.size, stack=1)
    return [work, *added]


def _power(value: int) -> int:
    return 1 << (value - 1).bit_length()
