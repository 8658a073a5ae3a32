"""Dynamic-Net: blocks whose weighted output is added to the features."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tunable_ops.control.additions import add, copy_plain, find, on_output, out_channels
from tunable_ops.control.phased import PhasedModel
from tunable_ops.modules import LambdaWarning, TunableConv2d
from tunable_ops.modules import frame as frames
from tunable_ops.modules.model import first_float
from tunable_ops.modules.read_lambda import Lambda

_INITS = ("zero", "published")
_DEVIATION = 0.02  # of the published initial weights


class TuningBlock(nn.Module):
    """``y = x + lambda_k * psi(x)``; psi is three 3x3 convolutions with reflection padding and ReLUs in between.

    The last convolution blends P kernels, of which all but the k-th stay zero, so that lambda_k scales it.

    Args:
        channels: C of x [B, C, H, W].
        index: k, 1 to p - 1.
        num_params: p.
        like: Tensor with the device and dtype to use.
        init: "zero": psi = 0, so that a phase starts from the main network, with the first two convolutions as torch
            starts them; "published": all weights from N(0, 0.02), biases 0.
    """

    def __init__(self, channels: int, index: int, num_params: int, like: Tensor, init: str = "zero") -> None:
        super().__init__()

        def plain() -> nn.Conv2d:
            return nn.Conv2d(
                channels, channels, 3, padding=1, padding_mode="reflect", device=like.device, dtype=like.dtype
            )

        self.index = index
        self.first, self.second = plain(), plain()
        self.last = TunableConv2d(
            channels,
            channels,
            3,
            padding=1,
            padding_mode="reflect",
            device=like.device,
            dtype=like.dtype,
            num_params=num_params,
            tuning="identity",
        )
        with torch.no_grad():
            self.last.weight.zero_()
            self.last.bias.zero_()  # type: ignore[union-attr]
            if init == "published":
                for weight in (self.first.weight, self.second.weight, self.last.weight[index]):
                    weight.normal_(0, _DEVIATION)
                for layer in (self.first, self.second):
                    layer.bias.zero_()  # type: ignore[union-attr]

    def forward(self, x: Tensor) -> Tensor:
        """Return x + lambda_k * psi(x)."""
        return x + self.last(torch.relu(self.second(torch.relu(self.first(x)))))


class _BlockFrame(frames.Frame):
    """A frame whose layers have a lambda each.

    Args:
        lams: [p] or [B, p] of each layer, by the slot of its phi.
    """

    __slots__ = ("own",)

    def __init__(self, lams: Mapping[int, Tensor]) -> None:
        super().__init__(next(iter(lams.values())))
        self.own = {slot: frames.Frame(lam) for slot, lam in lams.items()}

    def alpha(self, layer: frames.Blending, batch: int | None, grid: frames.Grid) -> Tensor:
        """Return the blend for a call of a layer."""
        slot = layer.tuning.slot
        assert slot is not None
        return self.own[slot].alpha(layer, batch, grid)


class DynamicNet(PhasedModel):
    """The model of `dynamic_net`: one lambda for all blocks, or with `alphas` a coefficient for each place.

    Attributes:
        places: Names of the modules that blocks follow, in the network's order.
    """

    def __init__(self, network: nn.Module, num_params: int, places: Mapping[str, Sequence[TuningBlock]], **more: Any):
        blocks = [block for found in places.values() for block in found]
        super().__init__(network, num_params, [(block, block.index) for block in blocks], **more)
        self.places = tuple(places)
        self._slots = [[(block.last.tuning.slot, block.index) for block in found] for found in places.values()]

    def forward(self, input: Any, lam: Lambda | None = None, *args: Any, alphas: Any = None, **kwargs: Any) -> Any:
        """Run the network at lambda, or with a coefficient per place.

        Args:
            input: The network's first argument.
            lam: As for `TunableModel`; left out where `alphas` are given.
            args: Further arguments of the network.
            alphas: Coefficients a of the n places: numbers [n], a tensor [n] or [B, n], [B, 1] for one per sample, or
                one number for all. In [0, 1] for p = 2, where ``x <- x + a psi_1(x)``; in [-1, 1] for p = 3, where
                ``x <- x + max(a, 0) psi_1(x) + max(-a, 0) psi_2(x)``.
            kwargs: Further arguments of the network, by name.

        Raises:
            TypeError: `alphas` are no numbers, or not floating point.
            ValueError: Both or neither of lambda and alphas fit, p > 3, a wrong length, or a number that is not finite.
        """
        if alphas is None:
            return super().forward(input, lam, *args, **kwargs)
        if lam is not None:
            raise ValueError(f"dynamic_net: lam must be left out where alphas are given; got {lam!r}")
        _BlockFrame(self._lambdas(self._checked(alphas))).push()
        try:
            return self.network(input, *args, **kwargs)
        finally:
            frames.pop()

    def _checked(self, alphas: Any) -> Tensor:
        """Return alphas [n] or [B, n] on the network's device."""
        count, p = len(self.places), self.spec.num_params
        if p > 3:
            raise ValueError(f"dynamic_net: alphas must go with two or three objectives; got {p}: use lam")
        like = first_float(self.network)
        values = torch.as_tensor(alphas, device=like.device)
        if not values.is_floating_point():
            if isinstance(alphas, Tensor):
                raise TypeError(f"dynamic_net: alphas must be floating point; got {values.dtype}")
            values = values.to(torch.float32)
        values = values.reshape(1) if values.dim() == 0 else values
        if values.dim() > 2 or values.shape[-1] not in (1, count):
            raise ValueError(
                f"dynamic_net: alphas must be [{count}] or [B, {count}], one per place ({', '.join(self.places)}), or "
                f"one for all; got shape {list(values.shape)}"
            )
        if values.device.type == "cpu" and not torch.compiler.is_compiling():
            low = 0.0 if p == 2 else -1.0
            if not bool(torch.isfinite(values).all()):
                raise ValueError(f"dynamic_net: alphas must be finite; got {values.tolist()}")
            if not self.training and bool(((values < low) | (values > 1)).any()):
                text = f"alphas {values.tolist()} are outside the range {low:g}..1 of the training"
                warnings.warn(text, LambdaWarning, stacklevel=4)
        return values.expand(*values.shape[:-1], count)

    def _lambdas(self, alphas: Tensor) -> dict[int, Tensor]:
        """Return lambda [p] or [B, p] of every block: only its own coefficient matters to it."""
        p, found = self.spec.num_params, {}
        for place, blocks in enumerate(self._slots):
            value = alphas[..., place]
            parts = [torch.zeros_like(value), value if p == 2 else value.clamp_min(0), (-value).clamp_min(0)]
            for slot, _ in blocks:
                assert slot is not None
                found[slot] = torch.stack(parts[:p], -1)
        return found


