"""What `audit` compiles: every specialisation of a kernel that the heuristic or a measured table can choose.

A case is a launch on tensors without storage, so its types, constants and divisibility are those of a real one. There
is one problem for each path through the kernels; for the typical shapes all of autotuning's candidates are listed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from tunable_ops.triton_kernels.choose_algorithm import (
    Problem,
    default_algorithm,
    default_config,
    premixed_config,
)
from tunable_ops.triton_kernels.contraction import choose_tiles
from tunable_ops.triton_kernels.launch import Launch
from tunable_ops.triton_kernels.plan_problem import candidates, make_operands, plan_problem
from tunable_ops.triton_kernels.roofline import FAST
from tunable_ops.triton_kernels.tunable_parameter import (
    plan_tunable_parameter_backward,
    plan_tunable_parameter_forward,
    plan_tunable_parameter_sum,
    shares_of,
)
from tunable_ops.triton_kernels.tunable_parameters import (
    COLUMNS,
    Tables,
    plan_tunable_parameters_backward,
    plan_tunable_parameters_forward,
    plan_tunable_parameters_sum,
)

# The tensor cores' instructions: mma.sync, wgmma, tcgen05.mma.
TENSOR_CORES = {80: "HMMA", 90: "HGMMA", 100: "UTCHMMA"}


@dataclass(frozen=True)
class AuditCase:
    """One specialisation of one kernel.

    Attributes:
        name: Unique among the cases.
        launch: The launch to compile.
        rows: Rows of the tile that the tensor cores multiply; None if the kernel does not use them (depthwise
            convolutions, blends, fp32).
        quick: True if `audit --quick` compiles it.
    """

    name: str
    launch: Launch
    rows: int | None = None
    quick: bool = False

    def expected_on(self, arch: int) -> str | None:
        """Return the tensor core instruction that the machine code must contain; small tiles use mma.sync."""
        if self.rows is None:
            return None
        # What wgmma and tcgen05.mma multiply at least.
        if self.rows < {90: 64, 100: 64}.get(arch, 0):
            return "HMMA"
        return TENSOR_CORES[arch]


def problems() -> Iterator[tuple[Problem, bool]]:
    """List (problem, True if `audit --quick` compiles it)."""
    shape = Problem("forward", "dense", "sample", "bfloat16", "nhwc", 32, 2, 64, 64, 1, (3, 3), (1, 1), (56, 56))
    one = {"kind": "pointwise", "taps": (1, 1)}
    deep = {"kind": "depthwise", "inputs": 1, "outputs": 1, "groups": 64}
    for direction in ("forward", "input", "weight"):
        for kind in ({}, one, deep):
            base = shape._replace(direction=direction, **kind)
            if direction == "weight" and kind is one:
                base = base._replace(kind="dense")
            yield base, True
            yield base._replace(alpha="shared"), False
            yield base._replace(layout="nchw"), False
            general = direction == "weight" and kind is deep  # the kernel for strides is not the other cases'
            yield base._replace(dtype="float16", stride=(2, 2) if kind is not one else (1, 1)), general
            for dtype in ("float32", "tf32"):
                yield base._replace(dtype=dtype), False
            if direction == "weight":
                continue
            yield base._replace(alpha="none"), direction == "forward" and not kind
            for kernels in (1, 3, 4, 16):
                yield base._replace(kernels=kernels), kernels == 4 and not kind and direction == "forward"
    for direction in ("forward", "input", "weight", "alpha"):
        for kind in ({}, deep):
            over = shape._replace(direction=direction, alpha="map", **kind)
            yield over, (direction == "forward") == bool(kind)
            yield over._replace(dtype="float16", stride=(2, 2)), False
            yield over._replace(layout="nchw"), False
            for dtype in ("float32", "tf32"):
                yield over._replace(dtype=dtype), False
    yield shape._replace(alpha="map", **one), False
    yield shape._replace(direction="weight", alpha="map", layout="nchw", inputs=1, taps=(1, 1)), False  # the bias
    for inputs, outputs in ((3, 64), (64, 3), (16, 16), (32, 32), (48, 48), (96, 96), (128, 128), (256, 256)):
        for direction in ("forward", "input", "weight"):
            for kind in ({}, one if direction != "weight" else {}):
                a, b = (outputs, inputs) if direction == "input" else (inputs, outputs)
                yield shape._replace(direction=direction, inputs=a, outputs=b, **kind), False
    for channels in (24, 20, 18):  # vectors of 8 and 4 channels, and none
        for direction in ("forward", "input", "weight"):
            sizes = {"direction": direction, "inputs": channels, "outputs": channels}
            yield shape._replace(**sizes), False
            yield shape._replace(**(sizes | deep | {"groups": channels})), False
            if direction != "weight":
                yield shape._replace(**sizes, **one), False
    for direction in ("forward", "input"):
        for channels in (128, 256):  # blended beforehand
            sizes = {"inputs": channels, "outputs": channels, "size": (64, 64)}
            yield shape._replace(direction=direction, alpha="none", **sizes), False
    yield shape._replace(kind="dense", inputs=16, outputs=16, groups=4), False
    yield shape._replace(size=(7, 7)), False
    yield shape._replace(alpha="shared", size=(7, 9)), False
    yield shape._replace(**(deep | {"taps": (7, 7)})), False
    yield shape._replace(**(deep | {"direction": "weight", "taps": (7, 7)})), False


def cases() -> Iterator[AuditCase]:
    """List every distinct case; names tell problem and tiles."""
    seen = set()
    for problem, quick in problems():
        if problem.alpha == "shared" and default_algorithm(problem) == "library" and problem.direction == "weight":
            continue  # computed by the library
        operands = make_operands(problem, "meta")
        tiles = candidates(problem) if quick else [default_config(problem)]
        if problem.alpha == "none" and problem.direction != "weight":
            tiles = list(dict.fromkeys([*(tiles if quick else []), premixed_config(problem)]))
        for index, config in enumerate(tiles):
            launches, _ = plan_problem(problem, operands, config, with_bias=True)
            stem = "-".join((name_of(problem), "x".join(map(str, config[:3])), f"w{config[3]}", f"s{config[4]}"))
            for phase, launch in enumerate(launches):
                name = f"{stem}-phase{phase}" if len(launches) > 1 else stem
                if name in seen:
                    continue
                seen.add(name)
                if "PRECISION" in launch.constants:
                    launch.constants["PRECISION"] = "tf32" if problem.dtype == "tf32" else "ieee"
                yield AuditCase(name, launch, _product_rows(launch, problem.dtype), quick and index == 0)
    for activation in ("gelu", "silu"):
        yield from _saving(activation)
    yield from _blends()


def launches_of(problem: Problem, directions: Sequence[str]) -> Iterator[AuditCase]:
    """List the fused launches of a forward problem at stride 1, in some of the directions, with the default tiles."""
    for direction in directions:
        wanted = problem._replace(direction=direction)
        if direction == "input":
            wanted = wanted._replace(inputs=problem.outputs, outputs=problem.inputs)
        if direction == "weight" and problem.kind == "pointwise":
            wanted = wanted._replace(kind="dense")
        launches, _ = plan_problem(wanted, make_operands(wanted, "meta"), default_config(wanted), with_bias=True)
        for launch in launches:
            yield AuditCase(name_of(wanted), launch, _product_rows(launch, wanted.dtype))


def _product_rows(launch: Launch, dtype: str) -> int | None:
    """Return the rows of the tensor cores' tile, or None without them: only dot products have a PRECISION."""
    if "PRECISION" not in launch.constants or dtype == "float32":
        return None
    # The weight gradient of a map multiplies the transposes.
    return launch.constants["BLOCK_N" if launch.constants.get("MAP") else "BLOCK_M"]


