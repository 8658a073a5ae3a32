"""TunableConv1d, 2d, 3d and TunableConvTranspose2d: torch's layers with P kernels."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tunable_ops import checks, functional, geometry
from tunable_ops.convolution import convolve, convolve_transposed
from tunable_ops.modules import frame as frames
from tunable_ops.modules.kernel_stacks import KernelStacks
from tunable_ops.modules.layer import StackedLayer

_PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


class _TunableConvNd(StackedLayer):
    """Arguments, parameters and folding that the four layers share."""

    autocasts = True
    ndim: int
    transposed = False
    plain_type: type[nn.Module]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int],
        padding: int | Sequence[int] | str,
        dilation: int | Sequence[int],
        groups: int,
        bias: bool,
        padding_mode: str,
        output_padding: int | Sequence[int],
        num_params: int,
        num_kernels: int | None,
        tuning: str,
        domain: str,
        device: torch.device | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__(num_params, num_kernels, tuning, domain, device, dtype)
        name, ndim = type(self).__name__, self.ndim
        for argument, value in (("in_channels", in_channels), ("out_channels", out_channels), ("groups", groups)):
            if type(value) is not int or value < 1:
                raise ValueError(f"{name}: {argument} must be a positive int; got {value!r}")
        if in_channels % groups or out_channels % groups:
            raise ValueError(
                f"{name}: groups must divide in_channels and out_channels; got {groups} for {in_channels} and "
                f"{out_channels}"
            )
        if padding_mode not in _PADDING_MODES or (self.transposed and padding_mode != "zeros"):
            allowed = ("zeros",) if self.transposed else _PADDING_MODES
            raise ValueError(f"{name}: padding_mode must be one of {allowed}; got {padding_mode!r}")
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size = checks.to_ints(name, "kernel_size", kernel_size, ndim, 1)
        self.stride = checks.to_ints(name, "stride", stride, ndim, 1)
        self.dilation = checks.to_ints(name, "dilation", dilation, ndim, 1)
        self.output_padding = checks.to_ints(name, "output_padding", output_padding, ndim, 0)
        self.padding_mode = padding_mode
        self.start, extra = checks.resolve_padding(name, padding, self.kernel_size, self.stride, self.dilation)
        self.padding: tuple[int, ...] | str = padding if isinstance(padding, str) else self.start
        self._extra = extra if any(extra) else None  # what "same" with an even span adds at the ends
        # As torch.nn.functional.pad takes it, the last dimension first: all of the padding, and what is extra.
        self._edges = [v for s, e in zip(reversed(self.start), reversed(extra), strict=True) for v in (s, s + e)]
        self._ends = [v for e in reversed(extra) for v in (0, e)]
        if self.transposed:
            shape = (in_channels, out_channels // groups, *self.kernel_size)
        else:
            shape = (out_channels, in_channels // groups, *self.kernel_size)
        kernels = self.tuning.num_kernels
        self.kernel_dim = ndim + 2
        self.weight = nn.Parameter(torch.empty(kernels, *shape, device=device, dtype=dtype))
        if bias:
            self.bias = nn.Parameter(torch.empty(kernels, out_channels, device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)
        self.reset_parameters()

    def plain(self, meta: bool = False) -> nn.Module:
        """Return torch's layer of the same arguments, uninitialised (`meta`: without memory)."""
        arguments: dict[str, Any] = {
            "stride": self.stride,
            "padding": self.padding,
            "dilation": self.dilation,
            "groups": self.groups,
            "bias": self.stack("bias") is not None,
            "padding_mode": self.padding_mode,
        }
        if self.transposed:
            arguments["output_padding"] = self.output_padding
        weight = self.stack("weight")
        device = torch.device("meta") if meta else weight.device
        return nn.utils.skip_init(
            self.plain_type,
            self.in_channels,
            self.out_channels,
            self.kernel_size,
            **arguments,
            device=device,
            dtype=weight.dtype,
        )

    def _batch(self, input: Tensor) -> int | None:
        """Return the batch size, None for an unbatched input."""
        return input.shape[0] if input.dim() == self.ndim + 2 else None

    def extra_repr(self) -> str:
        """Return the arguments that are not at their defaults, as torch's layers print them."""
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        if self.padding != (0,) * self.ndim:
            text += f", padding={self.padding!r}"
        if any(self.output_padding):
            text += f", output_padding={self.output_padding}"
        if self.dilation != (1,) * self.ndim:
            text += f", dilation={self.dilation}"
        if self.groups != 1:
            text += f", groups={self.groups}"
        if self.stack("bias") is None:
            text += ", bias=False"
        if self.padding_mode != "zeros":
            text += f", padding_mode={self.padding_mode!r}"
        return text + f", num_kernels={self.tuning.num_kernels}"


