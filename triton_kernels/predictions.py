"""Predicted times of whole calls: the launches that the backend makes for a problem, and those of the plain layer.

    python -m tunable_ops.triton_kernels.audit --model

prints the table of `CASES` for what runs by default. The library's kernels are counted as implicit products too, with
tiles of 128 by up to 128 and nothing to blend; its depthwise kernels, as moving everything twice. What was measured of
the library elsewhere varies more than the two sets of rates do.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from tunable_ops.triton_kernels.choose_algorithm import Choice, Problem, choose_algorithm, choose_splits
from tunable_ops.triton_kernels.launch import Config, cdiv
from tunable_ops.triton_kernels.roofline import FAST, MEMORY_TRIPS, SLOW, Device, Work, limit, seconds
from tunable_ops.triton_kernels.roofline_kernels import (
    blend_work,
    contract_work,
    item_size,
    network_blend_work,
    product_work,
    wgmma_work,
    work_of,
)

# Bytes of blended kernels or of their gradients at a time, in fp32, as the torch backend bounds them.
WORKSPACE = 64 << 20
# Seconds of host time for one eager call of a layer, least and most: estimates.
HOST = {"plain": (20e-6, 30e-6), "triton": (70e-6, 100e-6)}


def forward(problem: Problem, choice: Choice | None = None) -> list[Work]:
    """Return the launches of a forward pass, by default of what the rule chooses without a table."""
    return _convolution(problem, choice or choose_algorithm(problem), bias=True)


def input_gradient(problem: Problem, choice: Choice | None = None) -> list[Work]:
    """Return the launches of an input gradient; `problem` is that of the forward pass."""
    turned = backwards(problem)
    return _convolution(turned, choice or choose_algorithm(turned), bias=False)


def _convolution(problem: Problem, choice: Choice, bias: bool) -> list[Work]:
    if choice.algorithm == "wgmma":
        work = wgmma_work(problem, FAST.multiprocessors)
        if work is None:
            raise ValueError(f"predictions: a problem must fit the wgmma kernel; got {problem}")
        return [work]
    if choice.algorithm == "fused":
        return work_of(problem, choice.config)
    size = _elements(problem)
    outputs = problem.outputs * problem.groups if bias else 0
    if problem.alpha == "shared":
        return [blend_work(size, outputs, 1, problem.kernels, problem.dtype), *library(problem, bias)]
    found = []
    for count in _chunks(problem):
        found.append(blend_work(size, outputs, count, problem.kernels, problem.dtype))
        found += work_of(problem._replace(alpha="none", batch=count, kernels=count), choice.config)
    return found


def kernel_gradients(problem: Problem, choice: Choice | None = None) -> list[Work]:
    """Return the launches of the gradients of weight, bias and alpha; `problem` is that of the forward pass."""
    wanted = problem._replace(direction="weight", kind="dense" if problem.kind == "pointwise" else problem.kind)
    choice = choice or choose_algorithm(wanted)
    size, outputs = _elements(problem), problem.outputs * problem.groups
    samples = 1 if problem.alpha == "shared" else problem.batch
    found = []
    for count in [1] if problem.alpha == "shared" else _chunks(problem):
        splits = 1
        if choice.algorithm == "premix":
            found += library(wanted, bias=False)
        else:
            limit = max(1, WORKSPACE // (4 * size * count))
            splits = choose_splits(wanted, choice.config, FAST.multiprocessors, limit)
            part = wanted if problem.alpha == "shared" else wanted._replace(batch=count)
            found += work_of(part, choice.config, splits)
        found.append(contract_work(size, count, splits, problem.kernels, problem.dtype))
    grad_output = problem.batch * outputs * problem.size[0] * problem.size[1] * item_size(problem.dtype)
    return [
        *found,
        pass_work("sum of grad_output", grad_output),
        contract_work(outputs, samples, 1, problem.kernels, problem.dtype),
        pass_work("sum of grad_alpha", 4 * cdiv(size, 512) * samples * problem.kernels),
    ]


def _chunks(problem: Problem) -> list[int]:
    """Return the samples whose kernels are blended, or whose gradients are summed, at a time."""
    most = max(1, WORKSPACE // (4 * _elements(problem)))
    return [min(most, problem.batch - start) for start in range(0, problem.batch, most)]


def backwards(problem: Problem) -> Problem:
    """Return the problem of the input gradient of a forward problem at stride 1."""
    if problem.stride != (1, 1):
        raise ValueError(f"predictions: stride must be 1 for an input gradient; got {problem.stride}")
    return problem._replace(direction="input", inputs=problem.outputs, outputs=problem.inputs)


def _elements(problem: Problem) -> int:
    return problem.inputs * problem.outputs * problem.groups * problem.taps[0] * problem.taps[1]


def pass_work(name: str, bytes_moved: int) -> Work:
    """Count a pass over tensors that the launch before has left in L2, if it holds them: an addition, a sum."""
    blocks = max(1, cdiv(bytes_moved, 16 * 256 * 4))
    return Work(name, blocks, l2=bytes_moved, workspace=bytes_moved, chain=MEMORY_TRIPS, resident=8)


def library(problem: Problem, bias: bool) -> list[Work]:
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
        partial = 4 * splits * _elements(problem)
        gradient = work_of(one, tile, splits)[0]._replace(kernel="library weight gradient")
        return [gradient, pass_work("sum of parts", partial)]
    tile = Config(128, min(128, max(16, _power(problem.outputs))), 64, 8, 3)
    work = product_work("library", one._replace(alpha="none"), tile, problem.taps, problem.size)
    return [work, *added]


def _power(value: int) -> int:
    return 1 << (value - 1).bit_length()


def plain_forward(problem: Problem) -> list[Work]:
    """Return the launches of the plain layer."""
    return library(problem, bias=True)


def plain_input_gradient(problem: Problem) -> list[Work]:
    """Return the launches of the plain layer's input gradient."""
    return library(backwards(problem), bias=False)


