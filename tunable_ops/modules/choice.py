"""Which layers `convert` converts, and why the others stay plain."""

import fnmatch
from collections.abc import Mapping, Sequence

from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils import parametrize

from tunable_ops.modules.accelerate import FilteredConv2d
from tunable_ops.modules.layer import StackedLayer
from tunable_ops.modules.tunable_conv import TunableConv1d, TunableConv2d, TunableConv3d, TunableConvTranspose2d
from tunable_ops.modules.tunable_linear import TunableLinear
from tunable_ops.nearest import hint

TUNABLE: dict[type[nn.Module], type[StackedLayer]] = {
    nn.Conv1d: TunableConv1d,
    nn.Conv2d: TunableConv2d,
    FilteredConv2d: TunableConv2d,
    nn.Conv3d: TunableConv3d,
    nn.ConvTranspose2d: TunableConvTranspose2d,
    nn.Linear: TunableLinear,
}
# Residual scales; the only patterns that may match nothing.
USUAL_PARAMETERS = ("*.beta", "*.gamma")
# The reasons that the caller gave.
BY_CHOICE = ("not in include", "in exclude")
# They read `.weight` of their children instead of calling them, also where lambda is one per sample.
_READ_WEIGHTS = (nn.MultiheadAttention, nn.TransformerEncoderLayer)
_FAMILY = (nn.Linear, nn.modules.conv._ConvNd)


def choose(
    network: nn.Module, include: Sequence[str] | None, exclude: Sequence[str]
) -> tuple[dict[nn.Module, None], dict[str, str]]:
    """Return the modules to convert, in order, and the names of those that look convertible but stay, with reasons."""
    named: dict[nn.Module, list[str]] = {}
    for name, module in network.named_modules(remove_duplicate=False):
        if isinstance(module, _FAMILY) or _is_quantised(module):
            named.setdefault(module, []).append(name)
    every_name = [name for names in named.values() for name in names]
    check_patterns("include", include or (), every_name, "convertible module")
    check_patterns("exclude", exclude, every_name, "convertible module")
    readers = {
        child: owner for owner in network.modules() if isinstance(owner, _READ_WEIGHTS) for child in _below(owner)
    }
    chosen: dict[nn.Module, None] = {}
    left_alone: dict[str, str] = {}
    for module, names in named.items():
        if include is not None and not matches(names, include):
            reason: str | None = BY_CHOICE[0]
        elif matches(names, exclude):
            reason = BY_CHOICE[1]
        elif module in readers:
            reason = f"read by {type(readers[module]).__name__}"
        else:
            reason = _why_not(module)
        if reason is None:
            chosen[module] = None
        else:
            left_alone[names[0]] = reason
    _leave_tied(network, chosen, named, left_alone)
    return chosen, left_alone


def describe(left_alone: Mapping[str, str]) -> str:
    """Return names and reasons as a text, each reason once: ``a, b (parametrised); c (in exclude)``."""
    names: dict[str, list[str]] = {}
    for name, reason in left_alone.items():
        names.setdefault(reason, []).append(name or "the network itself")
    return "; ".join(f"{', '.join(found)} ({reason})" for reason, found in names.items())


def _below(owner: nn.Module) -> list[nn.Module]:
    return [module for module in owner.modules() if module is not owner]


def _is_quantised(module: nn.Module) -> bool:
    return ".quantized." in type(module).__module__ and (
        hasattr(module, "in_features") or hasattr(module, "in_channels")
    )


def _why_not(module: nn.Module) -> str | None:
    """Return why a layer stays plain; None for one of torch's own to which nobody has added anything."""
    kind = type(module)
    if _is_quantised(module):
        return "quantised"
    if parametrize.is_parametrized(module):
        return "parametrised"
    if isinstance(module, LazyModuleMixin) and module.has_uninitialized_params():
        return "not initialised: call the network once before convert"
    if kind not in TUNABLE:
        base = next((base for base in kind.__mro__ if base in TUNABLE), None)
        return f"no tunable form of {kind.__name__}" if base is None else f"a subclass of {base.__name__}"
    weight = module._parameters.get("weight")
    if weight is None or not set(module._parameters) <= {"weight", "bias"} or module._buffers or module._modules:
        return "parameters, buffers or children of its own"
    if "forward" in vars(module):
        return "a forward of its own"
    if not weight.is_floating_point():
        return f"weights in {str(weight.dtype).removeprefix('torch.')}"
    return None


def _leave_tied(
    network: nn.Module, chosen: dict[nn.Module, None], named: dict[nn.Module, list[str]], left_alone: dict[str, str]
) -> None:
    """Remove layers that share a parameter with a module that stays plain, until none is left."""
    while True:
        kept = {
            id(parameter): name or type(module).__name__
            for name, module in network.named_modules()
            if module not in chosen
            for parameter in module._parameters.values()
            if parameter is not None
        }
        tied = {m: kept[id(p)] for m in chosen for p in m._parameters.values() if id(p) in kept}
        if not tied:
            return
        for module, other in tied.items():
            del chosen[module]
            left_alone[named[module][0]] = f"tied to {other}, which stays plain"


def matches(names: Sequence[str], patterns: Sequence[str]) -> bool:
    """Return True if a pattern (fnmatch) matches one of the names."""
    return any(fnmatch.fnmatchcase(name, pattern) for name in names for pattern in patterns)


def check_patterns(argument: str, patterns: Sequence[str], names: Sequence[str], what: str) -> None:
    """Refuse patterns that match nothing; `what` says what they are to match."""
    if isinstance(patterns, str):
        raise TypeError(f"convert: {argument} must be a sequence of patterns; got the string {patterns!r}")
    for pattern in patterns:
        if pattern not in USUAL_PARAMETERS and not matches(names, [pattern]):
            raise ValueError(f"convert: {argument} must match a {what}; got {pattern!r}{hint(pattern, names)}")
