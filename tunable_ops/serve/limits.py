"""Limits of a request: its bytes, its time, the memory of its pixels, and how many there may be."""

from __future__ import annotations

import asyncio
import hmac
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256

from starlette.requests import ClientDisconnect, Request

from tunable_ops.serve.problems import Problem

__all__ = ["Admission", "Gone", "Life", "PixelBudget", "check_key", "read_body"]

_CLOSE = {"Connection": "close"}  # the rest of the upload is not read


class Gone(Exception):
    """The client of a request has hung up; nobody waits for the answer."""


class Life:
    """How long a request may go on; its stages ask before they start, and so does every tile.

    Args:
        seconds: From now on.
        clock: Seconds that never go back.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self.seconds = clock, seconds
        self.end = clock() + seconds
        self._gone = threading.Event()

    @property
    def left(self) -> float:
        """Seconds that are left, at least 0."""
        return max(self.end - self._clock(), 0.0)

    @property
    def over(self) -> bool:
        """True if nobody waits any more."""
        return self._gone.is_set() or self._clock() >= self.end

    def leave(self) -> None:
        """Say that the client has hung up."""
        self._gone.set()

    def check(self) -> None:
        """Do nothing while the request goes on.

        Raises:
            Gone: The client has hung up.
            Problem: Its time is over.
        """
        if self._gone.is_set():
            raise Gone
        if self.over:
            raise self.timeout()

    def timeout(self) -> Problem:
        """Return the problem of a request whose time is over."""
        detail = f"no answer within {self.seconds:g} seconds: send a smaller picture, or try again later"
        return Problem("timeout", detail, {"Retry-After": "5"})


class Admission:
    """How many requests are received, wait or run at one time; used by the event loop alone."""

    def __init__(self, most: int, changed: Callable[[int], object] = lambda _: None) -> None:
        self._most, self._changed = most, changed
        self.count = 0

    def enter(self) -> None:
        """Count one more, until `leave`.

        Raises:
            Problem: There are too many.
        """
        if self.count >= self._most:
            detail = f"{self._most} requests are being served, which is the limit: try again later"
            raise Problem("queue_full", detail, {"Retry-After": "1"})
        self._set(self.count + 1)

    def leave(self) -> None:
        """Count one less."""
        self._set(self.count - 1)

    def _set(self, count: int) -> None:
        self.count = count
        self._changed(count)


class PixelBudget:
    """Pixels that all pictures in memory may have together; those that do not fit wait, in order.

    Args:
        most: The sum. A picture of more waits until there is no other.
    """

    def __init__(self, most: int) -> None:
        self._most, self._used = most, 0
        self._line: deque[object] = deque()
        self._moved = threading.Condition()

    @contextmanager
    def hold(self, pixels: int, life: Life) -> Iterator[None]:
        """Wait for room for a picture and keep it while it lasts.

        Raises:
            Gone, Problem: As for `Life.check`, while it waits.
        """
        share, ticket = min(pixels, self._most), object()
        with self._moved:
            self._line.append(ticket)
            try:
                while self._line[0] is not ticket or self._used + share > self._most:
                    life.check()
                    self._moved.wait(min(life.left, 0.1) or 0.001)
                self._used += share
            finally:
                self._line.remove(ticket)
                self._moved.notify_all()
        try:
            yield
        finally:
            with self._moved:
                self._used -= share
                self._moved.notify_all()


async def read_body(request: Request, most: int, seconds: float) -> bytes:
    """Receive the body of a request into memory; never into a file.

    Args:
        request: The request.
        most: Bytes that are taken; a larger Content-Length is refused before anything is read.
        seconds: Time that it may take.

    Raises:
        Gone: The client has hung up.
        Problem: The body is empty, too large or too slow.
    """
    length = request.headers.get("content-length", "")
    if length.isascii() and length.isdigit() and int(length[:20]) > most:
        raise _too_large(most)
    try:
        content = await asyncio.wait_for(_received(request, most), seconds)
    except asyncio.TimeoutError:
        detail = f"the upload did not end within {seconds:g} seconds"
        raise Problem("slow_upload", detail, _CLOSE) from None
    except ClientDisconnect:
        raise Gone from None
    if not content:
        raise Problem("empty", "the body must be a picture; got no bytes")
    return content


async def _received(request: Request, most: int) -> bytes:
    content = bytearray()
    async for part in request.stream():
        if len(content) + len(part) > most:
            raise _too_large(most)
        content += part
    return bytes(content)


def _too_large(most: int) -> Problem:
    return Problem("too_many_bytes", f"the upload must have at most {most} bytes", _CLOSE)


def check_key(request: Request, key: str | None) -> None:
    """Check the API key, as `Authorization: Bearer KEY` or `X-API-Key: KEY`, in a time that says nothing about it.

    Raises:
        Problem: It is missing or wrong.
    """
    if key is None:
        return
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        given = request.headers.get("x-api-key", "")
    # of equal length whatever was given, so that not even the length can be measured
    if not hmac.compare_digest(sha256(given.strip().encode()).digest(), sha256(key.encode()).digest()):
        detail = "the request must have the key of the service, as Authorization: Bearer KEY or X-API-Key: KEY"
        raise Problem("wrong_key", detail, {"WWW-Authenticate": "Bearer"})