def plain_kernel_gradients(problem: Problem) -> list[Work]:
    """Return the launches of the plain layer's gradients of weight and bias."""
    grad_output = problem.batch * problem.outputs * problem.groups * problem.size[0] * problem.size[1]
    summed = pass_work("sum of grad_output", grad_output * item_size(problem.dtype))
    kind = "dense" if problem.kind == "pointwise" else problem.kind
    return [*library(problem._replace(direction="weight", kind=kind), bias=False), summed]


class Case(NamedTuple):
    """A row of the table.

    Attributes:
        name: What it is.
        ours: The launches by default.
        plain: The plain layer's or network's.
        target: Largest ratio that is wanted, or None.
        problem: The layer, if the case is one of its passes.
        directions: Those passes.
        host: Seconds of host time (plain, ours), each least and most, of an eager call; None in a replayed graph.
    """

    name: str
    ours: Callable[[], list[Work]]
    plain: Callable[[], list[Work]]
    target: float | None = None
    problem: Problem | None = None
    directions: tuple[str, ...] = ()
    host: tuple[tuple[float, float], tuple[float, float]] | None = None


def _layer(alpha: str, channels: int, size: int, batch: int, kind: str = "dense") -> Problem:
    inputs, groups = (1, channels) if kind == "depthwise" else (channels, 1)
    sizes = (batch, 2, inputs, inputs, groups, (3, 3), (1, 1), (size, size))
    return Problem("forward", kind, alpha, "bfloat16", "nhwc", *sizes)


def _passes(name: str, problem: Problem, target: float | None, directions: tuple[str, ...] = ("forward",)) -> Case:
    ours: dict[str, Callable[[], list[Work]]] = {
        "forward": lambda: forward(problem),
        "input": lambda: input_gradient(problem),
        "weight": lambda: kernel_gradients(problem),
    }
    plain: dict[str, Callable[[], list[Work]]] = {
        "forward": lambda: plain_forward(problem),
        "input": lambda: plain_input_gradient(problem),
        "weight": lambda: plain_kernel_gradients(problem),
    }

    def joined(passes: dict[str, Callable[[], list[Work]]]) -> Callable[[], list[Work]]:
        return lambda: [work for direction in directions for work in passes[direction]()]

    return Case(name, joined(ours), joined(plain), target, problem, directions)


def _cases() -> list[Case]:
    small, deep = _layer("sample", 64, 56, 32), _layer("sample", 64, 128, 16, "depthwise")
    wide, large = _layer("shared", 128, 64, 16), _layer("sample", 256, 32, 32)
    shared, tiny = _layer("shared", 256, 32, 32), _layer("shared", 64, 32, 1)
    step = ("forward", "input", "weight")
    eager = (HOST["plain"], HOST["triton"])
    return [
        _passes("C64 3x3 56x56 B32 per sample, forward", small, 0.60),
        _passes("C64 3x3 56x56 B32 per sample, input gradient", small, None, ("input",)),
        _passes("C64 3x3 56x56 B32 per sample, training step", small, 1.10, step),
        _passes("C128 3x3 64x64 B16 shared, forward", wide, 1.05),
        _passes("C256 3x3 32x32 B32 per sample, forward", large, None),
        _passes("C256 3x3 32x32 B32 shared, forward", shared, 1.00),
        _passes("depthwise C64 3x3 128x128 B16 per sample, forward", deep, 0.60),
        _passes("depthwise C64 3x3 128x128 B16 per sample, training step", deep, 1.10, step),
        Case("NAFNet-32 256x256 B1, graph replay", _nafnet_tunable, _nafnet, 1.00),
        _passes("C64 3x3 32x32 B1 shared, eager forward", tiny, 1.10)._replace(host=eager),
    ]


