"""convert: make a plain network tunable, layer by layer, without a change to its code."""

import copy
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from tunable_ops.modules.choice import BY_CHOICE, TUNABLE, USUAL_PARAMETERS, check_patterns, choose, describe, matches
from tunable_ops.modules.layer import StackedLayer, TunableLayer
from tunable_ops.modules.low_rank import BaseAndLowRank, saves_parameters
from tunable_ops.modules.model import TunableModel, entries_read
from tunable_ops.modules.spec import LambdaSpec
from tunable_ops.modules.tunable_parameter import ParameterBlend, parametrise, register_blend, stack_plain
from tunable_ops.modules.tuning import Tuning

# Torch's modules whose own parameters are the network's, not those of a layer.
_CONTAINERS = (nn.Module, nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)


def convert(
    network: nn.Module,
    num_params: int,
    *,
    num_kernels: int | None = None,
    tuning: str = "affine",
    domain: str = "simplex",
    include: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
    parameters: Sequence[str] = USUAL_PARAMETERS,
    names: Sequence[str] | None = None,
    ranges: Sequence[Sequence[float]] | None = None,
    defaults: Sequence[float] | None = None,
    units: Sequence[str] | None = None,
    on_map: str = "raise",
    rank: int | None = None,
) -> TunableModel:
    """Make a network tunable; it still computes what it did, for every lambda of the domain.

    On the simplex (lambda sums to 1) every kernel starts as the plain one; on the box there are p + 1 kernels, the
    plain one under the constant weight 1 and p that start at zero. Entries of lambda that the network reads itself
    (`LambdaPlanes`) have no kernel on the box, and phi starts without them. With `rank` the new kernels are of low
    rank: ``W + sum_j alpha_j U_j V_j``, U_j [O, r] from zero and V_j [r, C/groups * kh * kw] random (a transposed
    convolution has C in the place of O and O in that of C).

    Modules of exactly torch's types are converted: Conv1d, 2d, 3d, ConvTranspose2d, Linear. Tied modules and tied
    parameters stay tied. These stay plain, and one warning names them with the reason: layers whose `.weight`
    MultiheadAttention and TransformerEncoderLayer read, parametrised, complex, quantised and uninitialised layers,
    subclasses, layers with a `forward`, buffers or children of their own, and layers that are tied to one that stays
    plain. `net.left_alone` has these reasons and those of your own choice, by name.

    A network may read `weight` and `bias` of its layers, as in ``self.conv(x) / self.conv.weight.norm()``. While the
    model runs they read as the blend at lambda, of the shape that the plain layer's have; with one lambda per sample or
    a map there is no such kernel, and with an attempt to write to it nothing to keep: both raise and name the layer.
    Elsewhere they are the stacks [P, *]. For torch.compile, too.

    Args:
        network: Any nn.Module; it is copied, not changed.
        num_params: p, the length of lambda.
        num_kernels: P; default p on the simplex, p + 1 on the box, less the entries that the network reads itself.
        tuning: "affine" or "identity" (simplex only).
        domain: "simplex" or "box".
        include: Patterns (fnmatch) of module names to convert; None converts all.
        exclude: Patterns of module names to leave plain.
        parameters: Patterns of names of the network's own parameters (not of layers) to make tunable too.
        names: Names of the tuning parameters.
        ranges: Their (low, high), in their units.
        defaults: Where sliders start, in their units.
        units: What each is counted in, such as "of 255" or "pixels"; default "", none.
        on_map: What layers without a grid do with a map of lambda: "raise" or "mean".
        rank: r of the new kernels, box only; None for full rank, which layers keep where r would save nothing, as do
            biases and the network's own parameters.

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
    LambdaSpec.create(num_params, domain, names, ranges, defaults, units)
    _check_rank(rank, domain)
    options: dict[str, Any] = {"num_params": num_params, "num_kernels": num_kernels, "tuning": tuning, "domain": domain}
    chosen, left_alone = choose(network, include, exclude)
    followed = _followed(network, num_params) if domain == "box" and num_kernels is None else None
    if followed == []:
        chosen, left_alone, parameters = {}, {}, ()  # the network reads all of lambda itself
    elif followed is not None:
        options["num_kernels"] = len(followed) + 1
    memo: dict[int, Any] = {}
    stacks: dict[int, tuple[nn.Parameter, StackedLayer]] = {}
    for module in chosen:
        memo[id(module)] = layer = _tunable(module, options)
        layer.shows_blend = True
        _tie(module, layer, stacks, list(memo.values()))
    copied = copy_network(network, memo)
    for module in chosen:
        carry_over(module, memo[id(module)], memo)
    if rank is not None:
        _lower_rank([memo[id(module)] for module in chosen], rank)
    blends = _make_parameters_tunable(copied, parameters, options, left_alone)
    if not chosen and not blends and followed != []:
        raise ValueError(
            "convert: network must have a convolution, a linear layer or a parameter to convert; got "
            f"{type(network).__name__}" + (f", of which these stay: {describe(left_alone)}" if left_alone else "")
        )
    unasked = {name: reason for name, reason in left_alone.items() if reason not in BY_CHOICE}
    if unasked:
        warnings.warn(f"convert: left alone: {describe(unasked)}", stacklevel=2)
    model = TunableModel(
        copied, num_params, domain=domain, names=names, ranges=ranges, defaults=defaults, units=units, on_map=on_map
    )
    if followed:
        for tuned in model.layers:
            tuned.tuning.follow(followed)
    model.conversion = {
        **options,
        "num_kernels": num_kernels,
        "include": None if include is None else list(include),
        "exclude": list(exclude),
        "parameters": list(parameters),
        "names": list(model.spec.names),
        "ranges": [list(pair) for pair in model.spec.ranges],
        "defaults": list(model.spec.defaults),
        "units": list(model.spec.units),
        "on_map": on_map,
        **({} if rank is None else {"rank": rank}),
    }
    model.left_alone = left_alone
    model.training = network.training  # not train(): parts of the network may be in another mode
    return model


def _check_rank(rank: int | None, domain: str) -> None:
    if rank is None:
        return
    if type(rank) is not int or rank < 1:
        raise ValueError(f"convert: rank must be a positive int, or None for full rank; got {rank!r}")
    if domain != "box":
        raise ValueError(
            f"convert: rank must be None on the simplex, where every kernel starts as the plain one; got {rank}: use "
            "domain='box'"
        )


def _lower_rank(layers: Sequence[StackedLayer], rank: int) -> None:
    """Keep the new kernels of every layer as factors where that saves numbers; tied stacks stay tied."""
    done: dict[int, Any] = {}
    for layer in layers:
        stack = layer.weight
        if not saves_parameters(rank, tuple(stack.shape[1:])):
            continue
        parametrise(layer, "weight", BaseAndLowRank(rank))
        parts: Any = layer.parametrizations["weight"]  # type: ignore[index]
        _, first = done.setdefault(id(stack), (stack, parts))
        parts.original0, parts.original1, parts.original2 = first.original0, first.original1, first.original2


def _followed(network: nn.Module, num_params: int) -> list[int] | None:
    """Return the entries of lambda that the network does not read itself; None where it reads none."""
    read = entries_read(network)
    return [entry for entry in range(num_params) if entry not in read] if read else None


def _tunable(module: nn.Module, options: dict[str, Any]) -> StackedLayer:
    """Return the tunable counterpart of a plain layer, its kernels not set yet."""
    factory: dict[str, Any] = {"device": module.weight.device, "dtype": module.weight.dtype}
    has_bias = module.bias is not None
    kind: Any = TUNABLE[type(module)]
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
    return layer


def _tie(
    module: nn.Module,
    layer: StackedLayer,
    stacks: dict[int, tuple[nn.Parameter, StackedLayer]],
    layers: Sequence[StackedLayer],
) -> None:
    """Set the kernels of `layer`; layers that share a parameter share its stack, and phi with it."""
    for name in ("weight", "bias"):
        plain = getattr(module, name)
        if plain is None:
            continue
        if id(plain) not in stacks:
            stacks[id(plain)] = _stacked(plain, layer), layer
        stack, first = stacks[id(plain)]
        setattr(layer, name, stack)
        replaced = layer.tuning
        for other in layers if replaced is not first.tuning else ():
            if other.tuning is replaced:
                other.tuning = first.tuning


def _stacked(plain: torch.Tensor, layer: StackedLayer) -> nn.Parameter:
    stack = stack_plain(plain.detach(), layer.tuning.num_kernels, layer.tuning.constant)
    if plain.dim() in (4, 5) and not plain.is_contiguous():
        channels_last = torch.channels_last if plain.dim() == 4 else torch.channels_last_3d
        if plain.is_contiguous(memory_format=channels_last):
            stack = stack.flatten(0, 1).contiguous(memory_format=channels_last).unflatten(0, stack.shape[:2])
    return nn.Parameter(stack, requires_grad=plain.requires_grad)


_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_always_called",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)


def copy_network(network: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """Return a deepcopy in which `memo` names the replacements of some layers.

    torch refuses to copy a tensor with a history, such as the `weight` that torch.nn.utils.weight_norm leaves on a
    layer until its next forward: such a tensor is copied without the history.
    """
    for module in network.modules():
        for value in vars(module).values():
            if isinstance(value, torch.Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    return copy.deepcopy(network, memo)


def carry_over(source: nn.Module, target: nn.Module, memo: dict[int, Any]) -> None:
    """Give the mode and the hooks of a layer to the one that takes its place.

    `memo` is that of the network's deepcopy: a hook that is a method of the network becomes one of the copy.
    """
    target.train(source.training)
    for hooks in _HOOKS:
        getattr(target, hooks).update(copy.deepcopy(getattr(source, hooks), memo))
    target._is_full_backward_hook = source._is_full_backward_hook


def _make_parameters_tunable(
    network: nn.Module, patterns: Sequence[str], options: dict[str, Any], left_alone: dict[str, str]
) -> list[ParameterBlend]:
    """Put a blend behind every parameter of the network's own that a pattern names; tied ones share it."""
    own = list(_own_parameters(network))
    # Each name with a dot before it too, so that "*.beta" matches a parameter of the network itself.
    names = {name: (name, f".{name}") for name, _, _ in own}
    check_patterns(
        "parameters", patterns, [n for both in names.values() for n in both], "parameter of the network's own"
    )
    chosen = [entry for entry in own if matches(names[entry[0]], patterns)]
    holders = Counter(id(p) for module in network.modules() for p in module._parameters.values())
    taken = Counter(id(getattr(owner, attribute)) for _, owner, attribute in chosen)
    stacks: dict[int, tuple[nn.Parameter, nn.Parameter, ParameterBlend]] = {}
    for name, owner, attribute in chosen:
        value = getattr(owner, attribute)
        if taken[id(value)] < holders[id(value)]:
            left_alone[name] = "shared with a module whose parameters stay plain"
            continue
        if id(value) not in stacks:
            blend = ParameterBlend(value.detach(), name=name, **options)
            stack = stack_plain(value.detach(), blend.tuning.num_kernels, blend.tuning.constant).flatten(1)
            stacks[id(value)] = value, nn.Parameter(stack, requires_grad=value.requires_grad), blend
        register_blend(owner, attribute, *stacks[id(value)][1:])
    return [blend for _, _, blend in stacks.values()]


def _own_parameters(network: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """Yield the parameters of modules that are neither torch's own layers nor tunable ones."""
    for prefix, module in network.named_modules():
        kind = parametrize.type_before_parametrizations(module)
        torchs_own = kind.__module__.startswith("torch.nn.") and kind not in _CONTAINERS
        if torchs_own or isinstance(module, TunableLayer | Tuning):
            continue
        for attribute, parameter in module.named_parameters(recurse=False):
            if parameter.is_floating_point():
                yield (f"{prefix}.{attribute}" if prefix else attribute), module, attribute
