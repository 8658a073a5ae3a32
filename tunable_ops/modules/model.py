"""TunableModel: a network with tunable layers, called with lambda."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tunable_ops.checks import is_one
from tunable_ops.modules import frame as frames
from tunable_ops.modules.lambda_planes import LambdaPlanes
from tunable_ops.modules.layer import TunableLayer
from tunable_ops.modules.network_blend import BlendPlan
from tunable_ops.modules.read_lambda import Lambda
from tunable_ops.modules.shared import SharedNetwork
from tunable_ops.modules.spec import LambdaSpec


class TunableModel(SharedNetwork, nn.Module):
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
        ranges: (low, high) of each, in its unit; default (0, 1).
        defaults: Where a slider starts, and what a call without lambda takes; default the centre of the simplex, 0 on
            the box.
        units: What each is counted in, such as "of 255"; default "", none.
        on_map: What layers without a spatial grid do with a map of lambda: "raise" or take its "mean".

    Attributes:
        network: The network.
        spec: Names, units, ranges, defaults and domain of lambda (`LambdaSpec`). phi gets lambda divided by its scales:
            on the box the largest end of each range, so that a knob from 0 to 50 sends 0 to 1 to the layers.
        conversion: The keyword arguments of the `convert` call that made the model, else None.
        left_alone: Names of the convertible layers and parameters that `convert` left plain, each with the reason.
        remember: Set it to True, and without gradients, on a CPU, the blended kernels are kept from the second call
            with the same lambda on, until lambda, phi or kernels change (memory: those of the plain network). Writes
            through ``.data``, as some averages of weights make them, are not seen; those that the network makes to its
            own kernels while it runs may be seen by the next call only. False, the default, blends at every call.
        notes: Free remarks, of types that JSON knows, which travel with a checkpoint.
        built_as: architecture and arguments of the plain network, where it comes from a file that names them; else
            None.
    """

    remember = False

    def __init__(
        self,
        network: nn.Module,
        num_params: int,
        *,
        domain: str = "simplex",
        names: Sequence[str] | None = None,
        ranges: Sequence[Sequence[float]] | None = None,
        defaults: Sequence[float] | None = None,
        units: Sequence[str] | None = None,
        on_map: str = "raise",
    ) -> None:
        super().__init__()
        if on_map not in frames.ON_MAP:
            raise ValueError(f"TunableModel: on_map must be one of {frames.ON_MAP}; got {on_map!r}")
        self.network = network
        self.spec = LambdaSpec.create(num_params, domain, names, ranges, defaults, units)
        self.on_map = on_map
        self.conversion: Mapping[str, Any] | None = None
        self.left_alone: dict[str, str] = {}
        self.notes: dict[str, Any] = {}
        self.built_as: Mapping[str, Any] | None = None
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
            layer.place = name
        for slot, layer in enumerate(self._layers):
            layer.tuning.slot = slot
        self._forget_plans()

    def _forget_plans(self) -> None:
        self._plans: dict[tuple[str, Collection[int]], BlendPlan] = {}
        self._pre_hooks: PreHooks | None = None
        self._children: list[Mapping[str, Any]] = []  # those of each layer, by name

    def __getstate__(self) -> dict[str, Any]:
        # What is found again at the next call belongs to this object alone.
        return {key: value for key, value in vars(self).items() if key not in ("_plans", "_pre_hooks", "_children")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._forget_plans()
        for attribute in ("left_alone", "notes"):  # older versions had neither
            vars(self).setdefault(attribute, {})
        vars(self).setdefault("built_as", None)

    @property
    def layers(self) -> tuple[TunableLayer, ...]:
        """The model's tunable layers, in the order of the network's modules."""
        return tuple(self._layers)

    def forward(self, input: Any, lam: Lambda | None = None, *args: Any, **kwargs: Any) -> Any:
        """Run the network at lambda.

        Args:
            input: The network's first argument.
            lam: In the units of `spec`: [p], [B, p] or a map [B, p, H, W], numbers or a tensor; one number where p = 1;
                names with numbers, tensors [B] or maps [B, H, W], where names left out have their defaults (on the
                simplex: share the rest of 1); None: the defaults.
            args: Further arguments of the network.
            kwargs: The same, by name.

        Returns:
            What the network returns.

        Values outside their range and, on the simplex, a sum that is not 1 give a `LambdaWarning`, where looking at
        them is free (not on a GPU); tensors in training mode do not.

        Raises:
            TypeError: lam is neither numbers nor floating-point tensors.
            ValueError: lam has a wrong length, an unknown name or a value that is not finite (values on a GPU are not
                checked).
        """
        warn = not (self.training and isinstance(lam, Tensor))
        lam = self.spec.check(lam, first_float(self.network), warn=warn)
        if lam.dim() == 2 and is_one(lam.shape[0]):
            # the reshape makes a trace refuse [B, p], for which its kernels are wrong
            lam = lam.reshape(self.spec.num_params) if torch.jit.is_tracing() else lam[0]
        elif lam.dim() == 1 and torch.jit.is_tracing():
            lam = lam.reshape(self.spec.num_params)
        natural, lam = lam, self.spec.normalise(lam)
        tunings = self._tunings()
        late = self._late()
        frame = frames.Frame(lam, tunings, self._plan(lam.device.type, late), self.on_map, late, natural)
        frame.push()
        try:
            return self.network(input, *args, **kwargs)
        finally:
            frames.pop()
            frame.end()

    def _tunings(self) -> list[Any]:
        """Return the phi of each layer, past `__getattr__`, which takes ten times as long: there may be hundreds."""
        if torch.compiler.is_compiling():
            return [layer._modules["tuning"] for layer in self._layers]
        if not self._children:
            self._children = [layer._modules for layer in self._layers]
        return [children["tuning"] for children in self._children]

    def _late(self) -> Collection[int]:
        """Return the slots of layers whose parameters a forward pre-hook may yet put in place."""
        if torch.compiler.is_compiling():
            return ()
        if self._pre_hooks is None:
            self._pre_hooks = PreHooks(self.network, self._layers)
        return self._pre_hooks.late()

    def _plan(self, device_type: str, late: Collection[int]) -> BlendPlan | None:
        """Return what is blended together, found once for each kind of device; None while compiling."""
        if torch.compiler.is_compiling():
            return None
        key = device_type, late
        if key not in self._plans:
            # A trace of torch.jit would record what is read of the kernels here, and differ from that of a later call.
            tracing = torch._C._get_tracing_state()
            torch._C._set_tracing_state(None)  # type: ignore[attr-defined]
            stacks = [None if slot in late else layer.kernel_stacks() for slot, layer in enumerate(self._layers)]
            try:
                self._plans[key] = BlendPlan(stacks, device_type)
            finally:
                torch._C._set_tracing_state(tracing)  # type: ignore[attr-defined]
        self._plans[key].remember = self.remember
        return self._plans[key]

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


class PreHooks:
    """The forward pre-hooks on the way from a network down to its layers, and whose parameters they may put in place.

    FSDP and wrappers like it gather the parameters of a module when the module is called, and release them after it.
    The layers below such a module find their phi and kernels when they run, not when the network starts.
    """

    def __init__(self, network: nn.Module, layers: Sequence[TunableLayer]) -> None:
        sharing: dict[int, set[int]] = {}  # slots of layers, by the id of their phi
        slot_of: dict[int, int] = {}
        for slot, layer in enumerate(layers):
            sharing.setdefault(id(layer.tuning), set()).add(slot)
            slot_of[id(layer)] = slot
        below: dict[int, frozenset[int]] = {}  # slots of the layers in a module, by its id
        self._hooks: list[Mapping[int, Any]] = []
        self._slots: list[frozenset[int]] = []

        def walk(module: nn.Module) -> frozenset[int]:
            if id(module) not in below:
                below[id(module)] = frozenset(sharing.get(id(module), ()))
                found = set(below[id(module)])
                if id(module) in slot_of:
                    found |= sharing[id(layers[slot_of[id(module)]].tuning)]
                for child in module.children():
                    if not isinstance(child, TunableModel):
                        found |= walk(child)
                below[id(module)] = frozenset(found)
                if found:
                    self._hooks.append(module._forward_pre_hooks)
                    self._slots.append(below[id(module)])
            return below[id(module)]

        walk(network)

    def late(self) -> frozenset[int]:
        """Return the slots of the layers that pre-hooks stand before now."""
        if not any(self._hooks):
            return _NONE
        return _NONE.union(*(slots for hooks, slots in zip(self._hooks, self._slots, strict=True) if hooks))


_NONE: frozenset[int] = frozenset()


def first_float(network: nn.Module) -> Tensor:
    """Return a parameter that shows a network's device and precision; a number where there is none."""
    return next((parameter for parameter in network.parameters() if parameter.is_floating_point()), torch.zeros(()))
