"""Record a network's graph for every batch and every size, with lambda as an input, made of PyTorch's own operators."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx.experimental import _config as symbols
from torch.nn.utils import parametrize

from tunable_ops.modules import TunableModel
from tunable_ops.modules.layer import StackedLayer
from tunable_ops.modules.tunable_parameter import unparametrise
from tunable_ops.ops.registration import decompositions

__all__ = ["FORMS", "capture", "choose_form", "leaf_spec_warning_off", "prepare", "short_name"]

FORMS = ("shared", "per_sample", "map", "folded")
"""How a graph takes lambda: [p] for the batch; [B, p]; a map [B, p, H, W] of the picture's size; not at all."""

# Different from each other, from numbers of kernels, and odd: what a graph makes of its example shows.
_BATCH, _HEIGHT, _WIDTH = 5, 37, 53


def choose_form(op: str, net: nn.Module, per_sample: bool, lambda_map: bool) -> str:
    """Return which of `FORMS` the arguments of an export ask for.

    Raises:
        TypeError: `net` is no module.
        ValueError: Both are True, or one of them for a plain network.
    """
    if not isinstance(net, nn.Module):
        raise TypeError(f"{op}: net must be a module; got {type(net).__name__}")
    if per_sample and lambda_map:
        raise ValueError(f"{op}: per_sample must be False with lambda_map, which is one per sample already; got True")
    form = "per_sample" if per_sample else "map" if lambda_map else "shared"
    if isinstance(net, TunableModel):
        return form
    if form != "shared":
        raise ValueError(
            f"{op}: net must be a TunableModel to take a lambda; got {type(net).__name__}, a plain network"
        )
    return "folded"


def prepare(net: nn.Module, half: bool = False) -> nn.Module:
    """Return a copy for export: on the CPU, in evaluation mode, contiguous, in float32.

    Stacks of low rank stay factors, which runtimes multiply when they load the file; those in half precision do not.

    Args:
        net: The network.
        half: Join the factors, for `half` to be called.
    """
    copied: Any = copy.deepcopy(net).float().cpu().eval().requires_grad_(False)
    copied.to(memory_format=torch.contiguous_format)
    for layer in copied.layers if half and isinstance(copied, TunableModel) else ():
        for name in ("weight", "bias"):
            if isinstance(layer, StackedLayer) and parametrize.is_parametrized(layer, name):
                layer.register_parameter(name, nn.Parameter(unparametrise(layer, name), requires_grad=False))
    plain: nn.Module = copied
    return plain


def capture(
    net: nn.Module,
    form: str,
    *,
    channels: int,
    smallest: int = 1,
    op: str = "capture",
    table: dict[Any, Callable[..., Any]] | None = None,
    channels_last: bool = False,
) -> ExportedProgram:
    """Record ``net(input, lam)``, of a plain network ``net(input)``.

    Args:
        net: What `prepare` returned, in float32 or half precision.
        form: One of `FORMS`.
        channels: C of the input [B, C, H, W].
        smallest: The least H and W.
        op: Who asks, for errors.
        table: Operators to decompose, with the functions that do; default `decompositions`, all of this package.
        channels_last: Take inputs in that memory format.

    Returns:
        The graph, with dynamic B, H and W. lam is float32 and in its units.

    Raises:
        ValueError: The network's code fixes a size; the message names the layer.
    """
    floats = [parameter.dtype for parameter in net.parameters() if parameter.is_floating_point()]
    height, width = max(_HEIGHT, smallest), max(_WIDTH, smallest)
    examples: list[Tensor] = [torch.zeros(_BATCH, channels, height, width, dtype=floats[0] if floats else None)]
    if channels_last:
        examples[0] = examples[0].contiguous(memory_format=torch.channels_last)
    shapes: list[Any] = [{0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}]
    if isinstance(net, TunableModel):
        rows = torch.tensor(net.spec.defaults)
        if form == "shared":
            examples.append(rows)
            shapes.append(None)
        else:
            rows = rows.repeat(_BATCH, 1)  # dense: compiled code takes the strides of its example as given
            examples.append(rows if form == "per_sample" else rows[:, :, None, None].repeat(1, 1, height, width))
            shapes.append({0: Dim.DYNAMIC} if form == "per_sample" else shapes[0])
    with torch.no_grad(), _sizes_from_zero(), _named_failures(op, net):
        whole = _MapOfThatSize(net) if form == "map" else net
        program = torch.export.export(whole, tuple(examples), dynamic_shapes=tuple(shapes))
        return program.run_decompositions(decompositions() if table is None else table)


def _sizes_from_zero() -> Any:
    """Record without the assumption that a dynamic size is at least 2: a batch of one is the usual one."""
    return symbols.patch(backed_size_oblivious=True)  # type: ignore[attr-defined]


@contextmanager
def leaf_spec_warning_off() -> Iterator[None]:
    """Ignore the one warning that torch's own copies of a graph give about a class of torch; a decorator, too."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning)
        yield


@contextmanager
def _named_failures(op: str, net: nn.Module) -> Iterator[None]:
    """Raise what goes wrong in a recording as a ValueError that names the layer."""
    places = _Places(net)
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split("\n\n")[0].split())
        if places.fixed:
            got = f"{places.fixed}, whose code makes a number of a size or decides by one"
        else:
            got = f"{type(error).__name__}{places.open and f' in {places.open[-1]}'}: {reason[:400]}"
        raise ValueError(f"{op}: net must be one whose graph holds for every batch and size; got {got}") from error
    finally:
        places.remove()


def short_name(name: str) -> str:
    """Return the name of a layer in its own network."""
    while name.startswith("network."):
        name = name.removeprefix("network.")
    return name


class _Places:
    """Where a recording stands, and the innermost layer that made a number of a symbolic size.

    Attributes:
        open: Class and name of the layers that run, the innermost last.
        fixed: That layer's, or "".
    """

    def __init__(self, net: nn.Module) -> None:
        self.open: list[str] = []
        self.fixed = ""
        self._sizes: list[Any] = []  # symbols
        self._handles: list[Any] = []
        for name, module in net.named_modules():
            place = f"{type(module).__name__} {short_name(name)}".strip()
            self._handles.append(module.register_forward_pre_hook(self._entering(place)))
            self._handles.append(module.register_forward_hook(self._leaving(place)))

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _entering(self, place: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            if not self.open and args and isinstance(args[0], Tensor):
                self._sizes = [size for size in args[0].shape if isinstance(size, torch.SymInt)]
            self._look(self.open[-1] if self.open else place)
            self.open.append(place)

        return hook

    def _leaving(self, place: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            self._look(place)
            self.open.pop()

        return hook

    def _look(self, place: str) -> None:
        if not self.fixed and any(size.node.expr.is_number for size in self._sizes):
            self.fixed = place


class _MapOfThatSize(nn.Module):
    """A network that takes a map of lambda of its picture's size: layers on that grid need no average of it."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.network = net

    def forward(self, input: Tensor, lam: Tensor) -> Tensor:
        torch._check(lam.shape[2] == input.shape[2] and lam.shape[3] == input.shape[3])
        output: Tensor = self.network(input, lam)
        return output
