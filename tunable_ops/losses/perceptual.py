"""Distances between the features of two pictures: of the features themselves, and of their Gram matrices."""

import os
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from tunable_ops.losses.features import NETWORKS, Features
from tunable_ops.losses.reduction import at_least_float32, check_picture_pair, check_pictures, mean_per_sample

_STYLE_LAYERS = ("relu1_2", "relu2_2", "relu3_3", "relu4_3")
_VGGS = ("vgg16", "vgg19")


class Perceptual(nn.Module):
    """Perceptual loss of each sample: ``sum_l w_l * mean(|f_l(output) - f_l(target)|)``.

    f_l are the ReLUs of a VGG whose max-pools are replaced by average pools, as in "Perceptual Gradient Networks"
    (Nikulin et al., 2021), where the network is VGG19.

    Args:
        network: "vgg16" or "vgg19".
        layers: "relus" for all ReLUs up to relu5_1, names, or name -> w_l; w_l is 1 by default.
        pool: "avg" or "max".
        distance: "l1", or "l2" for the mean of squares.
        weights: As for `features.VGG16Features`.
        bounded: Reject outputs outside [0, 1]; False for the raw outputs of a network in training. The target is
            always checked. Checks are made on the CPU only (see `reduction.check_pictures`).

    Attributes:
        features: The frozen network, a submodule.

    Raises:
        FileNotFoundError: No weights were found; the message says where they were looked for and how to get them.
        ValueError: An unknown network, layer, pool or distance, or weights with the wrong checksum.
    """

    def __init__(
        self,
        network: str = "vgg19",
        layers: str | Sequence[str] | Mapping[str, float] = "relus",
        pool: str = "avg",
        distance: str = "l1",
        weights: str | os.PathLike[str] | None = None,
        bounded: bool = True,
    ) -> None:
        super().__init__()
        if distance not in ("l1", "l2"):
            raise ValueError(f"Perceptual: distance must be 'l1' or 'l2'; got {distance!r}")
        self.features = _vgg("Perceptual", network, layers, pool, weights)
        self.distance, self.bounded = distance, bounded
        given = dict(layers) if isinstance(layers, Mapping) else {}
        self.layer_weights = {layer: float(given.get(layer, 1.0)) for layer in self.features.layers}

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Compare pictures.

        Args:
            output: [B, 3, H, W], RGB in [0, 1], floating point.
            target: Same shape and device.

        Returns:
            [B], float32 (float64 for a network in float64). An empty batch gives [0].

        Raises:
            TypeError: An input is not a floating point Tensor.
            ValueError: Shapes or devices differ, or pictures are not RGB, too small for the deepest layer, or outside
                [0, 1].
        """
        output, target = check_picture_pair("Perceptual", output, target, self.features.min_size, self.bounded)
        return self.between(self.features.extract(output), self.features.extract(target))

    def between(self, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> Tensor:
        """Return the loss [B] for features that were already extracted."""
        values = []
        for layer, weight in self.layer_weights.items():
            difference = found[layer] - wanted[layer]
            difference = difference.to(at_least_float32(difference))
            power = difference.abs() if self.distance == "l1" else difference * difference
            values.append(weight * mean_per_sample(power))
        return torch.stack(values).sum(0)

    def extra_repr(self) -> str:
        """Return network, distance and layers."""
        return f"{self.features.network}, {self.distance}, {', '.join(self.layer_weights)}"


class GramStyle(nn.Module):
    """Style loss of each sample: ``sum_l mean((G_l(output) - G_l(target))**2)``, ``G = F F^T / (C * H * W)``.

    F [C, H*W] are the features of a layer. G [C, C] does not depend on their positions, so the target may have another
    size (Gatys et al., 2016; by default the four layers of VGG16 of Johnson et al.).

    Args:
        network: "vgg16" or "vgg19".
        layers: Names of ReLUs.
        pool: "max" or "avg".
        weights: As for `features.VGG16Features`.
        style: [1, 3, h, w], the target of calls without one, or None. Its Gram matrices are computed once.
        bounded: As for `Perceptual`.

    Raises:
        FileNotFoundError, ValueError: As for `Perceptual`.
    """

    def __init__(
        self,
        network: str = "vgg16",
        layers: Sequence[str] = _STYLE_LAYERS,
        pool: str = "max",
        weights: str | os.PathLike[str] | None = None,
        style: Tensor | None = None,
        bounded: bool = True,
    ) -> None:
        super().__init__()
        self.features = _vgg("GramStyle", network, layers, pool, weights)
        self.bounded = bounded
        self.has_style = style is not None
        if style is not None:
            check_pictures("GramStyle", "style", style, self.features.min_size)
            if style.shape[0] != 1:
                raise ValueError(f"GramStyle: style must be one picture, [1, 3, h, w]; got {list(style.shape)}")
            for layer, matrix in self._grams(style).items():
                self.register_buffer(f"gram_{layer}", matrix, persistent=False)

    def forward(self, output: Tensor, target: Tensor | None = None) -> Tensor:
        """Compare styles.

        Args:
            output: [B, 3, H, W], RGB in [0, 1], floating point.
            target: [B, 3, h, w], or [1, 3, h, w] for all; None for the constructor's ``style``.

        Returns:
            [B], float32 (float64 for a network in float64). An empty batch gives [0].

        Raises:
            TypeError: An input is not a floating point Tensor.
            ValueError: Neither target nor style, batch sizes that do not match, or as for `Perceptual`.
        """
        check_pictures("GramStyle", "output", output, self.features.min_size, self.bounded)
        if target is None and not self.has_style:
            raise ValueError("GramStyle: target must be a picture if the constructor got no style; got None")
        if target is None:
            wanted = {layer: getattr(self, f"gram_{layer}") for layer in self.features.layers}
        else:
            check_pictures("GramStyle", "target", target, self.features.min_size)
            if target.shape[0] not in (1, output.shape[0]) or target.device != output.device:
                raise ValueError(
                    f"GramStyle: target must be [B, 3, h, w] or [1, 3, h, w] with B = {output.shape[0]} on "
                    f"{output.device}; got {list(target.shape)} on {target.device}"
                )
            wanted = self._grams(target)
        found = self._grams(output)
        return torch.stack([mean_per_sample((found[k] - wanted[k]) ** 2) for k in self.features.layers]).sum(0)

    def _grams(self, pictures: Tensor) -> dict[str, Tensor]:
        return {layer: gram(value) for layer, value in self.features.extract(pictures).items()}


def gram(features: Tensor) -> Tensor:
    """Return ``F F^T / (C * H * W)`` [B, C, C] of [B, C, H, W] in at least float32, even under autocast."""
    with torch.autocast(features.device.type, enabled=False):
        flat = features.to(at_least_float32(features)).flatten(2)  # [B, C, H*W]
        return flat @ flat.mT / (flat.shape[1] * flat.shape[2])


def _vgg(
    loss: str,
    network: str,
    layers: str | Sequence[str] | Mapping[str, float],
    pool: str,
    weights: str | os.PathLike[str] | None,
) -> Features:
    if network not in _VGGS:
        raise ValueError(f"{loss}: network must be one of {', '.join(_VGGS)}; got {network!r}")
    names = layers if isinstance(layers, str) else list(layers)
    build: type = NETWORKS[network]
    return build(names, pool=pool, weights=weights)
