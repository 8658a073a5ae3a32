"""A network behind the page: small windows at once, whole pictures in tiles, maps of lambda."""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from tunable_ops.app.settings import Refused, Settings
from tunable_ops.restoration import MULTIPLE
from tunable_ops.restorer import channels_of, make_restorer

__all__ = ["MARGIN", "MOST_PARAMETERS", "Cancelled", "Engine", "Replaced"]

MARGIN = 8
"""Pixels around a window that the network is given and that are not shown."""
MOST_PARAMETERS = 8
"""Sliders that the page has."""
_LEAST, _MOST = 96, 384  # pixels of a side of a window, margin included
_LEAST_ENLARGED = 64  # where the network enlarges
_MASKED = 2 / 3  # of the least, for a lambda per pixel
_NOISE = "of 255"  # the unit of a parameter that says how strong the noise is
_TRIAL = 96  # pixels of a side of what the speed is measured with
_IN_A_ROW = 3  # previews that were late, or early, before the window changes

Lambda = tuple[float, ...]


class Cancelled(Exception):
    """A picture that nobody waits for any more."""


class Replaced(Cancelled):
    """One in whose stead another was begun."""


class Engine:
    """A network, ready for the page.

    Args:
        title: What the page calls it.
        net: What `restorer.load` returns, first entry.
        spec: The second.
        fixed: The third.
        device: Where it runs.
        settings: Tiles and the time of a preview.

    Attributes:
        spec: Names, units, ranges, defaults of lambda; None for a plain network.
        scale: By how much it enlarges.
        window: Side of a preview in pixels of the input, margin included; as large as the time allows.

    Raises:
        Refused: It has more parameters than the page has sliders, or takes neither 1 nor 3 channels.
    """

    def __init__(self, title: str, net: Any, spec: Any, fixed: Lambda | None, device: Any, settings: Settings) -> None:
        self.title, self.settings = title, settings
        self.spec = spec if fixed is None else None
        if self.spec is not None and self.spec.num_params > MOST_PARAMETERS:
            raise Refused(f"the network must have at most {MOST_PARAMETERS} parameters; got {self.spec.num_params}")
        if channels_of(net) not in (1, 3):
            raise Refused(f"the network must take images of 1 or 3 channels; got {channels_of(net)} channels")
        # Two folds of one network, or copies of a plain one: a preview never waits for a whole picture, nor changes its
        # kernels, nor stops with it. Restorers, for they are what `apply` has, and so its bytes; a deploy.Runner
        # neither stops between two layers, nor tells how far it is, nor takes a lambda per pixel.
        whole = net if fixed is None else copy.deepcopy(net)
        self._full = make_restorer(whole, spec, fixed, device, settings.tile, settings.overlap)
        self._quick = make_restorer(net, spec, fixed, device, 0, 0)
        self.scale = int(self._full.scale)
        self._full_lock, self._quick_lock = threading.Lock(), threading.Lock()
        self._stop = threading.Event()
        for module in self._full.live.network.modules():
            if not list(module.children()):
                module.register_forward_pre_hook(self._check)
        self._late = self.window = 0
        self.window = self._fitting_window()

    @property
    def noise_place(self) -> int | None:
        """The place of the parameter that says how strong the noise is; None where there is not one."""
        spec = self.spec
        places = [] if spec is None else [i for i, unit in enumerate(spec.units) if unit == _NOISE]
        return places[0] if spec is not None and spec.domain == "box" and len(places) == 1 else None

    def _check(self, *_: Any) -> None:
        """Leave a network between two of its layers where its picture is no longer waited for."""
        if self._stop.is_set():
            raise Cancelled

    def _fitting_window(self) -> int:
        """Return the side of the window that the time of a preview allows, from a trial."""
        lam = None if self.spec is None else tuple(self.spec.defaults)
        image = torch.full((3, _TRIAL, _TRIAL), 0.5)
        seconds = min(self._timed(image, lam) for _ in range(4))
        share = self.settings.preview_ms / 1000 / seconds
        return self._rounded(_TRIAL * share**0.5)

    def side(self, masked: bool) -> int:
        """Return the side of the window; a lambda per pixel takes three to five times as long."""
        return self._rounded(0.55 * self.window, _MASKED) if masked else self.window

    def _rounded(self, side: float, share: float = 1.0) -> int:
        least = share * (_LEAST if self.scale == 1 else _LEAST_ENLARGED)
        return MULTIPLE * int(min(max(side, least), _MOST) // MULTIPLE)

    def _timed(self, image: Tensor, lam: Lambda | None) -> float:
        start = time.perf_counter()
        self.preview(image, lam)
        return time.perf_counter() - start

    @torch.inference_mode()
    def preview(
        self, image: Tensor, lam: Lambda | None, other: Lambda | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """Run the network on a window.

        Args:
            image: [3, h, w], or [1, h, w] in grey.
            lam: Lambda; None for a plain network.
            other: Lambda where the mask is 1.
            mask: [1, h, w] in [0, 1].

        Returns:
            [3, s h, s w], or [1, s h, s w] in grey.

        Raises:
            Refused: As for `restore`.
        """
        start = time.perf_counter()
        with self._quick_lock, _reasons(self.title, image):
            output = self._run(self._quick, image, lam, other, mask, lambda _: None)
        self._observe(time.perf_counter() - start)
        return output

    def _observe(self, seconds: float) -> None:
        """Make windows smaller where the machine has become slower, and larger where there is time to spare."""
        share = 1000 * seconds / self.settings.preview_ms
        self._late = max(0, self._late) + 1 if share > 1.25 else min(0, self._late) - 1 if share < 0.5 else 0
        if abs(self._late) >= _IN_A_ROW and self.window:
            self.window = self._rounded(self.window * (0.8 if self._late > 0 else 1.2) + MULTIPLE / 2)
            self._late = 0

    @torch.inference_mode()
    def restore(
        self,
        image: Tensor,
        lam: Lambda | None,
        other: Lambda | None = None,
        mask: Tensor | None = None,
        *,
        token: threading.Event,
        advance: Callable[[float], Any] = lambda _: None,
    ) -> Tensor:
        """Run the network on a whole picture, in tiles, as `tunable-ops apply` does.

        Args:
            image: [3, H, W], or [1, H, W] in grey.
            lam: Lambda; None for a plain network.
            other: Lambda where the mask is 1.
            mask: [1, H, W] in [0, 1].
            token: Set by whoever no longer waits for the picture.
            advance: Called with the share that is done since the call before.

        Raises:
            Cancelled: The token was set.
            Refused: The network does not take this picture, or there is no memory for it.
        """

        def tile_done(share: float) -> None:
            self._check()
            advance(share)

        with self._turn(token), _reasons(self.title, image):
            return self._run(self._full, image, lam, other, mask, tile_done)

    @contextmanager
    def _turn(self, token: threading.Event) -> Iterator[None]:
        """Wait until no other picture runs."""
        while not self._full_lock.acquire(timeout=0.05):
            if token.is_set():
                raise Cancelled
        try:
            if token.is_set():
                raise Cancelled
            self._stop = token
            yield
        finally:
            self._stop = threading.Event()
            self._full_lock.release()

    def _run(
        self,
        restorer: Any,
        image: Tensor,
        lam: Lambda | None,
        other: Lambda | None,
        mask: Tensor | None,
        advance: Callable[[float], Any],
    ) -> Tensor:
        if mask is not None and lam is not None and other is not None:
            return restorer.masked(image, lam, other, mask, advance)
        if lam is not None:
            restorer.set(lam, image.shape[0] == 1)
        return restorer(image, advance)


@contextmanager
def _reasons(title: str, image: Tensor) -> Iterator[None]:
    """Turn what a network or the memory does not allow into a message for the page."""
    size = f"{image.shape[2]}x{image.shape[1]}"
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise Refused(
            f"the picture must fit into memory; got {size} pixels: close other programs, or reduce it"
        ) from error
    except (ValueError, RuntimeError, NotImplementedError) as error:
        if isinstance(error, Refused):
            raise
        why = " ".join(str(error).split())
        raise Refused(f"the picture must suit the network {title!r}; got {size} pixels ({why})") from error
