"""Knobs apart from their base: take them out of a conversion, and add several of them to one plain network."""

import inspect
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tunable_ops.modules.convert import convert
from tunable_ops.modules.finetune import stacks_of
from tunable_ops.modules.kernel_stacks import stack_parts
from tunable_ops.modules.low_rank import BaseAndLowRank, saves_parameters
from tunable_ops.modules.model import TunableModel, entries_read
from tunable_ops.modules.spec import LambdaSpec
from tunable_ops.modules.tunable_parameter import ParameterBlend


class Knob(NamedTuple):
    """What a conversion on the box adds to its base; p tuning parameters and R = P - 1 new kernels per layer.

    Args:
        spec: Names, ranges and defaults of its tuning parameters, those that the base reads itself included.
        read: The positions of these among the p.
        conversion: The arguments of `convert`.
        layers: The names of the tunable layers and parameters, in the model's order.
        tensors: For every stack NAME (as "body.0.weight") either NAME.new [R, *kernel], or the factors NAME.u [R, O, r]
            and NAME.v [R, r, K]; and phi of all layers, phi.weight [layers, R, p] and phi.bias [layers, R].
    """

    spec: LambdaSpec
    read: Sequence[int]
    conversion: Mapping[str, Any]
    layers: Sequence[str]
    tensors: Mapping[str, Tensor]

    @property
    def num_kernels(self) -> int:
        """The number R of new kernels per layer."""
        return self.tensors["phi.bias"].shape[1] if "phi.bias" in self.tensors else 0

    def new_kernels(self, stack: str, kernel: Sequence[int]) -> Tensor | None:
        """Return the new kernels of a stack, [R, *kernel]; None if the knob leaves that stack alone."""
        if f"{stack}.new" in self.tensors:
            return self.tensors[f"{stack}.new"]
        if {f"{stack}.u", f"{stack}.v"} <= set(self.tensors):
            u, v = self.tensors[f"{stack}.u"], self.tensors[f"{stack}.v"]
            wide = torch.promote_types(u.dtype, torch.float32)
            return torch.bmm(u.to(wide), v.to(wide)).view(-1, *kernel)
        return None


def take_knob(net: TunableModel, argument: str) -> Knob:
    """Return what a conversion adds to its base; the tensors are the model's own.

    Args:
        net: The conversion.
        argument: What errors call it, such as "save_knob: net".

    Raises:
        ValueError: A model on the simplex, or one that `convert` did not make.
    """
    if net.spec.domain != "box" or net.conversion is None or "control" in net.conversion:
        how = "with tunable_ops.convert, on the box (domain='box'), where the base is a kernel of its own"
        raise ValueError(f"{argument} must be made {how}; got domain {net.spec.domain!r}, {type(net).__name__}")
    layers: dict[str, nn.Module] = {}
    tensors: dict[str, Tensor] = {}
    for stack, layer_name, layer, parts in _named_stacks(net):
        layers.setdefault(layer_name, layer)
        if len(parts) == 3:
            tensors[f"{stack}.u"], tensors[f"{stack}.v"] = parts[1:]
        else:
            tensors[f"{stack}.new"] = parts[1] if len(parts) == 2 else parts[0][1:]
    tunings: list[Any] = [layer.tuning for layer in layers.values()]
    if tunings:
        tensors["phi.weight"] = torch.stack([tuning.weight for tuning in tunings])
        tensors["phi.bias"] = torch.stack([tuning.bias for tuning in tunings])
    detached = {name: value.detach() for name, value in tensors.items()}
    return Knob(net.spec, entries_read(net.network), net.conversion, tuple(layers), detached)


