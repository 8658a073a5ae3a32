"""LPIPS and DISTS: distances between features, fitted to human judgements of similarity."""

import os
from collections.abc import Callable

import torch
from torch import Tensor, nn

from tunable_ops.losses.features import NETWORKS, Features, VGG16Features
from tunable_ops.losses.reduction import check_picture_pair, mean_per_sample
from tunable_ops.losses.weights import read_weights

Path = str | os.PathLike[str]
_EPS = 1e-10  # in the normalisation of LPIPS
_FEATURES = {"alex": "alexnet", "vgg": "vgg16", "squeeze": "squeezenet"}
_LAYERS = {
    "alex": ("relu1", "relu2", "relu3", "relu4", "relu5"),
    "vgg": ("relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3"),
    "squeeze": ("relu1", "fire3", "fire5", "fire6", "fire7", "fire8", "fire9"),
}


class LPIPS(nn.Module):
    """Learned perceptual image patch similarity of each sample, version 0.1 of its weights.

    ``sum_l mean_hw(sum_c w_lc * (f_l(output) / |f_l(output)| - f_l(target) / |f_l(target)|)**2)``: the features of
    every pixel are scaled to length 1 over the channels; w_lc >= 0 were fitted to human judgements (Zhang et al., CVPR
    2018). Equal to the package lpips with ``normalize=True``.

    For "squeeze" that holds with torchvision's weights of SqueezeNet 1.1, for which its w_lc were fitted. The weights
    of the network's authors, which are taken where those are missing, give a distance of about the same size.

    Args:
        net: "alex", usual for evaluation; "vgg", usual for training; or "squeeze", the smallest, which trains nearly
            as well in a sixth of VGG16's time (docs/pgn.md).
        weights: Weights of the feature network, as for `features.VGG16Features` (`features.SqueezeNetFeatures`).
        heads: File of the w_lc; None to search for it like the weights.
        bounded: As for `Perceptual`.

    Raises:
        FileNotFoundError: No weights were found; the message says where they were looked for and how to get them.
        ValueError: An unknown net, or weights with the wrong checksum.
    """

    def __init__(
        self, net: str = "alex", weights: Path | None = None, heads: Path | None = None, bounded: bool = True
    ) -> None:
        super().__init__()
        if net not in _LAYERS:
            raise ValueError(f"LPIPS: net must be 'alex', 'vgg' or 'squeeze'; got {net!r}")
        build: Callable[..., Features] = NETWORKS[_FEATURES[net]]
        self.features = build(_LAYERS[net], weights=weights)
        self.bounded = bounded
        names = [f"{net}.lin{k}.model.1.weight" for k in range(len(_LAYERS[net]))]
        found = read_weights("LPIPS", "lpips", names, heads)
        for layer, name in zip(self.features.layers, names, strict=True):
            self.register_buffer(f"head_{layer}", found[name].view(1, -1, 1, 1))  # [1, C_l, 1, 1]

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Compare pictures: [B, 3, H, W] each, RGB in [0, 1] -> [B]; errors as for `Perceptual`."""
        output, target = check_picture_pair("LPIPS", output, target, self.features.min_size, self.bounded)
        found, wanted = self.features.extract(output), self.features.extract(target)
        values = []
        for layer in self.features.layers:
            difference = _unit(found[layer]) - _unit(wanted[layer])
            values.append(mean_per_sample((getattr(self, f"head_{layer}") * difference * difference).sum(1)))
        return torch.stack(values).sum(0)


def _unit(features: Tensor) -> Tensor:
    """Return ``f / (|f| + 1e-10)`` over the channels; unlike sqrt(sum), this norm has a derivative (0) where f is 0."""
    return features / (torch.linalg.vector_norm(features, dim=1, keepdim=True) + _EPS)


class DISTS(nn.Module):
    """Deep image structure and texture similarity of each sample: one minus a weighted mean of two similarities.

    For the picture itself and five ReLUs of a VGG16 with `features.L2Pool2d`, per channel, over all pixels::

        texture   = (2 m_x m_y + c) / (m_x**2 + m_y**2 + c)            m the means
        structure = (2 s_xy + c) / (s_xx + s_yy + c)                   s the (co)variances, c = 1e-6
        DISTS     = 1 - sum_c (alpha_c * texture_c + beta_c * structure_c) / sum_c (alpha_c + beta_c)

    alpha, beta >= 0 were fitted to human judgements and to make DISTS small between patches of one texture (Ding et
    al., "Image Quality Assessment: Unifying Structure and Texture Similarity", 2020). Pictures are not resized; the
    authors' program first resizes the shorter side to 256.

    Args:
        weights: Weights of VGG16, as for `features.VGG16Features`.
        heads: File of alpha and beta; None to search for it like the weights.
        bounded: As for `Perceptual`.

    Raises:
        FileNotFoundError, ValueError: As for `LPIPS`.
    """

    alpha: Tensor
    beta: Tensor

    def __init__(self, weights: Path | None = None, heads: Path | None = None, bounded: bool = True) -> None:
        super().__init__()
        self.features = VGG16Features(_LAYERS["vgg"], pool="l2", weights=weights)
        self.bounded = bounded
        found = read_weights("DISTS", "dists", ("alpha", "beta"), heads)
        total = found["alpha"].sum() + found["beta"].sum()
        self.register_buffer("alpha", found["alpha"].flatten() / total)  # [1475]
        self.register_buffer("beta", found["beta"].flatten() / total)

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Compare pictures: [B, 3, H, W] each, RGB in [0, 1] -> [B]; errors as for `Perceptual`."""
        output, target = check_picture_pair("DISTS", output, target, self.features.min_size, self.bounded)
        dtype = self.alpha.dtype
        found = [output.to(dtype), *self.features.extract(output).values()]
        wanted = [target.to(dtype), *self.features.extract(target).values()]
        textures, structures = zip(*(_similarities(x, y) for x, y in zip(found, wanted, strict=True)), strict=True)
        return 1 - torch.cat(textures, 1) @ self.alpha - torch.cat(structures, 1) @ self.beta


def _similarities(x: Tensor, y: Tensor, c: float = 1e-6) -> tuple[Tensor, Tensor]:
    """Return texture and structure, [B, C] each; central moments avoid cancellation."""
    mean_x, mean_y = x.mean((2, 3), keepdim=True), y.mean((2, 3), keepdim=True)
    dx, dy = x - mean_x, y - mean_y
    mean_x, mean_y = mean_x.flatten(1), mean_y.flatten(1)
    texture = (2 * mean_x * mean_y + c) / (mean_x * mean_x + mean_y * mean_y + c)
    structure = (2 * (dx * dy).mean((2, 3)) + c) / ((dx * dx).mean((2, 3)) + (dy * dy).mean((2, 3)) + c)
    return texture, structure
