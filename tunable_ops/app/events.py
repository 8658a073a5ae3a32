"""What happens on the page: every event, and the sessions behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from tunable_ops import pretrained
from tunable_ops.app import masks, pictures, shown
from tunable_ops.app.desk import Desk
from tunable_ops.app.engine import Cancelled, Replaced
from tunable_ops.app.layout import Page
from tunable_ops.app.networks import Choice
from tunable_ops.app.results import Whole
from tunable_ops.app.session import Session
from tunable_ops.app.settings import Refused

__all__ = ["Events"]

_STROKES = "() => document.querySelector('#painter')?.toDataURL() ?? ''"
_DOWNLOAD = "() => setTimeout(() => document.querySelector('#saved').click(), 150)"
Updates = dict[Any, Any]


class Events:
    """The functions behind the parts of a page.

    Args:
        page: The parts.
        desk: The sessions.
    """

    def __init__(self, page: Page, desk: Desk) -> None:
        self.page, self.desk = page, desk

    def wire(self, demo: Any) -> None:
        """Connect the parts, inside the Blocks that is open."""
        page = self.page
        results = [page.status, page.whole, page.window, page.command]
        sliders = [page.turn, *page.knobs, *page.mask_knobs]
        chosen = [page.about, page.moving, page.estimate, *sliders]
        opened = [page.painter, page.noise]
        slow: dict[str, Any] = {"concurrency_limit": 4, "show_progress": "hidden", "api_visibility": "private"}
        demo.load(self.start, None, [page.key, *results, *chosen], **slow)
        demo.unload(self.end)
        page.file.upload(self.open, page.file, [*results, *chosen, *opened], **slow)
        for number, button in enumerate(page.samples):
            button.click(self.sample(number), None, [*results, *chosen, *opened], **slow)
        page.network.input(self.choose, page.network, [*results, *chosen], **slow)
        page.load.click(self.load, [page.files, page.path, page.network], [*results, *chosen], **slow)
        # also while the picture before has not stopped yet
        page.settle.click(self.settle, sliders, results, **{**slow, "trigger_mode": "multiple"})
        page.defaults.click(self.reset, None, [*results, *sliders], **slow)
        page.estimate.click(self.estimate, None, [*results, *sliders], **slow)
        page.noise.release(self.add_noise, page.noise, results, **slow)
        page.stop.click(self.stop, None, page.status, queue=False, api_visibility="private")
        page.kind.input(self.tell, page.kind, page.command, **slow)
        for button, function, inputs in (
            (page.save, self.save, page.kind),
            (page.save_mask, self.save_mask, None),
            (page.save_strip, self.save_strip, None),
        ):
            saving = button.click(function, inputs, [page.status, page.saved], **slow)
            saving.success(None, None, None, js=_DOWNLOAD)
        page.painted.click(self.paint, page.strokes, results, js=_STROKES, **{**slow, "trigger_mode": "always_last"})
        page.mask_file.upload(self.mask_from, page.mask_file, [*results, page.painter], **slow)
        page.no_mask.click(self.no_mask, None, [*results, page.painter], **slow)
        page.sweep.click(self.sweep, [page.moving, page.count], [page.status, page.strip], **slow)

    def _of(self, request: gr.Request) -> tuple[Session, Path]:
        return self.desk.of(str(request.session_hash))

    def end(self, request: gr.Request) -> None:
        """Forget a page that was closed."""
        self.desk.close(str(request.session_hash))

    # What a picture or a network brings

    def start(self, request: gr.Request) -> Iterator[Updates]:
        """Show the first network, and tell the page by which key its script names the session."""
        session, _ = self._of(request)
        yield {self.page.key: shown.key(str(request.session_hash))}
        yield from self._refusing(lambda: self._chosen(session, session.choice, request))

    def open(self, path: str | None, request: gr.Request) -> Iterator[Updates]:
        """Take an uploaded picture."""
        if path is not None:
            yield from self._refusing(lambda: self._opened(path, None, request))

    def sample(self, number: int) -> Callable[[gr.Request], Iterator[Updates]]:
        """Return the function that takes a sample."""
        sample = pictures.SAMPLES[number]

        def take(request: gr.Request) -> Iterator[Updates]:
            yield from self._refusing(lambda: self._opened(sample.file, sample, request))

        return take

    def choose(self, name: str, request: gr.Request) -> Iterator[Updates]:
        """Take a network of the list."""
        session, _ = self._of(request)
        yield from self._refusing(lambda: self._chosen(session, Choice(name, self.desk.networks.knobs), request))

    def load(self, files: list[str] | None, paths: str, name: str, request: gr.Request) -> Iterator[Updates]:
        """Take knob files, or a network from a file."""

        def take() -> Iterator[Updates]:
            session, _ = self._of(request)
            named = [line.strip() for line in (paths or "").splitlines() if line.strip()]
            if named and not self.desk.settings.paths:
                raise Refused("files must be uploaded where the page is open to other machines; got a path")
            if not files and not named:
                raise Refused("there must be a file to load: drop one in, or name one")
            yield from self._chosen(session, self.desk.networks.sort([*(files or []), *named], name), request)

        yield from self._refusing(take)

    def _chosen(self, session: Session, choice: Choice, request: gr.Request) -> Iterator[Updates]:
        page = self.page
        yield {page.status: shown.message("Loading the network ...")}
        engine = session.choose(choice)
        names = [] if engine.spec is None else list(engine.spec.names)
        purpose = pretrained.PURPOSES.get(choice.model) if not choice.knobs else None
        yield {
            page.status: shown.message(f"{engine.title}: ready. Drop in a picture, or take a sample."),
            page.about: shown.about(engine, purpose),
            page.moving: gr.update(choices=names, value=names[0] if names else None),
            page.estimate: gr.update(visible=engine.noise_place is not None),
            **self._sliders(session),
        }
        if session.given is not None:
            yield from self._both(session, request)

    def _opened(self, path: str | Path, sample: pictures.Sample | None, request: gr.Request) -> Iterator[Updates]:
        page, (session, _) = self.page, self._of(request)
        noise = 0.0 if sample is None else sample.noise
        given = session.open(path, noise, sample)
        yield {
            page.painter: shown.painter(given),
            page.noise: noise,
            page.status: shown.message("Restoring ..."),
            page.whole: None,
        }
        if session.engine is None:
            yield from self._chosen(session, session.choice, request)
            return
        yield {**self._sliders(session), page.moving: gr.skip()}
        yield from self._both(session, request)

    def _sliders(self, session: Session) -> Updates:
        page = self.page
        with session.lock:
            assert session.engine is not None
            turn, engine, values, inside = session.turn, session.engine, session.values, session.inside
        updates = dict(zip(page.knobs, shown.knob_updates(engine, values), strict=True))
        others = dict(zip(page.mask_knobs, shown.knob_updates(engine, inside), strict=True))
        return {page.turn: str(turn), **updates, **others}

    # Sliders

    def settle(self, request: gr.Request, turn: str, *numbers: float) -> Iterator[Updates]:
        """Restore the whole picture where the sliders are now; numbers of another turn are of sliders that are gone."""
        session, _ = self._of(request)
        if session.engine is None:  # one that `Desk` has just made
            yield {self.page.status: shown.problem(Refused("the page is not open here any more: reload it"))}
            return
        with session.lock:
            spec, half = session.engine.spec, len(numbers) // 2
            if spec is None:
                return
            # on the simplex moves alone count: numbers of the page are rounded
            if spec.domain != "simplex" and turn == str(session.turn):
                session.values = tuple(map(float, numbers[: spec.num_params]))
                session.inside = tuple(map(float, numbers[half : half + spec.num_params]))
        seen = session.previewed == session.here  # by the last move
        yield from self._refusing(lambda: self._both(session, request, seen=seen))

    def reset(self, request: gr.Request) -> Iterator[Updates]:
        """Put the sliders at their defaults."""
        session, _ = self._of(request)
        session.reset()
        if session.engine is not None:
            yield self._sliders(session)
            if session.given is not None:
                yield from self._refusing(lambda: self._both(session, request))

    def estimate(self, request: gr.Request) -> Iterator[Updates]:
        """Set the slider for noise to the estimate."""

        def take() -> Iterator[Updates]:
            session, _ = self._of(request)
            sigma = session.estimate()
            yield self._sliders(session)
            yield from self._both(session, request, f"noise estimated at {sigma:.1f} of 255; ")

        yield from self._refusing(take)

    def add_noise(self, noise: float, request: gr.Request) -> Iterator[Updates]:
        """Add noise to the picture."""

        def take() -> Iterator[Updates]:
            session, _ = self._of(request)
            session.add_noise(noise)
            yield from self._both(session, request)

        yield from self._refusing(take)

    # Masks

    def paint(self, url: str | None, request: gr.Request) -> Iterator[Updates]:
        """Take what was painted."""

        def take() -> Iterator[Updates]:
            session, _ = self._of(request)
            if session.given is not None:
                under = session.under
                session.set_mask(masks.painted(url or "", session.given.size, under), under)
                yield from self._both(session, request)

        yield from self._refusing(take)

    def mask_from(self, path: str, request: gr.Request) -> Iterator[Updates]:
        """Take a mask from a file."""

        def take() -> Iterator[Updates]:
            session, _ = self._of(request)
            if session.given is None:
                raise Refused("there must be a picture first: drop one into the page, or take a sample")
            mask = pictures.open_mask(path, session.given.size, self.desk.settings)
            session.set_mask(mask, mask)
            yield {self.page.painter: shown.painter(session.given, session.mask)}
            yield from self._both(session, request)

        yield from self._refusing(take)

    def no_mask(self, request: gr.Request) -> Iterator[Updates]:
        """Take the mask away."""
        session, _ = self._of(request)
        session.set_mask(None)
        if session.given is None:
            return
        yield {self.page.painter: shown.painter(session.given)}
        yield from self._refusing(lambda: self._both(session, request))

    # Whole pictures

    def _both(self, session: Session, request: gr.Request, before: str = "", seen: bool = False) -> Iterator[Updates]:
        """Show the window at once, unless it was seen, then the whole picture."""
        page, (_, folder) = self.page, self._of(request)
        yield {page.window: gr.skip() if seen else self._window(session), page.command: self._command(session)}
        for step in session.restore():
            if isinstance(step, Whole):
                height, width = step.output.shape[1:]
                text = f"{before}{width}x{height} pixels in {step.seconds:.2f} s"
                given = session.given
                if given is not None and given.picture.count > 1:
                    text += (
                        f"; the first of {given.picture.count} frames or pages: the command line below does them all"
                    )
                yield {
                    page.whole: shown.before_and_after(session, folder),
                    page.status: shown.message(text[:1].upper() + text[1:] + "."),
                }
            else:
                yield {page.status: shown.progress(step, "Restoring the whole picture")}

    @staticmethod
    def _command(session: Session) -> str:
        try:
            return session.command(session.kind)
        except Refused as error:  # as the download will be
            return f"# {error}"

    def _window(self, session: Session) -> Any:
        try:
            preview = session.preview()
        except Refused as error:
            return shown.problem(error)
        assert session.engine is not None
        return shown.window(preview, session.engine.scale)

    def stop(self, request: gr.Request) -> str:
        """Stop what runs."""
        self._of(request)[0].cancel()
        return shown.message("Stopped.")

    def sweep(self, name: str, count: float, request: gr.Request) -> Iterator[Updates]:
        """Make a strip."""

        def take() -> Iterator[Updates]:
            session, _ = self._of(request)
            for step in session.sweep(name, int(count)):
                if isinstance(step, float):
                    yield {self.page.status: shown.progress(step, "Making the strip")}
                else:
                    done = shown.message("The strip is ready.")
                    yield {self.page.strip: shown.strip(step), self.page.status: done}

        yield from self._refusing(take)

    def tell(self, kind: str, request: gr.Request) -> Any:
        """Say what repeats the picture, in this format."""
        session, _ = self._of(request)
        session.kind = kind
        return self._command(session) if session.given is not None and session.engine is not None else gr.skip()

    def save(self, kind: str, request: gr.Request) -> Updates:
        """Write the file that is downloaded."""
        return self._saved(request, lambda session, folder: session.download(folder, kind))

    def save_mask(self, request: gr.Request) -> Updates:
        """Write the mask that is downloaded."""
        return self._saved(request, lambda session, folder: (session.save_mask(folder), []))

    def save_strip(self, request: gr.Request) -> Updates:
        """Write the strip that is downloaded."""
        return self._saved(request, lambda session, folder: (session.save_strip(folder), []))

    def _saved(self, request: gr.Request, write: Callable[[Session, Path], tuple[Path, list[str]]]) -> Updates:
        """Write a file, and say what its format could not keep."""
        try:
            path, lost = write(*self._of(request))
        except Refused as error:
            raise gr.Error(str(error), print_exception=False) from error
        text = f"{path.name}, {path.stat().st_size:,} bytes" + "".join(f"; {each}" for each in lost)
        return {self.page.status: shown.message(text + "."), self.page.saved: gr.update(value=str(path))}

    def _refusing(self, function: Callable[[], Iterator[Updates]]) -> Iterator[Updates]:
        """Run an event; what it refuses goes to the status line."""
        try:
            yield from function()
        except Refused as error:
            yield {self.page.status: shown.problem(error)}
        except Replaced:
            yield {self.page.status: gr.skip()}
        except Cancelled:
            yield {self.page.status: shown.message("Stopped.")}
