"""Published weights and the usual figures of super-resolution, for tests of the networks that load them."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tunable_ops.images import read_image

DATA = os.environ.get("TUNABLE_OPS_DATA")
NEEDS_WEIGHTS = pytest.mark.skipif(not DATA, reason="TUNABLE_OPS_DATA is not set")


def weights(name: str) -> dict[str, Tensor]:
    """Return a state dict of the folder of published weights."""
    from safetensors.torch import load_file

    return load_file(Path(str(DATA)) / "weights" / f"{name}.safetensors")


def set5(net: Callable[[Tensor], Tensor], scale: int) -> float:
    """Return the mean PSNR in dB on set5 as super-resolution publishes it.

    Outputs are rounded to 8 bits, a border of `scale` pixels is left out, and the luma of BT.601 is compared.
    """
    folder, values = Path(str(DATA)) / "images" / "test" / "set5", []
    for file in sorted((folder / f"LRx{scale}").glob("*.png")):
        with torch.no_grad():
            out = (net(read_image(file)[None])[0].clamp(0, 1) * 255).round() / 255
        clean = read_image(folder / f"{file.stem.removesuffix(f'x{scale}')}.png")[:, : out.shape[1], : out.shape[2]]
        error = (_luma(out) - _luma(clean))[scale:-scale, scale:-scale]
        values.append(float(-10 * error.square().mean().log10()))
    assert len(values) == 5
    return sum(values) / 5


def _luma(picture: Tensor) -> Tensor:
    red, green, blue = picture.double()
    return (65.481 * red + 128.553 * green + 24.966 * blue + 16) / 255