class _TunableConv(_TunableConvNd):
    """The three plain convolutions: they differ in rank alone."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] | str = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        *,
        num_params: int,
        num_kernels: int | None = None,
        tuning: str = "affine",
        domain: str = "simplex",
    ) -> None:
        layout = (stride, padding, dilation, groups, bias, padding_mode, 0)
        phi = (num_params, num_kernels, tuning, domain)
        super().__init__(in_channels, out_channels, kernel_size, *layout, *phi, device, dtype)

    def forward(self, input: Tensor, lam: Tensor | Sequence[float] | None = None) -> Tensor:
        """Convolve with the blend that `lam` (or the TunableModel around the layer) asks for.

        Args:
            input: [B, C, *size], or unbatched [C, *size] with lam [p].
            lam: [p], [B, p] or a map [B, p, *any size]; None inside a TunableModel.

        Returns:
            [B, O, *grid] or [O, *grid].

        Raises:
            TypeError, ValueError: As `check_input`, or as the operator.
        """
        if lam is None:
            ready = frames.ready(self, input.dtype)
            if ready is not None and type(input) is Tensor and len(shape := input.shape) == len(ready.kernel.shape):
                own = ready.attributes  # in as few steps as torch's own layer takes
                if (
                    ready.by_torch
                    and own["stride"] == (1, 1)
                    and own["padding_mode"] == "zeros"
                    and own["_extra"] is None
                    and shape[1] == own["in_channels"]
                    and _are_usual(shape, input.stride())
                ):
                    options = own["start"], own["dilation"], own["groups"]
                    return F.conv2d(input, ready.kernel, ready.bias, 1, *options)
                if shape[1] == self.in_channels:
                    return self._convolve(input, *ready.kernels)
            elif (blended := self.blended_for(input, -self.ndim - 1, self.in_channels)) is not None:
                return self._convolve(input, *blended)
        self.check_input(input, -self.ndim - 1, "in_channels")
        alpha = self.alpha(lam, self._batch(input), lambda: self._grid(input))
        padding: Any = self.padding
        if self.padding_mode != "zeros":
            input, padding = F.pad(input, self._edges, mode=self.padding_mode), 0
        operator, weight, bias = _OPERATORS[self.ndim], self.stack("weight"), self.stack("bias")
        return operator(input, weight, bias, alpha, self.stride, padding, self.dilation, self.groups)

    def _grid(self, input: Tensor) -> tuple[int, ...]:
        """Return the output's spatial size; the operator refuses sizes that do not fit."""
        size: Sequence[int] = input.shape[-self.ndim :]
        if self._extra is not None:
            size = [n + e for n, e in zip(size, self._extra, strict=True)]
        return geometry.output_size(size, self.kernel_size, self.stride, self.start, self.dilation)

    def _convolve(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Convolve with a blended kernel, as torch's own layer does."""
        padding = self.start
        if self.padding_mode != "zeros":
            input, padding = F.pad(input, self._edges, mode=self.padding_mode), (0,) * self.ndim
        elif self._extra is not None:
            input = F.pad(input, self._ends)
        # A kernel that is no blend is convolved by torch: a knob at 0 gives the plain network to the last bit.
        geometry: dict[str, Any] = {"stride": self.stride, "dilation": self.dilation, "groups": self.groups}
        if self.ndim != 2 or frames.is_unblended():
            return convolve(input, weight, bias, padding=padding, **geometry)
        return functional.conv2d(input, weight, bias, padding=padding, kept=frames.kept(self), **geometry)


def _are_usual(shape: Sequence[int], stride: Sequence[int]) -> bool:
    """Return True for sizes [B, C, H, W] and strides that `with_new_strides` need not look at; False if unknown."""
    batch, channels, height, width = shape
    if height == 1 == width:
        return stride in ((channels, 1, 1, 1), (channels, 1, channels, channels))
    if channels == 1 or height == 1 or width == 1:
        return False
    if batch != 1:
        return True
    across, down = channels * stride[1], height * stride[2]
    return stride[0] == (across if across > down else down)


_OPERATORS: dict[int, Any] = {
    1: functional.tunable_conv1d,
    2: functional.tunable_conv2d,
    3: functional.tunable_conv3d,
}


class TunableConv2d(_TunableConv):
    """nn.Conv2d with P kernels, blended by lambda: ``layer(x, lam)``.

    Formula: ``alpha = phi(lam)``, ``y[b] = conv2d(x[b], sum_p alpha[b,p] weight[p], sum_p alpha[b,p] bias[p])``.

    Args: nn.Conv2d's first, then by name

        num_params: p, the length of lambda.
        num_kernels: P; default p on the simplex, p + 1 on the box.
        tuning: "affine" (phi is trained) or "identity" (alpha = lambda).
        domain: "simplex" (lambda sums to 1) or "box" (each in its range; the first kernel's weight is the constant 1).

    State: weight [P, O, C/groups, *k], bias [P, O], tuning.weight, tuning.bias.

    Source: Maggioni et al., "Tunable Convolutions with Parametric Multi-Loss Optimization", CVPR 2023.
    """

    ndim = 2
    plain_type = nn.Conv2d

    def kernel_stacks(self) -> KernelStacks:
        """Return the stacks `weight` and `bias`, and which fused kernels may serve them."""
        stride: Any = self.stride
        return KernelStacks(self, self.stack_names, self.tuning.num_kernels, True, fused=(stride, self.groups))


class TunableConv1d(_TunableConv):
    """nn.Conv1d with P kernels, blended by lambda: ``layer(x, lam)``.

    Formula: ``alpha = phi(lam)``, ``y[b] = conv1d(x[b], sum_p alpha[b,p] weight[p], sum_p alpha[b,p] bias[p])``.
    Arguments: nn.Conv1d's first, then those of `TunableConv2d`.
    """

    ndim = 1
    plain_type = nn.Conv1d


class TunableConv3d(_TunableConv):
    """nn.Conv3d with P kernels, blended by lambda: ``layer(x, lam)``.

    Formula: ``alpha = phi(lam)``, ``y[b] = conv3d(x[b], sum_p alpha[b,p] weight[p], sum_p alpha[b,p] bias[p])``.
    Arguments: nn.Conv3d's first, then those of `TunableConv2d`.
    """

    ndim = 3
    plain_type = nn.Conv3d


class TunableConvTranspose2d(_TunableConvNd):
    """nn.ConvTranspose2d with P kernels, blended by lambda: ``layer(x, lam)``.

    Formula: ``alpha = phi(lam)``, ``y[b] = conv_transpose2d(x[b], sum_p alpha[b,p] weight[p], ...)``.
    Arguments: nn.ConvTranspose2d's first, then those of `TunableConv2d`. State: weight [P, C, O/groups, kh, kw].
    """

    ndim = 2
    transposed = True
    plain_type = nn.ConvTranspose2d

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
        output_padding: int | Sequence[int] = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: int | Sequence[int] = 1,
        padding_mode: str = "zeros",
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        *,
        num_params: int,
        num_kernels: int | None = None,
        tuning: str = "affine",
        domain: str = "simplex",
    ) -> None:
        layout = (stride, padding, dilation, groups, bias, padding_mode, output_padding)
        phi = (num_params, num_kernels, tuning, domain)
        super().__init__(in_channels, out_channels, kernel_size, *layout, *phi, device, dtype)

    def forward(
        self,
        input: Tensor,
        lam: Tensor | Sequence[float] | None = None,
        output_size: Sequence[int] | None = None,
    ) -> Tensor:
        """Apply the blend that `lam` asks for.

        Args:
            input: [B, C, H, W], or [C, H, W] with lam [p].
            lam: [p], [B, p] or a map [B, p, *any size]; None inside a TunableModel.
            output_size: (OH, OW) to reach by output_padding, as nn.ConvTranspose2d takes it. A converted network may
                pass it second, as to torch's layer: inside a TunableModel a second argument of integers is a size.

        Returns:
            [B, O, OH, OW] or [O, OH, OW].
        """
        if output_size is None and self._is_size(lam):
            lam, output_size = None, lam  # type: ignore[assignment]
        smallest = geometry.transposed_output_size(
            input.shape[-2:], self.kernel_size, self.stride, self.start, (0, 0), self.dilation
        )
        extra = self.output_padding
        if output_size is not None:
            wanted = tuple(output_size)[-2:]
            extra = tuple(w - n for w, n in zip(wanted, smallest, strict=False))
            if len(extra) < 2 or any(
                not 0 <= e < max(s, d) for e, s, d in zip(extra, self.stride, self.dilation, strict=True)
            ):
                raise ValueError(
                    f"{self.title}: output_size must be {list(smallest)} or up to stride - 1 more; got {list(wanted)}"
                )
        if lam is None and (blended := self.blended_for(input, -3, self.in_channels)) is not None:
            bias = blended[1] if len(blended) > 1 else None
            options = (self.stride, self.start, extra, self.groups, self.dilation)
            return convolve_transposed(input, blended[0], bias, *options)
        self.check_input(input, -3, "in_channels")
        grid = [n + e for n, e in zip(smallest, extra, strict=True)]
        return functional.tunable_conv_transpose2d(
            input,
            self.stack("weight"),
            self.stack("bias"),
            self.alpha(lam, self._batch(input), lambda: grid),
            self.stride,
            self.start,
            extra,
            self.groups,
            self.dilation,
        )

    def _is_size(self, lam: Any) -> bool:
        if lam is None or isinstance(lam, Tensor) or not self.in_model():
            return False
        return all(type(n) is int or isinstance(n, torch.SymInt) for n in lam)
