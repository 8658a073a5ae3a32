"""convert: a plain network made tunable, layer by layer, without a change to its code."""

import copy
import difflib
import fnmatch
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from tunable_ops.modules.layer import StackedLayer, TunableLayer
from tunable_ops.modules.model import TunableModel
from tunable_ops.modules.spec import LambdaSpec
from tunable_ops.modules.tunable_conv import TunableConv1d, TunableConv2d, TunableConv3d, TunableConvTranspose2d
from tunable_ops.modules.tunable_linear import TunableLinear
from tunable_ops.modules.tunable_parameter import ParameterBlend, register_blend, stack_plain
from tunable_ops.modules.tuning import Tuning

_TUNABLE: dict[type[nn.Module], type[StackedLayer]] = {
    nn.Conv1d: TunableConv1d,
    nn.Conv2d: TunableConv2d,
    nn.Conv3d: TunableConv3d,
    nn.ConvTranspose2d: TunableConvTranspose2d,
    nn.Linear: TunableLinear,
}
# They read `.weight` of their children instead of calling them.
_READ_WEIGHTS = (nn.MultiheadAttention, nn.TransformerEncoderLayer)
_FAMILY = (nn.Linear, nn.modules.conv._ConvNd)


def convert(
    network: nn.Module,
    num_params: int,
    *,
    num_kernels: int | None = None,
    tuning: str = "affine",
    domain: str = "simplex",
    include: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
    parameters: Sequence[str] = ("*.beta", "*.gamma"),
    names: Sequence[str] | None = None,
    ranges: Sequence[Sequence[float]] | None = None,
    defaults: Sequence[float] | None = None,
    on_map: str = "raise",
) -> TunableModel:
    """Makes a network tunable; it keeps computing what it did, for every lambda of the domain.

    On the simplex (lambda sums to 1) every kernel starts as the plain one; on the box there are p + 1 kernels, the
    plain one under the constant weight 1 and p that start at zero.

    Modules of exactly torch's types are converted: Conv1d, 2d, 3d, ConvTranspose2d, Linear. Tied modules and tied
    parameters of converted modules stay tied. Left alone, and named in one warning: what MultiheadAttention and
    TransformerEncoderLayer read by `.weight`, parametrised layers, subclasses, layers tied to something that stays.

    Args:
        network: Any nn.Module; it is copied, not changed.
        num_params: p, the length of lambda.
        num_kernels: P; default p on the simplex, p + 1 on the box.
        tuning: "affine" or "identity" (simplex only).
        domain: "simplex" or "box".
        include: Patterns (fnmatch) of module names to convert; None converts all.
        exclude: Patterns of module names to leave plain.
        parameters: Patterns of names of the network's own parameters (not of layers) to make tunable too.
        names: Names of the tuning parameters.
        ranges: Their (low, high).
        defaults: Where sliders start.
        on_map: What layers without a grid do with a map of lambda: "raise" or "mean".

    Returns:
        A `TunableModel` in the mode (training or evaluation) of `network`.

    Raises:
        TypeError: `network` is not an nn.Module.
        ValueError: Nothing to convert, already tunable, a pattern that matches nothing, or arguments out of range.

    Example:
        >>> net = convert(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 3, 3)), num_params=2)
        >>> net(torch.zeros(1, 3, 8, 8), [0.3, 0.7]).shape
        torch.Size([1, 3, 4, 4])
    """
    if not isinstance(network, nn.Module):
        raise TypeError(f"convert: network must be an nn.Module; got {type(network).__name__}")
    for name, module in network.named_modules():
        if isinstance(module, TunableLayer | TunableModel):
            raise ValueError(f"convert: network must be plain; got {type(module).__name__} at {name!r}")
    if domain == "box" and tuning == "identity":
        raise ValueError("convert: tuning must be 'affine' on the box (its first kernel has a constant weight)")
    LambdaSpec.create(num_params, domain, names, ranges, defaults)
    options: dict[str, Any] = {"num_params": num_params, "num_kernels": num_kernels, "tuning": tuning, "domain": domain}
    chosen, left_alone = _choose(network, include, exclude)
    memo: dict[int, Any] = {}
    stacks: dict[int, tuple[nn.Parameter, Tuning]] = {}
    for module in chosen:
        memo[id(module)] = _tunable(module, options, stacks)
    copied = copy.deepcopy(network, memo)
    blends = _make_parameters_tunable(copied, parameters, options)
    if not chosen and not blends:
        raise ValueError(
            "convert: network must have a convolution, a linear layer or a parameter to convert; got "
            f"{type(network).__name__}" + (f", of which these stay: {', '.join(left_alone)}" if left_alone else "")
        )
    if left_alone:
        warnings.warn(f"convert: left alone: {', '.join(left_alone)}", stacklevel=2)
    model = TunableModel(
        copied, num_params, domain=domain, names=names, ranges=ranges, defaults=defaults, on_map=on_map
    )
    model.conversion = {
        **options,
        "include": None if include is None else list(include),
        "exclude": list(exclude),
        "parameters": list(parameters),
        "names": list(model.spec.names),
        "ranges": [list(pair) for pair in model.spec.ranges],
        "defaults": list(model.spec.defaults),
        "on_map": on_map,
    }
    return model.train(network.training)


