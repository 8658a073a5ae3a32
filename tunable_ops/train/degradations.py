"""Degradations of clean pictures, with parameters drawn per sample from a generator."""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import AfterValidator, Field, model_validator
from torch import Tensor

from tunable_ops.train.sections import Section


def _ordered(bounds: tuple[float, float]) -> tuple[float, float]:
    if not 0 <= bounds[0] <= bounds[1]:
        raise ValueError(f"must be [low, high] with 0 <= low <= high; got {list(bounds)}")
    return bounds


_Range = Annotated[tuple[float, float], AfterValidator(_ordered)]


class Noise(Section):
    """White Gaussian noise.

    Attributes:
        sigma: [low, high] from which the standard deviation is drawn per sample, on the scale 0..255.
        levels: One per tuning parameter: the standard deviation follows lambda instead, ``sum_i lambda_i / scale_i *
            levels_i``, where level i is that at the largest end of the range. The knob then says how noisy the input
            is, rather than what to make of it.
        floor: Added to the level that follows lambda.
        clip: Clip the noisy picture to [0, 1].
    """

    sigma: _Range = (25.0, 25.0)
    levels: list[Annotated[float, Field(ge=0)]] | None = None
    floor: float = Field(default=0.0, ge=0)
    clip: bool = False

    @model_validator(mode="after")
    def _fit(self) -> Noise:
        if self.floor and self.levels is None:
            raise ValueError(f"degradation.noise.floor must come with levels; got {self.floor} without them")
        return self


class Blur(Section):
    """Gaussian blur.

    Attributes:
        sigma: [low, high] from which the standard deviation is drawn per sample, in pixels.
        levels: One per tuning parameter: the standard deviation follows lambda instead, as for the noise.
    """

    sigma: _Range = (0.0, 2.0)
    levels: list[Annotated[float, Field(ge=0)]] | None = None


class Downsample(Section):
    """Bicubic down-sampling.

    Attributes:
        factors: From which the factor is drawn per sample; a single one where ``enlarge`` is false.
        enlarge: Bring the old size back.
    """

    factors: list[Literal[1, 2, 4]] = Field(default=[2], min_length=1)
    enlarge: bool = True

    @model_validator(mode="after")
    def _one_size(self) -> Downsample:
        if not self.enlarge and len(set(self.factors)) > 1:
            raise ValueError(
                f"degradation.downsample.factors must be a single one where enlarge is false; got {self.factors}"
            )
        return self


class Degradation(Section):
    """What is done to the clean picture, in this order: blur, down-sampling, noise; those left out are not done.

    A configuration that says nothing at all of the degradation trains on noise with its defaults.
    """

    blur: Blur | None = None
    downsample: Downsample | None = None
    noise: Noise | None = None

    @property
    def follows(self) -> bool:
        """True if anything of it follows lambda."""
        return any(section and section.levels is not None for section in (self.blur, self.noise))


class Degraded(NamedTuple):
    """The input of the network; the same picture before noise was added; the clean one with that noise.

    ``noisy`` is None where the input is smaller than the clean picture, whose noise it is.
    """

    input: Tensor
    noiseless: Tensor
    noisy: Tensor | None


def degrade(clean: Tensor, config: Degradation, generator: torch.Generator, lam: Tensor | None = None) -> Degraded:
    """Blur, down-sample and add noise, as far as the configuration asks for each.

    Args:
        clean: [B, C, H, W] float32 on the CPU, values in [0, 1].
        config: What to do, with the ranges that the parameters are drawn from.
        generator: Source of all draws.
        lam: [p] or [B, p], divided by its scales, for blur and noise that follow it.

    Returns:
        `Degraded`, all [B, C, H, W], or [B, C, H/f, W/f] where down-sampling by f does not enlarge again.
    """
    out = clean
    batch = clean.shape[0]
    if config.blur is not None:
        out = gaussian_blur(out, _drawn(config.blur, batch, generator, lam))
    if config.downsample is not None:
        choice = torch.randint(len(config.downsample.factors), (batch,), generator=generator)
        factors = [config.downsample.factors[int(index)] for index in choice]
        out = torch.cat(
            [
                bicubic_downsample(out[b : b + 1], factor, enlarge=config.downsample.enlarge)
                for b, factor in enumerate(factors)
            ]
        )
    noiseless, noisy = out, clean if out.shape == clean.shape else None
    if config.noise is not None:
        noise = _noise(out, _drawn(config.noise, batch, generator, lam), generator)
        out = noiseless + noise
        noisy = None if noisy is None else noisy + noise
        if config.noise.clip:
            out = out.clamp(0, 1)
            noisy = None if noisy is None else noisy.clamp(0, 1)
    return Degraded(out, noiseless, noisy)


