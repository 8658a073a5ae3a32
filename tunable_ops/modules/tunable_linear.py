"""TunableLinear: nn.Linear with P matrices."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tunable_ops import functional
from tunable_ops.modules.layer import StackedLayer


class TunableLinear(StackedLayer):
    """nn.Linear with P matrices, blended by lambda: ``layer(x, lam)``.

    Formula: ``alpha = phi(lam)``, ``y[b] = x[b] @ (sum_p alpha[b,p] weight[p]).T + sum_p alpha[b,p] bias[p]``.
    Arguments: nn.Linear's first, then those of `TunableConv2d`. State: weight [P, O, C], bias [P, O], tuning.*.
    """

    autocasts = True
    kernel_dim = 2

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        *,
        num_params: int,
        num_kernels: int | None = None,
        tuning: str = "affine",
        domain: str = "simplex",
    ) -> None:
        super().__init__(num_params, num_kernels, tuning, domain, device, dtype)
        for argument, value in (("in_features", in_features), ("out_features", out_features)):
            if type(value) is not int or value < 1:
                raise ValueError(f"TunableLinear: {argument} must be a positive int; got {value!r}")
        self.in_features, self.out_features = in_features, out_features
        kernels = self.tuning.num_kernels
        self.weight = nn.Parameter(torch.empty(kernels, out_features, in_features, device=device, dtype=dtype))
        if bias:
            self.bias = nn.Parameter(torch.empty(kernels, out_features, device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)
        self.reset_parameters()

    def plain(self, meta: bool = False) -> nn.Module:
        """Return torch's layer of the same arguments, uninitialised (`meta`: without memory)."""
        weight = self.stack("weight")
        device = torch.device("meta") if meta else weight.device
        return nn.utils.skip_init(
            nn.Linear,
            self.in_features,
            self.out_features,
            self.stack("bias") is not None,
            device=device,
            dtype=weight.dtype,
        )

    def forward(self, input: Tensor, lam: Tensor | Sequence[float] | None = None) -> Tensor:
        """Apply the blend that `lam` asks for.

        Args:
            input: [*, C] with lam [p]; [B, *, C] with one lambda per sample.
            lam: [p] or [B, p]; None inside a TunableModel.

        Returns:
            [*, O].
        """
        if lam is None and (blended := self.blended_for(input, -1, self.in_features)) is not None:
            return F.linear(input, *blended)
        self.check_input(input, -1, "in_features")
        alpha = self.alpha(lam, input.shape[0] if input.dim() > 1 else None)
        return functional.tunable_linear(input, self.stack("weight"), self.stack("bias"), alpha)

    def extra_repr(self) -> str:
        """Return the arguments."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.stack('bias') is not None}, "
            f"num_kernels={self.tuning.num_kernels}"
        )
