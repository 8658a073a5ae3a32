"""What is measured: the shapes of restoration networks, as suites that fit a device.

A suite is a list of cases; one case is one shape, alpha, dtype, memory format, pass and way of calling. Case ids read
like ``3x3-C64-64x64-B4-P2-shared-fp32-channels_last-forward-eager`` and are what filters match.
"""

import difflib
import fnmatch
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch


@dataclass(frozen=True)
class Kind:
    """One sort of layer: its taps and how outputs, groups and stride follow from the channels."""

    taps: int
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    depthwise: bool = False
    transposed: bool = False
    outputs: float = 1.0  # outputs per input channel


KINDS = {
    "1x1": Kind(1),
    "3x3": Kind(3, padding=1),
    "5x5": Kind(5, padding=2),
    "dw3x3": Kind(3, padding=1, depthwise=True),
    "down2x2": Kind(2, stride=2, outputs=2.0),
    "up2x2": Kind(2, stride=2, transposed=True, outputs=0.5),
}
ALPHAS = ("shared", "per_sample", "map")
DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
PASSES = ("forward", "backward", "both", "grad_input", "grad_weight")
MODES = ("eager", "compile", "graph")


@dataclass(frozen=True)
class Own:
    """What a case of one's own (`case_text.read_case`) has beyond its kind of layer."""

    width: int
    outputs: int
    groups: int
    stride: int
    padding: int
    dilation: int