def dynamic_net(
    network: nn.Module,
    num_params: int = 2,
    *,
    after: Sequence[str],
    init: str = "zero",
    names: Sequence[str] | None = None,
    defaults: Sequence[float] | None = None,
) -> DynamicNet:
    """Add Dynamic-Net: ``x <- x + sum_k lambda_k * psi_k(x)`` after chosen modules.

    The published coefficient is in [0, 1], or in [-1, 1] with a second set of blocks for the negative half ("dual"):
    here p = 2 with the coefficient lambda_1, or p = 3 with lambda_1 - lambda_2. All blocks are trained with the same
    coefficient; in use each place may have its own, as published: ``net(x, alphas=[a_1, ..., a_n])``
    (`DynamicNet.forward`). `fold` keeps the blocks, with the weight of lambda folded into their last convolution.

    Args:
        network: Plain network; it is copied.
        num_params: p.
        after: Patterns of the modules to be followed by a block (in the published style network: residual blocks 2 and
            5, and the module before the last up-sampling convolution). Their output is [B, C, H, W].
        init: "zero": psi starts at 0, so that a phase starts from the main network; "published": N(0, 0.02).
        names: Names of the tuning parameters.
        defaults: Initial positions of the sliders.

    Raises:
        TypeError, ValueError: An argument is out of range, or a pattern matches nothing.

    Source: Shoshan et al., "Dynamic-Net: Tuning the Objective Without Re-training for Synthesis Tasks", ICCV 2019
    (arXiv 1811.08760). The initial psi = 0 is our choice; that N(0, 0.02) goes with biases of 0 is recalled.
    """
    if init not in _INITS:
        raise ValueError(f"dynamic_net: init must be one of {', '.join(_INITS)}; got {init!r}")
    network = copy_plain("dynamic_net", network)
    places: dict[str, list[TuningBlock]] = {}
    for name, module in find("dynamic_net", network, after, nn.Module).items():
        channels = out_channels("dynamic_net", name, module)
        like = next(module.parameters())
        places[name] = [TuningBlock(channels, k, num_params, like, init) for k in range(1, num_params)]
        add(module, nn.Sequential(*places[name]), on_output)
    conversion = {"control": "dynamic_net", "after": list(after), "init": init}
    return DynamicNet(network, num_params, places, conversion=conversion, names=names, defaults=defaults)