def lower_rank(knob: Knob, rank: int) -> Knob:
    """Return the knob with the best new kernels of rank r, as factors, by mean squares over the entries of each.

    Formula: ``W_j = U_j V_j`` from the r largest singular values of W_j [O, C/g * kh * kw]. Biases, a network's own
    parameters and kernels that have r or less, or for which factors would save nothing, stay as they are.

    Args:
        knob: Of full rank, or of more than `rank`.
        rank: r, at least 1.

    Raises:
        ValueError: The knob has a lower rank already.
    """
    own = knob.conversion.get("rank")
    if own is not None and own <= rank:
        raise ValueError(f"save_knob: rank must be below that of the knob, {own}; got {rank}")
    tensors = dict(knob.tensors)
    for name in knob.tensors:
        stack, _, part = name.rpartition(".")
        if part == "u":
            product = torch.bmm(tensors.pop(f"{stack}.u").float(), tensors.pop(f"{stack}.v").float())
        elif part == "new" and stack not in knob.layers and saves_parameters(rank, tuple(knob.tensors[name].shape[1:])):
            product = tensors.pop(name).flatten(2)
        else:
            continue
        base = torch.zeros_like(product[:1])
        _, tensors[f"{stack}.u"], tensors[f"{stack}.v"] = BaseAndLowRank(rank).right_inverse(torch.cat((base, product)))
    return knob._replace(conversion={**knob.conversion, "rank": rank}, tensors=tensors)


def add_knobs(network: nn.Module, knobs: Sequence[Knob]) -> TunableModel:
    """Convert a plain network and give it the kernels of one or several knobs, which add up.

    Formula: ``W + sum_k sum_j alpha_kj W_kj`` in every layer, where alpha_k = phi_k(lambda_k) depends on the tuning
    parameters of knob k alone; lambda is that of all knobs, in their order.

    Entries of lambda that the base reads itself keep their place and serve all knobs; those of the knobs fill the
    others.

    Args:
        network: The base; copied, not changed.
        knobs: At least one that has layers, each of this base. Where these have the same rank the kernels stay factors.

    Raises:
        ValueError: Two tuning parameters of one name, or tensors that do not fit the network.
    """
    columns = _columns(entries_read(network), knobs)
    spec = _joined_spec(knobs, columns)
    net = convert(network, **_conversion(network, [knob for knob in knobs if knob.layers], spec))
    net.spec = spec
    with torch.no_grad():
        filled: list[set[str]] = [set() for _ in knobs]
        for stack, layer_name, layer, parts in _named_stacks(net):
            _fill(stack, layer_name, parts, knobs, filled)
            _fill_phi(layer.tuning, layer_name, knobs, columns, spec)
    for knob, names in zip(knobs, filled, strict=True):
        unused = sorted(set(knob.tensors) - names - {"phi.weight", "phi.bias"})
        if unused:
            raise ValueError(f"load_knob: network must have the layers of the knob; got none for {unused[0]!r}")
    return net


def _columns(read: Sequence[int], knobs: Sequence[Knob]) -> list[list[int]]:
    """Return where the tuning parameters of each knob stand in the lambda of all."""
    free = (place for place in itertools.count() if place not in read)
    return [[place if place in read else next(free) for place in range(knob.spec.num_params)] for knob in knobs]


def _named_stacks(net: TunableModel) -> Iterator[tuple[str, str, Any, list[Tensor]]]:
    """Yield (name of the stack, name of the layer, layer, parameters) of every stack, once."""
    seen: set[int] = set()
    for prefix, owner, attribute, layer in stacks_of(net):
        parts = stack_parts(owner, attribute)
        if id(parts[0]) in seen:
            continue
        seen.add(id(parts[0]))
        stack = f"{prefix}.{attribute}" if prefix else attribute
        yield stack, stack if isinstance(layer, ParameterBlend) else prefix, layer, parts


