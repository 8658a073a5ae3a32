"""ModulatedConv2d: a convolution whose output is scaled and shifted per channel, as a small network says for lambda."""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tunable_ops.control.additions import check_network, find
from tunable_ops.modules import TunableModel
from tunable_ops.modules.convert import copy_network
from tunable_ops.modules.layer import ComputedLayer
from tunable_ops.modules.spec import LambdaSpec


class ModulatedConv2d(ComputedLayer):
    """``y = scale(lam) * conv(x) + shift(lam)``, per output channel.

    scale = 1 + what `scale` says, shift = what `shift` says; they are fp32 (fp64 for fp64) and y is in the dtype of
    ``conv(x)``. The plain form is exact: the kernel ``scale * W`` and the bias ``scale * b + shift``.

    Args:
        conv: The plain convolution, which becomes the layer's own.
        num_params: p.
        modulation: Maps [*, p] to [*, O], or to [*, 2 O]: first what is added to the scale, then the shift.
        scales: Whether it has a scale.
        shifts: Whether it has a shift.
    """

    def __init__(
        self, conv: nn.Conv2d, num_params: int, modulation: nn.Module, scales: bool = True, shifts: bool = True
    ) -> None:
        # alpha is lambda itself, on the box too
        super().__init__(num_params, None, "identity", "simplex", conv.weight.device, conv.weight.dtype)
        self.conv, self.modulation = conv, modulation
        self.scales, self.shifts = scales, shifts

    def forward(self, input: Tensor, lam: Tensor | Sequence[float] | None = None) -> Tensor:
        """Convolve, scale and shift.

        Args:
            input: [B, C, H, W], or [C, H, W] with one lambda.
            lam: [p], [B, p] or a map [B, p, *any size]; None inside a TunableModel.

        Returns:
            [B, O, OH, OW] or [O, OH, OW].
        """
        output: Tensor = self.conv(input)
        alpha = self.alpha(lam, input.shape[0] if input.dim() == 4 else None, lambda: output.shape[-2:])
        # a map [B, p, OH, OW] has its parameters last, and its channels go back to their place
        scale, shift = self._modulate(alpha if alpha.dim() < 3 else alpha.movedim(1, -1))
        if scale is not None:
            output = output * _over_pixels(scale).to(output.dtype)
        return output if shift is None else output + _over_pixels(shift).to(output.dtype)

    def _modulate(self, lam: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Return scale and shift [*, O] for lambda [*, p]; None for one that the layer lacks."""
        parameter = next(self.modulation.parameters())
        with torch.autocast(lam.device.type, enabled=False):
            found = self.modulation(lam.to(parameter.dtype))
        if not self.scales:
            return None, found
        if not self.shifts:
            return 1 + found, None
        scale, shift = found.chunk(2, -1)
        return 1 + scale, shift

    def plain(self) -> nn.Module:
        """Return the convolution, with a bias if the layer has a shift."""
        plain = copy.deepcopy(self.conv)
        if self.shifts and plain.bias is None:
            plain.bias = nn.Parameter(plain.weight.new_zeros(plain.out_channels))
        return plain

    def write(self, plain: Any, lam: Tensor) -> None:
        """Set kernel and bias to those of lambda [p]."""
        scale, shift = self._modulate(lam)
        weight, bias = self.conv.weight, self.conv.bias
        if scale is not None:
            plain.weight.copy_(weight * scale[:, None, None, None])
            bias = None if bias is None else bias * scale
        if shift is not None:
            bias = shift if bias is None else bias + shift
        if bias is not None:
            plain.bias.copy_(bias)


def _over_pixels(values: Tensor) -> Tensor:
    """Return [O], [B, O] or a map [B, OH, OW, O] as [O, 1, 1], [B, O, 1, 1] or [B, O, OH, OW]."""
    return values.movedim(-1, 1) if values.dim() > 2 else values[..., None, None]


def modulate(
    method: str,
    network: nn.Module,
    num_params: int,
    after: Sequence[str] | None,
    build: Callable[[nn.Conv2d], nn.Module],
    scales: bool = True,
    shifts: bool = True,
) -> nn.Module:
    """Return a copy of the network whose convolutions that match `after` are `ModulatedConv2d`.

    Args:
        method: Who asks, for errors.
        network: Plain network.
        num_params: p.
        after: Patterns of convolutions; None: every Conv2d.
        build: Returns the modulation of a convolution.
        scales: As `ModulatedConv2d`.
        shifts: As `ModulatedConv2d`.

    Raises:
        TypeError: `network` is not a module, or `after` is a string.
        ValueError: A pattern matches nothing, or something else than a Conv2d; or num_params is out of range.
    """
    check_network(method, network)
    memo: dict[int, Any] = {}
    for name, conv in find(method, network, after, nn.Conv2d).items():
        if not isinstance(conv, nn.Conv2d):
            raise ValueError(f"{method}: after must name convolutions; got {name!r}, a {type(conv).__name__}")
        own = copy.deepcopy(conv, memo)
        layer = ModulatedConv2d(own, num_params, build(own).to(conv.weight), scales, shifts)
        memo[id(conv)] = layer.train(conv.training)
    return copy_network(network, memo)


def as_model(network: nn.Module, spec: LambdaSpec, conversion: Mapping[str, Any]) -> TunableModel:
    """Return the model of a knob that is trained at all lambda; `conversion` and `spec` rebuild it with `attach`."""
    about = {"names": spec.names, "ranges": spec.ranges, "defaults": spec.defaults, "units": spec.units}
    model = TunableModel(network, spec.num_params, domain=spec.domain, **about)  # type: ignore[arg-type]
    model.conversion = {
        **conversion,
        "num_params": spec.num_params,
        "domain": spec.domain,
        "names": list(spec.names),
        "ranges": [list(pair) for pair in spec.ranges],
        "defaults": list(spec.defaults),
        "units": list(spec.units),
    }
    return model
