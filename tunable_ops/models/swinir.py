"""SwinIR: attention in shifted windows, for restoration and super-resolution."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tunable_ops.models.checks import check_int, check_ints, check_number
from tunable_ops.models.whole_blocks import whole_size

_UPSAMPLERS = {"": (1,), "pixelshuffle": (2, 3, 4, 8), "pixelshuffledirect": (2, 3, 4), "nearest+conv": (2, 4)}
_DIV2K_MEAN = (0.4488, 0.4371, 0.4040)
_FEATURES = 64  # channels of the upsamplers whose width differs from the body's


class WindowAttention(nn.Module):
    """Multi-head attention inside windows, with a learned bias for every offset between two pixels.

    Formula, per window and head: ``softmax(q k^T / sqrt(d) + table[index] + mask) v``, then ``proj``.

    Args:
        dim: Channels C.
        window: Side w of a window; N = w * w pixels.
        heads: Number of heads; d = C / heads.

    State: relative_position_bias_table [(2w-1)^2, heads], relative_position_index [N, N] (its rows), qkv, proj.
    """

    relative_position_index: Tensor

    def __init__(self, dim: int, window: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window - 1) ** 2, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.register_buffer("relative_position_index", relative_position_index(window))
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Apply attention to windows.

        Args:
            x: [B * n, N, C], the n windows of each sample in order.
            mask: [n, N, N], added before the softmax; or None.

        Returns:
            Tensor like x.
        """
        rows, pixels, dim = x.shape
        d = dim // self.heads
        q, k, v = self.qkv(x).view(rows, pixels, 3, self.heads, d).permute(2, 0, 3, 1, 4)
        attention = (q * d**-0.5) @ k.transpose(-2, -1)  # [B * n, heads, N, N]
        # one table, or one per sample: [..., heads, N, N]
        bias = self.relative_position_bias_table[..., self.relative_position_index, :].movedim(-1, -3)
        if bias.dim() == 4:
            attention = (attention.unflatten(0, (bias.shape[0], -1)) + bias.unsqueeze(1)).flatten(0, 1)
        else:
            attention = attention + bias
        if mask is not None:
            attention = (attention.unflatten(0, (-1, mask.shape[0])) + mask.unsqueeze(1)).flatten(0, 1)
        return self.proj((attention.softmax(-1) @ v).transpose(1, 2).reshape(rows, pixels, dim))


class Mlp(nn.Module):
    """``y = fc2(gelu(fc1(x)))``.

    Args:
        dim: Channels C.
        hidden: Channels of the hidden layer.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, ..., C] to the same shape."""
        return self.fc2(F.gelu(self.fc1(x)))


