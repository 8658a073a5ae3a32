"""A network on pictures of any size, at the lambda that was set."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Restorer", "channels_of", "load", "make_restorer"]


@dataclass
class Restorer:
    """A network, in tiles.

    Args:
        net: The tunable network; None for a plain one.
        spec: Names, ranges, ... of lambda; of a plain network, the names at which it was folded.
        fixed: The lambda of a plain network.
        live: Network, called with [B, C, H, W] after `set(lam)`.
        device: Where it is.
        channels: Channels that it takes, 1 or 3.
        tile: Size of the tiles, 0 for whole pictures.
        overlap: Their overlap.
    """

    net: Any
    spec: Any
    fixed: tuple[float, ...] | None
    live: Any
    device: Any
    channels: int
    tile: int
    overlap: int
    _lam: tuple[float, ...] | None = field(default=None, init=False)

    @property
    def scale(self) -> int:
        """By how much the network enlarges, as it says."""
        network = self.live.network
        return getattr(network, "scale", getattr(network, "upscale", 1))

    @property
    def checksum(self) -> int:
        """Checksum of the network's values."""
        import torch

        value = 0
        network = self.live.network if self.net is None else self.net
        for name, tensor in sorted(network.state_dict().items()):
            flat = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
            value = zlib.crc32(flat.numpy(), zlib.crc32(name.encode(), value))
        return value

    def set(self, lam: tuple[float, ...], grey: bool = False) -> None:
        """Go to a lambda; kernels are blended only where it is another than before.

        A grey picture gets that which suits its noise on one channel (`grey.stronger`).
        """
        from tunable_ops.grey import stronger
        from tunable_ops.modules.spec import lambda_warnings_off

        wanted = tuple(stronger(self.net, lam)) if grey and self.net is not None else tuple(lam)
        if wanted == self._lam:
            return
        with lambda_warnings_off():  # of a level for grey; of `lam` itself `parse` has warned
            self.live.set(wanted)
        self._lam = wanted

    def __call__(self, image: Tensor, advance: Callable[[float], Any]) -> Tensor:
        """Run the network on [3, H, W], or [1, H, W] in grey, in tiles; return the same, s times as large, on the CPU.

        A network of one channel runs on each of the three. `advance` is called with the share of the picture that is
        done since the call before.
        """
        from tunable_ops.restoration import MULTIPLE, run_network

        share = self._share(image)

        def network(part: Tensor) -> Tensor:
            result = self.live(part.to(self.device))
            advance(share)
            return result

        return run_network(network, image, self.channels, self.tile, self.overlap, MULTIPLE)

    def _share(self, image: Tensor) -> float:
        """Return the share of a picture that is one tile."""
        from tunable_ops.restoration import MULTIPLE
        from tunable_ops.tiles import tile_windows

        tiles = 1
        for size in image.shape[-2:]:
            tiles *= len(tile_windows(size, self.tile, self.overlap, MULTIPLE)) if self.tile else 1
        return 1 / tiles

    def masked(
        self,
        image: Tensor,
        lam: tuple[float, ...],
        inside: tuple[float, ...],
        mask: Tensor,
        advance: Callable[[float], Any],
    ) -> Tensor:
        """Run the network with a lambda for each pixel, lam + mask * (inside - lam).

        Tiles that the mask leaves alone are those of a call at `lam`, which is also where this leaves the network.

        Args:
            image: [3, H, W], or [1, H, W] in grey.
            lam: Lambda where the mask is 0.
            inside: Lambda where it is 1.
            mask: [1, H, W] in [0, 1].
            advance: As for a call.

        Returns:
            As a call.

        Raises:
            ValueError: The network is a plain one, or the mask has another size than the picture.
        """
        import torch

        from tunable_ops.grey import on_grey, stronger
        from tunable_ops.modules.spec import lambda_warnings_off
        from tunable_ops.restoration import MULTIPLE
        from tunable_ops.tiles import apply_tiled

        if self.net is None:
            raise ValueError("mask must go with a tunable network; got a plain one")
        size = tuple(image.shape[1:])
        if tuple(mask.shape) != (1, *size):
            got = "x".join(str(side) for side in reversed(mask.shape[1:]))
            raise ValueError(f"mask must have the size of the picture, {size[1]}x{size[0]} pixels; got {got}")
        net, grey = self.net, image.shape[0] == 1
        self.set(lam, grey)
        if tuple(inside) == tuple(lam) or not bool(mask.any()):
            return self(image, advance)
        ends = [torch.tensor(stronger(net, each) if grey else each).view(1, -1, 1, 1) for each in (lam, inside)]
        share = self._share(image)

        def part(x: Tensor) -> Tensor:  # [1, C + 1, h, w]: colours and mask
            colours, where = x[:, :-1], x[:, -1:]
            field = (ends[0] + where * (ends[1] - ends[0])).to(self.device) if bool(where.any()) else None

            def network(given: Tensor) -> Tensor:
                given = given.to(self.device)
                if field is None:
                    return self.live(given)
                given = given.to(memory_format=torch.channels_last)
                with lambda_warnings_off():  # of a level for grey
                    return net(given, field.expand(given.shape[0], -1, -1, -1))

            if grey:
                output = on_grey(network, self.channels)(colours)
            elif self.channels == 1:
                output = network(colours.transpose(0, 1)).transpose(0, 1)
            else:
                output = network(colours)
            advance(share)
            return output

        with torch.no_grad():
            whole = torch.cat((image, mask))[None]
            result = apply_tiled(part, whole, self.tile, self.overlap, MULTIPLE) if self.tile else part(whole)
        return result[0].float().cpu()


