"""The training loop: one process or several, stopped at any moment and resumed to the same bits."""

from __future__ import annotations

import contextlib
import logging
import math
import signal
import threading
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from tunable_ops.control import PhasedModel
from tunable_ops.modules import TunableModel
from tunable_ops.serialization import remove_leftovers, save
from tunable_ops.train.build import build_criterion, build_network, build_optimizer, build_sampler, learning_rate
from tunable_ops.train.config import Config
from tunable_ops.train.data import Batch, Batches, Photographs, batch_loader, find_training_files, held_out
from tunable_ops.train.distributed import Process, process
from tunable_ops.train.ema import Ema
from tunable_ops.train.evaluate import Score, default_lams, mean_psnr, sweep
from tunable_ops.train.measure import Measure
from tunable_ops.train.phases import Schedule
from tunable_ops.train.seeding import derive_seed
from tunable_ops.train.state import load_training_state, save_training_state

__all__ = ["MODEL", "STATE", "Outcome", "StopSignals", "train"]

MODEL = "model.safetensors"
STATE = "state.safetensors"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """What a call of `train` left behind.

    Attributes:
        net: the averaged network, in evaluation mode.
        step: optimiser steps done since the beginning of the run.
        finished: whether these were all; if not, ``signal`` stopped it (None: ``stop_at`` did), and it can be resumed.
        signal: number of the signal, or None.
        scores: of the last validation; empty if there was none.
        seconds: time spent in steps by this call.
    """

    net: nn.Module
    step: int
    finished: bool
    signal: int | None = None
    scores: list[Score] = field(default_factory=list)
    seconds: float = 0.0


def train(
    config: Config,
    out: str | Path,
    *,
    resume: bool = False,
    stop_at: int | None = None,
    progress: bool = True,
) -> Outcome:
    """Train as the configuration says.

    Writes ``out/model.safetensors`` (the averaged weights, see `tunable_ops.serialization`), ``out/state.safetensors``
    (what resuming needs), ``out/config.json`` and ``out/logs`` (TensorBoard). SIGINT and SIGTERM let the current step
    end, save and return; a second SIGINT kills. On the CPU a run that is stopped and resumed any number of times ends
    with the same bits as one that is not, given the same versions and number of threads; after SIGKILL the steps
    since the last checkpoint are repeated, with the same result. Under `torchrun` every process trains on batches of
    its own, and the first one writes.

    Args:
        config: from `load_config`.
        out: folder of the run; made if missing.
        resume: continue the run in ``out``, or start it if there is none.
        stop_at: stop after this many steps in all, as a signal would.
        progress: whether to show progress bars.

    Returns:
        The `Outcome`.

    Raises:
        ValueError: if ``out`` holds a run and ``resume`` is not asked for, the configuration differs from that of the
            run resumed, or a setting does not fit the network or the pictures.
        RuntimeError: if the loss is no longer finite.
    """
    out = Path(out)
    if not resume and (out / STATE).exists():
        raise ValueError(
            f"train: out must be a new folder; got {str(out)!r}, which holds a run: resume it (--resume), delete it, "
            "or name another folder"
        )
    with process(config.compute.device) as here, torch.random.fork_rng(devices=[]), StopSignals() as signals:
        again = resume and (out / STATE).exists()
        run = _Run(config, out, here, progress and here.main, fresh=not again)
        if again:
            run.resume()
        return run.loop(signals, stop_at)


