"""CARN-M: cascades of residual blocks with shared weights and grouped convolutions, for super-resolution."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tunable_ops.models.checks import check_input, check_int

_SCALES = (2, 3, 4)
_MEAN = (0.4488, 0.4371, 0.4040)  # of RGB in [0, 1] over the pictures of its training


class MeanShift(nn.Module):
    """Add a constant to each channel: a frozen 1x1 convolution, as the published weights have it.

    Args:
        shift: What is added to each channel.
    """

    def __init__(self, *shift: float) -> None:
        super().__init__()
        self.shifter = Affine(torch.eye(len(shift)).view(len(shift), -1, 1, 1), torch.tensor(shift))

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to the same shape."""
        return self.shifter(x)


class Affine(nn.Module):
    """A fixed 1x1 convolution. It is no nn.Conv2d, so that `convert` leaves it alone: a constant is not to be tuned.

    Args:
        weight: [C, C, 1, 1].
        bias: [C].
    """

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = nn.Parameter(bias, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to the same shape."""
        return F.conv2d(x, self.weight, self.bias)


class ResidualUnit(nn.Module):
    """``y = relu(x + c3(relu(c2(relu(c1(x))))))``: two grouped 3x3 convolutions and one of 1x1.

    Args:
        features: C, a multiple of `groups`.
        groups: Of the 3x3 convolutions.
    """

    def __init__(self, features: int, groups: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(features, features, 3, padding=1, groups=groups),
            nn.ReLU(inplace=True),
            nn.Conv2d(features, features, 3, padding=1, groups=groups),
            nn.ReLU(inplace=True),
            nn.Conv2d(features, features, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to the same shape."""
        return F.relu(self.body(x) + x)


class Gather(nn.Module):
    """``y = relu(conv(x))``, 1x1: from all that a cascade has computed so far back to its width.

    Args:
        c: Channels in.
        o: Channels out.
    """

    def __init__(self, c: int, o: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(c, o, 1), nn.ReLU(inplace=True))

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, c, H, W] to [B, o, H, W]."""
        return self.body(x)


class Block(nn.Module):
    """A cascade over one residual unit, which is applied three times: see `cascade`.

    Args:
        features: C.
        groups: Of the unit.
    """

    def __init__(self, features: int, groups: int) -> None:
        super().__init__()
        self.b1 = ResidualUnit(features, groups)
        self.c1, self.c2, self.c3 = (Gather(n * features, features) for n in (2, 3, 4))

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to the same shape."""
        return cascade(x, (self.b1, self.b1, self.b1), (self.c1, self.c2, self.c3))


def cascade(x: Tensor, blocks: tuple[nn.Module, ...], gathers: tuple[nn.Module, ...]) -> Tensor:
    """Return o_n of ``o_i = gather_i(cat(x, block_1(o_0), ..., block_i(o_(i-1))))``, o_0 = x."""
    out = seen = x
    for block, gather in zip(blocks, gathers, strict=True):
        seen = torch.cat((seen, block(out)), dim=1)
        out = gather(seen)
    return out


class Enlarge(nn.Module):
    """Grouped 3x3 convolution, ReLU and pixel shuffle by 2 or 3; for 4, twice by 2.

    Args:
        scale: 2, 3 or 4.
        features: C.
        groups: Of the convolutions.
    """

    def __init__(self, scale: int, features: int, groups: int) -> None:
        super().__init__()
        steps: list[nn.Module] = []
        for factor in (2, 2) if scale == 4 else (scale,):
            steps += [
                nn.Conv2d(features, features * factor**2, 3, padding=1, groups=groups),
                nn.ReLU(inplace=True),
                nn.PixelShuffle(factor),
            ]
        self.body = nn.Sequential(*steps)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to [B, C, scale * H, scale * W]."""
        return self.body(x)


class CARN(nn.Module):
    """Cascading residual network for super-resolution in its mobile form, CARN-M; one file serves 2, 3 and 4 times.

    Formula: ``y = exit(up_scale(cascade(entry(x - mean)))) + mean``, a `cascade` of three blocks, each of them one
    again.

    Parameters have the names of the published weights: entry, b1.b1.body.0, b1.c1.body.0, c1.body.0,
    upsample.up2.body.0, exit, and the frozen sub_mean.shifter and add_mean.shifter. With the defaults it has 414,811 of
    them, those of all three enlargements included; `forward` uses the one of `scale`. Where only that is to be tuned,
    give `convert` an ``exclude`` for the others, such as ``["upsample.up3.*", "upsample.up4.*"]``.

    Args:
        scale: Enlargement: 2, 3 or 4.
        features: Width of the hidden layers, a multiple of `groups`.
        groups: Of the 3x3 convolutions between entry and exit.

    Attributes:
        channels: 3: RGB, whose mean the network knows.

    Raises:
        TypeError: An argument is not an int.
        ValueError: It is out of range.

    Source: Ahn et al., "Fast, Accurate, and Lightweight Super-Resolution with Cascading Residual Network", ECCV 2018
    (arXiv 1803.08664).

    Example:
        >>> net = CARN(scale=3, features=8)
        >>> net(torch.zeros(2, 3, 7, 9)).shape
        torch.Size([2, 3, 21, 27])
    """

    def __init__(self, scale: int = 2, features: int = 64, groups: int = 4) -> None:
        super().__init__()
        for name, value in {"scale": scale, "features": features, "groups": groups}.items():
            check_int("CARN", name, value)
        if scale not in _SCALES:
            raise ValueError(f"CARN: scale must be 2, 3 or 4; got {scale}")
        if features % groups:
            raise ValueError(f"CARN: features must be a multiple of groups = {groups}; got {features}")
        self.channels, self.scale = len(_MEAN), scale
        self.sub_mean = MeanShift(*(-value for value in _MEAN))
        self.add_mean = MeanShift(*_MEAN)
        self.entry = nn.Conv2d(self.channels, features, 3, padding=1)
        self.b1, self.b2, self.b3 = (Block(features, groups) for _ in range(3))
        self.c1, self.c2, self.c3 = (Gather(n * features, features) for n in (2, 3, 4))
        self.upsample = nn.ModuleDict({f"up{each}": Enlarge(each, features, groups) for each in _SCALES})
        self.exit = nn.Conv2d(features, self.channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the enlarged picture.

        Args:
            x: [B, 3, H, W], any floating dtype, any H and W; values in [0, 1].

        Returns:
            [B, 3, scale * H, scale * W], otherwise like x.

        Raises:
            ValueError: x is not [B, 3, H, W].
        """
        check_input("CARN", x, self.channels)
        out = cascade(self.entry(self.sub_mean(x)), (self.b1, self.b2, self.b3), (self.c1, self.c2, self.c3))
        return self.add_mean(self.exit(self.upsample[f"up{self.scale}"](out)))

    def extra_repr(self) -> str:
        """Return what the layers below do not show."""
        return f"scale={self.scale}"
