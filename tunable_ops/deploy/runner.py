"""One object for inference in a service: a network or a file, its engine, sizes, tiles, batches and threads."""

from __future__ import annotations

import asyncio
import os
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from tunable_ops.deploy.batching import Batcher, default_batch_pixels
from tunable_ops.deploy.choice import Choices, circumstances
from tunable_ops.deploy.engine import Engine, Options, Rows, engines_to_try, precision_inside
from tunable_ops.deploy.engines import build
from tunable_ops.deploy.memory import tile_for
from tunable_ops.deploy.sizes import Sizes
from tunable_ops.deploy.source import open_source
from tunable_ops.modules import LambdaSpec, LambdaWarning
from tunable_ops.modules.read_lambda import Lambda
from tunable_ops.tiles import apply_tiled

__all__ = ["Runner"]

_MULTIPLE = 16  # tiles start at multiples of this: suits networks of total stride 2, 4, 8 and 16
_OVERLAP = 64
_WAITING = 32  # pictures of `submit` that may wait for their calls at one time


class Runner:
    """A network ready to serve: ``runner = Runner("denoise"); y = runner(x, sigma=25)``.

    Any number of threads may call it, each with a lambda of its own: results are those of calls one after the other.

    Args:
        model: A TunableModel or a plain network, which is copied; the name of one that ships; or a file: a checkpoint
            (*.safetensors), an ONNX file or a .pt2 (`export_onnx`, `export_program`, `compile_package`).
        engine: What computes. Of a network: "eager", the network itself; "livefold", a plain network whose kernels are
            blended when lambda moves (on a GPU replayed as a CUDA graph); "compile", that one through torch.compile;
            "onnxruntime" and "openvino", which it is exported for. Of an ONNX file, the last two; of a .pt2, "program".
            "auto" measures at the first call of each shape and takes the fastest.
        sizes: What pictures are padded to, below and to the right; results are cropped. A number: its multiples. Pairs
            (height, width): the smallest that holds the picture; larger ones go in tiles of the largest, unless those
            are too small for the network. None: no padding.
        padding: "reflect" or "replicate".
        tile: Largest height and width of a call, padding included, a multiple of 16; larger pictures go tile by tile
            (`apply_tiled`), and pairs of `sizes` beyond it are not used.
        overlap: Of tiles, in pixels; default 64, or half a tile where that is less.
        memory: In the place of `tile`: bytes that the network's activations may take, for a batch of one, by an
            estimate.
        precision: "float32", "float16" or "bfloat16" inside; "auto": float16 on a GPU, float32 on a CPU. Files keep
            theirs. Results have the picture's dtype.
        channels_last: Take that memory format inside, which most networks are faster in.
        device: Where it runs; default the CPU, the only one for files.
        candidates: What "auto" chooses from; default every engine that is installed, without "compile", which takes
            a minute for each shape.
        cache: File where "auto" keeps its choices, for any number of networks and machines.
        remember: Lambdas whose blended kernels are kept, each of which takes the memory of a plain network; "livefold"
            runs as many at one time.
        max_batch: Samples in one call of `submit` and `run_async`.
        batch_pixels: Pixels in such a call of more than one sample; default 32,768 on a CPU.
        example: A picture [B, C, H, W], for networks that do not say how many channels they take (`channels`).
        copy: False: take the network itself, which saves memory, and change its mode, dtype, device and layout.

    Attributes:
        spec: Names, units, ranges and defaults of lambda; None where there is none.
        description: Which pictures it takes.
        engine: As given.
        network: The network that runs; None for a file.

    Raises:
        TypeError: An argument of another type.
        ValueError: An argument out of its range, an engine for another kind of model, a file of another kind.
        FileNotFoundError: There is no such file or network.
        ModuleNotFoundError: An engine is not installed; the message names the extra.
        RuntimeError: An engine does not work here.

    Example:
        >>> runner = Runner("denoise", "livefold", sizes=32)
        >>> runner(torch.rand(1, 3, 40, 50), sigma=25).shape
        torch.Size([1, 3, 40, 50])
        >>> runner.submit(torch.rand(3, 40, 50), {"texture": 0.5}).result().shape
        torch.Size([3, 40, 50])
        >>> runner.close()
    """

    def __init__(
        self,
        model: nn.Module | str | os.PathLike[str],
        engine: str = "auto",
        *,
        sizes: int | Sequence[tuple[int, int]] | None = None,
        padding: str = "reflect",
        tile: int | None = None,
        overlap: int | None = None,
        memory: int | None = None,
        precision: str = "auto",
        channels_last: bool = True,
        device: str | torch.device = "cpu",
        candidates: Sequence[str] | None = None,
        cache: str | os.PathLike[str] | None = None,
        remember: int = 1,
        max_batch: int = 16,
        batch_pixels: int | None = None,
        example: Tensor | None = None,
        copy: bool = True,
    ) -> None:
        self._sizes = Sizes(sizes, padding)
        for name, value, least in (("remember", remember, 0), ("max_batch", max_batch, 1)):
            _check_int(name, value, least)
        if batch_pixels is not None:
            _check_int("batch_pixels", batch_pixels, 1)
        if tile is not None and memory is not None:
            raise ValueError(f"Runner: tile must be left out beside memory, which decides it; got {tile}")
        where = torch.device(device)
        precision_inside(precision, torch.device("cpu"))  # a bad name is told before anything is loaded
        self.engine = engine
        source = open_source(model, example, copy)
        inside = precision_inside(precision, where, source.kind, source.description.dtype)
        options = Options(where, inside, channels_last, bool(self._sizes.buckets), remember)
        names = engines_to_try(source.kind, engine, candidates, options)
        self._source, self._options = source, options
        self.description, self.spec, self.network = source.description, source.spec, source.net
        self._names = names
        self._limit = tile if memory is None else tile_for(memory, source, options.dtype, _MULTIPLE)
        self._tile, self._overlap = self._tiles(overlap)
        self._engines: dict[str, Engine] = {}
        self._building = threading.Lock()
        about = circumstances(source.fingerprint, options, names)
        path = None if cache is None else Path(cache)
        self._choices = Choices(names, self._engine_named, source.spec, options.precision, about, path)
        self._only = names[0] if len(names) == 1 else None
        if self._only is not None:
            self._engine_named(self._only)
        self._max_batch, self._batch_pixels = max_batch, batch_pixels or default_batch_pixels(where.type != "cpu")
        self._per_sample: bool | None = None
        self._warned: set[str] = set()
        self._starting = threading.Lock()
        self._batcher: Batcher | None = None
        self._pool: ThreadPoolExecutor | None = None
        self._closed = False

    def __call__(self, picture: Tensor, lam: Lambda | None = None, /, **named: Any) -> Tensor:
        """Run the network.

        Args:
            picture: [B, C, H, W] or [C, H, W], floating point in [0, 1], on any device.
            lam: As a TunableModel takes it, in the units of `spec`: one for all samples or one for each; by name, in
                order, or nothing for the defaults.
            named: Lambda by name, beside or in the place of `lam`: numbers, or a number for each sample.

        Returns:
            [B, O, s H, s W] or [O, s H, s W], in the picture's dtype and on its device.

        Raises:
            TypeError: `picture` or lambda is none.
            ValueError: A picture that is too small or of other channels; unknown names, or as many lambdas as there
                are neither samples nor one. A value outside the trained range gives a `LambdaWarning`, once for each
                parameter.
        """
        batch, rows = self._check(picture, lam, named)
        return self._finish(picture, self._fit(batch, lambda part: self._run(part, rows)))

    def submit(self, picture: Tensor, lam: Lambda | None = None, /, **named: Any) -> Future[Tensor]:
        """Return the future of a call; arguments and errors as of a call, errors of arguments at once.

        Pictures of one size that wait together share a call, whatever their lambdas, where the engine gains by that.
        """
        batch, rows = self._check(picture, lam, named)
        pool, batcher = self._threads()

        def call(part: Tensor) -> Tensor:
            if len(rows) > 1:
                jobs = list(zip(part.split(1), rows, strict=True))
            else:
                most = min(self._max_batch, self._batch_pixels // (part.shape[-2] * part.shape[-1]))
                jobs = [(each, rows[0] if rows else ()) for each in part.split(max(1, most))]
            futures = [batcher.submit(self, *job) for job in jobs]
            return torch.cat([future.result() for future in futures]) if len(futures) > 1 else futures[0].result()

        return pool.submit(lambda: self._finish(picture, self._fit(batch, call)))

    async def run_async(self, picture: Tensor, lam: Lambda | None = None, /, **named: Any) -> Tensor:
        """Return the result of a call without holding up the event loop; as `submit`."""
        return await asyncio.wrap_future(self.submit(picture, lam, **named))

    @property
    def per_sample(self) -> bool:
        """True if a call with a lambda for each sample gains over calls with one each.

        False where the engine that may gain cannot be made, which a call then says.
        """
        if self.spec is None:
            return True
        if self._per_sample is None:
            name = self._only or "eager"  # of several, the one that may gain
            try:
                self._per_sample = name in self._names and self._engine_named(name).per_sample
            except Exception:
                self._per_sample = False
        return self._per_sample

    def call(self, batch: Tensor, lams: Sequence[Sequence[float]]) -> Tensor:
        """Run the network as it is, without padding, tiles or checks: what batches are made of.

        Args:
            batch: [B, C, H, W], float32.
            lams: B lambdas, empty ones for a plain network.

        Returns:
            [B, O, s H, s W], float32 on the CPU.
        """
        rows = tuple(tuple(map(float, lam)) for lam in lams) if self.spec is not None else ()
        return self._run(batch, rows[:1] if len(set(rows)) == 1 else rows).float().cpu()

    def warm_up(self, sizes: Sequence[tuple[int, int]] | None = None, batch: int = 1) -> dict[str, dict[str, Any]]:
        """Run pictures of some sizes, so that later calls find everything made, compiled and chosen.

        Args:
            sizes: (height, width) of pictures; default the buckets that were given.
            batch: Their number.

        Returns:
            What "auto" has chosen so far: by shape, the engine, and the seconds of all of them.

        Raises:
            ValueError: There are neither sizes nor buckets.
        """
        chosen = list(sizes or self._sizes.buckets)
        if not chosen:
            raise ValueError("Runner.warm_up: sizes must name at least one (height, width); got none, and no buckets")
        for height, width in chosen:
            for _ in range(2):  # a lambda that comes twice may be remembered
                self(torch.full((batch, self.description.channels, height, width), 0.5))
        return self._choices.known()

    def close(self) -> None:
        """Finish what `submit` has taken, and end its threads; calls may go on."""
        with self._starting:
            self._closed = True
            pool, batcher, self._pool, self._batcher = self._pool, self._batcher, None, None
        if pool is not None and batcher is not None:
            pool.shutdown()
            batcher.close()

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _threads(self) -> tuple[ThreadPoolExecutor, Batcher]:
        with self._starting:
            if self._closed:
                raise RuntimeError("Runner.submit: runner must be open; got a picture after close()")
            if self._pool is None or self._batcher is None:
                self._pool = ThreadPoolExecutor(_WAITING, "tunable-ops-runner")
                self._batcher = Batcher(0.0, self._max_batch, self._batch_pixels)
            return self._pool, self._batcher

    def _tiles(self, overlap: int | None) -> tuple[int | None, int]:
        """Return the size of tiles, None for whole pictures, and their overlap."""
        limit, sizes = self._limit, self._sizes
        least = self.description.smallest + _MULTIPLE - 1  # the last tile of an axis may be that much smaller
        tile: int | None = None
        if limit is not None:
            if not isinstance(limit, int) or isinstance(limit, bool) or limit < _MULTIPLE or limit % _MULTIPLE:
                raise ValueError(f"Runner: tile must be a positive multiple of {_MULTIPLE}; got {limit!r}")
            if limit < least:
                raise ValueError(f"Runner: tile must be at least {least} for this network; got {limit}")
            tile = sizes.limit(limit, _MULTIPLE)
            if tile < least:
                what = f"tiles of at least {least} that are no larger than {limit} when padded"
                raise ValueError(f"Runner: sizes must allow {what}; got {sizes.given}")
        elif sizes.buckets:
            side = sizes.side(_MULTIPLE)
            tile = side if side >= least else None
        if tile is None:
            if overlap is not None:
                raise ValueError(f"Runner: overlap must be left out without tiles; got {overlap}")
            return None, 0
        overlap = min(_OVERLAP, tile // 2) if overlap is None else overlap
        if not isinstance(overlap, int) or not 0 <= overlap <= tile - _MULTIPLE:
            raise ValueError(f"Runner: overlap must lie in 0..{tile - _MULTIPLE} (tile - {_MULTIPLE}); got {overlap!r}")
        return tile, overlap

    def _engine_named(self, name: str) -> Engine:
        with self._building:
            if name not in self._engines:
                self._engines[name] = build(name, self._source, self._options)
            return self._engines[name]

    def _check(self, picture: Tensor, lam: Lambda | None, named: Mapping[str, Any]) -> tuple[Tensor, Rows]:
        """Return [B, C, H, W] in float32 and its lambdas, or raise before any work."""
        if not isinstance(picture, Tensor) or not picture.is_floating_point():
            got = picture.dtype if isinstance(picture, Tensor) else type(picture).__name__
            raise TypeError(f"Runner: picture must be a floating-point tensor; got {got}")
        channels, least = self.description.channels, self.description.smallest
        if picture.dim() not in (3, 4) or picture.shape[-3] != channels:
            raise ValueError(
                f"Runner: picture must be [B, {channels}, H, W] or [{channels}, H, W]; got {list(picture.shape)}"
            )
        batch = picture.detach() if picture.dim() == 4 else picture.detach()[None]
        if 0 in batch.shape:
            raise ValueError(f"Runner: picture must have at least one sample and one pixel; got {list(picture.shape)}")
        height, width = batch.shape[-2:]
        size = self._sizes.padded(height, width) or (height, width)
        if min(size) < least:
            raise ValueError(
                f"Runner: picture must be at least {least} x {least} for this network; got {height} x {width}"
            )
        if self._tile is None and self._sizes.buckets and self._sizes.padded(height, width) is None:
            raise ValueError(f"Runner: sizes must hold the picture; got {height}x{width} for {self._sizes.buckets}")
        return batch.float(), self._rows(lam, named, batch.shape[0])

    def _rows(self, lam: Lambda | None, named: Mapping[str, Any], batch: int) -> Rows:
        """Return lambdas as rows of numbers: none for a plain network, one for the batch, or one for each sample."""
        if self.spec is None:
            if lam is not None or named:
                got = dict(named) if lam is None else lam
                raise ValueError(f"Runner: lam must be left out for a network without one; got {got!r}")
            return ()
        if named or isinstance(lam, Mapping):
            if lam is not None and not isinstance(lam, Mapping):
                raise ValueError(f"Runner: lam must be names with numbers beside {', '.join(named)}=; got {lam!r}")
            twice = set(lam or ()) & set(named)
            if twice:
                raise ValueError(f"Runner: lam must name each parameter once; got {', '.join(sorted(twice))} twice")
            lam = {name: _value(value) for name, value in {**(lam or {}), **named}.items()}
        values = self.spec.check(lam, op="Runner").detach().float().cpu()
        if values.dim() > 2:
            raise ValueError(
                f"Runner: lam must be one for the batch or one for each sample; got a map {list(values.shape)}, which "
                "the network itself takes"
            )
        rows = tuple(map(tuple, (values if values.dim() == 2 else values[None]).tolist()))
        if len(rows) not in (1, batch):
            raise ValueError(f"Runner: lam must be 1 lambda or {batch}, one for each sample; got {len(rows)}")
        for row in dict.fromkeys(rows):
            self._warn(self.spec, row)
        return rows[:1] if len(set(rows)) == 1 else rows

    def _warn(self, spec: LambdaSpec, row: tuple[float, ...]) -> None:
        """Say once of each parameter that it has left its range, and once that lambda does not sum to 1."""
        remarks = {remark.partition(" = ")[0]: remark for remark in spec.outside(row)}
        if spec.domain == "simplex" and abs(sum(row) - 1) > 1e-4:
            remarks["sum"] = f"lambda must sum to 1 ({', '.join(spec.names)}); got a sum of {sum(row):g}"
        for name, remark in remarks.items():
            if name not in self._warned:
                self._warned.add(name)
                warnings.warn(f"{remark} (said once)", LambdaWarning, stacklevel=5)

    def _fit(self, batch: Tensor, run: Callable[[Tensor], Tensor]) -> Tensor:
        """Run a function of pictures of the engine's sizes on one of any size."""
        size = self._sizes.padded(*batch.shape[-2:])
        fits = size is not None and (self._limit is None or max(size) <= self._limit)
        if fits or self._tile is None:
            return self._sizes.run(run, batch)
        return apply_tiled(lambda part: self._sizes.run(run, part), batch, self._tile, self._overlap, _MULTIPLE)

    def _run(self, batch: Tensor, rows: Rows) -> Tensor:
        name = self._only or self._choices.pick(batch.shape, len(set(rows)) > 1)
        return self._engine_named(name)(batch, rows)

    @staticmethod
    def _finish(picture: Tensor, output: Tensor) -> Tensor:
        output = output.to(picture.device, picture.dtype)
        return output if picture.dim() == 4 else output[0]


def _value(value: Any) -> Any:
    """Return a value of lambda by name: a number, or a tensor of one for each sample."""
    return torch.tensor(value, dtype=torch.float32) if isinstance(value, (list, tuple)) else value


def _check_int(name: str, value: Any, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"Runner: {name} must be an int; got {value!r}")
    if value < least:
        raise ValueError(f"Runner: {name} must be at least {least}; got {value}")
