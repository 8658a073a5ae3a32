"""Knobs apart from their base: take them out of a conversion, and add several of them to one plain network."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tunable_ops.modules.convert import convert
from tunable_ops.modules.finetune import _stacks
from tunable_ops.modules.kernel_stacks import stack_parts
from tunable_ops.modules.model import TunableModel
from tunable_ops.modules.spec import LambdaSpec
from tunable_ops.modules.tunable_parameter import ParameterBlend


class Knob(NamedTuple):
    """What a conversion on the box adds to its base; p tuning parameters and R = P - 1 new kernels per layer.

    Args:
        spec: Names, ranges and defaults of its tuning parameters.
        conversion: The arguments of `convert`.
        layers: The names of the tunable layers and parameters, in the model's order.
        tensors: For every stack NAME (as "body.0.weight") either NAME.new [R, *kernel], or the factors NAME.u [R, O, r]
            and NAME.v [R, r, K]; and phi of all layers, phi.weight [layers, R, p] and phi.bias [layers, R].
    """

    spec: LambdaSpec
    conversion: Mapping[str, Any]
    layers: Sequence[str]
    tensors: Mapping[str, Tensor]

    @property
    def num_kernels(self) -> int:
        """The number R of new kernels per layer."""
        return self.tensors["phi.bias"].shape[1]

    def new_kernels(self, stack: str, kernel: Sequence[int]) -> Tensor | None:
        """Return the new kernels of a stack, [R, *kernel]; None if the knob leaves that stack alone."""
        if f"{stack}.new" in self.tensors:
            return self.tensors[f"{stack}.new"]
        if f"{stack}.u" in self.tensors:
            u, v = self.tensors[f"{stack}.u"], self.tensors[f"{stack}.v"]
            wide = torch.promote_types(u.dtype, torch.float32)
            return torch.bmm(u.to(wide), v.to(wide)).view(-1, *kernel)
        return None


def take_knob(net: TunableModel) -> Knob:
    """Return what a conversion adds to its base; the tensors are the model's own.

    Raises:
        ValueError: A model on the simplex, or one that `convert` did not make.
    """
    if net.spec.domain != "box" or net.conversion is None or "control" in net.conversion:
        how = "with tunable_ops.convert, on the box (domain='box'), where the base is a kernel of its own"
        raise ValueError(f"take_knob: net must be made {how}; got domain {net.spec.domain!r}, {type(net).__name__}")
    layers: dict[str, nn.Module] = {}
    tensors: dict[str, Tensor] = {}
    for stack, layer_name, layer, parts in _named_stacks(net):
        layers.setdefault(layer_name, layer)
        if len(parts) == 3:
            tensors[f"{stack}.u"], tensors[f"{stack}.v"] = parts[1:]
        else:
            tensors[f"{stack}.new"] = parts[1] if len(parts) == 2 else parts[0][1:]
    tunings: list[Any] = [layer.tuning for layer in layers.values()]
    tensors["phi.weight"] = torch.stack([tuning.weight for tuning in tunings])
    tensors["phi.bias"] = torch.stack([tuning.bias for tuning in tunings])
    return Knob(net.spec, net.conversion, tuple(layers), {k: v.detach() for k, v in tensors.items()})


def add_knobs(network: nn.Module, knobs: Sequence[Knob]) -> TunableModel:
    """Convert a plain network and give it the kernels of one or several knobs, which add up.

    Formula: ``W + sum_k sum_j alpha_kj W_kj`` in every layer, where alpha_k = phi_k(lambda_k) depends on the tuning
    parameters of knob k alone; lambda is that of all knobs, in their order.

    Args:
        network: The base; copied, not changed.
        knobs: At least one. Where all have the same rank the kernels stay factors.

    Raises:
        ValueError: Two tuning parameters of one name, or tensors that do not fit the network.
    """
    spec = _joined_spec([knob.spec for knob in knobs])
    net = convert(network, **_conversion(network, knobs, spec))
    net.spec = spec
    with torch.no_grad():
        filled: list[set[str]] = [set() for _ in knobs]
        for stack, layer_name, layer, parts in _named_stacks(net):
            _fill(stack, parts, knobs, filled)
            _fill_phi(layer.tuning, layer_name, knobs)
    for knob, names in zip(knobs, filled, strict=True):
        unused = sorted(set(knob.tensors) - names - {"phi.weight", "phi.bias"})
        if unused:
            raise ValueError(f"add_knobs: network must have the layers of the knob; got none for {unused[0]!r}")
    return net


def _named_stacks(net: TunableModel) -> Iterator[tuple[str, str, Any, list[Tensor]]]:
    """Yield (name of the stack, name of the layer, layer, parameters) of every stack, once."""
    seen: set[int] = set()
    for prefix, owner, attribute, layer in _stacks(net):
        parts = stack_parts(owner, attribute)
        if id(parts[0]) in seen:
            continue
        seen.add(id(parts[0]))
        stack = f"{prefix}.{attribute}" if prefix else attribute
        yield stack, stack if isinstance(layer, ParameterBlend) else prefix, layer, parts


def _joined_spec(specs: Sequence[LambdaSpec]) -> LambdaSpec:
    names = [name for spec in specs for name in spec.names]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"add_knobs: knobs must have tuning parameters of different names; got {name!r} twice")
    dicts = [spec.to_dict() for spec in specs]
    joined = {key: [entry for each in dicts for entry in each[key]] for key in dicts[0] if key != "domain"}
    return LambdaSpec.from_dict({**joined, "domain": "box"})


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


def _fill(stack: str, parts: Sequence[Tensor], knobs: Sequence[Knob], filled: Sequence[set[str]]) -> None:
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
            if value is None:
                continue
            if value.shape != target.shape:
                raise ValueError(
                    f"add_knobs: {name} must be {list(target.shape)} for this network; got {list(value.shape)}"
                )
            target.copy_(value)
            names.update((name, f"{stack}.u", f"{stack}.v"))
        start = end


def _fill_phi(tuning: Any, layer: str, knobs: Sequence[Knob]) -> None:
    """Write phi of every knob into its block; the parameters of a knob move its own kernels only."""
    if len(knobs) > 1:
        tuning.weight.zero_()
        tuning.bias.zero_()
    row = column = 0
    for knob in knobs:
        rows, columns = slice(row, row + knob.num_kernels), slice(column, column + knob.spec.num_params)
        if layer in knob.layers:
            place = list(knob.layers).index(layer)
            tuning.weight[rows, columns] = knob.tensors["phi.weight"][place].to(tuning.weight)
            tuning.bias[rows] = knob.tensors["phi.bias"][place].to(tuning.bias)
        row, column = rows.stop, columns.stop
