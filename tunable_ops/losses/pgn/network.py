"""`PGN`: a small network that writes the gradient of a perceptual loss."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tunable_ops.losses.features import IMAGENET_MEAN, IMAGENET_STD
from tunable_ops.losses.pgn.backbones import PublishedUNet, ResNet, UNet
from tunable_ops.losses.reduction import check_pictures
from tunable_ops.serialization import read_file, write_file

FORMAT = "tunable_ops.pgn"
VERSION = 1
SHIPPED = "unet_vgg16.safetensors"
STRETCH = 1.1  # of the proxy target, so that black and white lie inside the sigmoid's range
_SCALES = {"resnet4": 0.025, "resnet6": 0.025, "resnet8": 0.025, "unet": 0.048, "unet_published": 0.048}


class PGN(nn.Module):
    """Perceptual gradient network: the gradient of a perceptual loss in one pass, without the loss's network.

    With pictures normalised by ImageNet's mean and deviation (index n), the network writes a proxy target, and the
    gradient is that of the squared distance to it with the target held fixed::

        t_n = 1.1 * normalise(sigmoid(net(x_n, y_n)))
        g_n = (2 / (C*H*W)) * (x_n - t_n) / s          s = 0.025 (ResNets), 0.048 (UNets)

    `gradient` returns g = g_n / deviation, the gradient for pictures in [0, 1], and `proxy_target` t in that unit. The
    logit of x is added before the sigmoid, so that a net of zeros gives t = x and g = 0: a choice of ours, which spares
    the network learning to copy its input.

    With ``contraction = c`` the target is moved towards y until it is at most c times as far from y as x is::

        t_n <- y_n + (t_n - y_n) * min(1, c * |x_n - y_n| / |t_n - y_n|)         norms over the sample

    Then g is 0 at x = y, as the true gradient is, and ``<g, x - y> > 0`` elsewhere for c < 1: what follows the field
    never moves away from y on a small enough step, and comes to rest at y alone. Without it a network that is not exact
    near y leads past it, or stops short of it. An addition of ours.

    Args:
        network: "resnet4", "resnet6", "resnet8" (1.34, 1.93, 2.52 million parameters), "unet" (1.81 million, an
            arrangement of ours) or "unet_published" (1.77 million).
        bounded: Refuse x outside [0, 1]; False for the raw output of a network in training. y is checked in any case.
            Both only on the CPU, outside compilation and transforms.
        contraction: The c above, in (0, 1]; None for the network's own target, as published.

    Attributes:
        scale: The s of the formulas.
        notes: What `save` was told, such as the loss and the pictures of the training.

    Raises:
        ValueError: An unknown network, or a contraction outside (0, 1].

    Source: Nikulin et al., "Perceptual Gradient Networks", 2021 (arXiv 2105.01957).

    Example:
        >>> pgn = PGN("unet").eval()
        >>> x, y = torch.rand(2, 3, 32, 40), torch.rand(2, 3, 32, 40)
        >>> pgn.gradient(x, y).shape
        torch.Size([2, 3, 32, 40])
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: str = "unet", bounded: bool = True, contraction: float | None = None) -> None:
        super().__init__()
        if network not in _SCALES:
            raise ValueError(f"PGN: network must be one of {', '.join(_SCALES)}; got {network!r}")
        if contraction is not None and not 0 < contraction <= 1:
            raise ValueError(f"PGN: contraction must be in (0, 1] or None; got {contraction!r}")
        self.name, self.scale, self.bounded, self.contraction = network, _SCALES[network], bounded, contraction
        self.notes: dict[str, Any] = {}
        self.net = _build(network)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)
        last = self.net.last
        assert isinstance(last, nn.Conv2d) and last.bias is not None
        with torch.no_grad():  # begin near t = x
            last.weight.mul_(0.1)
            last.bias.zero_()
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return `proxy_target` without the checks."""
        x, y = x.to(self.mean.dtype), y.to(self.mean.dtype)
        pictures = torch.cat(((x - self.mean) / self.std, (y - self.mean) / self.std), dim=1)
        own = (self.mean + (x - self.mean) / STRETCH).clamp(0.01, 0.99)
        target = self.mean + STRETCH * (torch.sigmoid(self.net(pictures) + torch.logit(own)) - self.mean)
        return self._contracted(x, y, target)

    def _contracted(self, x: Tensor, y: Tensor, target: Tensor) -> Tensor:
        """Return the target, moved towards y where it is farther than ``contraction * |x - y|``."""
        if self.contraction is None:
            return target
        reach, away = (((v - y) / self.std).flatten(1).norm(dim=1).view(-1, 1, 1, 1) for v in (x, target))
        return y + (target - y) * (self.contraction * reach / away.clamp_min(1e-12)).clamp(max=1)

    def proxy_target(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the picture t towards which the predicted gradient pulls x.

        Args:
            x: [B, 3, H, W], the picture that is changed, RGB in [0, 1].
            y: The same shape and device, the picture that it is compared with.

        Returns:
            [B, 3, H, W], in about [-0.05, 1.06].

        Raises:
            TypeError: An input is not a floating point tensor.
            ValueError: Shapes or devices differ, not RGB, or outside [0, 1].
        """
        self._check(x, y)
        return self(x, y)

    @torch.no_grad()
    def gradient(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the predicted gradient of each sample's loss for its x: [B, 3, H, W]; arguments as `proxy_target`."""
        return self.field(x, self.proxy_target(x, y))

    @torch.no_grad()
    def objective(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return (`gradient` [B, 3, H, W], the value [B] whose gradient it is: ``mean((x_n - t_n)**2) / s``).

        The value is no estimate of the perceptual loss: it is half the step length times the gradient's norm.
        """
        target = self.proxy_target(x, y)
        value = (((x - target) / self.std) ** 2).mean((1, 2, 3)) / self.scale
        return self.field(x, target), value

    def field(self, x: Tensor, target: Tensor) -> Tensor:
        """Return a proxy target's gradient, ``(2 / (C*H*W)) * (x - t) / (s * deviation**2)`` for pictures in [0, 1]."""
        return (x - target) * (2 / (x.shape[1:].numel() * self.scale) / self.std**2)

    def true_proxy(self, x: Tensor, gradient: Tensor) -> Tensor:
        """Return the proxy target whose field is the gradient given: the inverse of `field`, for inspection."""
        return x - gradient * (self.std**2 * (self.scale * x.shape[1:].numel() / 2))

    def _check(self, x: Tensor, y: Tensor) -> None:
        check_pictures("PGN", "x", x, bounded=self.bounded)
        check_pictures("PGN", "y", y)
        if x.shape != y.shape or x.device != y.device:
            raise ValueError(
                f"PGN: y must have x's shape {list(x.shape)} and device {x.device}; got {list(y.shape)} on {y.device}"
            )

    def save(self, path: str | os.PathLike[str], notes: Mapping[str, Any] | None = None) -> None:
        """Write the network as safetensors, weights in fp16 (they are half the size so, and differ by < 5e-4).

        Args:
            path: The file; its folder is made if missing.
            notes: JSON values, kept as ``notes``; default those it already has.
        """
        half = {k: v.half() if v.is_floating_point() else v for k, v in self.state_dict().items()}
        metadata: dict[str, Any] = {"network": self.name, "notes": dict(self.notes if notes is None else notes)}
        if self.contraction is not None:
            metadata["contraction"] = self.contraction
        write_file(path, half, metadata, kind=FORMAT, version=VERSION)

    @classmethod
    def load(cls, path: str | os.PathLike[str], bounded: bool = True) -> PGN:
        """Read what `save` wrote: float32, frozen, in evaluation mode, on the CPU.

        Args:
            path: The file.
            bounded: As for the class.

        Raises:
            FileNotFoundError, ValueError: No such file, or not a file of `save`.
        """
        tensors, metadata = read_file(path, kind=FORMAT, version=VERSION)
        pgn = cls(metadata["network"], bounded, metadata.get("contraction"))
        try:
            pgn.load_state_dict(tensors)
        except RuntimeError as error:
            raise ValueError(f"PGN: path must fit the network {pgn.name}; got {str(path)!r}: {error}") from None
        pgn.notes = dict(metadata["notes"])
        return pgn.requires_grad_(False).eval()

    @classmethod
    def pretrained(cls, bounded: bool = True) -> PGN:
        """Read the UNet that ships, trained on VGG16's perceptual loss and photographs under free licences.

        ``notes`` say how it was trained, and name the photographers. Its ``contraction`` is 0.8, as in its training;
        with ``pgn.contraction = None`` it gives its own target.

        Args:
            bounded: As for the class.
        """
        return cls.load(Path(str(resources.files(__package__))) / "weights" / SHIPPED, bounded)


def _build(network: str) -> nn.Module:
    if network == "unet":
        return UNet()
    return PublishedUNet() if network == "unet_published" else ResNet(int(network.removeprefix("resnet")))