def nafnet_layers(
    width: int = 32, middle: int = 12, each: Sequence[int] = (2, 2, 4, 8), size: int = 256
) -> list[Problem]:
    """Return the convolutions of a NAFNet whose four decoders have two blocks each, on one picture of size x size."""
    layers: list[Problem] = []

    def add(
        inputs: int, outputs: int, taps: int, size: int, kind: str = "dense", groups: int = 1, stride: int = 1
    ) -> None:
        sizes = (1, 2, inputs, outputs, groups, (taps, taps), (stride, stride), (size, size))
        layers.append(Problem("forward", kind, "shared", "bfloat16", "nhwc", *sizes))

    def block(c: int, size: int) -> None:
        add(c, 2 * c, 1, size, "pointwise")
        add(1, 1, 3, size, "depthwise", groups=2 * c)
        add(c, c, 1, 1, "pointwise")
        for outputs in (c, 2 * c, c):
            add(c, outputs, 1, size, "pointwise")

    add(3, width, 3, size)
    c = width
    for count in each:
        for _ in range(count):
            block(c, size)
        c, size = 2 * c, size // 2
        add(c // 2, c, 2, size, stride=2)
    for _ in range(middle):
        block(c, size)
    for _ in each:
        add(c, 2 * c, 1, size, "pointwise")
        c, size = c // 2, 2 * size
        for _ in range(2):
            block(c, size)
    add(width, 3, 3, size)
    return layers


def _nafnet() -> list[Work]:
    """Return the launches of the plain network: convolutions, and some ten passes of every block of six of them."""
    found = []
    for layer in nafnet_layers():
        found += library(layer, bias=True)
        if layer.kind == "depthwise":
            y = layer.groups * layer.size[0] * layer.size[1] * item_size(layer.dtype)
            found += [pass_work("normalise, gate, scale, add", y) for _ in range(10)]
    return found


def _nafnet_tunable() -> list[Work]:
    """Return the same after one launch that blends all its layers."""
    elements = [n for layer in nafnet_layers() for n in (_elements(layer), layer.outputs * layer.groups)]
    return [network_blend_work(elements, 2, "bfloat16"), *_nafnet()]


CASES = _cases()
# Launches of a case that are listed; a network has hundreds.
LISTED = 20


class Row(NamedTuple):
    """A case's predicted microseconds and ratio to the plain layer, each with the faster and the slower rates.

    `wgmma` is the ratio of the CUDA kernel for compute capability 9.0, for a single pass that it serves.
    """

    name: str
    launches: list[Work]
    microseconds: tuple[float, float]
    plain: tuple[float, float]
    ratio: tuple[float, float]
    target: float | None
    wgmma: tuple[float, float] | None


def total(launches: Sequence[Work], device: Device) -> float:
    """Return the seconds of launches that follow each other in a replayed graph."""
    return sum(seconds(work, device) for work in launches)


def predict(case: Case) -> Row:
    """Return the row of a case."""
    ours, plain = case.ours(), case.plain()
    wgmma, times = _wgmma(case), []
    for end, device in enumerate((FAST, SLOW)):
        here, there = total(ours, device), total(plain, device)
        if case.host is not None:
            there, here = max(there, case.host[0][end]), max(here, case.host[1][end])
        times.append((here * 1e6, there * 1e6))
    (fast, plain_fast), (slow, plain_slow) = times
    by_wgmma = None
    if wgmma is not None:
        by_wgmma = seconds(wgmma, FAST) * 1e6 / plain_fast, seconds(wgmma, SLOW) * 1e6 / plain_slow
    ratio = fast / plain_fast, slow / plain_slow
    return Row(case.name, ours, (fast, slow), (plain_fast, plain_slow), ratio, case.target, by_wgmma)


def _wgmma(case: Case) -> Work | None:
    if case.problem is None or case.problem.kind == "depthwise" or case.host is not None or len(case.directions) > 1:
        return None
    problem = case.problem if case.directions == ("forward",) else backwards(case.problem)
    return wgmma_work(problem, FAST.multiprocessors)


def line(row: Row) -> str:
    """Return a row as text: case, predicted ratio, target, times of ours and of the plain layer, the wgmma kernel's."""
    target = "-" if row.target is None else f"{row.target:.2f}"
    text = f"{row.name:56s} predicted {_between(row.ratio, 2)}, target {target}; "
    text += f"{_between(row.microseconds)} us, plain {_between(row.plain)} us"
    return text if row.wgmma is None else f"{text}; by the wgmma kernel {_between(row.wgmma, 2)}"


def _between(ends: tuple[float, float], digits: int = 0) -> str:
    least, most = (f"{end:.{digits}f}" for end in sorted(ends))
    return least if least == most else f"{least} to {most}"


def work_line(work: Work) -> str:
    """Return a launch as text: its blocks, megabytes at every level, products, time, and what limits it."""
    sizes = " ".join(f"{name} {value / 1e6:.1f}" for name, value in _levels(work).items() if value)
    ends = _between((seconds(work, FAST) * 1e6, seconds(work, SLOW) * 1e6), 1)
    return f"{work.kernel}: {work.blocks} blocks, MB {sizes or '-'}; {ends} us, by {limit(work, SLOW)}"


def _levels(work: Work) -> dict[str, int]:
    return {"memory": work.memory, "L2": work.l2, "shared": work.shared, "workspace": work.workspace}