def add_noise(x: Tensor, sigma: Tensor, generator: torch.Generator) -> Tensor:
    """Return ``x + sigma / 255 * n``, n standard normal.

    Args:
        x: [B, C, H, W] float32, values in [0, 1].
        sigma: [B], standard deviation on the scale 0..255.
        generator: Source of n.
    """
    return x + _noise(x, sigma, generator)


def _noise(x: Tensor, sigma: Tensor, generator: torch.Generator) -> Tensor:
    noise = torch.randn(x.shape, generator=generator, dtype=x.dtype)
    return noise * (sigma.to(x.dtype) / 255).view(-1, 1, 1, 1)


def gaussian_blur(x: Tensor, sigma: Tensor) -> Tensor:
    """Apply a separable Gaussian blur with mirrored borders, one standard deviation per sample.

    Args:
        x: [B, C, H, W].
        sigma: [B], in pixels; 0 leaves the sample as it is. The kernel reaches 3 sigma of the largest, and is
            normalised.
    """
    batch, channels, height, width = x.shape
    radius = min(max(1, int(torch.ceil(3 * sigma.max()))), height - 1, width - 1)
    taps = torch.arange(-radius, radius + 1, dtype=x.dtype)
    kernel = torch.exp(-0.5 * (taps / sigma.to(x.dtype).clamp(min=1e-3).unsqueeze(1)) ** 2)
    kernel = kernel / kernel.sum(dim=1, keepdim=True)  # [B, 2*radius+1]
    kernel = kernel.repeat_interleave(channels, dim=0)  # [B*C, 2*radius+1]
    out = F.pad(x, (radius,) * 4, mode="reflect").view(1, batch * channels, height + 2 * radius, width + 2 * radius)
    out = F.conv2d(out, kernel.view(-1, 1, 1, 2 * radius + 1), groups=batch * channels)
    out = F.conv2d(out, kernel.view(-1, 1, 2 * radius + 1, 1), groups=batch * channels)
    return out.view(batch, channels, height, width)


def bicubic_downsample(x: Tensor, factor: float, *, enlarge: bool = False) -> Tensor:
    """Resize by 1/factor, bicubic with an anti-aliasing filter; with ``enlarge`` back to the old size, also bicubic.

    Args:
        x: [B, C, H, W]; where H or W is not a multiple of the factor, the border beyond the last multiple counts, too.
        factor: 1 or more.
        enlarge: Resize back.
    """
    if factor == 1:
        return x
    height, width = x.shape[-2:]
    small = F.interpolate(
        x,
        size=(max(1, round(height / factor)), max(1, round(width / factor))),
        mode="bicubic",
        antialias=True,
        align_corners=False,
    )
    if not enlarge:
        return small
    return F.interpolate(small, size=(height, width), mode="bicubic", align_corners=False)


def _drawn(config: Blur | Noise, batch: int, generator: torch.Generator, lam: Tensor | None) -> Tensor:
    """Return standard deviations [B]: drawn, or from lambda."""
    if config.levels is None:
        low, high = config.sigma
        return low + (high - low) * torch.rand(batch, generator=generator)
    if lam is None or lam.shape[-1] != len(config.levels):
        name, got = type(config).__name__.lower(), "none" if lam is None else f"shape {list(lam.shape)}"
        raise ValueError(f"degrade: lam must have one value for each of the {name} levels {config.levels}; got {got}")
    floor = config.floor if isinstance(config, Noise) else 0.0
    return (lam @ lam.new_tensor(config.levels) + floor).expand(batch)