class SwinBlock(nn.Module):
    """``y = x + drop(attn(norm1(x)))``, ``z = y + drop(mlp(norm2(y)))``, with windows shifted by ``shift`` pixels.

    Args:
        dim: Channels C.
        heads: Number of attention heads.
        window: Side w of a window.
        shift: Pixels by which the picture is first rolled up and left; attention across the seam is masked.
        hidden: Hidden channels of the MLP.
        drop_path: Probability that a sample skips a residual in training.
        img_size: Side of the pictures whose mask is stored; for other sizes it is computed in each call.

    State: norm1, attn, norm2, mlp, and for shift > 0 attn_mask [n, w * w, w * w].
    """

    attn_mask: Tensor | None

    def __init__(
        self, dim: int, heads: int, window: int, shift: int, hidden: int, drop_path: float, img_size: int
    ) -> None:
        super().__init__()
        self.window, self.shift, self.drop_path, self.img_size = window, shift, drop_path, img_size
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, window, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, hidden)
        self.register_buffer("attn_mask", shift_mask(img_size, img_size, window, shift) if shift else None)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, H, W, C] to the same shape; H and W are multiples of the window."""
        x = x + self._drop(self._attend(self.norm1(x)))
        return x + self._drop(self.mlp(self.norm2(x)))

    def _attend(self, x: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        mask = self.attn_mask
        if self.shift:
            x = x.roll((-self.shift, -self.shift), (1, 2))
            if (height, width) != (self.img_size, self.img_size):
                mask = shift_mask(height, width, self.window, self.shift).to(x)
        x = join_windows(self.attn(split_windows(x, self.window), mask), height, width)
        return x.roll((self.shift, self.shift), (1, 2)) if self.shift else x

    def _drop(self, x: Tensor) -> Tensor:
        """Apply stochastic depth: set a share ``drop_path`` of the samples to 0, scale the others to keep the mean."""
        if not self.training or not self.drop_path:
            return x
        keep = 1 - self.drop_path
        return x * (x.new_empty(x.shape[0], 1, 1, 1).bernoulli_(keep) / keep)

    def extra_repr(self) -> str:
        """Return what the layers below do not show."""
        return f"window={self.window}, shift={self.shift}, drop_path={self.drop_path:g}"


class ResidualGroup(nn.Module):
    """``y = x + conv(blocks(x))``.

    Args:
        blocks: The blocks.
        conv: What `_connection` returns.
    """

    def __init__(self, blocks: Sequence[SwinBlock], conv: nn.Module) -> None:
        super().__init__()
        self.residual_group = nn.Sequential(OrderedDict(blocks=nn.Sequential(*blocks)))
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, H, W, C] to the same shape."""
        return x + self.conv(self.residual_group(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class SwinIR(nn.Module):
    """Restoration and super-resolution by attention in windows of w x w pixels, shifted by w/2 in every second block.

    Formula: ``f = conv_first((x - mean) * img_range)``, ``g = f + conv_after_body(norm(layers(patch_embed(f))))``;
    then ``y = head(g) / img_range + mean``, and at upscale 1 the head's output is added to the input.

    The heads are the published ones: "" (restoration), "pixelshuffle" (classical super-resolution),
    "pixelshuffledirect" (lightweight), "nearest+conv" (real-world pictures). Sides that are not multiples of w are
    extended by reflection at the right and the bottom, repeatedly if the picture is very small, and the output is
    cropped.

    The defaults are the published configuration for colour denoising. Classical super-resolution needs
    ``upsampler="pixelshuffle", upscale=2, img_size=48`` (or 64), the lightweight one ``upsampler="pixelshuffledirect",
    embed_dim=60, depths=(6, 6, 6, 6), num_heads=(6, 6, 6, 6)``, grey denoising ``in_chans=1``. Parameters and buffers
    have the names of the published weights; ``img_size`` only decides the size of the stored masks (128 for denoising).
    Make it tunable, position tables included, with
    ``convert(net, 2, parameters=("*.relative_position_bias_table",))``.

    Args:
        img_size: Side of the pictures whose masks are stored, usually the training crops; a multiple of window_size.
        in_chans: Channels of the picture.
        embed_dim: Channels C of the body, a multiple of every number of heads.
        depths: Number of blocks in each residual group.
        num_heads: Heads in each group; the same length.
        window_size: w.
        mlp_ratio: Hidden channels of the MLPs divided by C.
        drop_path_rate: Stochastic depth of the last block in training, rising linearly from 0 at the first.
        upscale: Enlargement: 1 for ""; 2, 3, 4 or 8 for "pixelshuffle"; 2, 3 or 4 for "pixelshuffledirect"; 2 or 4 for
            "nearest+conv".
        img_range: Factor on the input, divided out at the end; positive.
        upsampler: Head of the network.
        resi_connection: Convolutions after each group: "1conv" or, as in the largest published model, "3conv".
        mean: Value per channel, subtracted from the input; None: DIV2K's mean for 3 channels, else 0.

    Attributes:
        channels: in_chans, as in all these networks.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: A value is out of range, or values do not fit together.

    Source: Liang et al., "SwinIR: Image Restoration Using Swin Transformer", ICCV workshops 2021 (arXiv 2108.10257).

    Example:
        >>> net = SwinIR(img_size=16, embed_dim=8, depths=(2,), num_heads=(2,), upscale=2, upsampler="pixelshuffle")
        >>> net(torch.zeros(2, 3, 9, 14)).shape
        torch.Size([2, 3, 18, 28])
    """

    mean: Tensor

    def __init__(
        self,
        img_size: int = 64,
        in_chans: int = 3,
        embed_dim: int = 180,
        depths: Sequence[int] = (6, 6, 6, 6, 6, 6),
        num_heads: Sequence[int] = (6, 6, 6, 6, 6, 6),
        window_size: int = 8,
        mlp_ratio: float = 2.0,
        drop_path_rate: float = 0.1,
        upscale: int = 1,
        img_range: float = 1.0,
        upsampler: str = "",
        resi_connection: str = "1conv",
        mean: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        numbers = {"img_size": img_size, "in_chans": in_chans, "embed_dim": embed_dim, "window_size": window_size}
        _check_numbers({**numbers, "upscale": upscale}, depths, num_heads)
        _check_fit(img_size, embed_dim, num_heads, window_size)
        _check_floats(mlp_ratio, drop_path_rate, img_range)
        _check_head(upsampler, upscale, resi_connection)
        self.channels, self.upscale, self.img_range = in_chans, upscale, img_range
        self.window_size, self.upsampler = window_size, upsampler
        self.register_buffer("mean", _mean(mean, in_chans).view(1, -1, 1, 1), persistent=False)
        self.conv_first = nn.Conv2d(in_chans, embed_dim, 3, padding=1)
        self.patch_embed = nn.Sequential(OrderedDict(norm=nn.LayerNorm(embed_dim)))
        rates = iter(torch.linspace(0, drop_path_rate, sum(depths), device="cpu").tolist())
        hidden = int(embed_dim * mlp_ratio)
        self.layers = nn.Sequential()
        for depth, heads in zip(depths, num_heads, strict=True):
            blocks = [
                SwinBlock(embed_dim, heads, window_size, i % 2 * (window_size // 2), hidden, next(rates), img_size)
                for i in range(depth)
            ]
            self.layers.append(ResidualGroup(blocks, _connection(embed_dim, resi_connection)))
        self.norm = nn.LayerNorm(embed_dim)
        self.conv_after_body = _connection(embed_dim, resi_connection)
        self._add_head(embed_dim)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def _add_head(self, dim: int) -> None:
        """Add the layers of the chosen upsampler, under their published names."""
        colours, upscale = self.channels, self.upscale
        if self.upsampler == "pixelshuffledirect":
            self.upsample = nn.Sequential(nn.Conv2d(dim, colours * upscale**2, 3, padding=1), nn.PixelShuffle(upscale))
            return
        if self.upsampler:
            dim, before = _FEATURES, nn.Conv2d(dim, _FEATURES, 3, padding=1)
            self.conv_before_upsample = nn.Sequential(before, nn.LeakyReLU())
        if self.upsampler == "pixelshuffle":
            factors = [3] if upscale == 3 else [2] * (upscale.bit_length() - 1)
            self.upsample = nn.Sequential()
            for factor in factors:
                self.upsample.append(nn.Conv2d(dim, dim * factor**2, 3, padding=1))
                self.upsample.append(nn.PixelShuffle(factor))
        elif self.upsampler == "nearest+conv":
            self.conv_up1 = nn.Conv2d(dim, dim, 3, padding=1)
            if upscale == 4:
                self.conv_up2 = nn.Conv2d(dim, dim, 3, padding=1)
            self.conv_hr = nn.Conv2d(dim, dim, 3, padding=1)
        self.conv_last = nn.Conv2d(dim, colours, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the restored or enlarged picture.

        Args:
            x: [B, C, H, W], any floating dtype, any H and W from 1 on; values in [0, 1] by convention.

        Returns:
            [B, C, upscale * H, upscale * W], otherwise like x.

        Raises:
            ValueError: x is not [B, C, H, W] with C = ``channels``, or has no pixels.
        """
        if x.dim() != 4 or x.shape[1] != self.channels or 0 in x.shape[2:]:
            raise ValueError(f"SwinIR: x must be [B, {self.channels}, H, W], H and W >= 1; got {list(x.shape)}")
        height, width = x.shape[-2:]
        x = (reflect_to_multiple(x, self.window_size) - self.mean) * self.img_range
        first = self.conv_first(x)
        body = self.norm(self.layers(self.patch_embed(first.permute(0, 2, 3, 1))))
        out = self._head(first + self.conv_after_body(body.permute(0, 3, 1, 2)))
        out = (out if self.upsampler else x + out) / self.img_range + self.mean
        return out[..., : height * self.upscale, : width * self.upscale]

    def _head(self, x: Tensor) -> Tensor:
        if self.upsampler == "pixelshuffledirect":
            return self.upsample(x)
        if self.upsampler:
            x = self.conv_before_upsample(x)
        if self.upsampler == "pixelshuffle":
            x = self.upsample(x)
        elif self.upsampler == "nearest+conv":
            for up in [self.conv_up1, self.conv_up2] if self.upscale == 4 else [self.conv_up1]:
                x = F.leaky_relu(up(F.interpolate(x, scale_factor=2)), 0.2)
            x = F.leaky_relu(self.conv_hr(x), 0.2)
        return self.conv_last(x)

    def extra_repr(self) -> str:
        """Return what the layers below do not show."""
        return f"upscale={self.upscale}, upsampler={self.upsampler!r}, img_range={self.img_range}"


def relative_position_index(window: int) -> Tensor:
    """Return the table's row for pixels i and j of a window, ``(dy + w-1) * (2w-1) + (dx + w-1)``: [N, N] int64."""
    place = torch.arange(window)
    y, x = place.repeat_interleave(window), place.repeat(window)  # [N]
    dy, dx = y.unsqueeze(1) - y, x.unsqueeze(1) - x  # [N, N]
    return (dy + window - 1) * (2 * window - 1) + dx + window - 1


def shift_mask(height: int, width: int, window: int, shift: int) -> Tensor:
    """Return [n, N, N] float32: -100 for two pixels of a window on different sides of the seam, else 0.

    After rolling by ``shift`` the last window of a row holds the last pixels, followed by the first ones.
    """

    def part(size: int) -> Tensor:
        place = torch.arange(size)
        return (place >= size - window).long() + (place >= size - shift).long()

    label = 3 * part(height).unsqueeze(1) + part(width)  # [H, W]
    windows = split_windows(label.view(1, height, width, 1), window).squeeze(-1)  # [n, N]
    return (windows.unsqueeze(1) != windows.unsqueeze(2)).float() * -100.0


def split_windows(x: Tensor, window: int) -> Tensor:
    """Split [B, H, W, C] into [B * n, w * w, C], the windows of each sample row by row."""
    batch, height, width, channels = x.shape
    x = x.view(batch, height // window, window, width // window, window, channels)
    return x.transpose(2, 3).reshape(-1, window * window, channels)


def join_windows(windows: Tensor, height: int, width: int) -> Tensor:
    """Join [B * n, w * w, C] to [B, H, W, C], the inverse of `split_windows`."""
    window = round(windows.shape[1] ** 0.5)
    shape = (-1, height // window, width // window, window, window, windows.shape[-1])
    return windows.view(shape).transpose(2, 3).reshape(-1, height, width, windows.shape[-1])


def reflect_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Extend [B, C, H, W] at the right and the bottom by reflection, repeatedly if necessary."""
    for dim in (-2, -1):
        size = x.shape[dim]
        if isinstance(size, torch.SymInt) or size % multiple:  # a graph of an export is for every size
            period = torch.sym_max(1, 2 * (size - 1))
            place = torch.arange(whole_size(size, multiple), device=x.device) % period
            x = x.index_select(dim, torch.minimum(place, period - place) if size > 1 else place)
    return x


def _connection(dim: int, kind: str) -> nn.Module:
    if kind == "1conv":
        return nn.Conv2d(dim, dim, 3, padding=1)
    return nn.Sequential(
        nn.Conv2d(dim, dim // 4, 3, padding=1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(dim // 4, dim // 4, 1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(dim // 4, dim, 3, padding=1),
    )


def _mean(mean: Sequence[float] | None, channels: int) -> Tensor:
    if mean is None:
        return torch.tensor(_DIV2K_MEAN if channels == 3 else [0.0] * channels)
    values: list[Any] = list(mean) if isinstance(mean, list | tuple) else []
    if not values or not all(isinstance(value, int | float) for value in values):
        raise TypeError(f"SwinIR: mean must be a list or tuple of numbers; got {mean!r}")
    if len(values) != channels:
        raise ValueError(f"SwinIR: mean must be {channels} numbers; got {values}")
    return torch.tensor(values, dtype=torch.float32)


def _check_numbers(numbers: dict[str, int], depths: Sequence[int], num_heads: Sequence[int]) -> None:
    for name, value in numbers.items():
        check_int("SwinIR", name, value)
    check_ints("SwinIR", "depths", depths)
    check_ints("SwinIR", "num_heads", num_heads)
    if len(depths) != len(num_heads):
        raise ValueError(
            f"SwinIR: num_heads must have as many entries as depths; got {list(num_heads)} for {list(depths)}"
        )


def _check_fit(img_size: int, embed_dim: int, num_heads: Sequence[int], window_size: int) -> None:
    if img_size % window_size:
        raise ValueError(f"SwinIR: img_size must be a multiple of window_size, {window_size}; got {img_size}")
    for heads in num_heads:
        if embed_dim % heads:
            raise ValueError(f"SwinIR: embed_dim must be a multiple of num_heads, {heads}; got {embed_dim}")


def _check_floats(mlp_ratio: float, drop_path_rate: float, img_range: float) -> None:
    for name, value in {"mlp_ratio": mlp_ratio, "drop_path_rate": drop_path_rate, "img_range": img_range}.items():
        check_number("SwinIR", name, value)
        if name != "drop_path_rate" and value <= 0:
            raise ValueError(f"SwinIR: {name} must be positive; got {value}")
    if not 0 <= drop_path_rate < 1:
        raise ValueError(f"SwinIR: drop_path_rate must lie in [0, 1); got {drop_path_rate}")


def _check_head(upsampler: str, upscale: int, resi_connection: str) -> None:
    if upsampler not in _UPSAMPLERS:
        raise ValueError(f"SwinIR: upsampler must be one of {', '.join(map(repr, _UPSAMPLERS))}; got {upsampler!r}")
    if upscale not in _UPSAMPLERS[upsampler]:
        known = ", ".join(map(str, _UPSAMPLERS[upsampler]))
        raise ValueError(f"SwinIR: upscale must be one of {known} for upsampler {upsampler!r}; got {upscale}")
    if resi_connection not in ("1conv", "3conv"):
        raise ValueError(f"SwinIR: resi_connection must be '1conv' or '3conv'; got {resi_connection!r}")