def _choose(
    network: nn.Module, include: Sequence[str] | None, exclude: Sequence[str]
) -> tuple[dict[nn.Module, None], list[str]]:
    """The modules to convert, in order, and the names of those that look convertible but stay."""
    named: dict[nn.Module, list[str]] = {}
    for name, module in network.named_modules(remove_duplicate=False):
        if isinstance(module, _FAMILY):
            named.setdefault(module, []).append(name)
    every_name = [name for names in named.values() for name in names]
    _check_patterns("include", include or (), every_name)
    _check_patterns("exclude", exclude, every_name)
    guarded = {child for owner in network.modules() if isinstance(owner, _READ_WEIGHTS) for child in owner.modules()}
    chosen: dict[nn.Module, None] = {}
    left_alone: list[str] = []
    for module, names in named.items():
        if include is not None and not _matches(names, include):
            continue
        if _matches(names, exclude):
            continue
        plain_weight = type(module) in _TUNABLE and isinstance(module._parameters.get("weight"), nn.Parameter)
        if module in guarded or not plain_weight:
            left_alone.append(names[0])
        else:
            chosen[module] = None
    _leave_tied(network, chosen, named, left_alone)
    return chosen, left_alone


def _leave_tied(
    network: nn.Module, chosen: dict[nn.Module, None], named: dict[nn.Module, list[str]], left_alone: list[str]
) -> None:
    """Takes out layers that share a parameter with a module that stays plain, until none is left."""
    while True:
        kept = {id(p) for module in network.modules() if module not in chosen for p in module._parameters.values()}
        tied = [m for m in chosen if any(p is not None and id(p) in kept for p in m._parameters.values())]
        if not tied:
            return
        for module in tied:
            del chosen[module]
            left_alone.append(named[module][0])


def _matches(names: Sequence[str], patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for name in names for pattern in patterns)


def _check_patterns(argument: str, patterns: Sequence[str], names: Sequence[str]) -> None:
    if isinstance(patterns, str):
        raise TypeError(f"convert: {argument} must be a sequence of patterns; got the string {patterns!r}")
    for pattern in patterns:
        if not _matches(names, [pattern]):
            near = difflib.get_close_matches(pattern, names, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"convert: {argument} must match a convertible module; got {pattern!r}{hint}")


def _tunable(
    module: nn.Module, options: dict[str, Any], stacks: dict[int, tuple[nn.Parameter, Tuning]]
) -> StackedLayer:
    """The tunable twin of a plain layer; layers that share a parameter share its stack, and phi with it."""
    factory: dict[str, Any] = {"device": module.weight.device, "dtype": module.weight.dtype}
    has_bias = module.bias is not None
    kind: Any = _TUNABLE[type(module)]
    layer: StackedLayer
    if isinstance(module, nn.Linear):
        layer = kind(module.in_features, module.out_features, has_bias, **factory, **options)
    else:
        arguments: dict[str, Any] = {
            name: getattr(module, name) for name in ("stride", "padding", "dilation", "groups", "padding_mode")
        }
        if isinstance(module, nn.ConvTranspose2d):
            arguments["output_padding"] = module.output_padding
        layer = kind(
            module.in_channels,
            module.out_channels,
            module.kernel_size,
            bias=has_bias,
            **arguments,
            **factory,
            **options,
        )
    for name in ("weight", "bias"):
        plain = getattr(module, name)
        if plain is not None:
            if id(plain) not in stacks:
                stacks[id(plain)] = (_stacked(plain, layer), layer.tuning)
            stack, layer.tuning = stacks[id(plain)]
            setattr(layer, name, stack)
    carry_over(module, layer)
    return layer


def _stacked(plain: torch.Tensor, layer: StackedLayer) -> nn.Parameter:
    stack = stack_plain(plain.detach(), layer.tuning.num_kernels, layer.tuning.constant)
    if plain.dim() in (4, 5) and not plain.is_contiguous():
        channels_last = torch.channels_last if plain.dim() == 4 else torch.channels_last_3d
        if plain.is_contiguous(memory_format=channels_last):
            stack = stack.flatten(0, 1).contiguous(memory_format=channels_last).unflatten(0, stack.shape[:2])
    return nn.Parameter(stack, requires_grad=plain.requires_grad)


def carry_over(source: nn.Module, target: nn.Module) -> None:
    """Mode and hooks of a layer go to the one that takes its place."""
    target.train(source.training)
    for hooks in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
        getattr(target, hooks).update(getattr(source, hooks))
    for flags in ("_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs"):
        getattr(target, flags).update(getattr(source, flags))


def _make_parameters_tunable(
    network: nn.Module, patterns: Sequence[str], options: dict[str, Any]
) -> list[ParameterBlend]:
    """Puts a blend behind every parameter of the network's own that a pattern names."""
    if isinstance(patterns, str):
        raise TypeError(f"convert: parameters must be a sequence of patterns; got the string {patterns!r}")
    blends = []
    for name, owner, attribute in list(_own_parameters(network)):
        if not _matches([f".{name}"], patterns):  # the dot: "*.beta" names a root's own beta too
            continue
        value = getattr(owner, attribute)
        blend = ParameterBlend(value.detach(), name=name, **options)
        stack = stack_plain(value.detach(), blend.tuning.num_kernels, blend.tuning.constant).flatten(1)
        register_blend(owner, attribute, stack, blend, value.requires_grad)
        blends.append(blend)
    return blends


def _own_parameters(network: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """Parameters of modules that are neither layers of torch's own nor tunable ones."""
    for prefix, module in network.named_modules():
        if type(module).__module__.startswith("torch.nn.") or isinstance(module, TunableLayer):
            continue
        for attribute, parameter in module.named_parameters(recurse=False):
            if parameter.is_floating_point():
                yield (f"{prefix}.{attribute}" if prefix else attribute), module, attribute
