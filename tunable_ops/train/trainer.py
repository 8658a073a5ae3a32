"""The training loop of every task: one process or several, stopped at any moment and resumed to the same bits."""

from __future__ import annotations

import logging
import math
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from tunable_ops.serialization import remove_leftovers
from tunable_ops.train.config import Config, PGNConfig
from tunable_ops.train.data import batch_loader, held_out
from tunable_ops.train.distributed import Process, process
from tunable_ops.train.ema import Ema
from tunable_ops.train.log import EVENTS, LOG, RunLog
from tunable_ops.train.perceptual_gradient import PerceptualGradient
from tunable_ops.train.restoration import Restoration
from tunable_ops.train.seeding import derive_seed
from tunable_ops.train.signals import StopSignals
from tunable_ops.train.state import STATE, Position, load_state, save_state
from tunable_ops.train.task import KNOB, Task

__all__ = ["MODEL", "STATE", "Outcome", "train"]

MODEL = "model.safetensors"
CONFIG = "config.json"
_LEFT_OUT = "optim/left_out"  # share of the steps, in the log where there are any
_PATIENCE = 10  # steps left out in a row that end the run

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """What a call of `train` left behind.

    Attributes:
        net: The averaged network, in evaluation mode.
        step: Optimiser steps done since the beginning of the run.
        finished: True if these were all; if not, ``signal`` stopped it (None: ``stop_at`` did), and it can be resumed.
        signal: Number of the signal, or None.
        scores: Of the last validation; empty if there was none.
        seconds: Time spent in steps by this call.
    """

    net: nn.Module
    step: int
    finished: bool
    signal: int | None = None
    scores: list[Any] = field(default_factory=list)
    seconds: float = 0.0


def train(
    config: Config | PGNConfig,
    out: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    stop_at: int | None = None,
    progress: bool = True,
) -> Outcome:
    """Train as the configuration says.

    Writes ``out/model.safetensors`` (the averaged weights), with ``tuning.freeze`` ``out/knob.safetensors`` (what it
    adds to the base), ``out/state.safetensors`` (what resuming needs), ``out/config.json``, ``out/log.jsonl`` and
    ``out/logs`` (TensorBoard). SIGINT and SIGTERM let the current step end,
    save and return; a second SIGINT kills. On the CPU a run that is stopped and resumed any number of times ends with
    the same bits as one that is not, given the same versions and number of threads; after SIGKILL the steps since the
    last checkpoint are repeated, with the same result. Under `torchrun` every process trains on batches of its own,
    and the first one writes.

    Args:
        config: From `load_config`; its class decides what is trained.
        out: Folder of the run; made if missing.
        resume: Continue the run in ``out``, or start it if there is none. What does not change the weights may differ
            from before: ``log``, ``checkpoints``, ``validation``, ``data.workers``, ``data.cache_mb``, the place of
            the pictures; the device, with a warning. ``optim.steps`` may differ unless ``tuning.kind`` trains in
            phases: from the step reached on the rate follows the schedule of the new number.
        overwrite: Start anew where ``out`` holds a run or a model; what that run wrote is removed first.
        stop_at: Stop after this many steps in all, as a signal would.
        progress: Show progress bars.

    Returns:
        The `Outcome`.

    Raises:
        ValueError: ``out`` holds a run and neither ``resume`` nor ``overwrite`` is asked for, or both are; it holds a
            model without a state, which cannot be resumed; the configuration or the pictures differ from those of the
            run resumed in what decides the weights; or a setting does not fit the network or the pictures.
        RuntimeError: The loss is no longer finite.
    """
    out = Path(out)
    again = _holds_run(out, resume, overwrite)
    with process(config.compute.device) as here, torch.random.fork_rng(devices=[]), StopSignals() as signals:
        run = _Run(config, out, here, progress and here.main, fresh=not again)
        if again:
            run.resume()
        elif overwrite and here.main:
            _remove_run(out)
        return run.loop(signals, stop_at)


def _holds_run(out: Path, resume: bool, overwrite: bool) -> bool:
    """Return True if the folder holds a run to resume; refuse one whose files would be lost."""
    if resume and overwrite:
        raise ValueError("train: resume and overwrite must not both be asked for; got both")
    if overwrite:
        return False
    again = (out / STATE).exists()
    if again and not resume:
        raise ValueError(
            f"train: out must be a new folder; got {str(out)!r}, which holds a run: resume it (--resume), replace it "
            "(--overwrite), or name another folder"
        )
    if not again and (out / MODEL).exists():
        raise ValueError(
            f"train: out must be a new folder; got {str(out)!r}, which holds {MODEL} without the {STATE} that resuming "
            "needs: replace it (--overwrite), or name another folder (model.weights starts from its weights)"
        )
    return again


