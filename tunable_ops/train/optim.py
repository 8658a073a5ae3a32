"""The section `optim` of a configuration: the optimiser and its rates, among them those of kernels."""

from __future__ import annotations

from pydantic import Field

from tunable_ops.train.sections import Steps
from tunable_ops.train.tuning import Tuning

__all__ = ["Optim", "kernel_rates"]


class Optim(Steps):
    """AdamW; its rate is warmed up linearly, then follows a cosine.

    ``steps`` may change between a stop and its resumption, unless ``tuning.kind`` trains in phases: from the step
    reached on, the rate is that of the new number of steps.

    Attributes:
        lr: Learning rate after the warm-up.
        base_lr: Factor on the rate of the plain kernels (box domain only); left out: as the others, or 1 where
            ``kernel_lr`` says so. With ``base_lr = 0`` and ``phi_lr = 0`` the network stays at lambda = 0 what it was,
            but for what is not tunable (norms, excluded layers), which goes on learning.
        kernel_lr: Factor on the rate of the tunable kernels. Left out, with ``base_lr`` too: 1 / P on the box where all
            P kernels of a layer learn, at full rank; the plain ones then at 1. AdamW moves each of them by the rate,
            and at a corner of the box the kernel that convolves is their sum: at 1 its steps are P times as long as a
            plain network's, and it learns worse (docs/comparison.md). Elsewhere 1; on the simplex the blend is a mean.
        phi_lr: Factor on the rate of the maps phi.
        warmup: Steps over which the rate rises linearly.
        final: Fraction of the rate at which the cosine ends.
        betas: Decay of AdamW's first and second moments.
        weight_decay: Of AdamW; 0 for kinds that train in phases.
        clip: Bound of the norm of the whole gradient; 0 turns it off.
    """

    lr: float = Field(default=1e-3, gt=0)
    base_lr: float | None = Field(default=None, ge=0)
    kernel_lr: float | None = Field(default=None, ge=0)
    phi_lr: float = Field(default=1.0, ge=0)
    warmup: int = Field(default=50, ge=0)
    final: float = Field(default=0.01, ge=0, le=1)
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = Field(default=0.0, ge=0)
    clip: float = Field(default=1.0, ge=0)


def kernel_rates(optim: Optim, tuning: Tuning, num_params: int) -> dict[str, float]:
    """Return the factors on the rates of kernels that are left out, as `Optim` says."""
    if optim.kernel_lr is not None:
        return {}
    adds_up = tuning.kind == "affine" and tuning.domain == "box" and not tuning.freeze
    if not adds_up or optim.base_lr is not None or tuning.rank is not None or tuning.num_kernels is not None:
        return {"kernel_lr": 1.0}
    return {"base_lr": 1.0, "kernel_lr": 1 / (num_params + 1)}