def channels_of(net: Any) -> int:
    """Return the channels that a network takes, as it says; else 3."""
    return int(getattr(net, "channels", getattr(getattr(net, "network", None), "channels", 3)))


def make_restorer(
    net: Any, spec: Any, fixed: tuple[float, ...] | None, device: Any, tile: int = 512, overlap: int = 64
) -> Restorer:
    """Put what `load` returns on a device, in the layout and with the kernels that are fastest there.

    Args:
        net: The network.
        spec: Names, ranges, ... of its lambda.
        fixed: The lambda of a plain network.
        device: Where it runs.
        tile: Size of the tiles, 0 for whole pictures.
        overlap: Their overlap.

    Raises:
        ValueError: It is no network for pictures.
    """
    import torch

    from tunable_ops.modules import LiveFold, accelerate

    channels = channels_of(net)
    if channels not in (1, 3):
        raise ValueError(f"make_restorer: net must take images of 1 or 3 channels; got {channels} channels")
    net = net.to(device)
    live: Any = _Fixed(net) if fixed is not None else LiveFold(net)
    # the faster layout with oneDNN and cuDNN (the argument is missing in torch's stubs)
    accelerate(live.network.to(memory_format=torch.channels_last))
    net.eval().to(memory_format=torch.channels_last)  # runs itself with a mask
    return Restorer(None if fixed is not None else net, spec, fixed, live, device, channels, tile, overlap)


def load(model: str, knobs: Sequence[str], network: Any = None) -> tuple[Any, Any, tuple[float, ...] | None]:
    """Load a network that commands name.

    Args:
        model: Name of a shipped network, or a file: a checkpoint, published weights, or what `fold` wrote.
        knobs: Files of knobs on it.
        network: The plain network, for a file whose architecture is none of `models`.

    Returns:
        The network, the names and ranges of its lambda, and the lambda at which it was folded, if it was.
    """
    from tunable_ops import pretrained
    from tunable_ops.serialization import load_folded, read_metadata

    found = pretrained.find(model)
    if knobs or found.base is not None:
        net = pretrained.load(model, knobs, network)
        return net, net.spec, None
    file = found.file
    metadata = read_metadata(file)
    if metadata.get("conversion") is not None:
        net = pretrained.load(file, network=network)
        return net, net.spec, None
    notes = metadata.get("notes") or {}
    fixed, units = notes.get("lambda") or {}, notes.get("units") or {}
    spec = SimpleNamespace(names=tuple(fixed), units=tuple(units.get(name, "") for name in fixed))
    return load_folded(file, network).float(), spec, tuple(fixed.values())


class _Fixed:
    """A plain network, called as a `LiveFold` is."""

    def __init__(self, network: Any) -> None:
        self.network = network

    def set(self, lam: tuple[float, ...]) -> None:
        """Do nothing: there is no slider."""

    def __call__(self, x: Any) -> Any:
        return self.network(x)