def name_of(problem: Problem) -> str:
    """Return a name such as `forward-dense-sample-bfloat16-nhwc-B32-P2-C64-O64-k3x3-56x56`."""
    p = problem
    text = f"{p.direction}-{p.kind}-{p.alpha}-{p.dtype}-{p.layout}-B{p.batch}-P{p.kernels}-C{p.inputs}-O{p.outputs}"
    text += f"-g{p.groups}" if p.groups > 1 else ""
    text += f"-k{p.taps[0]}x{p.taps[1]}"
    text += f"-s{p.stride[0]}{p.stride[1]}" if p.stride != (1, 1) else ""
    return f"{text}-{p.size[0]}x{p.size[1]}"


def _saving(activation: str) -> Iterator[AuditCase]:
    """List the training passes of an activation, which also store the value before it."""
    problem = Problem("forward", "dense", "sample", "bfloat16", "nhwc", 32, 2, 64, 64, 1, (3, 3), (1, 1), (56, 56))
    one, deep = {"kind": "pointwise", "taps": (1, 1)}, {"kind": "depthwise", "inputs": 1, "outputs": 1, "groups": 64}
    for kind in ({}, one, deep):
        wanted = problem._replace(**kind)
        operands = make_operands(wanted, "meta")
        (launch,), _ = plan_problem(wanted, operands, default_config(wanted))
        launch = launch._replace(constants=launch.constants | {"ACTIVATION": activation, "SAVE": True})
        yield AuditCase(f"{name_of(wanted)}-{activation}", launch, _product_rows(launch, wanted.dtype))


