"""Predicted times of what has a target on an H100: ours by default, the plain layer, and the ratio.

    python -m tunable_ops.triton_kernels.audit --model

prints the table of `CASES`.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from tunable_ops.triton_kernels.choose_algorithm import (
    Choice,
    Problem,
    blends_first,
    choose_algorithm,
    choose_blended,
    choose_splits,
    default_config,
    suits_wgmma,
)
from tunable_ops.triton_kernels.roofline import FAST, SLOW, Device, Work, limit, seconds
from tunable_ops.triton_kernels.roofline_blends import network_blend_work
from tunable_ops.triton_kernels.roofline_calls import (
    blended_calls,
    convolution_calls,
    elements,
    kernel_gradient_calls,
    library_calls,
    pass_work,
    plain_kernel_gradient_calls,
)
from tunable_ops.triton_kernels.roofline_sizes import item_size
from tunable_ops.triton_kernels.roofline_wgmma import wgmma_work

# Seconds of host time for one eager call of a layer, least and most: estimates. Before calls had plans it was 70 to 100
# us for ours, with them 35 to 50; shortcuts took 13 us away, as `bench/launches.py` measures (docs/benchmarks.md).
HOST = {"plain": (20e-6, 30e-6), "triton": (22e-6, 37e-6)}


def choose(problem: Problem) -> Choice:
    """Return what the rule chooses without a table on compute capability 9.0, for channels_last and dilation 1."""
    return choose_algorithm(problem, wgmma=_wgmma_serves(problem))


def _wgmma_serves(problem: Problem) -> bool:
    return suits_wgmma(problem) and wgmma_work(problem, FAST.multiprocessors) is not None


def forward(problem: Problem, choice: Choice | None = None) -> list[Work]:
    """Return the launches of a forward pass, by default of what the rule chooses."""
    return convolution_calls(problem, *(choice or choose(problem)), bias=True)


def input_gradient(problem: Problem, choice: Choice | None = None) -> list[Work]:
    """Return the launches of the input gradient of a forward problem."""
    turned = backwards(problem)
    return convolution_calls(turned, *(choice or choose(turned)), bias=False)


def kernel_gradients(problem: Problem) -> list[Work]:
    """Return the launches of the gradients of weight, bias and alpha of a forward problem."""
    wanted = _of_kernels(problem)
    algorithm, config = choose_algorithm(wanted)
    return kernel_gradient_calls(
        wanted, algorithm, config, lambda most: choose_splits(wanted, config, FAST.multiprocessors, most)
    )


def backwards(problem: Problem) -> Problem:
    """Return the problem of the input gradient of a forward problem at stride 1."""
    if problem.stride != (1, 1):
        raise ValueError(f"predictions: stride must be 1 for an input gradient; got {problem.stride}")
    return problem._replace(direction="input", inputs=problem.outputs, outputs=problem.inputs)


def _of_kernels(problem: Problem) -> Problem:
    return problem._replace(direction="weight", kind="dense" if problem.kind == "pointwise" else problem.kind)


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
        "forward": lambda: library_calls(problem, bias=True),
        "input": lambda: library_calls(backwards(problem), bias=False),
        "weight": lambda: plain_kernel_gradient_calls(_of_kernels(problem)),
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


def _nafnet(of_layer: Callable[[Problem], list[Work]] | None = None) -> list[Work]:
    """Return the launches of the network: convolutions, and some ten passes of every block of six of them.

    Args:
        of_layer: Returns those of a layer; default: the library's.
    """
    found = []
    for layer in nafnet_layers():
        found += (of_layer or _of_library)(layer)
        if layer.kind == "depthwise":
            y = layer.groups * layer.size[0] * layer.size[1] * item_size(layer.dtype)
            found += [pass_work("normalise, gate, scale, add", y) for _ in range(10)]
    return found


def _nafnet_tunable() -> list[Work]:
    """Return the same with one launch that blends layers first, and what the rules choose for every layer."""
    return [network_blend_work(_blended_sizes(), 2, "bfloat16"), *_nafnet(of_tunable)]


def _blended_sizes() -> list[int]:
    first = [layer for layer in nafnet_layers() if blends_first(layer)]
    return [n for layer in first for n in (elements(layer), layer.outputs * layer.groups)]


def of_tunable(problem: Problem) -> list[Work]:
    """Return the launches of a layer of a network with one lambda, after the blend of the network."""
    if not blends_first(problem):
        return forward(problem)
    config = choose_blended(problem._replace(kernels=1))
    return library_calls(problem, bias=True) if config is None else blended_calls(problem, config)


def _of_library(problem: Problem) -> list[Work]:
    return library_calls(problem, bias=True)


CASES = _cases()
# Launches of a case that are listed; a network has hundreds.
LISTED = 20


class Row(NamedTuple):
    """A case's predicted microseconds and ratio to the plain layer, each with the faster and the slower rates.

    `other` is the ratio of a single pass with the kernels that the rule leaves out, and `by` names them.
    """

    name: str
    launches: list[Work]
    microseconds: tuple[float, float]
    plain: tuple[float, float]
    ratio: tuple[float, float]
    target: float | None
    by: str = ""
    other: tuple[float, float] | None = None


def total(launches: Sequence[Work], device: Device) -> float:
    """Return the seconds of launches that follow each other in a replayed graph."""
    return sum(seconds(work, device) for work in launches)


def predict(case: Case) -> Row:
    """Return the row of a case."""
    ours, plain, times = case.ours(), case.plain(), []
    for end, device in enumerate((FAST, SLOW)):
        here, there = total(ours, device), total(plain, device)
        if case.host is not None:
            there, here = max(there, case.host[0][end]), max(here, case.host[1][end])
        times.append((here * 1e6, there * 1e6))
    (fast, plain_fast), (slow, plain_slow) = times
    ratio = fast / plain_fast, slow / plain_slow
    row = Row(case.name, ours, (fast, slow), (plain_fast, plain_slow), ratio, case.target)
    by, others = _other(case)
    if not others:
        return row
    return row._replace(by=by, other=(total(others, FAST) * 1e6 / plain_fast, total(others, SLOW) * 1e6 / plain_slow))


def _other(case: Case) -> tuple[str, list[Work]]:
    """Return the launches of a pass without the wgmma kernel where the rule chooses it, and with it where it does not.

    There are none for steps, for what that kernel does not serve, and where the host decides.
    """
    if case.problem is None or case.host is not None or len(case.directions) > 1:
        return "", []
    of_input = case.directions == ("input",)
    problem = backwards(case.problem) if of_input else case.problem
    if not _wgmma_serves(problem):
        return "", []
    launches = input_gradient if of_input else forward
    if choose(problem).algorithm == "wgmma":
        return "the Triton kernels", launches(case.problem, choose_algorithm(problem))
    return "the wgmma kernel", launches(case.problem, Choice("wgmma", default_config(problem)))


def line(row: Row) -> str:
    """Return a row as text: case, predicted ratio, target, times of ours and the plain layer, the other kernels'."""
    target = "-" if row.target is None else f"{row.target:.2f}"
    text = f"{row.name:56s} predicted {_between(row.ratio, 2)}, target {target}; "
    text += f"{_between(row.microseconds)} us, plain {_between(row.plain)} us"
    return text if row.other is None else f"{text}; by {row.by} {_between(row.other, 2)}"


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