class _Run:
    """Everything that one process holds while it trains."""

    def __init__(self, config: Config, out: Path, here: Process, progress: bool, fresh: bool = True) -> None:
        self.config, self.out, self.here, self.progress = config, out, here, progress
        self.step = 0
        self.scores: list[Score] = []
        self.layout = torch.channels_last if config.compute.channels_last else torch.contiguous_format
        self.net: nn.Module = build_network(config, fresh).to(here.device)
        self.net.to(memory_format=self.layout)  # type: ignore[call-overload]
        self.criterion = build_criterion(config).to(here.device)
        self.schedule = Schedule(config)
        self.optimizer = build_optimizer(self.net, config.optim)
        self.ema = Ema(self.net, config.ema.decay)
        files = find_training_files(config.data.source)
        photographs = Photographs(files, config.data.crop, config.data.cache_mb)
        self.batches = Batches(photographs, config, build_sampler(config), here.rank)
        self.validation = self._prepare_validation()
        self.forward = self._wrap()
        precision = config.compute.precision
        self.bf16 = precision == "bf16" or (precision == "auto" and here.device.type == "cuda")

    def _prepare_validation(self) -> list[tuple[str, Tensor]]:
        config = self.config.validation
        source = config.source or ("skimage" if self.config.data.source == "skimage" else None)
        if source is None or not config.every or not self.here.main:
            return []
        return held_out(source, config.crop)

    def _wrap(self) -> Any:
        """The network as the steps call it: synchronised between processes, compiled."""
        forward: Any = self.net
        if self.here.world_size > 1:
            devices = [self.here.device] if self.here.device.type == "cuda" else None
            forward = nn.parallel.DistributedDataParallel(forward, device_ids=devices)
        return torch.compile(forward) if self.config.compute.compile else forward

    @property
    def lams(self) -> list[list[float]]:
        """The points of a validation sweep."""
        if not isinstance(self.net, TunableModel):
            return [self.config.fixed_lam]
        return self.config.validation.lams or default_lams(self.net.spec.num_params, self.net.spec.domain)

    @property
    def circumstances(self) -> dict[str, Any]:
        """What the bits depend on besides the configuration."""
        return {
            "world_size": self.here.world_size,
            "device": self.here.device.type,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }

    def resume(self) -> None:
        if self.here.main:
            for name in (MODEL, STATE):
                remove_leftovers(self.out / name)
        position = load_training_state(
            self.out / STATE, net=self.net, ema=self.ema, optimizer=self.optimizer, config=self.config
        )
        self.step = position.step
        if isinstance(self.net, PhasedModel) and self.step:
            # at a border, the phase that begins there is entered by its first step
            state = self.optimizer.state
            self.net.enter_phase(self.schedule.at(self.step - 1).number)
            self._take_freezes_in()
            self.optimizer.state.update(state)
        then, now = position.circumstances, self.circumstances
        if then["world_size"] != now["world_size"]:
            raise ValueError(
                f"train: a resumed run must have as many processes as before, {then['world_size']}; "
                f"got {now['world_size']}"
            )
        differing = [f"{key} was {then[key]}, is {now[key]}" for key in now if then.get(key) != now[key]]
        if differing:
            warnings.warn(f"train: resumed elsewhere ({', '.join(differing)}): the last bits may differ", stacklevel=3)
        _log.info("resumed %s at step %d of %d", self.out, self.step, self.config.optim.steps)

    def _take_freezes_in(self) -> None:
        """An optimiser and a wrapper for what the current phase trains."""
        self.optimizer = build_optimizer(self.net, self.config.optim)
        self.forward = self._wrap()

    def _start_phase(self, phase: int) -> None:
        """Begins a phase, on the averaged weights that the one before delivers."""
        assert isinstance(self.net, PhasedModel)
        self.net.load_state_dict(self.ema.module.state_dict())
        self.net.start_phase(phase)
        self._take_freezes_in()
        self.ema = Ema(self.net, self.config.ema.decay)

    def loop(self, signals: StopSignals, stop_at: int | None) -> Outcome:
        config, steps = self.config, self.config.optim.steps
        end = steps if stop_at is None else min(stop_at, steps)
        started, log = time.perf_counter(), _Log(self)
        stopped = False
        if self.step < end:
            loader = batch_loader(self.batches, self.step, pin_memory=self.here.device.type == "cuda")
            with tqdm(total=steps, initial=self.step, desc="train", unit="step", disable=not self.progress) as bar:
                while self.step < end and not stopped:
                    log.add(*self.advance(next(loader)))
                    bar.update()
                    if self.step % config.log.every == 0 or self.step == steps:
                        log.write(bar)
                    if self._due(config.validation.every) and self.step < steps:
                        self.validate(log)
                    if self._due(config.checkpoints.every) and self.step < end:
                        self.save()
                    stopped = self.here.any(signals.received is not None)
        seconds = time.perf_counter() - started
        finished = self.step >= steps
        if finished and self.validation:
            self.save()  # whatever validation meets, the run is kept
            self.validate(log)
        self.save()
        log.close()
        return Outcome(self.ema.module, self.step, finished, signals.received, self.scores, seconds)

    def advance(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """One optimiser step; returns the total, the terms and the norm of the gradient."""
        config, device = self.config, self.here.device
        # for whatever draws from the global generators, such as dropout
        torch.manual_seed(derive_seed(config.seed, "step", self.step, self.here.rank))
        phase = self.schedule.at(self.step)
        if self.schedule.count > 1 and self.step == phase.first:
            self._start_phase(phase.number)
        x = batch.input.to(device, non_blocking=True).contiguous(memory_format=self.layout)
        lam = batch.lam.to(device, non_blocking=True)
        targets = {
            objective.name: batch.targets[objective.target].to(device, non_blocking=True)
            for objective in config.objectives
        }
        rate = learning_rate(phase.optim, self.step - phase.first)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.bf16):
            output = self._output(x, lam)
        total, terms = self.criterion(output.float(), targets, config.weights(lam))
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        norm = nn.utils.clip_grad_norm_(self.net.parameters(), config.optim.clip or math.inf)
        self.optimizer.step()
        self.ema.update(self.net, self.step - phase.first)
        self.step += 1
        return total.detach(), terms, norm

    def _output(self, x: Tensor, lam: Tensor) -> Tensor:
        """The network's output; samples that share a lambda go through it together."""
        if not isinstance(self.net, TunableModel):
            return self.forward(x)
        groups = self.config.sampler.groups
        if groups is None or lam.dim() == 1:
            return self.forward(x, lam)
        size = x.shape[0] // groups
        parts = [self.forward(part, lam[k * size]) for k, part in enumerate(x.split(size))]
        return parts[0] if groups == 1 else torch.cat(parts)

    def validate(self, log: _Log) -> None:
        """PSNR over lambda with the averaged weights, where this process has pictures for it."""
        if self.validation:
            degradation = self.config.validation.degradation or self.config.degradation
            measure = Measure(ssim=False)
            self.scores = sweep(
                self.ema.module, self.validation, degradation, self.lams, self.config.seed, measure=measure
            )
            log.validation(self.scores, self.lams)

    def save(self) -> None:
        """The training state, and the averaged network as it is now."""
        if not self.here.main:
            return
        self.check_finite()
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / "config.json").write_text(self.config.model_dump_json(indent=2) + "\n")
        psnr = {_label(lam): mean_psnr(self.scores, lam) for lam in self.lams} if self.scores else {}
        save(
            self.ema.module,
            self.out / MODEL,
            architecture=self.config.model.name,
            arguments=self.config.model.arguments,
            notes={
                "step": self.step,
                "config": self.config.model_dump(mode="json"),
                "validation_psnr": {label: value if math.isfinite(value) else None for label, value in psnr.items()},
            },
        )
        save_training_state(
            self.out / STATE,
            net=self.net,
            ema=self.ema,
            optimizer=self.optimizer,
            step=self.step,
            config=self.config,
            circumstances=self.circumstances,
        )

    def check_finite(self) -> None:
        """Refuse to replace a good checkpoint with one that holds NaN."""
        for name, parameter in self.net.named_parameters():
            if not torch.isfinite(parameter).all():
                raise RuntimeError(
                    f"train: weights must stay finite; got NaN or infinity in {name} at step {self.step}: lower "
                    "optim.lr, or look at the scales of the objectives; the last checkpoint is untouched"
                )

    def _due(self, every: int) -> bool:
        return every > 0 and self.step % every == 0


