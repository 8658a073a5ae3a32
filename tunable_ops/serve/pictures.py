"""From the bytes of a picture to those of the restored one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tunable_ops import images
from tunable_ops.deploy.batching import Batcher
from tunable_ops.images import Frame, Picture
from tunable_ops.restoration import restored, run_network
from tunable_ops.serve.limits import Life, PixelBudget
from tunable_ops.serve.models import Lambda, Served
from tunable_ops.serve.problems import Problem
from tunable_ops.serve.settings import Settings

__all__ = ["FORMATS", "MEDIA_TYPES", "Output", "Request", "Restorer"]

FORMATS = ("PNG", "JPEG", "WEBP", "TIFF")
"""What is read, as Pillow names it; no decoder of another format ever sees an upload."""
MEDIA_TYPES = {"png": "image/png", "jpg": "image/jpeg", "webp": "image/webp", "tiff": "image/tiff"}
"""What is written."""
_VALUES = 8  # numbers that decoding may make for each pixel of the limit: RGB and alpha, and as much again


@dataclass(frozen=True)
class Request:
    """What is asked for.

    Args:
        model: The network.
        values: Lambda, as `Served.parse` returns it.
        kind: A name in `MEDIA_TYPES`; None: the picture's own where that is lossless, else png.
        quality: 1 to 100, for jpg and webp.
        bits: 8 or 16; None: the picture's.
    """

    model: Served
    values: Lambda
    kind: str | None = None
    quality: int | None = None
    bits: int | None = None

    def __post_init__(self) -> None:
        if self.quality is not None and (self.kind is None or not images.KINDS[self.kind].quality):
            raise Problem("bad_query", f"quality goes with format=jpg or webp; got format={self.kind}")
        if self.bits == 16 and self.kind is not None and images.KINDS[self.kind].bits < 16:
            raise Problem("bad_query", f"{self.kind} has 8 bits: use format=png or tiff for bits=16")


@dataclass(frozen=True)
class Output:
    """What has become of a picture.

    Args:
        content: The bytes of the file.
        media_type: Its type.
        lam: Lambda, with the noise that was estimated.
        notes: What the format could not keep, a sentence each.
        pixels: Pixels that came out of the network.
        seconds: Time of each stage.
    """

    content: bytes
    media_type: str
    lam: tuple[float, ...]
    notes: list[str]
    pixels: int
    seconds: dict[str, float] = field(default_factory=dict)


class Restorer:
    """Decodes, restores and encodes, in the thread of the caller; the networks run in that of the batcher."""

    def __init__(self, settings: Settings, batcher: Batcher) -> None:
        self._settings, self._batcher = settings, batcher
        self._budget = PixelBudget(4 * settings.max_pixels)

    def __call__(
        self, content: bytes, request: Request, life: Life, computed: Callable[[], None] = lambda: None
    ) -> Output:
        """Restore a picture.

        Args:
            content: The file.
            request: What is asked for.
            life: How long it may go on.
            computed: Called when the networks have done their part.

        Raises:
            Problem: It cannot be read, is too large, or does not suit the network or the format; or there is no time
                or memory left.
            Gone: The client has hung up.
        """
        life.check()
        with _picture_problems():
            header = images.read_header(content, FORMATS, self._settings.max_frames)
        area = request.model.scale**2
        self._check_pixels(header, area)
        with self._budget.hold(area * header.pixels, life), _memory_problems():
            return self._restore(content, request, life, computed)

    def _check_pixels(self, header: images.Header, area: int) -> None:
        most, (height, width) = self._settings.max_pixels, header.size
        what = f"{width}x{height}" + (f" in {header.frames} frames" if header.frames > 1 else "")
        if header.pixels > most or header.values > _VALUES * most:
            raise Problem("too_many_pixels", f"a picture must have at most {most} pixels in all; got {what}")
        if area * header.pixels > most:
            got = f"{area * header.pixels} pixels out of {what}"
            raise Problem("too_many_pixels", f"what the network returns must have at most {most} pixels; got {got}")

    def _restore(self, content: bytes, request: Request, life: Life, computed: Callable[[], None]) -> Output:
        clock = _Clock()
        with _picture_problems():
            picture = images.open_picture(content, self._settings.max_pixels)
            kind = self._kind(picture, request)
            first = next(picture.frames())
            grey = all(frame.is_grey for frame in picture.frames())
        lam = request.model.settle(request.values, _given(first, grey), first.subsampled)
        clock.stop("decode")
        frames, pixels = [], 0
        inside = request.model.inside(lam, grey, request.values)
        for frame in _frames(picture):
            life.check()
            output = self._run(request.model, _given(frame, grey), inside, life)
            frames.append(restored(frame, output, request.bits))
            pixels += output.shape[1] * output.shape[2]
        computed()
        clock.stop("restore")
        life.check()
        notes = images.losses(picture, kind, request.bits, colours=None if grey else 3)
        options = {"quality": request.quality, "loop": picture.loop}
        encoded = images.encode_picture(frames, kind, separate_first=picture.separate_first, **options)
        clock.stop("encode")
        return Output(encoded, MEDIA_TYPES[kind], lam, notes, pixels, clock.seconds)

    def _kind(self, picture: Picture, request: Request) -> str:
        """Return the kind of file to write."""
        height, width = (request.model.scale * side for side in picture.size)
        kind = request.kind or images.default_kind(picture, request.bits or picture.bits, (height, width))
        kind = kind if kind in MEDIA_TYPES else "png"
        try:
            images.check_size(kind, height, width, picture.count)
        except ValueError as error:
            raise Problem("bad_query", f"format={kind} does not suit: {_reason(error)}") from error
        return kind

    def _run(self, model: Served, image: Tensor, lam: tuple[float, ...], life: Life) -> Tensor:
        def network(part: Tensor) -> Tensor:
            life.check()
            try:
                return self._batcher.submit(model, part, lam, life).result()
            except CancelledError:
                life.check()
                raise

        try:
            return run_network(network, image, model.channels, self._settings.tile, self._settings.overlap)
        except ValueError as error:
            size = f"{image.shape[2]}x{image.shape[1]}"
            raise Problem("unfit_picture", f"{model.name} cannot restore {size} pixels: {_reason(error)}") from error


class _Clock:
    """Times of stages, one after the other."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._since = time.perf_counter()

    def stop(self, stage: str) -> None:
        now = time.perf_counter()
        self.seconds[stage], self._since = now - self._since, now


