"""Moves of the sliders: a small request each, past Gradio's queue, answered with the pixels of the window.

The page's script (moves.js) sends the newest positions as soon as the answer before is there, so that no move waits
behind others. The request is JSON: ``{"key": session, "moves": {"knob0": 12.5}, "tag": of the window that is shown}``.
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
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from tunable_ops.app import shown
from tunable_ops.app.desk import Desk
from tunable_ops.app.session import Session
from tunable_ops.app.settings import Refused
from tunable_ops.app.sliders import moved

__all__ = ["Moves", "move"]

_MOST_BYTES = 4096
_POOLS = {"knob": "values", "inside": "inside"}  # names of sliders, and what of a session they set
_SIDES = ("down", "across")  # the place of the window


class Moves:
    """The requests of all pages.

    Args:
        desk: The sessions.
    """

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        # a single thread: windows come in order, and torch makes its own threads once
        self._thread = ThreadPoolExecutor(1, "tunable-ops-moves")

    def routes(self) -> list[BaseRoute]:
        """Return what the server answers beside Gradio's paths."""
        return [Route("/moves", self._answer, methods=["POST"])]

    async def _answer(self, request: Request) -> Response:
        if int(request.headers.get("content-length") or _MOST_BYTES + 1) > _MOST_BYTES:
            return JSONResponse({"problem": f"a move must have at most {_MOST_BYTES} bytes"}, 413)
        try:
            key, moves, tag = _parse(await request.body())
        except ValueError as error:
            return JSONResponse({"problem": str(error)}, 400)
        session = self._desk.find(key)
        if session is None:
            return JSONResponse({"problem": "the page must be open; got the key of none"}, 404)
        content = await asyncio.get_running_loop().run_in_executor(self._thread, answer, session, moves, tag)
        return Response(content, media_type="application/octet-stream", headers={"Cache-Control": "no-store"})


def _parse(body: bytes) -> tuple[str, dict[str, float], str]:
    """Return key, moves and tag of a request.

    Raises:
        ValueError: It is none.
    """
    try:
        message = json.loads(body)
        key, tag = message["key"], message["tag"]
        moves = {str(name): float(value) for name, value in message["moves"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"a move must be JSON with key, moves and tag; got {body[:80]!r}") from error
    if not isinstance(key, str) or not all(map(math.isfinite, moves.values())):
        raise ValueError(f"a move must have a key and finite numbers; got {body[:80]!r}")
    return key, moves, str(tag)


def answer(session: Session, moves: Mapping[str, float], tag: str) -> bytes:
    """Return the answer to a request.

    Args:
        session: Of the page.
        moves: Sliders, and where they are.
        tag: Of the window before that the page shows.
    """
    start = time.perf_counter()
    said: dict[str, Any] = {"values": {}}
    for name, value in moves.items():
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
