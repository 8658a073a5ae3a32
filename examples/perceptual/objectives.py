"""Perceptual objectives for the training of a generator, by name: the true loss, and what may stand in for it.

true       losses.Perceptual with VGG16: every step passes the output through VGG and back
sparse     the same at every N-th step only, with N times its weight
pgn        the gradient that a PGN predicts
anchored   the same less what it predicts at x = y
corrected  the PGN at every step, and N times what it lacks at every N-th
alex       LPIPS with AlexNet
squeeze    LPIPS with SqueezeNet 1.1 as its authors trained it
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from tunable_ops import losses

OBJECTIVES = ("true", "sparse", "pgn", "anchored", "corrected", "alex", "squeeze")
PERIODIC = ("sparse", "corrected")  # these use N
SCALES = {"alex": 0.022, "squeeze": 0.02}  # their gradients then have about the norm of 0.01 * the true loss's
SCALE = 0.01  # of all others: the gradient then has about the norm of L1's
_MEAN = (104 / 255, 117 / 255, 123 / 255)  # of B, G, R


class Fire(nn.Module):
    """1x1 to fewer channels, then 1x1 and 3x3 side by side, a ReLU after each."""

    def __init__(self, inputs: int, narrow: int, wide: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(inputs, narrow, 1)
        self.expand1x1 = nn.Conv2d(narrow, wide, 1)
        self.expand3x3 = nn.Conv2d(narrow, wide, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to [B, 2 * wide, H, W]."""
        x = F.relu(self.squeeze(x))
        return torch.cat((F.relu(self.expand1x1(x)), F.relu(self.expand3x3(x))), dim=1)


class SqueezeLPIPS(nn.Module):
    """LPIPS of features of SqueezeNet 1.1, with the published heads, which were fitted to another SqueezeNet 1.1.

    Args:
        folder: With squeezenet11_caffe_fp16.safetensors and lpips_heads.safetensors.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        pool = nn.MaxPool2d(3, 2, ceil_mode=True)
        stem: list[nn.Module] = [nn.Conv2d(3, 64, 3, stride=2), nn.ReLU(), pool, Fire(64, 16, 64), Fire(128, 16, 64)]
        middle: list[nn.Module] = [pool, Fire(128, 32, 128), Fire(256, 32, 128), pool, Fire(256, 48, 192)]
        end = [Fire(384, 48, 192), Fire(384, 64, 256), Fire(512, 64, 256)]
        self.features = nn.Sequential(*stem, *middle, *end)
        self.taps = (1, 4, 7, 9, 10, 11, 12)
        found = load_file(folder / "squeezenet11_caffe_fp16.safetensors")
        kept = {name: value.float() for name, value in found.items() if name.startswith("features.")}
        self.load_state_dict(kept)
        heads = load_file(folder / "lpips_heads.safetensors")
        for index in range(len(self.taps)):
            self.register_buffer(f"head{index}", heads[f"squeeze.lin{index}.model.1.weight"].float())
        self.register_buffer("mean", torch.tensor(_MEAN).view(1, 3, 1, 1))
        self.requires_grad_(False).eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def extract(self, x: Tensor) -> list[Tensor]:
        """Return the features of RGB pictures in [0, 1], of length 1 at every pixel."""
        x, found = 255 * (x.flip(1) - self.mean), []
        for index, module in enumerate(self.features):
            x = module(x)
            if index in self.taps:
                found.append(x / (torch.linalg.vector_norm(x, dim=1, keepdim=True) + 1e-10))
        return found

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Compare pictures [B, 3, H, W] -> [B]."""
        pairs = zip(self.extract(output), self.extract(target), strict=True)
        values = [(getattr(self, f"head{k}") * (a - b) ** 2).sum(1).mean((1, 2)) for k, (a, b) in enumerate(pairs)]
        return torch.stack(values).sum(0)


def build_objective(name: str, pgn: str | None, weights: str | None) -> nn.Module:
    """Return the loss module of an objective.

    Args:
        name: One of `OBJECTIVES`.
        pgn: File of `losses.PGN`; None for the one that ships.
        weights: Of VGG16; None to search for them.
    """
    if name == "alex":
        return losses.LPIPS(bounded=False)
    if name == "squeeze":
        return SqueezeLPIPS(Path(os.environ.get("TUNABLE_OPS_DATA", ".")) / "weights")
    true = losses.Perceptual("vgg16", weights=weights, bounded=False) if name in ("true", *PERIODIC) else None
    if true is not None and name != "corrected":
        return true
    options = {"bounded": False, "anchored": name == "anchored"}
    field = losses.PGN.load(pgn, **options) if pgn else losses.PGN.pretrained(**options)
    predicted = losses.PerceptualGradient(field)
    return predicted if true is None else losses.Corrected(predicted, true)


def multi_loss(name: str, period: int, pgn: str | None = None, weights: str | None = None) -> losses.MultiLoss:
    """Return L1 and the perceptual objective of a name; ``period`` is the N of those that need one."""
    objective = (build_objective(name, pgn, weights), SCALES.get(name, SCALE))
    every = {"perceptual": period if name in PERIODIC else 1}
    return losses.MultiLoss({"l1": losses.l1, "perceptual": objective}, every=every)


def steps_of(period: int, name: str) -> Sequence[int]:
    """Return the steps of one period of an objective, for its mean cost."""
    return range(period if name in PERIODIC else 1)
