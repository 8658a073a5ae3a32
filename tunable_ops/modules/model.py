"""TunableModel: a network with tunable layers, called with lambda."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tunable_ops.modules import frame as frames
from tunable_ops.modules.lambda_planes import LambdaPlanes
from tunable_ops.modules.layer import TunableLayer
from tunable_ops.modules.network_blend import BlendPlan
from tunable_ops.modules.spec import LambdaSpec


class TunableModel(nn.Module):
    """A network whose tunable layers take lambda from the call: ``y = net(x, lam)``.

    lambda is an ordinary input of the graph and reaches the layers through a stack of frames; the alphas of all layers
    come from one matrix product. `convert` makes a model of a plain network; wrap a network that was written with
    tunable layers by hand: ``TunableModel(network, num_params=2)``.

    Args:
        network: Holds at least one tunable layer, or one that reads lambda (`LambdaPlanes`); layers inside a nested
            TunableModel are that one's own.
        num_params: p; every layer's must be the same.
        domain: "simplex" or "box".
        names: One name per tuning parameter; default lambda0, lambda1, ...
        ranges: (low, high) of each; default (0, 1).
        defaults: Where a slider starts; default the centre of the simplex, 0 on the box.
        on_map: What layers without a spatial grid do with a map of lambda: "raise" or take its "mean".

    Attributes:
        network: The network.
        spec: Names, ranges, defaults and domain of lambda (`LambdaSpec`).
        conversion: The keyword arguments of the `convert` call that made the model, else None.
        notes: Free remarks, of types that JSON knows, which travel with a checkpoint.
    """

    def __init__(
        self,
        network: nn.Module,
        num_params: int,
        *,
        domain: str = "simplex",
        names: Sequence[str] | None = None,
        ranges: Sequence[Sequence[float]] | None = None,
        defaults: Sequence[float] | None = None,
        on_map: str = "raise",
    ) -> None:
        super().__init__()
        if on_map not in frames.ON_MAP:
            raise ValueError(f"TunableModel: on_map must be one of {frames.ON_MAP}; got {on_map!r}")
        self.network = network
        self.spec = LambdaSpec.create(num_params, domain, names, ranges, defaults)
        self.on_map = on_map
        self.conversion: Mapping[str, Any] | None = None
        self.notes: dict[str, Any] = {}
        self._layers = [layer for _, layer in tunable_layers(network)]
        read = entries_read(network)
        if not self._layers and not read:
            raise ValueError(f"TunableModel: network must have a tunable layer; got {type(network).__name__}")
        if read and max(read) >= num_params:
            raise ValueError(
                f"TunableModel: network must read entries of lambda below num_params = {num_params}; got {read}"
            )
        for name, layer in tunable_layers(network):
            if layer.tuning.num_params != num_params:
                raise ValueError(
                    f"TunableModel: network must have layers of num_params = {num_params}; got "
                    f"{layer.tuning.num_params} in {name!r}"
                )
        for slot, layer in enumerate(self._layers):
            layer.tuning.slot = slot
        self._plans: dict[str, BlendPlan] = {}

    @property
    def layers(self) -> tuple[TunableLayer, ...]:
        """The model's tunable layers, in the order of the network's modules."""
        return tuple(self._layers)

    def forward(self, input: Any, lam: Tensor | Sequence[float], *args: Any, **kwargs: Any) -> Any:
        """Run the network at lambda.

        Args:
            input: The network's first argument.
            lam: [p], [B, p] or a map [B, p, H, W]; numbers or a tensor.
            args: Further arguments of the network.
            kwargs: The same, by name.

        Returns:
            What the network returns.

        Raises:
            TypeError: lam is neither numbers nor a floating-point tensor.
            ValueError: lam has a wrong length or a value that is not finite (values on a GPU are not checked).
        """
        lam = self.spec.check(lam, like=first_float(self.network))
        if lam.dim() == 2 and lam.shape[0] == 1:
            lam = lam[0]
        tunings, plan = [layer.tuning for layer in self._layers], self._plan(lam.device.type)
        frames.Frame(lam, tunings, plan, self.on_map).push()
        try:
            return self.network(input, *args, **kwargs)
        finally:
            frames.pop()

    def _plan(self, device_type: str) -> BlendPlan | None:
        """Return what is blended together, found once for each kind of device; None while compiling."""
        if torch.compiler.is_compiling():
            return None
        if device_type not in self._plans:
            self._plans[device_type] = BlendPlan([layer.kernel_stacks() for layer in self._layers], device_type)
        return self._plans[device_type]

    def extra_repr(self) -> str:
        """Return the names of lambda and its domain."""
        return f"lam={list(self.spec.names)}, domain={self.spec.domain!r}"


def tunable_layers(network: nn.Module) -> list[tuple[str, TunableLayer]]:
    """Return the tunable layers of a network and their names, each once; not those inside a nested TunableModel."""
    return [(name, module) for name, module in _own_modules(network) if isinstance(module, TunableLayer)]


def planes_of(network: nn.Module) -> list[LambdaPlanes]:
    """Return what appends lambda's planes in a network, held ones included; not those inside a nested TunableModel."""
    return [module for _, module in _own_modules(network) if isinstance(module, LambdaPlanes)]


def entries_read(network: nn.Module) -> list[int]:
    """Return the entries of lambda that the network reads itself, sorted."""
    return sorted({entry for planes in planes_of(network) if planes.values is None for entry in planes.entries})


def _own_modules(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield modules and their names, each once, without going into a nested TunableModel."""
    seen: set[int] = set()

    def walk(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
        if id(module) in seen or isinstance(module, TunableModel):
            return
        seen.add(id(module))
        yield name, module
        for child, inner in module.named_children():
            yield from walk(inner, f"{name}.{child}" if name else child)

    return walk(network, "")


def first_float(network: nn.Module) -> Tensor:
    """Return a parameter that shows a network's device and precision; a number where there is none."""
    return next((parameter for parameter in network.parameters() if parameter.is_floating_point()), torch.zeros(()))
