"""Back to a plain network: fold once, or keep a plain network whose kernels are blended in place for each lambda."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from tunable_ops import functional
from tunable_ops.modules.convert import carry_over, copy_network
from tunable_ops.modules.kernel_stacks import stack_parts, whole_stack
from tunable_ops.modules.lambda_planes import LambdaPlanes
from tunable_ops.modules.layer import ComputedLayer, StackedLayer, TunableLayer
from tunable_ops.modules.model import TunableModel, first_float, planes_of
from tunable_ops.modules.read_lambda import Lambda, read_lambda
from tunable_ops.modules.tunable_parameter import ParameterBlend, unparametrise
from tunable_ops.modules.tuning import blend_weights


def fold(net: nn.Module, lam: Lambda | None = None) -> nn.Module:
    """Return a plain network that computes what `net` does at `lam`: same class as before `convert`, no overhead.

    Args:
        net: A TunableModel, or one tunable layer.
        lam: For a model as in its calls, one for all samples: [p], [1, p], names with numbers, a number where p = 1,
            None: the defaults. For a layer, which knows neither units nor defaults, [p] or [1, p] as phi gets it.

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
        shared = _shared_lambda("fold", net, lam)
        _blend_into(targets, shared, net.spec.normalise(shared) if isinstance(net, TunableModel) else shared)
    return folded


def base_network(net: TunableModel) -> nn.Module:
    """Return the plain network of a conversion's base kernels: what was given to `convert`, if these did not move.

    Args:
        net: A TunableModel on the box.

    Returns:
        A copy with torch's own layers, which still reads the entries of lambda that it read itself; `net` is not
        changed.

    Raises:
        TypeError: Not a model.
        ValueError: A model on the simplex, where no kernel is the base, or layers without a plain form.
    """
    if not isinstance(net, TunableModel):
        raise TypeError(f"base_network: net must be a TunableModel; got {type(net).__name__}")
    if net.spec.domain != "box":
        raise ValueError(f"base_network: net must be on the box; got domain {net.spec.domain!r}")
    with torch.no_grad():
        plain, targets = _skeleton(net)
        if targets.computed:
            kinds = ", ".join(sorted({type(layer).__name__ for layer, _ in targets.computed}))
            raise ValueError(f"base_network: net must be blends of kernels alone, which have a base; got {kinds}")
        for target in targets.found:
            base = stack_parts(target.owner, target.attribute)[0][0]
            target.plain.copy_(base.view(target.plain.shape))
    return plain