def _remove_run(out: Path) -> None:
    """Remove what a run writes, the state first: what is left can never be resumed."""
    for name in (STATE, MODEL, KNOB, CONFIG, LOG):
        (out / name).unlink(missing_ok=True)
    for events in (out / EVENTS).glob("events.out.tfevents.*"):
        events.unlink()


def _step_if_finite(optimizer: torch.optim.Optimizer, norm: Tensor) -> Tensor:
    """Do an optimiser step, unless the norm of the gradients is not finite; return whether it was left out.

    A flat crop is enough for that: instance normalisations without variance enlarge a gradient 300 times each.
    """
    left_out = ~norm.isfinite()
    if optimizer.defaults.get("fused"):
        optimizer.found_inf = left_out.float()  # type: ignore[attr-defined]  # as GradScaler says it, without waiting
        optimizer.step()
    elif not left_out:
        optimizer.step()
    return left_out


def _task(config: Config | PGNConfig, here: Process, fresh: bool) -> Task:
    if isinstance(config, PGNConfig):
        return PerceptualGradient(config, here, fresh)
    return Restoration(config, here, fresh)


class _Run:
    """Everything that one process holds while it trains."""

    def __init__(self, config: Config | PGNConfig, out: Path, here: Process, progress: bool, fresh: bool) -> None:
        self.config, self.out, self.here, self.progress = config, out, here, progress
        self.step = self.last_useful = 0  # the second: the last step whose gradient was finite
        self.task = _task(config, here, fresh)
        if here.world_size > 1 and not self.task.parallel:
            raise ValueError(f"train: task {config.task!r} must run in one process; got {here.world_size}")
        self.ema = Ema(self.task.net, config.ema.decay)
        self.pictures = self._held_out()

    def _held_out(self) -> list[tuple[str, Tensor]]:
        """Return the pictures of the validation; none where this process does not validate."""
        config = self.config.validation
        source = config.source or ("skimage" if self.config.data.source == "skimage" else None)
        if source is None or not config.every or not self.here.main:
            return []
        return held_out(source, config.crop)

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
            for name in (MODEL, KNOB, STATE):
                remove_leftovers(self.out / name)
        self.step, then = load_state(self.out / STATE, self.task, self.ema, self.config)
        now = self.circumstances
        if then["world_size"] != now["world_size"]:
            raise ValueError(
                f"train: a resumed run must have as many processes as before, {then['world_size']}; "
                f"got {now['world_size']}"
            )
        differing = [f"{key} was {then[key]}, is {now[key]}" for key in now if then.get(key) != now[key]]
        if differing:
            warnings.warn(f"train: resumed elsewhere ({', '.join(differing)}): the last bits may differ", stacklevel=3)
        _log.info("resumed %s at step %d of %d", self.out, self.step, self.config.optim.steps)
        _log.info("%s %s, as the run began", self.task.precision_key, self.task.precision)

    def loop(self, signals: StopSignals, stop_at: int | None) -> Outcome:
        config, steps = self.config, self.config.optim.steps
        end = steps if stop_at is None else min(stop_at, steps)
        started, stopped = time.perf_counter(), False
        self.last_useful = self.step
        log = RunLog(self.out, config.log, self.step, self.here.main)
        if self.step < end:
            loader = batch_loader(
                self.task.batches, range(self.step, steps), config.data.workers, self.here.device.type == "cuda"
            )
            with tqdm(total=steps, initial=self.step, desc="train", unit="step", disable=not self.progress) as bar:
                while self.step < end and not stopped:
                    log.add(self.advance(next(loader)))
                    bar.update()
                    if self.step % config.log.every == 0:
                        self.write_log(log, bar)
                    if self._due(config.validation.every) and self.step < steps:
                        self.validate(log)
                    if self._due(config.checkpoints.every) and self.step < end:
                        self.save()
                    stopped = self.here.any(signals.received is not None)
                if log.pending:
                    self.write_log(log, bar)
        seconds = time.perf_counter() - started
        finished = self.step >= steps
        if finished and self.pictures:
            self.save()  # whatever validation meets, the run is kept
            self.validate(log)
        self.save()
        log.close()
        return Outcome(self.ema.module, self.step, finished, signals.received, self.task.scores, seconds)

    def advance(self, batch: Any) -> dict[str, Tensor]:
        """Do one optimiser step; return what is logged of it."""
        task, step = self.task, self.step
        # for whatever draws from the global generators, such as dropout
        torch.manual_seed(derive_seed(self.config.seed, "step", step, self.here.rank))
        if task.start_phase(step, self.ema.module):
            self.ema = Ema(task.net, self.config.ema.decay)
        rate = task.rate(step)
        for group in task.optimizer.param_groups:
            group["lr"] = rate * group.get("scale", 1.0)
        total, terms = task.loss(batch, step)
        task.optimizer.zero_grad(set_to_none=True)
        total.backward()
        norm = task.clip()
        left_out = _step_if_finite(task.optimizer, norm)
        self.ema.update(task.net, step - task.first_step(step))
        values = {"loss/total": total.detach(), **{f"loss/{name}": value for name, value in terms.items()}}
        values |= {
            "optim/gradient_norm": torch.where(left_out, torch.zeros_like(norm), norm),
            _LEFT_OUT: left_out.float(),
        }
        values |= task.after_step(step)
        self.step += 1
        return values

    def write_log(self, log: RunLog, bar: Any) -> None:
        values, speed = log.means()
        share = values.pop(_LEFT_OUT)
        self.last_useful = self.last_useful if share == 1 else self.step
        if share:
            _log.warning("step %d: %.0f %% of the last steps left out: no finite gradient", self.step, 100 * share)
            values[_LEFT_OUT] = share
        if not math.isfinite(values["loss/total"]) or self.step - self.last_useful >= _PATIENCE:
            loss = values["loss/total"]
            what = f"the loss must stay finite; got {loss}"
            if math.isfinite(loss):
                what = f"gradients must be finite; got none in {self.step - self.last_useful} steps"
            raise RuntimeError(
                f"train: {what} at step {self.step}: lower optim.lr, or look at the scales of the objectives"
            )
        samples = speed * self.config.data.batch * self.here.world_size
        shown = {name.rpartition("/")[2]: f"{values[name]:.5g}" for name in self.task.shown}
        bar.set_postfix(**shown, samples_per_s=f"{samples:.0f}")
        values |= {"optim/lr": self.task.rate(self.step - 1), "speed/samples_per_second": samples}
        log.write(self.step, values | self.task.gauges())

    def validate(self, log: RunLog) -> None:
        """Judge the averaged weights, where this process has pictures for it."""
        if self.pictures:
            values = self.task.validate(self.ema.module, self.pictures)
            log.write(self.step, {f"validation/{name}": value for name, value in values.items()})
            if log.shows_pictures and self._strips_due():
                for name, strip in self.task.strips(self.ema.module, self.pictures).items():
                    log.show(self.step, f"validation/{name}", strip)
            _log.info("step %d: %s", self.step, self.task.describe(values))
            log.restart_clock()

    def _strips_due(self) -> bool:
        """Return True at every so many validations, and at the last one; the same steps whenever a run was stopped."""
        every = self.task.strips_every
        last = self.step >= self.config.optim.steps
        return every > 0 and (last or self.step // self.config.validation.every % every == 0)

    def save(self) -> None:
        """Write the training state, and the averaged network as it is now."""
        if not self.here.main:
            return
        self.check_finite()
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / CONFIG).write_text(self.config.model_dump_json(indent=2) + "\n")
        # the state first: a run killed between the two can be resumed, a model without a state cannot
        save_state(self.out / STATE, self.task, self.ema, self.config, Position(self.step, self.circumstances))
        self.task.save(self.ema.module, self.out / MODEL, self.step)

    def check_finite(self) -> None:
        """Refuse to replace a good checkpoint with one that holds NaN."""
        for name, parameter in self.task.net.named_parameters():
            if not torch.isfinite(parameter).all():
                raise RuntimeError(
                    f"train: weights must stay finite; got NaN or infinity in {name} at step {self.step}: lower "
                    "optim.lr, or look at the scales of the objectives; the last checkpoint is untouched"
                )

    def _due(self, every: int) -> bool:
        return every > 0 and self.step % every == 0