class _Log:
    """Means since the last line, to the progress bar and to TensorBoard."""

    def __init__(self, run: _Run) -> None:
        self.run = run
        self.writer: Any = None
        if run.here.main and run.config.log.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(str(run.out / "logs"), purge_step=run.step or None)
        self._reset()

    def _reset(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.count, self.since = 0, time.perf_counter()

    def add(self, total: Tensor, terms: dict[str, Tensor], norm: Tensor) -> None:
        named = {"loss/total": total, "optim/gradient_norm": norm}
        named.update({f"loss/{name}": value for name, value in terms.items()})
        # sums stay on the device: reading them at every step would stall a GPU
        self.sums = {name: self.sums.get(name, 0) + value for name, value in named.items()}
        self.count += 1

    def write(self, bar: Any) -> None:
        run = self.run
        speed = self.count * run.config.data.batch * run.here.world_size / (time.perf_counter() - self.since)
        means = {name: float(value) / self.count for name, value in self.sums.items()}
        if not math.isfinite(means["loss/total"]):
            raise RuntimeError(
                f"train: the loss must stay finite; got {means['loss/total']} at step {run.step}: lower optim.lr, or "
                "look at the scales of the objectives"
            )
        bar.set_postfix(loss=f"{means['loss/total']:.5f}", samples_per_s=f"{speed:.0f}")
        phase = run.schedule.at(run.step - 1)
        means["optim/lr"] = learning_rate(phase.optim, run.step - 1 - phase.first)
        means["speed/samples_per_second"] = speed
        self._scalars(means)
        self._reset()

    def validation(self, scores: list[Score], lams: list[list[float]]) -> None:
        values = {_label(lam): mean_psnr(scores, lam) for lam in lams}
        self._scalars({f"validation/psnr {label}": value for label, value in values.items()})
        _log.info("step %d: PSNR %s", self.run.step, ", ".join(f"{k}: {v:.2f} dB" for k, v in values.items()))
        self.since = time.perf_counter()

    def _scalars(self, values: dict[str, float]) -> None:
        if self.writer is not None:
            for name, value in values.items():
                self.writer.add_scalar(name, value, self.run.step)

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()


class StopSignals(contextlib.AbstractContextManager["StopSignals"]):
    """Notes SIGINT and SIGTERM instead of dying; a second SIGINT is let through."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._old: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():  # Python allows handlers there only
            self._old = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _note(self, number: int, frame: Any) -> None:
        self.received = number
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def __exit__(self, *error: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)


def _label(lam: list[float]) -> str:
    return ",".join(f"{value:g}" for value in lam)
