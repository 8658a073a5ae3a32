"""Networks that spandrel knows (ESRGAN, DAT, HAT, SPAN and some forty more), from a file of their published weights.

found = zoo.load("RealESRGAN_x4plus.pth")
net = tunable_ops.convert(found.network, 1, domain="box", names=["texture"], rank=4)

Needs the extra `[zoo]`: spandrel, which needs torchvision.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from tunable_ops.extras import install
from tunable_ops.models.checks import check_input

__all__ = ["ARCHITECTURE", "ZooModel", "ZooNetwork", "load"]

ARCHITECTURE = "spandrel"
"""The name of these networks in configurations, checkpoints and knob files."""

_KINDS = {"SR": "super-resolution", "Restoration": "restoration"}


class ZooNetwork(nn.Module):
    """A network of spandrel, called as `tunable_ops.models` are: pictures of any size in [0, 1], differentiable.

    Pictures whose size the network does not take are reflected at the right and lower border, and the output is
    cropped. Unlike the output of spandrel's own call it is not clamped.

    Args:
        inner: The network itself, whose parameters have the names of the published weights.
        call: ``call(inner, x)``, what spandrel does to run it.
        padding: ``padding(width, height)``, the columns and rows that must be added.
        scale: Enlargement.
        channels: Of the pictures, 1 or 3.
    """

    def __init__(
        self,
        inner: nn.Module,
        call: Callable[[nn.Module, Tensor], Tensor],
        padding: Callable[[int, int], tuple[int, int]],
        scale: int,
        channels: int,
    ) -> None:
        super().__init__()
        self.inner, self.scale, self.channels = inner, scale, channels
        self._call, self._padding = call, padding

    def forward(self, x: Tensor) -> Tensor:
        """Return the restored picture.

        Args:
            x: [B, C, H, W], values in [0, 1].

        Returns:
            [B, C, scale * H, scale * W].

        Raises:
            ValueError: x is not [B, C, H, W] with C = ``channels``.
        """
        check_input("zoo", x, self.channels)
        height, width = x.shape[-2:]
        right, below = self._padding(width, height)
        # a reflection needs more pixels than it adds; what is missing repeats the border
        reflected = min(right, width - 1), min(below, height - 1)
        if right or below:
            x = F.pad(x, (0, reflected[0], 0, reflected[1]), mode="reflect")
            x = F.pad(x, (0, right - reflected[0], 0, below - reflected[1]), mode="replicate")
        output = self._call(self.inner, x)
        return output[..., : self.scale * height, : self.scale * width] if right or below else output


class ZooModel(NamedTuple):
    """What a file holds.

    Args:
        network: Plain, in evaluation mode, on the CPU.
        name: Of the architecture, as spandrel calls it.
        kind: "super-resolution" or "restoration" (noise, blur, JPEG: of the same size).
        scale: Enlargement.
        channels: Of input and output, 1 or 3.
        input_range: Least and largest value of a picture: 0 and 1 for all of them.
    """

    network: ZooNetwork
    name: str
    kind: str
    scale: int
    channels: int
    input_range: tuple[float, float] = (0.0, 1.0)


def load(path: str | os.PathLike[str]) -> ZooModel:
    """Load a published network from a file that spandrel reads; it finds architecture and sizes by the tensors' names.

    spandrel reads pickled files (.pth, .pt, .ckpt) with an unpickler of its own that makes tensors and nothing else.

    Args:
        path: .safetensors, .pth, .pt or .ckpt.

    Raises:
        RuntimeError: spandrel is not installed, or cannot be imported.
        FileNotFoundError: There is no such file.
        ValueError: spandrel does not know what it holds, or it is no network from pictures in grey or RGB to the same
            (one that fills holes, or for faces only).
    """
    spandrel = _spandrel()
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"zoo: path must be an existing file; got {str(path)!r}")
    try:
        found = spandrel.ModelLoader(device="cpu").load_from_file(str(file))
    except Exception as error:  # of unpickling, of tensors' shapes, of dicts: whatever its forty detectors meet
        reason = str(error) or "its tensors fit no architecture"
        raise ValueError(
            f"zoo: path must hold a network that spandrel knows; got {str(path)!r}: {type(error).__name__}: {reason}"
        ) from error
    name, kind, channels = found.architecture.name, str(found.purpose), found.input_channels
    if not isinstance(found, spandrel.ImageModelDescriptor) or kind not in _KINDS:
        raise ValueError(
            f"zoo: path must hold a network for super-resolution or restoration; got {name} in {str(path)!r}, whose "
            f"purpose is {kind}"
        )
    if channels not in (1, 3) or found.output_channels != channels:
        raise ValueError(
            f"zoo: path must hold a network of 1 or 3 channels, input and output alike; got {name} of {channels} and "
            f"{found.output_channels} in {str(path)!r}"
        )
    # the call itself clamps, in inference mode: nothing could be trained
    network = ZooNetwork(found.model, found._call_fn, found.size_requirements.get_padding, found.scale, channels)
    return ZooModel(network.eval(), name, _KINDS[kind], found.scale, channels)


def _spandrel() -> Any:
    try:
        import spandrel
    except (ImportError, RuntimeError) as error:  # RuntimeError: torchvision that was built for another torch
        raise RuntimeError(
            f"zoo: spandrel must be installed, and with it the torchvision of this torch; got {type(error).__name__}: "
            f"{error}: {install('zoo')}"
        ) from error
    return spandrel