@dataclass(frozen=True)
class Case:
    """One thing to time. `size` is the height and width of the input; `kernels` is P."""

    kind: str
    channels: int
    size: int
    batch: int
    kernels: int = 2
    alpha: str = "shared"
    dtype: str = "fp32"
    layout: str = "channels_last"
    direction: str = "forward"
    mode: str = "eager"
    own: Own | None = None

    @property
    def id(self) -> str:
        """Return the name that filters match and results carry; a case of one's own is read from it again."""
        own = ""
        if self.own is not None:
            own = f"-O{self.outputs}-G{self.groups}-S{self.own.stride}-D{self.own.dilation}-pad{self.own.padding}"
        return (
            f"{self.kind}-C{self.channels}-{self.size}x{self.width}-B{self.batch}-P{self.kernels}{own}"
            f"-{self.alpha}-{self.dtype}-{self.layout}-{self.direction}-{self.mode}"
        )

    @property
    def layer(self) -> Kind:
        """The sort of layer, with what a case of one's own says of it."""
        if self.own is None:
            return KINDS[self.kind]
        own = self.own
        return replace(kind_named(self.kind), stride=own.stride, padding=own.padding, dilation=own.dilation)

    @property
    def width(self) -> int:
        """Width of the input."""
        return self.size if self.own is None else self.own.width

    @property
    def outputs(self) -> int:
        """O, the output channels."""
        return max(1, int(self.channels * self.layer.outputs)) if self.own is None else self.own.outputs

    @property
    def groups(self) -> int:
        """Groups of the convolution."""
        return (self.channels if self.layer.depthwise else 1) if self.own is None else self.own.groups

    @property
    def output_grid(self) -> tuple[int, int]:
        """OH and OW."""
        layer = self.layer
        reach = layer.dilation * (layer.taps - 1) + 1
        if layer.transposed:
            height, width = ((n - 1) * layer.stride - 2 * layer.padding + reach for n in (self.size, self.width))
        else:
            height, width = ((n + 2 * layer.padding - reach) // layer.stride + 1 for n in (self.size, self.width))
        return height, width

    @property
    def macs(self) -> int:
        """Return the multiply-adds of one plain convolution of the batch, forward."""
        height, width = (self.size, self.width) if self.layer.transposed else self.output_grid
        return self.batch * height * width * self.layer.taps**2 * self.channels * self.outputs // self.groups

    @property
    def flops(self) -> int:
        """Return the operations of the pass for the plain convolution: 2 per MAC forward and for each gradient."""
        return 2 * self.macs * {"backward": 2, "both": 3}.get(self.direction, 1)

    @property
    def bytes(self) -> int:
        """Return the bytes that a plain convolution has to move at least: every tensor of the pass once."""
        size = 4 if DTYPES[self.dtype] == torch.float32 else 2
        height, width = self.output_grid
        x = self.batch * self.channels * self.size * self.width
        y = self.batch * self.outputs * height * width
        w = self.outputs * self.channels * self.layer.taps**2 // self.groups
        once, backward = x + y + w, 2 * (x + w) + y  # backward reads x, w, dy and writes dx, dw; one gradient, all once
        return size * {"backward": backward, "both": once + backward}.get(self.direction, once)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, JSON-able; without `own` where it is None."""
        return {name: value for name, value in asdict(self).items() if name != "own" or value is not None}


def kind_named(name: str) -> Kind:
    """Return the sort of layer of a name such as 3x3, 7x7, dw5x5, down2x2 or up2x2.

    Raises:
        ValueError: It is none, or its taps are not square.
    """
    match = re.fullmatch(r"(dw|down|up)?(\d+)x(\d+)", name)
    if match is None or match[2] != match[3] or int(match[2]) < 1:
        raise ValueError(f"bench: a layer must be KxK, dwKxK, downKxK or upKxK with the same K twice; got {name!r}")
    taps, sort = int(match[2]), match[1]
    if sort in ("down", "up"):
        return Kind(taps, stride=taps, transposed=sort == "up", outputs=0.5 if sort == "up" else 2.0)
    return Kind(taps, padding=(taps - 1) // 2, depthwise=sort == "dw")


def _unique(cases: Iterable[Case]) -> list[Case]:
    return list(dict.fromkeys(cases))


def cpu_suite() -> list[Case]:
    """Return about 40 cases, sized for two cores and three minutes: mainly channels_last fp32."""
    shapes = [
        Case("3x3", 16, 64, 16),
        Case("3x3", 32, 64, 4),
        Case("3x3", 64, 32, 16),
        Case("3x3", 64, 64, 1),
        Case("3x3", 64, 64, 4),
        Case("3x3", 128, 32, 4),
        Case("1x1", 64, 64, 4),
        Case("1x1", 128, 32, 4),
        Case("5x5", 32, 64, 4),
        Case("dw3x3", 64, 64, 4),
        Case("dw3x3", 128, 32, 16),
        Case("down2x2", 32, 64, 4),
    ]
    cases = [
        replace(shape, alpha=alpha, direction=direction)
        for direction in ("forward", "both")
        for alpha in ("shared", "per_sample")
        for shape in shapes
        if not (shape.batch == 1 and alpha == "per_sample")
    ]
    one = Case("3x3", 64, 64, 4)
    cases += [
        replace(one, size=256, batch=1),
        replace(one, channels=16, size=512, batch=1),
        replace(one, channels=256, size=32),
        Case("up2x2", 64, 32, 4),
        Case("up2x2", 64, 32, 4, alpha="per_sample"),
        replace(one, channels=32, alpha="map"),
        replace(one, layout="contiguous"),
        replace(one, layout="contiguous", alpha="per_sample"),
        replace(one, dtype="bf16"),
        replace(one, dtype="bf16", alpha="per_sample"),
        replace(one, kernels=8, alpha="per_sample"),
        replace(one, direction="backward", alpha="per_sample"),
        replace(one, mode="compile"),
        replace(one, mode="compile", alpha="per_sample"),
    ]
    return _unique(cases)


def gpu_suite() -> list[Case]:
    """Return the suite for a GPU: bf16 channels_last over shapes, and then every other option varied from it."""
    shapes = [
        *(Case("3x3", c, s, b) for c, s, b in ((16, 256, 16), (32, 128, 16), (64, 64, 1), (64, 64, 16), (64, 128, 32))),
        *(Case("3x3", c, s, b) for c, s, b in ((64, 512, 1), (128, 64, 16), (256, 32, 32), (64, 256, 4))),
        *(Case("1x1", c, s, b) for c, s, b in ((32, 256, 4), (64, 128, 16), (256, 32, 32))),
        Case("5x5", 32, 128, 16),
        *(Case("dw3x3", c, s, b) for c, s, b in ((64, 128, 16), (128, 64, 32), (64, 256, 4))),
        Case("down2x2", 64, 128, 16),
        Case("up2x2", 64, 64, 16),
    ]
    shapes = [replace(shape, dtype="bf16") for shape in shapes]
    cases = [
        replace(shape, alpha=alpha, direction=direction, mode=mode)
        for direction, mode in (("forward", "graph"), ("forward", "eager"), ("both", "graph"))
        for alpha in ("shared", "per_sample")
        for shape in shapes
        if not (shape.batch == 1 and alpha == "per_sample")
    ]
    one = Case("3x3", 64, 64, 16, dtype="bf16", mode="graph")
    for alpha in ("shared", "per_sample"):
        base = replace(one, alpha=alpha)
        cases += [replace(base, dtype=dtype) for dtype in ("fp32", "tf32", "fp16")]
        cases += [replace(base, kernels=kernels) for kernels in (3, 4, 8)]
        cases += [
            replace(base, layout="contiguous"),
            replace(base, direction="backward", mode="eager"),
            replace(base, direction="both", mode="eager"),
            replace(base, mode="compile"),
        ]
    cases += [replace(one, alpha="map"), replace(one, alpha="map", direction="both")]
    return _unique(cases)


def scaling_suite(device: str) -> list[Case]:
    """Return a base case, and P, B, C and the size varied from it one at a time: the scaling curves."""
    gpu = device == "cuda"
    base = Case("3x3", 64, 64, 16, dtype="bf16", mode="graph") if gpu else Case("3x3", 32, 64, 4)
    axes: dict[str, Sequence[int]] = {
        "kernels": (1, 2, 3, 4, 8, 16),
        "batch": (1, 4, 16, 32, 64) if gpu else (1, 2, 4, 8, 16),
        "channels": (16, 32, 64, 128, 256) if gpu else (8, 16, 32, 64, 128),
        "size": (16, 32, 64, 128, 256) if gpu else (8, 16, 32, 64, 128),
    }
    return _unique(
        replace(base, alpha=alpha, **{axis: value})
        for alpha in ("shared", "per_sample")
        for axis, values in axes.items()
        for value in values
    )


def per_sample_suite() -> list[Case]:
    """Return the shapes over which the rule for a per-sample alpha is chosen (docs/per_sample.md), for a CPU."""
    return [
        Case(kind, channels, size, batch, alpha="per_sample", layout=layout, direction=direction)
        for kind in ("1x1", "3x3", "5x5", "dw3x3")
        for channels in (16, 64)
        for size in (8, 32, 64, 128)
        for batch in (4, 16)
        for layout in LAYOUTS
        for direction in ("forward", "backward")
        if Case(kind, channels, size, batch).macs <= 1.3e9 and batch * channels * size * size <= 2**22
    ]


def quick(cases: Sequence[Case]) -> list[Case]:
    """Return a handful: the first case of every alpha and direction."""
    chosen: dict[tuple[str, str], Case] = {}
    for case in cases:
        chosen.setdefault((case.alpha, case.direction), case)
    return list(chosen.values())


def select(cases: Sequence[Any], filters: Sequence[str]) -> list[Any]:
    """Return the cases that match every filter.

    Args:
        cases: Of a suite: anything with `id` and `to_dict()`.
        filters: Each ``field=value[,value...]`` (say ``kind=3x3,1x1``) or a pattern for the id (``3x3-*-shared-*``), or
            a part of it (``shared``).

    Raises:
        ValueError: A filter that names no field, or matches none of the cases; the message lists what is known.
    """
    names = dict.fromkeys(name for case in cases for name in case.to_dict())
    chosen = list(cases)
    for text in filters:
        name, equals, values = text.partition("=")
        if equals and name not in names:
            raise ValueError(f"bench: --cases must name a field of {', '.join(names)}; got {name!r}")
        if equals:
            known = dict.fromkeys(str(case.to_dict()[name]) for case in cases if name in case.to_dict())
            for value in values.split(","):
                if value not in known:
                    raise ValueError(f"bench: {name} must be one of {', '.join(known)} in this suite; got {value!r}")
            chosen = [case for case in chosen if str(case.to_dict().get(name)) in values.split(",")]
        else:
            pattern = text if set(text) & set("*?[") or any(case.id == text for case in cases) else f"*{text}*"
            if not any(fnmatch.fnmatch(case.id, pattern) for case in cases):
                near = difflib.get_close_matches(text.strip("*"), [case.id for case in cases], n=5, cutoff=0)
                listed = "".join(f"\n  {name}" for name in near)
                raise ValueError(
                    f"bench: --cases must match a case of the suite; got {text!r}. Nearest (--list prints all):{listed}"
                )
            chosen = [case for case in chosen if fnmatch.fnmatch(case.id, pattern)]
    if not chosen:
        raise ValueError(f"bench: --cases must leave at least one case; got {' '.join(filters)}, which leave none")
    return chosen