def _given(frame: Frame, grey: bool) -> Tensor:
    """Return what the network is given of a frame."""
    return frame.colour[:1] if grey else frame.colour.expand(3, -1, -1)


def _frames(picture: Picture) -> Iterator[Frame]:
    with _picture_problems():
        yield from picture.frames()


@contextmanager
def _picture_problems() -> Iterator[None]:
    """Turn the errors of decoders into problems."""
    try:
        yield
    except images.UnknownFormat as error:
        detail = "the body must be a picture: PNG, JPEG, WebP or TIFF, sent as it is and not as a form"
        raise Problem("not_a_picture", detail) from error
    except images.TooManyPixels as error:
        raise Problem("too_many_pixels", error.why) from error
    except images.PictureError as error:
        if isinstance(error.__cause__, MemoryError):
            raise _no_memory() from error
        raise Problem("broken_picture", f"the picture is damaged or of a kind that is not read: {error.why}") from error


@contextmanager
def _memory_problems() -> Iterator[None]:
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise _no_memory() from error
    except RuntimeError as error:
        if "allocate memory" not in str(error):
            raise
        raise _no_memory() from error


def _no_memory() -> Problem:
    return Problem("no_memory", "there is not enough memory for this picture now", {"Retry-After": "5"})


def _reason(error: Exception) -> str:
    """Return the message of an error without the name of what raised it."""
    text = " ".join(str(error).split())
    return text.partition(": ")[2] or text
