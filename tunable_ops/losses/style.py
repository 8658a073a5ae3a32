"""The multi-loss of a style network: several styles weighted by lambda, and one shared content term."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from tunable_ops.losses.features import Features
from tunable_ops.losses.multi import MultiLoss
from tunable_ops.losses.perceptual import gram
from tunable_ops.losses.pixel import tv
from tunable_ops.losses.reduction import at_least_float32, check_picture_pair, check_pictures, mean_per_sample


class StyleTransfer(nn.Module):
    """Style objectives under lambda, a shared content term and total variation, from one pass through the features.

    Formula, per sample, with the features F_l [C, H*W] of a layer and ``G_l = F_l F_l^T / (C * H * W)``:

        total    = content * content_term + smooth * tv(output) + sum_i lambda_i * s_i * style_i
        style_i  = mean_l ( mean((G_l(output) - G_l(picture_i))^2) / mean(G_l(picture_i)^2) )
        content_term = mean((F_c(output) - F_c(target))^2) / mean(F_c(target)^2)

    Every term is relative to the size of its target, so that with s_i = 1 bright and faint styles, and deep and shallow
    layers, have equal weight. (Gatys et al., "Image Style Transfer Using Convolutional Neural Networks", CVPR 2016, sum
    absolute distances, where the brightest style and the deepest layers dominate.) The Gram matrices of the style
    pictures are computed once.

    Args:
        features: The frozen network; its layers must include ``style_layers`` and ``content_layer``.
        pictures: Name -> [1, 3, h, w] in [0, 1], the style pictures in lambda's order; sizes may differ.
        scales: Factors s_i, one per picture; default: 1.
        style_layers: Layers of the Gram matrices.
        content_layer: Layer c.
        content: Weight of the content term; about 1 leaves almost no style.
        smooth: Weight of the total variation.

    Attributes:
        names: Names of the styles, in lambda's order.
        styles: The `MultiLoss` of the Gram matrices.

    Raises:
        ValueError: A layer is missing in `features`, a picture is not [1, 3, h, w] in [0, 1], or a scale is invalid.

    Example:
        >>> from tunable_ops.losses import VGG16Features
        >>> features = VGG16Features(["relu1_2", "relu2_2"], weights="random")
        >>> pictures = {"dots": torch.rand(1, 3, 20, 24), "lines": torch.rand(1, 3, 16, 16)}
        >>> loss = StyleTransfer(features, pictures, style_layers=["relu1_2"], content_layer="relu2_2")
        >>> output = torch.rand(4, 3, 12, 12)
        >>> total, terms = loss(output, output, [0.5, 0.5])
        >>> list(terms), float(terms["content"])
        (['dots', 'lines', 'content', 'tv'], 0.0)
    """

    def __init__(
        self,
        features: Features,
        pictures: Mapping[str, Tensor],
        scales: Sequence[float] | None = None,
        *,
        style_layers: Sequence[str] = ("relu1_2", "relu2_2", "relu3_3", "relu4_3"),
        content_layer: str = "relu3_3",
        content: float = 0.25,
        smooth: float = 0.0,
    ) -> None:
        super().__init__()
        for layer in (*style_layers, content_layer):
            if layer not in features.layers:
                raise ValueError(
                    f"StyleTransfer: features must have the layer {layer!r}; got {', '.join(features.layers)}"
                )
        self.features = features
        self.style_layers, self.content_layer = tuple(style_layers), content_layer
        self.content, self.smooth = content, smooth
        targets = {}
        for name, picture in pictures.items():
            check_pictures("StyleTransfer", f"pictures[{name!r}]", picture, features.min_size)
            if picture.shape[0] != 1:
                raise ValueError(f"StyleTransfer: pictures[{name!r}] must be [1, 3, h, w]; got {list(picture.shape)}")
            found = features.extract(picture)
            targets[name] = RelativeSquares([gram(found[layer]).flatten(1) for layer in self.style_layers])
        self.styles = MultiLoss(targets, scales)
        self.names = self.styles.names

    def forward(
        self, outputs: Tensor, targets: Tensor | Mapping[str, Tensor], lam: Tensor | Sequence[float]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Weight the styles as `MultiLoss` does, and add the other terms.

        Args:
            outputs: [B, 3, H, W], RGB.
            targets: The content pictures, of the same shape; in a mapping, every style must have that same entry.
            lam: [p], [1, p] or [B, p].

        Returns:
            The total, a scalar, and the terms for logging: one per style, "content" and "tv", detached.

        Raises:
            TypeError, ValueError: As for `MultiLoss`, or outputs and targets are not pictures of the same size.
        """
        target = targets[self.names[0]] if isinstance(targets, Mapping) else targets
        outputs, target = check_picture_pair("StyleTransfer", outputs, target, self.features.min_size, False)
        found = self.features.extract(outputs)
        with torch.no_grad():
            wanted = self.features.extract(target)[self.content_layer]
        grams = torch.cat([gram(found[layer]).flatten(1) for layer in self.style_layers], dim=1)  # [B, sum C_l^2]
        total, terms = self.styles(grams, None, lam)
        wanted = wanted.to(at_least_float32(wanted))
        difference = found[self.content_layer] - wanted
        content = (mean_per_sample(difference**2) / mean_per_sample(wanted**2).clamp(min=1e-12)).mean()
        variation = tv(outputs).mean()
        total = total + self.content * content + self.smooth * variation
        return total, {**terms, "content": content.detach(), "tv": variation.detach()}

    def extra_repr(self) -> str:
        """Return weights and layers."""
        layers = ", ".join(self.style_layers)
        return f"styles on {layers}; content={self.content:g} on {self.content_layer}; smooth={self.smooth:g}"


class RelativeSquares(nn.Module):
    """``mean_l ( mean((x_l - t_l)^2) / mean(t_l^2) )`` for concatenated parts x_l, [B, sum_l n_l] -> [B].

    Args:
        targets: The t_l, [1, n_l] each.
    """

    target: Tensor

    def __init__(self, targets: Sequence[Tensor]) -> None:
        super().__init__()
        self.sizes = [part.shape[1] for part in targets]
        self.factors = [1 / max(float((part**2).sum()), 1e-12) / len(targets) for part in targets]
        self.register_buffer("target", torch.cat(list(targets), dim=1), persistent=False)

    def forward(self, x: Tensor, target: Tensor | None = None) -> Tensor:
        """Map [B, sum_l n_l] to [B]; `target` is what `MultiLoss` passes to every objective, and not used."""
        parts = ((x - self.target) ** 2).split(self.sizes, dim=1)
        total = x.new_zeros(x.shape[0])
        for factor, part in zip(self.factors, parts, strict=True):
            total = total + factor * part.sum(1)
        return total