def _joined_spec(knobs: Sequence[Knob], columns: Sequence[Sequence[int]]) -> LambdaSpec:
    entries: dict[int, dict[str, Any]] = {}
    for knob, places in zip(knobs, columns, strict=True):
        values = {key: value for key, value in knob.spec.to_dict().items() if key != "domain"}
        for index, place in enumerate(places):
            entries.setdefault(place, {key: value[index] for key, value in values.items()})
    ordered = [entries[place] for place in sorted(entries)]
    names = [entry["names"] for entry in ordered]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(
                f"load_knob: knobs must have tuning parameters of different names; got {name!r} twice: load the second "
                f"into the result of the first, with rename={{{name!r}: {name + '2'!r}}}"
            )
    return LambdaSpec.from_dict({"domain": "box", **{key: [entry[key] for entry in ordered] for key in ordered[0]}})


def _conversion(network: nn.Module, knobs: Sequence[Knob], spec: LambdaSpec) -> dict[str, Any]:
    """Return the arguments of the `convert` call that makes room for all knobs."""
    known = inspect.signature(convert).parameters
    named = {key: value for key, value in spec.to_dict().items() if key in known}
    if len(knobs) == 1:
        return {**knobs[0].conversion, **named}
    modules = dict(network.named_modules())
    layers = list(dict.fromkeys(name for knob in knobs for name in knob.layers))
    ranks = {knob.conversion.get("rank") for knob in knobs}
    on_map = {knob.conversion["on_map"] for knob in knobs}
    return {
        "num_params": spec.num_params,
        "num_kernels": 1 + sum(knob.num_kernels for knob in knobs),
        "include": [name for name in layers if name in modules],
        "parameters": [name for name in layers if name not in modules],
        "on_map": on_map.pop() if len(on_map) == 1 else "raise",
        "rank": ranks.pop() if len(ranks) == 1 else None,
        **named,
    }


def _fill(stack: str, layer: str, parts: Sequence[Tensor], knobs: Sequence[Knob], filled: Sequence[set[str]]) -> None:
    """Write the new kernels of every knob into its part of a stack."""
    start = 0
    for knob, names in zip(knobs, filled, strict=True):
        end = start + knob.num_kernels
        if len(parts) == 3:
            pieces = [(f"{stack}.u", parts[1][start:end]), (f"{stack}.v", parts[2][start:end])]
            values = [knob.tensors.get(name) for name, _ in pieces]
        else:
            target = parts[1][start:end] if len(parts) == 2 else parts[0][1 + start : 1 + end]
            pieces, values = [(f"{stack}.new", target)], [knob.new_kernels(stack, target.shape[1:])]
        for (name, target), value in zip(pieces, values, strict=True):
            if value is None and layer not in knob.layers:
                continue
            if value is None:
                raise ValueError(f"load_knob: path must be a whole knob file; got one without {name}")
            if value.shape != target.shape:
                raise ValueError(
                    f"load_knob: {name} must be {list(target.shape)} for this network; got {list(value.shape)}"
                )
            target.copy_(value)
            names.update((name, f"{stack}.u", f"{stack}.v"))
        start = end


def _fill_phi(
    tuning: Any, layer: str, knobs: Sequence[Knob], columns: Sequence[Sequence[int]], spec: LambdaSpec
) -> None:
    """Write phi of every knob into its block; the parameters of a knob move its own kernels only.

    A parameter that several knobs share is divided by one scale, that of `spec`, before it reaches phi.
    """
    if sum(bool(knob.layers) for knob in knobs) > 1:
        tuning.weight.zero_()
        tuning.bias.zero_()
    row = 0
    for knob, places in zip(knobs, columns, strict=True):
        rows = slice(row, row + knob.num_kernels)
        if layer in knob.layers:
            index = list(knob.layers).index(layer)
            ratios = [spec.scales[place] / own for place, own in zip(places, knob.spec.scales, strict=True)]
            weight = knob.tensors["phi.weight"][index].to(tuning.weight)
            tuning.weight[rows, places] = weight * weight.new_tensor(ratios)
            tuning.bias[rows] = knob.tensors["phi.bias"][index].to(tuning.bias)
        row = rows.stop
