"""Back to a plain network: fold once, or keep a plain network whose kernels are blended anew in place."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from tunable_ops import functional
from tunable_ops.modules.convert import carry_over, copy_network
from tunable_ops.modules.layer import StackedLayer, TunableLayer
from tunable_ops.modules.model import TunableModel, first_float
from tunable_ops.modules.spec import read_lambda
from tunable_ops.modules.stacks import stack_parts, whole_stack
from tunable_ops.modules.tunable_parameter import ParameterBlend, unparametrise
from tunable_ops.modules.tuning import blend_weights


def fold(net: nn.Module, lam: Tensor | Sequence[float]) -> nn.Module:
    """A plain network that computes what `net` computes at `lam`: same class as before `convert`, no overhead.

    Args:
        net: A TunableModel, or one tunable layer.
        lam: [p] or [1, p].

    Returns:
        A copy with torch's own layers; `net` is not changed.

    Raises:
        TypeError: `net` is neither.
        ValueError: A per-sample lambda or a map (they have no single kernel), or one that does not fit; or a layer
            that is not a blend of kernels, such as CFSNet's.

    Example:
        >>> from tunable_ops.modules.tunable_conv import TunableConv2d
        >>> fold(TunableConv2d(3, 8, 3, num_params=2), [0.5, 0.5])
        Conv2d(3, 8, kernel_size=(3, 3), stride=(1, 1))
    """
    with torch.no_grad():
        folded, targets = _skeleton(net)
        _blend_into(targets, _shared_lambda("fold", net, lam))
    return folded


class LiveFold(nn.Module):
    """A plain network at a lambda that can be set anew: the kernels are blended in place, at the same addresses.

    ``live = LiveFold(net); live.set(lam); y = live(x)``: every call costs what the plain network costs, and a CUDA
    graph captured over it stays valid when lambda changes.

    Args:
        net: A TunableModel. Kept as it is; `set` reads its kernels, so that later training of them shows after the
            next `set`. What is not tunable (norms, say) was copied and stays.
        lam: Where to start; default the model's defaults.
    """

    def __init__(self, net: TunableModel, lam: Tensor | Sequence[float] | None = None) -> None:
        super().__init__()
        if not isinstance(net, TunableModel):
            raise TypeError(f"LiveFold: net must be a TunableModel; got {type(net).__name__}")
        with torch.no_grad():
            self.network, targets = _skeleton(net)
        self.network.requires_grad_(False)
        # In a tuple: the tunable model is a source, not a part (no second set of kernels in the state dict).
        self._source = (net,)
        self._targets = targets
        self.set(net.spec.defaults if lam is None else lam)

    def set(self, lam: Tensor | Sequence[float]) -> None:
        """Blends all kernels for `lam`, [p] or [1, p], in place.

        Raises:
            ValueError: As `fold`.
        """
        with torch.no_grad():
            self.lam = _shared_lambda("LiveFold.set", self._source[0], lam)
            _blend_into(self._targets, self.lam)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the plain network."""
        return self.network(*args, **kwargs)


# A tunable layer, and for each of its stacks: how to read it now, and the plain parameter that is its blend.
Targets = list[tuple[TunableLayer, list[tuple[Callable[[], Tensor], nn.Parameter]]]]


def _skeleton(net: nn.Module) -> tuple[nn.Module, Targets]:
    """A plain copy with unset kernels, and what is to be blended into them."""
    if isinstance(net, StackedLayer):
        layers: Sequence[TunableLayer] = (net,)
        network: nn.Module = net
    elif isinstance(net, TunableModel):
        layers, network = net.layers, net.network
    else:
        raise TypeError(f"fold: net must be a TunableModel or a tunable layer; got {type(net).__name__}")
    memo: dict[int, Any] = {}
    plain_of: dict[int, nn.Parameter] = {}
    targets: Targets = []
    for layer in layers:
        if isinstance(layer, ParameterBlend):
            continue  # below: it is replaced in its owner
        if not isinstance(layer, StackedLayer):
            raise ValueError(f"fold: net must have layers with a plain form alone; got {type(layer).__name__}")
        plain = layer.plain()
        memo[id(layer)] = plain
        pairs: list[tuple[Callable[[], Tensor], nn.Parameter]] = []
        for name in ("weight", "bias"):
            stack = getattr(layer, name)
            if stack is None:
                continue
            # Tied stacks fold into tied parameters.
            parts = stack_parts(layer, name)
            key = id(parts[0])
            if key not in plain_of:
                trainable = any(part.requires_grad for part in parts)
                plain_of[key] = nn.Parameter(torch.empty_like(stack[0]), requires_grad=trainable)
            setattr(plain, name, plain_of[key])
            pairs.append((partial(whole_stack, layer, name), plain_of[key]))
        targets.append((layer, pairs))
    folded = copy_network(network, memo)
    for layer, _ in targets:
        carry_over(layer, memo[id(layer)], memo)
    return folded, targets + list(_fold_parameters(network, folded, layers))


def _fold_parameters(network: nn.Module, folded: nn.Module, layers: Sequence[TunableLayer]) -> Iterator[Any]:
    """Replaces the parametrisations of `convert` in the copy by plain parameters, tied where the stacks are."""
    plain_of: dict[int, nn.Parameter] = {}
    sources = dict(network.named_modules())
    for prefix, module in list(folded.named_modules()):
        source = sources.get(prefix)
        if source is None or not parametrize.is_parametrized(source):
            continue
        for attribute, blends in list(source.parametrizations.items()):  # type: ignore[union-attr, operator]
            blend = blends[0]
            if not isinstance(blend, ParameterBlend) or blend not in layers:
                continue
            stack = unparametrise(module, attribute)
            parts = stack_parts(source, attribute)
            if id(parts[0]) not in plain_of:
                trainable = any(part.requires_grad for part in parts)
                plain_of[id(parts[0])] = nn.Parameter(stack.new_empty(blend.shape), requires_grad=trainable)
            module.register_parameter(attribute, plain_of[id(parts[0])])
            yield blend, [(partial(whole_stack, source, attribute), plain_of[id(parts[0])])]


def _blend_into(targets: Targets, lam: Tensor) -> None:
    """Blends every stack into its plain parameter, in fp32 (fp64 for fp64), rounding once."""
    alphas, starts = blend_weights([layer.tuning for layer, _ in targets], lam)
    blends = [
        (stack, start, plain.view(stack.shape[1:]))
        for (_, pairs), start in zip(targets, starts, strict=True)
        for stack, plain in ((read(), plain) for read, plain in pairs)
    ]
    if blends:
        stacks, firsts, outputs = zip(*blends, strict=True)
        functional.blend_into(stacks, alphas, firsts, outputs)


def _shared_lambda(op: str, net: nn.Module, lam: Tensor | Sequence[float]) -> Tensor:
    """Lambda [p] on the model's device; a per-sample one or a map has no single kernel."""
    tuning = net.layers[0].tuning if isinstance(net, TunableModel) else net.tuning
    values = read_lambda(op, lam, tuning.num_params, like=first_float(net))  # type: ignore[union-attr, arg-type]
    if values.dim() == 2 and values.shape[0] == 1:
        values = values[0]
    if values.dim() != 1:
        raise ValueError(f"{op}: lam must be [p], one lambda for all samples; got shape {list(values.shape)}")
    if not bool(torch.isfinite(values).all()):
        raise ValueError(f"{op}: lam must be finite; got {values.tolist()}")
    return values
