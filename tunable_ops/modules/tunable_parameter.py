"""TunableParameter: any tensor with P copies; and the same behind an attribute of a network, whose code stays."""

import sys
from collections.abc import Sequence
from typing import Any, SupportsIndex

import torch
from torch import Tensor, nn
from torch.compiler import is_dynamo_compiling
from torch.nn.utils import parametrize

from tunable_ops import functional
from tunable_ops.modules import frame as frames
from tunable_ops.modules.kernel_stacks import BaseAndNew, KernelStacks, Parts, whole_stack
from tunable_ops.modules.layer import StackedLayer, TunableLayer, manages


def blend_parameter(stack: Tensor, alpha: Tensor, layer: TunableLayer) -> Tensor:
    """Blend [P, *shape]; per sample, the batch replaces a leading 1 of the shape, else it comes before the shape.

    Raises:
        ValueError: A per-sample blend of a tensor of fewer than two dimensions: in a product with any other tensor the
            batch would meet the wrong dimension.
    """
    blended = functional.tunable_parameter(stack, alpha)
    if alpha.dim() == 1:
        return blended
    if stack.dim() < 3:
        raise ValueError(
            f"{layer.title}: lam must be [p] for a tensor of shape {list(stack.shape[1:])}; got one lambda per sample. "
            "Give the tensor a leading 1, as [1, C, 1, 1]"
        )
    return blended.squeeze(1) if stack.shape[1] == 1 else blended


def own_blend(blend: Tensor) -> Tensor:
    """Return a tensor that the caller may write to, also where the next call is given the same blend.

    A trace of torch.jit is checked without gradients, and has to be the same.
    """
    return blend.clone() if frames.keeps_blends() or torch.jit.is_tracing() else blend


class TunableParameter(StackedLayer):
    """P copies of a tensor, blended by lambda: ``scale(lam)`` is ``sum_p alpha[p] * weight[p]``.

    A per-sample lambda gives [B, *rest] for a tensor [1, *rest], and [B, *shape] for any other of two dimensions or
    more (a table, indexed as ``table[..., index, :]``).

    Args:
        value: The tensor every copy starts as; on the box the first copy, the others start at zero.
        num_params: p; the rest as `TunableConv2d`.
    """

    stack_names = ("weight",)
    bias = None

    def __init__(
        self,
        value: Tensor,
        *,
        num_params: int,
        num_kernels: int | None = None,
        tuning: str = "affine",
        domain: str = "simplex",
    ) -> None:
        if not isinstance(value, Tensor) or not value.is_floating_point():
            raise TypeError(f"TunableParameter: value must be a floating-point Tensor; got {type(value).__name__}")
        super().__init__(num_params, num_kernels, tuning, domain, value.device, value.dtype)
        self.kernel_dim = value.dim()
        self.weight = nn.Parameter(stack_plain(value.detach(), self.tuning.num_kernels, self.tuning.constant))

    def plain(self, meta: bool = False) -> nn.Module:
        """Return a module that holds one tensor and returns it: called as this one is, without lambda."""
        return PlainParameter(self.stack("weight")[0])

    def forward(self, lam: Tensor | Sequence[float] | None = None) -> Tensor:
        """Return the blended tensor, [*shape] or per sample as the class says."""
        if lam is None and (blended := frames.blended(self)) is not None:
            return own_blend(blended[0])
        alpha = self.alpha(lam, None)
        return blend_parameter(self.stack("weight"), alpha, self)

    def extra_repr(self) -> str:
        """Return the shape of one copy, and how many there are."""
        return f"shape={list(self.stack('weight').shape[1:])}, num_kernels={self.tuning.num_kernels}"


class PlainParameter(nn.Module):
    """What a TunableParameter folds into: one tensor, returned by the call.

    Args:
        value: The tensor.
    """

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(value.detach().clone())

    def forward(self) -> Tensor:
        """Return the tensor."""
        return self.weight


