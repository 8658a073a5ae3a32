"""Calls of different callers made into one: samples of one size, each with its own lambda."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

__all__ = ["Batched", "Batcher", "default_batch_pixels"]


class Batched(Protocol):
    """A network whose calls are put together."""

    @property
    def per_sample(self) -> bool:
        """True if one call takes a lambda for each sample, and gains by it."""
        ...

    def call(self, batch: Tensor, lams: Sequence[Sequence[float]]) -> Tensor:
        """Run the network on [B, C, h, w] with B lambdas."""
        ...


class Waiting(Protocol):
    """Whoever waits for a job."""

    @property
    def over(self) -> bool:
        """True if nobody waits any more."""
        ...


class _Always:
    over = False


_ALWAYS = _Always()


def default_batch_pixels(on_gpu: bool) -> int:
    """Return the pixels of a call for a device: a CPU's caches are small; on a GPU it is a guess, not measured."""
    return 1 << 22 if on_gpu else 1 << 15


@dataclass(eq=False)
class _Job:
    model: Batched
    part: Tensor
    lam: tuple[float, ...]
    life: Waiting
    per_sample: bool
    since: float = field(default_factory=time.monotonic)
    future: Future[Tensor] = field(default_factory=Future)

    @property
    def key(self) -> tuple[Any, ...]:
        """What the jobs of one call have in common."""
        return id(self.model), tuple(self.part.shape[1:])


class Batcher:
    """One thread that calls the networks, the oldest job first, with others of the same model and size.

    A picture of many tiles has one of them here at a time, so that it shares the thread with small pictures.

    Args:
        wait: Seconds that a job may wait for others, while more requests are expected than jobs are waiting.
        most: Samples in a call.
        pixels: Pixels in a call of more than one job.
        measured: Called after each call of a network with the model, samples and seconds.
    """

    def __init__(
        self,
        wait: float,
        most: int,
        pixels: int,
        measured: Callable[[Any, int, float], object] = lambda *_: None,
    ) -> None:
        self._wait, self._most, self._pixels = wait, most, pixels
        self._measured = measured
        self._expected: set[object] = set()
        self._jobs: list[_Job] = []
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="tunable-ops-networks", daemon=True)
        self._thread.start()

    def submit(self, model: Batched, part: Tensor, lam: tuple[float, ...], life: Waiting = _ALWAYS) -> Future[Tensor]:
        """Hand in a job.

        Args:
            model: The network.
            part: [n, channels, h, w], float32.
            lam: One lambda, for all n samples.
            life: A job whose request is over is dropped: its future is cancelled.

        Returns:
            The future of [n, O, s h, s w].

        Raises:
            RuntimeError: The batcher is closed.
        """
        job = _Job(model, part, lam, life, model.per_sample)  # asked here: it may take seconds, or fail
        with self._changed:
            if self._closed:
                raise RuntimeError("Batcher.submit: batcher must be open; got a job after close()")
            self._jobs.append(job)
            self._changed.notify_all()
        return job.future

    def expect(self) -> Callable[[], None]:
        """Say that a request is on its way which will hand in jobs; return a function that says that it will no more.

        That function may be called more than once.
        """
        request = object()
        with self._changed:
            self._expected.add(request)

        def no_more() -> None:
            with self._changed:
                self._expected.discard(request)
                self._changed.notify_all()

        return no_more

    def close(self) -> None:
        """Do what was handed in, then end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def _work(self) -> None:
        while (jobs := self._take()) is not None:
            jobs = [job for job in jobs if job.future.set_running_or_notify_cancel()]
            if jobs:
                self._run(jobs)

    def _take(self) -> list[_Job] | None:
        """Wait for the jobs of the next call; None at the end."""
        with self._changed:
            while True:
                self._drop_those_that_are_over()
                if not self._jobs:
                    if self._closed:
                        return None
                    self._changed.wait()
                    continue
                jobs, full = self._group(self._jobs[0])
                left = self._jobs[0].since + self._wait - time.monotonic()
                if full or left <= 0 or self._closed or len(self._expected) <= len(self._jobs):
                    self._jobs = [job for job in self._jobs if job not in jobs]
                    return jobs
                self._changed.wait(left)

    def _drop_those_that_are_over(self) -> None:
        for job in self._jobs:
            if job.life.over:
                job.future.cancel()
        self._jobs = [job for job in self._jobs if not job.future.cancelled()]

    def _group(self, first: _Job) -> tuple[list[_Job], bool]:
        """Return the jobs that go with the first, and True if no more would."""
        height, width = first.part.shape[-2:]
        most = min(self._most, self._pixels // (height * width)) if first.per_sample else 1
        jobs, samples = [first], len(first.part)
        for job in self._jobs:
            if job is not first and job.key == first.key and samples + len(job.part) <= most:
                jobs.append(job)
                samples += len(job.part)
        return jobs, samples >= most

    def _run(self, jobs: Sequence[_Job]) -> None:
        start = time.perf_counter()
        parts = [job.part for job in jobs]
        lams = [job.lam for job in jobs for _ in range(len(job.part))]
        try:
            output = jobs[0].model.call(torch.cat(parts) if len(parts) > 1 else parts[0], lams)
            outputs = output.split([len(part) for part in parts])
            self._measured(jobs[0].model, len(lams), time.perf_counter() - start)
        except BaseException as error:
            if len(jobs) == 1:
                jobs[0].future.set_exception(error)
            else:  # one of them may be to blame, or all together take too much memory
                for job in jobs:
                    self._run([job])
            return
        for job, own in zip(jobs, outputs, strict=True):
            job.future.set_result(own)
