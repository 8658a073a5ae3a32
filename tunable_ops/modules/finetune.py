"""Fine-tuning from a plain network: its checkpoint, its base kernels, and groups for the optimiser."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from tunable_ops.modules.kernel_stacks import BaseAndNew, stack_parts
from tunable_ops.modules.layer import StackedLayer
from tunable_ops.modules.low_rank import join_kernels
from tunable_ops.modules.model import TunableModel
from tunable_ops.modules.tunable_parameter import (
    ParameterBlend,
    parametrise,
    register_blend,
    stack_plain,
    unparametrise,
)

# Where checkpoints hold the state dict, the average over training before the last step; and what wrappers (of several
# processes, of trainers, of torch.compile) put before its names.
_HOLDERS = ("params_ema", "params", "state_dict", "model")
_PREFIXES = ("module.", "model.", "_orig_mod.")


def load_plain(net: TunableModel, state: Mapping[str, Tensor]) -> None:
    """Load a plain network's state dict into its conversion, as if `convert` had been given that network.

    phi stays as it is: in a fresh conversion the network then computes what the plain one did.

    Args:
        net: A conversion of the plain network's architecture.
        state: The plain network's state dict, or a checkpoint that holds it under one of the keys "params_ema",
            "params", "state_dict" and "model"; where there are several, under the first of these. A prefix "module.",
            "model." or "_orig_mod." that all names have is removed unless the network's own names have it.

    Raises:
        TypeError: Not a model, or not a mapping of tensors.
        ValueError: Names or shapes that do not fit; the first ones are named and nothing is loaded.
    """
    _check_model("load_plain", net)
    targets = dict(_plain_targets(net))
    state = _without_prefixes(_unwrapped(state), targets)
    missing = sorted(set(targets) - set(state))
    unexpected = sorted(set(state) - set(targets))
    shapes = [n for n in targets if n in state and targets[n][1] != tuple(state[n].shape)]
    for problem, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes)):
        if names:
            raise ValueError(
                f"load_plain: state must fit the plain network; got {len(names)} {problem}: {', '.join(names[:4])}"
            )
    with torch.no_grad():
        for name, (tensors, _, stacked) in targets.items():
            value = state[name].to(tensors[0].device, tensors[0].dtype)
            parts: tuple[Tensor, ...] = (value,)
            if len(tensors) == 3:  # new kernels of low rank are zero when their first factor is
                parts = (value.unsqueeze(0), torch.zeros_like(tensors[1]), tensors[2])
            elif stacked is not None:
                counts = [len(tensor) for tensor in tensors]
                stack = stack_plain(value, sum(counts), stacked.tuning.constant)
                parts = stack.view(-1, *tensors[0].shape[1:]).split(counts)
            for tensor, part in zip(tensors, parts, strict=True):
                tensor.copy_(part)


def _unwrapped(state: Any) -> Mapping[str, Tensor]:
    """Return the state dict in a checkpoint."""
    found = state
    if isinstance(state, Mapping) and not _holds_tensors(state):
        found = next((state[key] for key in _HOLDERS if isinstance(state.get(key), Mapping)), state)
    if not _holds_tensors(found):
        got = type(state).__name__
        if isinstance(found, Mapping):
            other = next(key for key, value in found.items() if not isinstance(value, Tensor))
            got += f" with a {type(found[other]).__name__} at {other!r}"
        raise TypeError(
            f"load_plain: state must be a mapping of names to tensors; got {got}. A checkpoint may hold it under "
            f"{', '.join(_HOLDERS)}"
        )
    return found


def _holds_tensors(state: Any) -> bool:
    return isinstance(state, Mapping) and all(isinstance(value, Tensor) for value in state.values())


def _without_prefixes(state: Mapping[str, Tensor], targets: Mapping[str, Any]) -> Mapping[str, Tensor]:
    """Remove the prefixes that wrappers give to all names of a network."""
    while state and not all(name in state for name in targets):
        prefix = next((prefix for prefix in _PREFIXES if all(name.startswith(prefix) for name in state)), None)
        if prefix is None:
            break
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def _plain_targets(net: TunableModel) -> Iterator[tuple[str, Any]]:
    """Yield every name of the plain network's state dict with its tensors in `net`, its shape and its tunable layer."""
    hidden: set[int] = set()
    for prefix, owner, attribute, layer in stacks_of(net):
        shape = layer.shape if isinstance(layer, ParameterBlend) else tuple(getattr(owner, attribute).shape[1:])
        tensors = stack_parts(owner, attribute)
        hidden.update(map(id, tensors))
        yield (f"{prefix}.{attribute}" if prefix else attribute), (tensors, shape, layer)
    for layer in net.layers:
        hidden.update(id(t) for t in layer.tuning.state_dict(keep_vars=True).values())
    for name, tensor in net.network.state_dict(keep_vars=True).items():
        if id(tensor) not in hidden:
            yield name, ([tensor], tuple(tensor.shape), None)


