"""What one person in front of the page has: a picture, a network, the sliders, a mask, and what came of them."""

from __future__ import annotations

import contextlib
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from tunable_ops import images
from tunable_ops.app import commands, pictures
from tunable_ops.app.engine import MARGIN, Cancelled, Engine, Lambda, Replaced
from tunable_ops.app.networks import Choice, Networks
from tunable_ops.app.pictures import Given
from tunable_ops.app.results import Preview, Strip, Whole
from tunable_ops.app.settings import Refused, Settings
from tunable_ops.app.sliders import far, positions
from tunable_ops.grey import PARAMETER
from tunable_ops.images import estimate_noise
from tunable_ops.positions import can_move, describe

__all__ = ["Session"]

_BACK = 5  # steps of priority
_SMALLEST = 8  # pixels of a side, as of `images.estimate_noise`
_STRIP_SIDE = 768  # pixels of the longer side of a picture of a strip


class Session:
    """Everything between two reloads of the page.

    Args:
        networks: Where networks come from.
        settings: Limits.

    Attributes:
        given: The picture.
        engine: The network.
        choice: How a command names it.
        values: Lambda; empty for a plain network.
        inside: Lambda where the mask is 1.
        turn: How often the app itself has set sliders, as for another network or to their defaults: what the page sends
            names it, so that no number of former sliders reaches others.
        lock: Held while the picture, the network, the sliders or the mask change, and while they are read together.
        mask: [1, H, W] in [0, 1], or None.
        under: The mask from a file that strokes lie on, or None.
        centre: Middle of the window, as shares of height and width.
        kind: Format of a download, one of `pictures.KINDS`.
        whole: The last whole picture.
        previewed: What the last window was made of.
        strip: The last strip.
    """

    def __init__(self, networks: Networks, settings: Settings) -> None:
        self.networks, self.settings = networks, settings
        self.given: Given | None = None
        self.sample: pictures.Sample | None = None
        self.choice = Choice(networks.names[0], networks.knobs)
        self.engine: Engine | None = None
        self.values: Lambda = ()
        self.inside: Lambda = ()
        self.mask: Tensor | None = None
        self.under: Tensor | None = None
        self.centre = (0.5, 0.5)
        self.kind = pictures.KINDS[0]
        self.whole: Whole | None = None
        self.previewed: tuple[Any, ...] | None = None
        self.strip: Strip | None = None
        self.turn = 0
        self.lock = threading.RLock()
        self._changes = 0  # of picture, network and mask
        self._run: tuple[threading.Event, Any] = (threading.Event(), None)  # the last one, and where it was made
        self._left: threading.Event | None = None  # of a run that a move has made useless

    def choose(self, choice: Choice) -> Engine:
        """Take a network; sliders go to its defaults.

        Raises:
            Refused: As for `Networks.engine`.
        """
        engine = self.networks.engine(*choice)
        with self.lock:
            self.cancel()
            # events that choose the same network twice have the same sliders: whichever page comes last is right
            self.turn += choice != self.choice or engine is not self.engine
            self.choice, self.engine, self.whole = choice, engine, None
            self._changes += 1
            self._to_defaults()
        return engine

    def open(self, path: str | Path, noise: float = 0.0, sample: pictures.Sample | None = None) -> Given:
        """Take a picture; the mask goes.

        Raises:
            Refused: As for `pictures.open_given`.
        """
        given = pictures.open_given(path, self.settings, noise)
        with self.lock:
            self.cancel()
            self.given, self.sample, self.whole, self.mask, self.under = given, sample, None, None, None
            self.centre = (0.5, 0.5)
            self._changes += 1
            before = self.values
            self._settle_grey()
            self.turn += self.values != before
        return given

    def add_noise(self, noise: float) -> None:
        """Add other noise to the picture, of 255."""
        given, _ = self._ready()
        noisy = given.with_noise(noise)
        with self.lock:
            if self.given is not given:
                return  # of a picture that was there before
            self.cancel()
            self.given, self.whole = noisy, None
            self._changes += 1

    def reset(self) -> None:
        """Put all sliders at their defaults."""
        with self.lock:
            self.turn += 1
            self._to_defaults()

    def _to_defaults(self) -> None:
        spec = None if self.engine is None else self.engine.spec
        self.values = () if spec is None else tuple(spec.defaults)
        self.inside = () if spec is None else far(spec)
        self._settle_grey()

    def _settle_grey(self) -> None:
        """A grey picture sets the parameter for grey pictures, where there is one."""
        spec = None if self.engine is None else self.engine.spec
        if spec is None or self.given is None or spec.domain != "box" or PARAMETER not in spec.names:
            return
        value = float(self.given.grey)
        for name in ("values", "inside"):
            pairs = zip(spec.names, getattr(self, name), strict=True)
            setattr(self, name, tuple(value if each == PARAMETER else old for each, old in pairs))

    def estimate(self) -> float:
        """Set the parameter for noise to what the picture's noise is estimated at, and return the estimate.

        Raises:
            Refused: There is no such parameter, or the picture is too small.
        """
        given, engine = self._ready()
        spec = engine.spec
        place = engine.noise_place
        if spec is None or place is None:
            raise Refused(f"the network must have one parameter for noise (of 255); got {engine.title!r}")
        if min(given.size) < _SMALLEST:
            raise Refused(f"the picture must have {_SMALLEST}x{_SMALLEST} pixels at least; got {_size(given.size)}")
        sigma = estimate_noise(given.image, given.frame.subsampled)
        low, high = spec.ranges[place]
        value = round(min(max(sigma, low), high), 2)
        with self.lock:
            if self.engine is engine:
                self.turn += 1
                self.values = tuple(value if i == place else old for i, old in enumerate(self.values))
        return sigma

    def set_mask(self, mask: Tensor | None, under: Tensor | None = None) -> None:
        """Take a mask [1, H, W], or none; `under` is the one from a file that its strokes lie on."""
        kept = None if mask is None else mask.mul(65535).round().div(65535)  # as `save_mask` writes it
        with self.lock:
            if kept is not None and self.given is not None and tuple(kept.shape[1:]) != self.given.size:
                return  # of a picture that was there before
            self._changes += kept is not None or self.mask is not None
            self.mask, self.under = kept, under

    @property
    def position(self) -> tuple[Any, ...]:
        """What a whole picture is made of."""
        return self._changes, self.values, None if self.mask is None else self.inside

    @property
    def here(self) -> tuple[Any, ...]:
        """What the window is made of."""
        return *self.position, self.centre

    def _ready(self) -> tuple[Given, Engine]:
        if self.given is None:
            raise Refused("there must be a picture first: drop one into the page, or take a sample")
        if self.engine is None:
            raise Refused("there must be a network first: choose one")
        height, width = (self.engine.scale * side for side in self.given.size)
        if height * width > self.settings.max_pixels:
            raise Refused(
                f"what the network returns must have at most {self.settings.max_pixels} pixels; got {width}x{height}"
            )
        return self.given, self.engine

    def _lambdas(self, engine: Engine) -> tuple[Lambda | None, Lambda | None]:
        return (None, None) if engine.spec is None else (self.values, self.inside)

    def preview(self) -> Preview:
        """Restore the window.

        Raises:
            Refused: There is no picture or no network, or they do not go together.
        """
        start = time.perf_counter()
        with self.lock:
            given, engine = self._ready()
            if self._run[1] != self.position:
                self._left = self._run[0]
                self.cancel()  # a whole picture or a strip at another position is of no use
            whole, here, centre, changes = self.mask, self.here, self.centre, self._changes
            lam, other = self._lambdas(engine)
        (top, bottom), (left, right) = _window(given, centre, engine.side(False))
        mask = None if whole is None else whole[:, top:bottom, left:right]
        if whole is not None and bool(whole[:, top:bottom, left:right].any()):
            (top, bottom), (left, right) = _window(given, centre, engine.side(True))
            mask = whole[:, top:bottom, left:right]
        part = given.image[:, top:bottom, left:right]
        after = engine.preview(part, lam, other, mask)
        cut = [
            (MARGIN if low > 0 else 0, high - low - (MARGIN if high < size else 0))
            for low, high, size in ((top, bottom, given.size[0]), (left, right, given.size[1]))
        ]
        inner = (slice(None), *(slice(low, high) for low, high in cut))
        outer = (slice(None), *(slice(engine.scale * low, engine.scale * high) for low, high in cut))
        alpha = given.frame.alpha
        alpha = None if alpha is None else alpha[:, top:bottom, left:right][inner]
        tag = f"{changes}-{top}-{bottom}-{left}-{right}"
        self.previewed = here
        return Preview(part[inner], after[outer], alpha, time.perf_counter() - start, tag)

    def cancel(self) -> None:
        """Stop what runs, at the next layer."""
        self._run[0].set()

    def restore(self) -> Iterator[float | Whole]:
        """Restore the whole picture in a thread: yield the share that is done, and in the end the picture.

        Nothing but the picture comes where it is there already.

        Raises:
            Refused: As for `preview`, or there is no memory for it.
            Cancelled: It was cancelled; `Replaced` where something else was begun, or a slider has moved.
        """
        with self.lock:
            position, made, mask = self.position, self.whole, self.mask
            given, engine = self._ready()
            lam, other = self._lambdas(engine)
        if made is not None and made.position == position:
            yield made
            return
        start = time.perf_counter()

        def work(token: threading.Event, advance: Callable[[float], Any]) -> Whole:
            output = engine.restore(given.image, lam, other, mask, token=token, advance=advance)
            return Whole(output, time.perf_counter() - start, position)

        try:
            for step in self._in_thread(work, position):
                if isinstance(step, Whole):
                    self.whole = step
                yield step
        except Cancelled as error:
            if self._left is self._run[0]:  # the next picture comes when the slider rests
                raise Replaced from error
            raise

    def _in_thread(
        self, work: Callable[[threading.Event, Callable[[float], Any]], Any], position: tuple[Any, ...]
    ) -> Iterator[Any]:
        self.cancel()
        token = threading.Event()
        self._run = token, position
        steps: queue.Queue[Any] = queue.Queue()
        done = 0.0

        def run() -> None:
            try:
                _step_back()
                steps.put(("end", work(token, steps.put)))
            except BaseException as error:
                steps.put(("error", error))

        threading.Thread(target=run, name="tunable-ops-app", daemon=True).start()
        while True:
            try:
                step = steps.get(timeout=0.1)
            except queue.Empty:
                continue
            if isinstance(step, float):
                done += step
                yield min(done, 1.0)
            elif step[0] == "error":
                if isinstance(step[1], Cancelled) and self._run[0] is not token:
                    raise Replaced from step[1]
                raise step[1]
            else:
                yield step[1]
                return

    def sweep(self, name: str, count: int) -> Iterator[float | Strip]:
        """Restore the picture at several positions of one parameter, the others where they are; end with the strip.

        A mask's own values stay where they are.

        Raises:
            Refused, Cancelled: As for `restore`.
        """
        with self.lock:
            given, engine = self._ready()
            (values, inside), mask, position = self._lambdas(engine), self.mask, self.position
        spec = engine.spec
        if spec is None or values is None or name not in spec.names:
            raise Refused(f"a sweep must have a parameter of the network to move; got {name!r}")
        if not can_move(spec):
            raise Refused("a sweep must have a parameter to move; got a network whose only parameter is always 1")
        if count < 2:
            raise Refused(f"a sweep must have at least 2 positions; got {count}")
        lams = positions(spec, values, name, count)
        only = name if spec.num_params > 1 and not (spec.domain == "simplex" and spec.num_params == 2) else None

        def work(token: threading.Event, advance: Callable[[float], Any]) -> Strip:
            columns = [pictures.on_checks(pictures.shrunk(given.image, _STRIP_SIDE), given.frame.alpha)]
            for lam in lams:
                output = engine.restore(
                    given.image, lam, inside, mask, token=token, advance=lambda part: advance(part / count)
                )
                columns.append(pictures.on_checks(pictures.shrunk(output, _STRIP_SIDE), given.frame.alpha))
            return Strip(columns, ["input", *(describe(spec, lam, only) for lam in lams)])

        for step in self._in_thread(work, position):
            if isinstance(step, Strip):
                self.strip = step
            yield step

    def download(self, folder: Path, wanted: str) -> tuple[Path, list[str]]:
        """Write the current whole picture into a folder; return the file, and what its format could not keep.

        Raises:
            Refused: There is none, or the format cannot hold it.
        """
        given, engine = self._ready()
        if self.whole is None or self.whole.position != self.position:
            raise Refused("the whole picture must be ready before it is saved: wait for it, or choose Restore")
        content, kind, lost = pictures.encode(given, self.whole.output, wanted)
        suffix = given.path.suffix.lower()
        own = images.SUFFIXES.get(suffix) == kind
        suffix, name = (suffix, given.path.stem) if own else (f".{kind}", given.path.name)
        inside = () if self.mask is None else self.inside
        file = folder / f"{name}_{commands.short_name(engine, self.values, inside)}{suffix}"
        file.write_bytes(content)
        return file, lost

    def save_mask(self, folder: Path) -> Path:
        """Write the mask into a folder as a PNG of the picture's size, and return the file.

        Raises:
            Refused: There is none.
        """
        given, _ = self._ready()
        if self.mask is None:
            raise Refused("there must be a mask before it is saved: paint one, or take one from a file")
        return images.write_image(self.mask, folder / commands.mask_name(given), bits=16)

    def save_strip(self, folder: Path) -> Path:
        """Write the strip into a folder as one labelled picture, and return the file.

        Raises:
            Refused: There is none.
        """
        given, _ = self._ready()
        if self.strip is None:
            raise Refused("there must be a strip before it is saved: make one")
        return images.write_image(images.strip(*self.strip), folder / f"{given.path.stem}_sweep.png")

    def command(self, wanted: str) -> str:
        """Return the command line that makes the same picture; its mask is what `save_mask` writes."""
        given, engine = self._ready()
        inside = () if self.mask is None else self.inside
        return commands.line(given, engine, self.choice, self.values, wanted, inside)


def _step_back() -> None:
    """Let the thread that calls, and those that it starts, leave the processor to windows first.

    A layer of a whole picture that is of no use any more runs to its end beside the window of the move that stopped it.
    """
    if sys.platform == "linux":  # where threads have priorities of their own
        thread = threading.get_native_id()
        with contextlib.suppress(OSError):  # where the system does not let it, windows take longer
            os.setpriority(os.PRIO_PROCESS, thread, min(os.getpriority(os.PRIO_PROCESS, thread) + _BACK, 19))


def _window(given: Given, centre: tuple[float, float], side: int) -> list[tuple[int, int]]:
    """Return where the window begins and ends, in height and width."""
    return [_span(size, side, share) for size, share in zip(given.size, centre, strict=True)]


def _span(size: int, window: int, share: float) -> tuple[int, int]:
    """Return where a window begins and ends along an axis; it begins at a multiple of 16, as tiles do, or ends last."""
    if size <= window:
        return 0, size
    start = int(max(share * size - window / 2, 0))
    start = min(start // 16 * 16 if start < size - window else size, size - window)
    return start, start + window


def _size(size: tuple[int, int]) -> str:
    return f"{size[1]}x{size[0]}"
