"""Moves of the sliders: a small request each, past Gradio's queue, answered with the pixels of the window.

The page's script (moves.js) sends the newest positions as soon as the answer before is there, so that no move waits
behind others. The request is JSON: ``{"key": session, "moves": {"knob0": 12.5}, "tag": of the window that is shown,
"turn": of the sliders (`Session.turn`)}``.
The answer is the length of its JSON in four bytes, big-endian, that JSON, and as many bytes of JPEG as its `sizes` say:
the window before, unless the page has it (0 bytes), and after.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from tunable_ops.app import shown
from tunable_ops.app.desk import Desk
from tunable_ops.app.session import Session
from tunable_ops.app.settings import Refused
from tunable_ops.app.sliders import moved

__all__ = ["Moves", "move"]

_MOST_BYTES = 4096
_JSON = "application/json"
_GONE = 499  # as proxies note a client that has left
_POOLS = {"knob": "values", "inside": "inside"}  # names of sliders, and what of a session they set
_SIDES = ("down", "across")  # the place of the window


@dataclass
class _Line:
    """The requests of one page: one that runs, and one that waits."""

    busy: bool = False
    waiting: asyncio.Future[bool] | None = None  # its result: whether the request may run

    async def enter(self) -> bool:
        """Wait until no other request runs; return False as soon as a newer one waits."""
        if self.waiting is not None and not self.waiting.done():
            self.waiting.set_result(False)
        if self.busy:
            self.waiting = asyncio.get_running_loop().create_future()
            return await self.waiting
        self.busy = True
        return True

    def leave(self) -> None:
        """Let the request that waits run."""
        waiting, self.waiting = self.waiting, None
        self.busy = waiting is not None and not waiting.done()
        if waiting is not None and self.busy:
            waiting.set_result(True)


class Moves:
    """The requests of all pages; of each page one runs, and the newest of the others waits.

    Args:
        desk: The sessions.
    """

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        # a single thread: windows come in order, and torch makes its own threads once
        self._thread = ThreadPoolExecutor(1, "tunable-ops-moves")
        self._lines: WeakKeyDictionary[Session, _Line] = WeakKeyDictionary()

    def routes(self) -> list[BaseRoute]:
        """Return what the server answers beside Gradio's paths."""
        return [Route("/moves", self._answer, methods=["POST"])]

    async def _answer(self, request: Request) -> Response:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != _JSON:  # which no page of another host may send
            return JSONResponse({"problem": f"a move must be of type {_JSON}; got {kind[:80]!r}"}, 415)
        body = b""
        try:
            async for chunk in request.stream():
                body += chunk
                if len(body) > _MOST_BYTES:
                    return JSONResponse({"problem": f"a move must have at most {_MOST_BYTES} bytes"}, 413)
            key, moves, tag, turn = _parse(body)
        except ClientDisconnect:
            return Response(status_code=_GONE)
        except ValueError as error:
            return JSONResponse({"problem": str(error)}, 400)
        session = self._desk.find(key)
        if session is None:
            return JSONResponse({"problem": "the page must be open; got the key of none"}, 404)
        line = self._lines.setdefault(session, _Line())
        if not await line.enter():
            return JSONResponse({"problem": "a move must be the newest; a newer one has come"}, 409)
        try:
            if await request.is_disconnected():
                return Response(status_code=_GONE)
            loop = asyncio.get_running_loop()
            content = await loop.run_in_executor(self._thread, answer, session, moves, tag, turn)
        finally:
            line.leave()
        return Response(content, media_type="application/octet-stream", headers={"Cache-Control": "no-store"})


def _parse(body: bytes) -> tuple[str, dict[str, float], str, int | None]:
    """Return key, moves, tag and turn of a request.

    Raises:
        ValueError: It is none.
    """
    try:
        message = json.loads(body)
        key, tag, turn = message["key"], message["tag"], message.get("turn")
        moves = {str(name): float(value) for name, value in message["moves"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"a move must be JSON with key, moves and tag; got {body[:80]!r}") from error
    if not isinstance(key, str) or not all(map(math.isfinite, moves.values())):
        raise ValueError(f"a move must have a key and finite numbers; got {body[:80]!r}")
    if turn is not None and not isinstance(turn, int):
        raise ValueError(f"a move must have a whole number as its turn; got {body[:80]!r}")
    return key, moves, str(tag), turn


def answer(session: Session, moves: Mapping[str, float], tag: str, turn: int | None = None) -> bytes:
    """Return the answer to a request.

    Args:
        session: Of the page.
        moves: Sliders, and where they are.
        tag: Of the window before that the page shows.
        turn: Of the sliders (`Session.turn`); None for those that are there. Moves of others do not count.
    """
    start = time.perf_counter()
    said: dict[str, Any] = {"values": {}}
    with session.lock:
        for name, value in moves.items():
            if name in _SIDES or turn in (None, session.turn):
                said["values"].update(move(session, name, value))
    files = [b"", b""]
    try:
        preview = session.preview()
    except Refused as error:
        said["problem"] = str(error)
    else:
        assert session.engine is not None
        done = time.perf_counter()
        if tag != preview.tag:
            files[0] = shown.window_file(preview.before, preview)
        files[1] = shown.window_file(preview.after, preview)
        encoded = time.perf_counter()
        said.update(tag=preview.tag, note=shown.window_note(preview, session.engine.scale))
        said["ms"] = {"restore": 1000 * (done - start), "encode": 1000 * (encoded - done)}
    said["sizes"] = [len(file) for file in files]
    about = json.dumps(said).encode()
    return b"".join((len(about).to_bytes(4, "big"), about, *files))


def move(session: Session, name: str, value: float) -> dict[str, float]:
    """Put a slider where it is on the page.

    Args:
        session: Of the page.
        name: Of the slider: knob0, inside0, ...; down or across.
        value: Where it is; brought into its range.

    Returns:
        Other sliders that have followed, and where they are now.
    """
    with session.lock:
        return _moved(session, name, value)


def _moved(session: Session, name: str, value: float) -> dict[str, float]:
    if name in _SIDES:
        centre = list(session.centre)
        centre[_SIDES.index(name)] = min(max(value / 100, 0.0), 1.0)
        session.centre = (centre[0], centre[1])
        return {}
    pool, place = name.rstrip("0123456789"), name.lstrip("abcdefghijklmnopqrstuvwxyz")
    spec = None if session.engine is None else session.engine.spec
    if spec is None or pool not in _POOLS or not place.isdecimal() or int(place) >= spec.num_params:
        return {}  # of a network that was there before
    low, high = spec.ranges[int(place)]
    old = getattr(session, _POOLS[pool])
    new = moved(spec, old, int(place), min(max(value, low), high))
    setattr(session, _POOLS[pool], new)
    return {f"{pool}{i}": new[i] for i in range(len(new)) if i != int(place) and new[i] != old[i]}