def stacks_of(net: TunableModel) -> Iterator[tuple[str, nn.Module, str, Any]]:
    """Yield (name of the owner, owner, attribute, tunable layer) of every stack, under each of its names."""
    for prefix, module in net.network.named_modules(remove_duplicate=False):
        if isinstance(module, StackedLayer):
            for attribute in ("weight", "bias"):
                if module.stack(attribute) is not None:
                    yield prefix, module, attribute, module
        elif parametrize.is_parametrized(module):
            for attribute, blends in module.parametrizations.items():  # type: ignore[union-attr, operator]
                if isinstance(blends[0], ParameterBlend):
                    yield prefix, module, attribute, blends[0]


def split_base(net: TunableModel) -> None:
    """Keep the base kernels (the plain ones, box domain) and the new ones in separate parameters.

    Costs one copy of the kernels per call; `merge_base` undoes it. State dicts keep their names and shapes. New
    kernels of low rank (`convert(..., rank=r)`) are apart from the start and stay so.

    Raises:
        ValueError: A model on the simplex, where every kernel starts as the plain one and none is the base.
    """
    _check_model("split_base", net)
    if net.spec.domain != "box":
        raise ValueError(f"split_base: net must be on the box; got domain {net.spec.domain!r}")
    done: dict[int, tuple[Tensor, Any]] = {}
    for _, owner, attribute, layer in list(stacks_of(net)):
        (whole, *more) = stack_parts(owner, attribute)
        if more:
            continue
        if isinstance(layer, ParameterBlend):
            stack = unparametrise(owner, attribute)
            layer.split = True
            register_blend(owner, attribute, nn.Parameter(stack, whole.requires_grad), layer)
        else:
            parametrise(owner, attribute, BaseAndNew())
        parts: Any = owner.parametrizations[attribute]  # type: ignore[index]
        _, first = done.setdefault(id(whole), (whole, parts))
        parts.original0, parts.original1 = first.original0, first.original1  # tied stacks stay tied
    if not hasattr(net, "_state_hooks"):
        net._state_hooks = (  # type: ignore[assignment]
            net.register_state_dict_post_hook(_merge_state),
            net.register_load_state_dict_pre_hook(_split_state),
        )


def merge_base(net: TunableModel) -> None:
    """Undo `split_base`: one stack per layer again, trainable if one of its parts was; low ranks stay as they are."""
    _check_model("merge_base", net)
    done: dict[int, tuple[Tensor, nn.Parameter]] = {}
    for _, owner, attribute, layer in list(stacks_of(net)):
        parts = stack_parts(owner, attribute)
        if len(parts) != 2:
            continue
        stack = nn.Parameter(unparametrise(owner, attribute), any(part.requires_grad for part in parts))
        _, stack = done.setdefault(id(parts[0]), (parts[0], stack))  # tied stacks stay tied
        if isinstance(layer, ParameterBlend):
            layer.split = False
            register_blend(owner, attribute, stack, layer)
        else:
            owner.register_parameter(attribute, stack)