class LiveFold(nn.Module):
    """A plain network whose lambda can be changed: the kernels are blended in place, at the same addresses.

    ``live = LiveFold(net); live.set(lam); y = live(x)``: every call costs what the plain network costs, and a CUDA
    graph captured over it stays valid when lambda changes.

    Args:
        net: A TunableModel. It stays as it is; `set` reads its kernels, so later training of them shows after the next
            `set`. What is not tunable (norms, say) was copied and does not change.
        lam: Where to start, as `fold`; default the model's defaults.

    Attributes:
        lam: Where it stands, [p] in the units of the model's `spec`.
    """

    def __init__(self, net: TunableModel, lam: Lambda | None = None) -> None:
        super().__init__()
        if not isinstance(net, TunableModel):
            raise TypeError(f"LiveFold: net must be a TunableModel; got {type(net).__name__}")
        with torch.no_grad():
            self.network, targets = _skeleton(net)
        self.network.requires_grad_(False)
        # In a tuple: the tunable model is a source, not a part (no second set of kernels in the state dict).
        self._source = (net,)
        self._targets = targets
        self.set(lam)

    def set(self, lam: Lambda | None = None) -> None:
        """Blend all kernels for `lam` in place; `lam` as for `fold`.

        Raises:
            ValueError: As `fold`.
        """
        with torch.no_grad():
            net = self._source[0]
            self.lam = _shared_lambda("LiveFold.set", net, lam)
            _blend_into(self._targets, self.lam, net.spec.normalise(self.lam))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the plain network."""
        return self.network(*args, **kwargs)


class _Target(NamedTuple):
    """A stack, `attribute` of `owner`, and the plain parameter that becomes its blend."""

    layer: TunableLayer
    owner: nn.Module
    attribute: str
    plain: nn.Parameter


class _Targets:
    """The targets of one fold; stacks that are tied fold into one parameter.

    Attributes:
        found: The stacks.
        computed: Layers whose plain form is no blend, and that form.
        planes: What else follows lambda in the plain copy, and is to hold it.
    """

    def __init__(self) -> None:
        self.found: list[_Target] = []
        self.computed: list[tuple[ComputedLayer, nn.Module]] = []
        self.planes: list[LambdaPlanes] = []
        self._plain_of: dict[int, nn.Parameter] = {}

    def add(self, layer: TunableLayer, owner: nn.Module, attribute: str, like: Tensor) -> nn.Parameter:
        """Return the plain parameter of a stack, shaped as `like`, its values not set yet."""
        parts = stack_parts(owner, attribute)
        plain = self._plain_of.get(id(parts[0]))
        if plain is None:
            plain = nn.Parameter(torch.empty_like(like), requires_grad=any(part.requires_grad for part in parts))
            self._plain_of[id(parts[0])] = plain
        self.found.append(_Target(layer, owner, attribute, plain))
        return plain


def _skeleton(net: nn.Module) -> tuple[nn.Module, _Targets]:
    """Return a plain copy whose kernels are not set yet, and what to blend into them."""
    if isinstance(net, StackedLayer | ComputedLayer):
        layers: Sequence[TunableLayer] = (net,)
        network: nn.Module = net
    elif isinstance(net, TunableModel):
        layers, network = net.layers, net.network
    else:
        raise TypeError(f"fold: net must be a TunableModel or a tunable layer; got {type(net).__name__}")
    memo: dict[int, Any] = {}
    targets = _Targets()
    stacked = [layer for layer in layers if not isinstance(layer, ParameterBlend)]
    for layer in stacked:
        if isinstance(layer, ComputedLayer):
            memo[id(layer)] = plain = layer.plain()
            targets.computed.append((layer, plain))
            continue
        if not isinstance(layer, StackedLayer):
            raise ValueError(f"fold: net must have layers with a plain form alone; got {type(layer).__name__}")
        memo[id(layer)] = plain = layer.plain()
        for name in ("weight", "bias"):
            stack = getattr(layer, name)
            if stack is not None:
                setattr(plain, name, targets.add(layer, layer, name, like=stack[0]))
    folded = copy_network(network, memo)
    for layer in stacked:
        carry_over(layer, memo[id(layer)], memo)
    _fold_parameters(network, folded, layers, targets)
    targets.planes += [planes for planes in planes_of(folded) if planes.values is None]
    return folded, targets


def _fold_parameters(network: nn.Module, folded: nn.Module, layers: Sequence[TunableLayer], targets: _Targets) -> None:
    """Replace the parametrisations of `convert` in the copy by plain parameters."""
    sources = dict(network.named_modules())
    for prefix, module in list(folded.named_modules()):
        source = sources.get(prefix)
        if source is None or not parametrize.is_parametrized(source):
            continue
        for attribute, blends in list(source.parametrizations.items()):  # type: ignore[union-attr, operator]
            blend = blends[0]
            if isinstance(blend, ParameterBlend) and blend in layers:
                stack = unparametrise(module, attribute)
                plain = targets.add(blend, source, attribute, like=stack[0].view(blend.shape))
                module.register_parameter(attribute, plain)


def _blend_into(targets: _Targets, natural: Tensor, lam: Tensor) -> None:
    """Blend every stack into its plain parameter, in fp32 (fp64 for fp64), rounding once; set the planes.

    Args:
        targets: What is set.
        natural: lambda [p] in its units, for the planes.
        lam: The same as phi gets it.
    """
    for planes in targets.planes:
        planes.hold(natural)
    for layer, plain in targets.computed:
        layer.write(plain, lam)
    found = targets.found
    alphas, starts = blend_weights((target.layer.tuning for target in found), lam)
    if found:
        stacks = [whole_stack(target.owner, target.attribute) for target in found]
        outputs = [target.plain.view(stack.shape[1:]) for target, stack in zip(found, stacks, strict=True)]
        functional.blend_into(stacks, alphas, starts, outputs)


def _shared_lambda(op: str, net: nn.Module, lam: Lambda | None) -> Tensor:
    """Return lambda [p] on the model's device, in its units; one per sample or a map has no single kernel."""
    if isinstance(net, TunableModel):
        values = net.spec.check(lam, first_float(net), op=op, warn=True)
    else:
        values = read_lambda(op, lam, net.tuning.num_params, first_float(net))  # type: ignore[union-attr, arg-type]
    if values.dim() == 2 and values.shape[0] == 1:
        values = values[0]
    if values.dim() != 1:
        raise ValueError(f"{op}: lam must be [p], one lambda for all samples; got shape {list(values.shape)}")
    if not bool(torch.isfinite(values).all()):
        raise ValueError(f"{op}: lam must be finite; got {values.tolist()}")
    return values