def _blends() -> Iterator[AuditCase]:
    """List the blends of single layers and of networks."""
    for dtype in (torch.bfloat16, torch.float32):
        kind = str(dtype).removeprefix("torch.")

        def empty(*shape: int, dtype: torch.dtype = dtype) -> torch.Tensor:
            return torch.empty(shape, dtype=dtype, device="meta")

        def fp32(*shape: int) -> torch.Tensor:
            return torch.empty(shape, device="meta")

        yield from _network_blends(dtype, kind)
        for kernels in (1, 2, 3, 16):
            quick = kernels == 2 and dtype == torch.bfloat16
            weight, alpha = empty(kernels, 36864), fp32(32, kernels)
            for rows in (32, 1):
                operands = (weight, empty(kernels, 64), alpha[:rows], empty(rows, 36864), empty(rows, 64))
                launch = plan_tunable_parameter_forward(*operands)
                yield AuditCase(f"blend-{kind}-P{kernels}-B{rows}", launch, quick=quick)
            yield from _contractions(f"contract-{kind}-P{kernels}", weight, empty(kernels, 64), alpha, quick)


def _contractions(
    name: str, weight: torch.Tensor, bias: torch.Tensor, alpha: torch.Tensor, quick: bool
) -> Iterator[AuditCase]:
    """List the launches of the gradients of a blend: in parts that are summed, on top of those, and without parts."""

    def fp32(*shape: int) -> torch.Tensor:
        return torch.empty(shape, device="meta")

    (samples, kernels), (size, outputs) = alpha.shape, (weight.shape[1], bias.shape[1])
    for splits, rows in ((4, samples), (1, 1)):
        tiles = choose_tiles(size, rows * splits, kernels, FAST.multiprocessors)
        shares = fp32(rows, kernels, shares_of(size, outputs, splits, tiles))
        parts, bias_parts = fp32(tiles.slots, *weight.shape), fp32(tiles.slots, *bias.shape)
        grads = (parts, bias_parts) if tiles.slots > 1 else (weight[None], bias[None])
        operands = (
            fp32(rows * splits, size),
            weight,
            grads[0],
            fp32(rows, outputs),
            bias,
            grads[1],
            alpha[:rows],
            shares,
        )
        ending = f"-R{tiles.rows}"
        yield AuditCase(f"{name}{ending}", plan_tunable_parameter_backward(*operands, tiles), quick=quick)
        if splits > 1:
            again = plan_tunable_parameter_backward(
                *operands[:2], parts, *operands[3:5], bias_parts, *operands[6:], tiles, accumulate=True
            )
            yield AuditCase(f"{name}{ending}-again", again)
            summed = (parts, weight, bias_parts, bias, shares, alpha)
            yield AuditCase(f"{name}-sum", plan_tunable_parameter_sum(*summed), quick=quick)


def _network_blends(dtype: torch.dtype, kind: str) -> Iterator[AuditCase]:
    """List blends of two kernels: with and without the gradient of alpha, under autocast, and into given tensors."""

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    tables = Tables(empty(9, COLUMNS, dtype=torch.int64), empty(9, 2, dtype=torch.int32), 2)
    alpha, partial, base = empty(9), empty(9, 2), 1 << 40
    name = f"network-blend-{kind}"
    forward = plan_tunable_parameters_forward(tables, alpha, base, dtype, dtype)
    yield AuditCase(name, forward, quick=True)
    yield AuditCase(f"{name}-into", plan_tunable_parameters_forward(tables, alpha, 0, dtype, dtype))
    for parts in (partial, None):
        backward = plan_tunable_parameters_backward(tables, alpha, parts, (base, base), dtype, dtype)
        suffix = "" if parts is not None else "-frozen-alpha"
        yield AuditCase(f"network-contract-{kind}{suffix}", backward, quick=parts is not None)
    if dtype == torch.float32:
        for cast in (torch.bfloat16, torch.float16):
            to = str(cast).removeprefix("torch.")
            forward = plan_tunable_parameters_forward(tables, alpha, base, dtype, cast)
            yield AuditCase(f"{name}-{to}", forward)
            backward = plan_tunable_parameters_backward(tables, alpha, partial, (base, base), dtype, cast)
            yield AuditCase(f"network-contract-{kind}-{to}", backward)
        yield AuditCase("network-sum", plan_tunable_parameters_sum(tables, partial, empty(19)), quick=True)
