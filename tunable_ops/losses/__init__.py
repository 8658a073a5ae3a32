"""Losses, their sum weighted by lambda, and samplers of lambda. Only torch is needed.

Every loss is a function ``loss(output, target) -> [B]``: the mean over all dimensions but the batch. Those that compare
features (`Perceptual`, `GramStyle`, `LPIPS`, `DISTS`) are modules that hold their network; adversarial ones compare the
scores of a `PatchDiscriminator`. `MultiLoss` weights several losses by lambda, sample by sample, and averages over the
batch last; `StyleTransfer` does so for styles, with one pass through the feature network.
"""

from typing import TYPE_CHECKING

from tunable_ops.losses.adversarial import PatchDiscriminator, discriminator_loss, generator_loss, r1_penalty
from tunable_ops.losses.corrected import Corrected
from tunable_ops.losses.cropped import Cropped
from tunable_ops.losses.features import AlexNetFeatures, SqueezeNetFeatures, VGG16Features, VGG19Features
from tunable_ops.losses.grid import grid
from tunable_ops.losses.lpips import DISTS, LPIPS
from tunable_ops.losses.multi import MultiLoss
from tunable_ops.losses.perceptual import GramStyle, Perceptual
from tunable_ops.losses.perceptual_gradient import PerceptualGradient
from tunable_ops.losses.pixel import charbonnier, l1, log_mse, mse, tv
from tunable_ops.losses.samplers import Sampler, sampler
from tunable_ops.losses.ssim import WINDOW as SSIM_WINDOW
from tunable_ops.losses.ssim import ssim
from tunable_ops.losses.style import StyleTransfer

if TYPE_CHECKING:
    from tunable_ops.losses.pgn import PGN

__all__ = [
    "DISTS",
    "LPIPS",
    "PGN",
    "SSIM_WINDOW",
    "AlexNetFeatures",
    "Corrected",
    "Cropped",
    "GramStyle",
    "MultiLoss",
    "PatchDiscriminator",
    "Perceptual",
    "PerceptualGradient",
    "Sampler",
    "SqueezeNetFeatures",
    "StyleTransfer",
    "VGG16Features",
    "VGG19Features",
    "charbonnier",
    "discriminator_loss",
    "generator_loss",
    "grid",
    "l1",
    "log_mse",
    "mse",
    "r1_penalty",
    "sampler",
    "ssim",
    "tv",
]


if not TYPE_CHECKING:  # for a type checker this would turn every misspelt name into Any

    def __getattr__(name: str) -> object:
        """Import `PGN` when it is first used: it needs `tunable_ops.serialization`, which the losses do not."""
        if name != "PGN":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from tunable_ops.losses.pgn import PGN

        return PGN

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
