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
        from tunable_ops.tiles import tile_windows

        tiles = 1
        for size in image.shape[-2:]:
            tiles *= len(tile_windows(size, self.tile, self.overlap, MULTIPLE)) if self.tile else 1

        def network(part: Tensor) -> Tensor:
            result = self.live(part.to(self.device))
            advance(1 / tiles)
            return result

        return run_network(network, image, self.channels, self.tile, self.overlap, MULTIPLE)


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
