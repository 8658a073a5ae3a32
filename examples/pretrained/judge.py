"""How good a picture is: PSNR, LPIPS (AlexNet) and DISTS against a target, NIQE without one."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

import torch
from niqe import LEAST, NIQE
from torch import Tensor

from tunable_ops import losses
from tunable_ops.losses.features import Features
from tunable_ops.train.measure import Measure, in_colour

KINDS = ("psnr", "lpips", "dists", "niqe")
EQUAL = 100.0  # dB, in place of infinity


class Judge:
    """The measures of an output, rounded to 8 bits.

    Args:
        kinds: Of `KINDS`; psnr is always measured. LPIPS and DISTS need their weights, NIQE its model.
        scale: Enlargement, whose border the PSNR of the luma leaves out.
        model: File of NIQE's model; default as for `NIQE`.
    """

    def __init__(self, kinds: Collection[str] = KINDS, scale: int = 1, model: Path | None = None) -> None:
        self.kinds = tuple(kind for kind in KINDS if kind in {"psnr", *kinds})
        lpips = losses.LPIPS("alex") if "lpips" in kinds else None
        self.dists = losses.DISTS() if "dists" in kinds else None
        self.niqe = NIQE(model) if "niqe" in kinds else None
        for network in (lpips, self.dists):
            if network is not None:
                remember(network.features)
        self.plain = Measure(ssim=False, rounded=True, lpips=lpips)
        self.fast = Measure(ssim=False, rounded=True)
        self.luma = Measure(ssim=False, y=True, border=scale, rounded=True)

    def psnr(self, output: Tensor, target: Tensor, luma: bool = False) -> float:
        """Return the PSNR in dB, `EQUAL` at the most."""
        return min(EQUAL, (self.luma if luma else self.fast)(output, target).psnr)

    @torch.no_grad()
    def __call__(self, output: Tensor, target: Tensor, *, full: bool = True, luma: bool = False) -> dict[str, float]:
        """Judge a picture [1 or 3, H, W].

        Args:
            output: The picture.
            target: What it should be.
            full: Measure DISTS and NIQE too.
            luma: PSNR of the luma, nothing else.
        """
        if luma:
            return {"psnr": self.psnr(output, target, luma=True)}
        found = self.plain(output, target)
        values = {"psnr": min(EQUAL, found.psnr)}
        if found.lpips is not None:
            values["lpips"] = found.lpips
        if full and self.dists is not None:
            shown = (output.clamp(0, 1) * 255).round() / 255
            values["dists"] = float(self.dists(*(in_colour(x.unsqueeze(0)) for x in (shown, target))))
        return values | (self.natural(output) if full else {})

    def natural(self, picture: Tensor) -> dict[str, float]:
        """Return NIQE alone; nothing where it is not wanted or the picture is too small for it."""
        if self.niqe is None or min(picture.shape[-2:]) < LEAST:
            return {}
        return {"niqe": self.niqe(picture)}


def remember(features: Features) -> None:
    """Let a network keep the features of the two pictures that it was asked for last: targets come again and again."""
    extract: Callable[[Tensor], dict[str, Tensor]] = features.extract
    kept: list[tuple[Tensor, dict[str, Tensor]]] = []

    def remembering(x: Tensor) -> dict[str, Tensor]:
        place = next((k for k, (picture, _) in enumerate(kept) if torch.equal(picture, x)), None)
        kept.append((x, extract(x)) if place is None else kept.pop(place))
        del kept[:-2]
        return kept[-1][1]

    features.extract = remembering  # type: ignore[method-assign]