class ParameterBlend(TunableLayer):
    """The parametrisation behind a network's own attribute: `module.beta` reads as the blended tensor.

    torch keeps the stack as `module.parametrizations.beta.original`, here [P, numel]: a format such as channels_last
    then leaves it alone. After `split_base` it is original0 [1, numel] and original1 [P - 1, numel].
    """

    def __init__(
        self, value: Tensor, num_params: int, num_kernels: int | None, tuning: str, domain: str, name: str
    ) -> None:
        super().__init__(num_params, num_kernels, tuning, domain, value.device, value.dtype)
        self.home: tuple[Any, ...] = ()  # where torch keeps the stack; in a tuple: not a part of this module
        self.shape = tuple(value.shape)
        self.name = name
        self.split = False

    def forward(self, *parts: Tensor) -> Tensor:
        """Blend the stack [P, numel], whole or in parts, into the tensor."""
        if (value := self.from_network()) is not None:
            return value
        stack = torch.cat(parts) if len(parts) > 1 else parts[0]
        alpha = self.alpha(None, None)
        return blend_parameter(stack.view(-1, *self.shape), alpha, self)

    def from_network(self) -> Tensor | None:
        """Return the tensor from the blend of the whole network, None if there is none."""
        blended = frames.blended(self)
        return None if blended is None else own_blend(blended[0]).view(self.shape)

    @property
    def title(self) -> str:
        """What errors call it: its name in the network."""
        return self.name

    def kernel_stacks(self) -> KernelStacks:
        """Return the one stack."""
        return _StackBehindAttribute(self, (), self.tuning.num_kernels)

    def right_inverse(self, stack: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Return the stack as torch is to keep it."""
        return (stack[:1].clone(), stack[1:].clone()) if self.split else stack

    def extra_repr(self) -> str:
        """Return name and shape."""
        return f"{self.name!r}, shape={list(self.shape)}, num_kernels={self.tuning.num_kernels}"


class _StackBehindAttribute(KernelStacks):
    """The stack of a `ParameterBlend`."""

    def parts(self) -> Parts | None:
        """Return the parameters that hold the stack now: one, or base and new."""
        home: Any = self.layer.home
        return (tuple(home[0]._parameters.values()),) if home else None

    def shows(self) -> tuple[Any, tuple[int, ...]]:
        """Return torch's list of parametrisations, and the shape of the attribute."""
        layer: Any = self.layer
        return (layer.home[0], layer.shape) if layer.home else (None, ())


def register_blend(owner: nn.Module, attribute: str, stack: nn.Parameter, blend: ParameterBlend) -> None:
    """Put `blend` behind `owner.attribute`, over the stack [P, numel]."""
    owner._parameters.pop(attribute, None)
    owner.register_parameter(attribute, stack)
    parametrise(owner, attribute, blend)
    blend.home = (owner.parametrizations[attribute],)  # type: ignore[index]


def parametrise(owner: nn.Module, attribute: str, parametrisation: nn.Module) -> None:
    """Register a parametrisation with torch for an owner that may be a deepcopy; its modules take the owner's mode.

    Unlike other modules with parametrisations, the owner can be pickled.
    """
    if parametrize.is_parametrized(owner):
        _unshare_class(owner)
    parametrize.register_parametrization(owner, attribute, parametrisation, unsafe=True)
    owner.parametrizations.train(owner.training)  # type: ignore[union-attr, operator]
    kind: Any = type(owner)
    kind.__reduce_ex__ = _reduce_parametrised
    kept = vars(kind)[attribute]
    if isinstance(owner, StackedLayer):
        setattr(kind, attribute, property(lambda layer: layer.shown(attribute), kept.fset, kept.fdel))
        return

    def read(module: nn.Module) -> Any:
        compiling = is_dynamo_compiling()  # graphs are of the network's code alone
        if not compiling and manages(sys._getframe(1)):  # a blend would ask for lambda
            return whole_stack(module, attribute)
        home: Any = module._modules["parametrizations"]._modules[attribute]  # type: ignore[union-attr]
        if not compiling and (value := frames.shown(home)) is not None:
            return value
        blend = home[0]
        # What torch would call, in a tenth of the time.
        if len(home) == 1 and type(blend) is ParameterBlend and not _is_watched(home) and not _is_watched(blend):
            value = blend.from_network()
            if value is not None:
                return value
        return kept.fget(module)

    setattr(kind, attribute, property(read, kept.fset, kept.fdel))


def _is_watched(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _reduce_parametrised(owner: Any, protocol: SupportsIndex) -> tuple[Any, ...]:
    """Pickle the state of a parametrised module, and of its class, which torch made for it, what it was made from."""
    plain = parametrize.type_before_parametrizations(owner)
    getstate = getattr(plain, "__getstate__", None)  # every class has it from Python 3.11 on
    state = vars(owner).copy() if getstate is None else getstate(owner)
    return _parametrised_again, (plain, tuple(owner.parametrizations)), state


def _parametrised_again(plain: type[nn.Module], attributes: tuple[str, ...]) -> nn.Module:
    """Return a module of a class with these attributes parametrised; pickle then gives it its state."""
    owner = plain.__new__(plain)
    nn.Module.__init__(owner)
    for attribute in attributes:
        owner.register_parameter(attribute, nn.Parameter(torch.empty(0)))
        parametrise(owner, attribute, nn.Identity())
    vars(owner).clear()
    return owner


def unparametrise(owner: nn.Module, attribute: str) -> Tensor:
    """Remove a parametrisation and the attribute itself; return the stack behind it, whole."""
    _unshare_class(owner)
    stack = whole_stack(owner, attribute).detach()
    parametrisation: Any = owner.parametrizations[attribute]  # type: ignore[index]
    if isinstance(parametrisation[0], ParameterBlend):
        parametrisation[0] = BaseAndNew()  # the blend would ask for lambda
    parametrize.remove_parametrizations(owner, attribute, leave_parametrized=True)
    delattr(owner, attribute)
    return stack


def _unshare_class(owner: nn.Module) -> None:
    # deepcopy gives a copy the class that torch made for the original, and removing a parametrisation deletes the
    # property from that class: without a class of its own, the original would lose its attribute too.
    shared = type(owner)
    body = {k: v for k, v in vars(shared).items() if k not in ("__dict__", "__weakref__")}
    owner.__class__ = type(shared.__name__, shared.__bases__, body)


def stack_plain(value: Tensor, num_kernels: int, constant: bool) -> Tensor:
    """Return a stack [P, *shape] that blends to `value` for every lambda of the domain.

    Simplex: P copies (the alphas sum to 1). Box: `value` once, under the constant weight, and zeros.
    """
    stack = value.new_zeros(num_kernels, *value.shape) if constant else value.new_empty(num_kernels, *value.shape)
    stack[: 1 if constant else num_kernels] = value
    return stack