def freeze_base(net: TunableModel, frozen: bool = True) -> None:
    """Freeze (or unfreeze) the base kernels; `split_base` is called first.

    Raises:
        ValueError: As `split_base`.
    """
    split_base(net)
    for _, owner, attribute, _ in stacks_of(net):
        stack_parts(owner, attribute)[0].requires_grad_(not frozen)


def freeze_all_but_new(net: TunableModel) -> None:
    """Freeze everything but the new kernels: at lambda = 0 the network stays what it was, bit for bit.

    The base kernels, phi (whose bias would let new kernels act at lambda = 0) and what is not tunable. New kernels that
    are frozen already, because the plain one was, stay so. Batch norms in training mode still gather statistics.

    Raises:
        ValueError: As `split_base`.
    """
    split_base(net)
    new = {id(part) for _, owner, attribute, _ in stacks_of(net) for part in stack_parts(owner, attribute)[1:]}
    for parameter in net.parameters():
        if id(parameter) not in new:
            parameter.requires_grad_(False)


def optimizer_groups(
    net: TunableModel,
    *,
    base: Mapping[str, Any] | None = None,
    new: Mapping[str, Any] | None = None,
    phi: Mapping[str, Any] | None = None,
    rest: Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Return parameter groups for a torch optimiser: base kernels, new kernels, phi, and everything else.

    On the box the base kernels are the plain ones (`split_base` is called if `base` has options); on the simplex every
    kernel is a new one. Frozen parameters and empty groups are left out.

    Args:
        net: The model.
        base: Options of the base kernels, e.g. {"lr": 1e-5}.
        new: Options of the new kernels.
        phi: Options of phi.
        rest: Options of what is not tunable (norms, embeddings).

    Returns:
        Groups with the keys "name", "params" and the options.

    Raises:
        ValueError: Options for base kernels on the simplex.
    """
    _check_model("optimizer_groups", net)
    if base is not None:
        split_base(net)
    groups: dict[str, dict[int, Tensor]] = {"base": {}, "new": {}, "phi": {}, "rest": {}}
    for _, owner, attribute, _ in stacks_of(net):
        parts = stack_parts(owner, attribute)
        for name, part in zip(("base", "new", "new") if len(parts) > 1 else ("new",), parts, strict=False):
            groups[name][id(part)] = part
    for layer in net.layers:
        groups["phi"].update((id(t), t) for t in layer.tuning.parameters())
    grouped = {key for group in groups.values() for key in group}
    groups["rest"].update((id(t), t) for t in net.parameters() if id(t) not in grouped)
    options = {"base": base, "new": new, "phi": phi, "rest": rest}
    result = []
    for name, group in groups.items():
        params = [t for t in group.values() if t.requires_grad]
        if params:
            result.append({"name": name, "params": params, **(options[name] or {})})
    return result


def _check_model(op: str, net: Any) -> None:
    if not isinstance(net, TunableModel):
        raise TypeError(f"{op}: net must be a TunableModel; got {type(net).__name__}")


def _state_names(net: TunableModel, prefix: str) -> Iterator[tuple[str, str, str]]:
    """Yield the names (whole, base, new) that every split stack has in the state dict."""
    for name, owner, attribute, layer in stacks_of(net):
        if len(stack_parts(owner, attribute)) != 2:
            continue
        start = f"{prefix}network.{name}." if name else f"{prefix}network."
        inner = f"{start}parametrizations.{attribute}."
        whole = f"{inner}original" if isinstance(layer, ParameterBlend) else f"{start}{attribute}"
        yield whole, f"{inner}original0", f"{inner}original1"


def _merge_state(net: Any, state: dict[str, Tensor], prefix: str, metadata: Any) -> None:
    for whole, base, new in _state_names(net, prefix):
        if base in state:
            state[whole] = join_kernels(state.pop(base), state.pop(new))


def _split_state(net: Any, state: dict[str, Tensor], prefix: str, *args: Any) -> None:
    for whole, base, new in _state_names(net, prefix):
        if whole in state:
            stack = state.pop(whole)
            state[base], state[new] = stack[:1], stack[1:]
