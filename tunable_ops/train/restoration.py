"""The task "restoration": a network, tunable or plain, under the multi-loss of the configured objectives."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tunable_ops.control import PhasedModel
from tunable_ops.images import strip
from tunable_ops.knob_files import save_knob
from tunable_ops.losses import Corrected, MultiLoss
from tunable_ops.modules import TunableModel, accelerate
from tunable_ops.serialization import save
from tunable_ops.train.adversarial import Adversary
from tunable_ops.train.build import (
    build_adversary,
    build_criterion,
    build_network,
    build_optimizer,
    build_sampler,
    learning_rate,
    named_files,
    objective_weights,
)
from tunable_ops.train.config import Config
from tunable_ops.train.data import Batch, Batches, Photographs, find_training_files, grey
from tunable_ops.train.distributed import Process
from tunable_ops.train.evaluate import Score, degraded_pictures, mean_psnr, positions, restore, sweep
from tunable_ops.train.fingerprint import fingerprints
from tunable_ops.train.measure import Measure
from tunable_ops.train.phases import Schedule
from tunable_ops.train.precision import choose_precision
from tunable_ops.train.task import KNOB, Task

__all__ = ["Restoration"]

_STRIPS = 4  # pictures of which strips are drawn
_log = logging.getLogger(__name__)


class Restoration(Task):
    """Degraded pictures in, restored ones out; lambda weighs the objectives, sample by sample.

    Args:
        config: Of the run.
        here: This process.
        fresh: True for a new run, which starts from ``model.weights`` if there are any.
    """

    def __init__(self, config: Config, here: Process, fresh: bool = True) -> None:
        super().__init__()
        self.config, self.here = config, here
        self.layout = torch.channels_last if config.compute.channels_last else torch.contiguous_format
        self.net = build_network(config, fresh).to(here.device)
        self.net.to(memory_format=self.layout)  # type: ignore[call-overload]
        if here.device.type == "cpu":
            accelerate(self.net)
        if isinstance(self.net, TunableModel):  # what its lambda says of noise, for grey pictures of the validation
            self.net.notes = {"config": config.model_dump(mode="json")}
        self.criterion = build_criterion(config).to(here.device)
        self.adversary = build_adversary(config, here)
        self.schedule = Schedule(config)
        photographs = Photographs(find_training_files(config.data.source), config.data.crop, config.data.cache_mb)
        self.batches = Batches(photographs, config, build_sampler(config), here.rank)
        self.files = fingerprints({"data.source": photographs.files, **named_files(config)})
        if self.schedule.count == 1:  # else the steps decide where phases begin
            self.harmless = (*Task.harmless, "optim.steps")
        self.strips_every = config.validation.strips
        self.precision, reason = choose_precision(config.compute.precision, here)
        if fresh:
            _log.info("compute.precision %s: %s", self.precision, reason)
        self._follow_freezes()

    def _follow_freezes(self) -> None:
        """Build the optimiser, and the network as steps call it, for the parameters that are trained now."""
        self.optimizer = build_optimizer(self.net, self.config.optim)
        forward: Any = self.net
        if self.here.world_size > 1:
            devices = [self.here.device] if self.here.device.type == "cuda" else None
            forward = nn.parallel.DistributedDataParallel(forward, device_ids=devices)
        self.forward = torch.compile(forward) if self.config.compute.compile else forward

    def resume(self, step: int) -> None:
        """Freeze what the phase of the last step froze; one that begins now is entered by its first step."""
        if isinstance(self.net, PhasedModel) and step:
            self.net.enter_phase(self.schedule.at(step - 1).number)
            self._follow_freezes()

    def start_phase(self, step: int, average: nn.Module) -> bool:
        """Begin a phase of a `PhasedModel`, on the averaged weights that the one before delivers."""
        phase = self.schedule.at(step)
        if self.schedule.count == 1 or step != phase.first:
            return False
        assert isinstance(self.net, PhasedModel)
        self.net.load_state_dict(average.state_dict())
        self.net.start_phase(phase.number)
        self._follow_freezes()
        return True

    def first_step(self, step: int) -> int:
        """Return the step with which the phase of a step began."""
        return self.schedule.at(step).first

    def rate(self, step: int) -> float:
        """Return the learning rate, whose schedule begins anew with every phase."""
        phase = self.schedule.at(step)
        return learning_rate(phase.optim, step - phase.first)

    def loss(self, batch: Batch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the multi-loss of a batch and its terms."""
        device, objectives = self.here.device, self.config.objectives
        x = batch.input.to(device, non_blocking=True).contiguous(memory_format=self.layout)
        lam = batch.lam.to(device, non_blocking=True)
        targets = {o.name: batch.targets[o.target].to(device, non_blocking=True) for o in objectives}
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16"):
            output = self._output(x, lam)
        position = self.config.spec.normalise(lam)
        output, weights = output.float(), objective_weights(objectives, self.config.param_names, position)
        if self.config.weigh_samples == "by_damage":
            weights = weights / _damage(batch).to(device)
        if self.adversary is None:
            return self._multi_loss(output, targets, weights, step)
        return self._adversarial_loss(self.adversary, output, targets, weights, position, step)

    def _multi_loss(
        self, outputs: Tensor | dict[str, Tensor], targets: dict[str, Tensor], weights: Tensor, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        if isinstance(self.criterion, MultiLoss):
            return self.criterion(outputs, targets, weights, step)
        return self.criterion(outputs, targets, weights)

    def _adversarial_loss(
        self,
        adversary: Adversary,
        output: Tensor,
        targets: dict[str, Tensor],
        weights: Tensor,
        lam: Tensor,
        step: int,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the multi-loss where one of the objectives compares the scores of a discriminator."""
        name = self.config.adversarial_objective
        assert name is not None
        outputs, strength = dict.fromkeys(targets, output), adversary.strength(step)
        outputs[name], targets[name] = adversary.scores(output, targets[name], lam, step)
        factors = [strength if objective.name == name else 1.0 for objective in self.config.objectives]
        total, terms = self._multi_loss(outputs, targets, weights * weights.new_tensor(factors), step)
        if not strength:
            terms[name] = terms[name] * torch.nan  # the log leaves it out
        return total, terms

    def after_step(self, step: int) -> dict[str, Tensor]:
        """Let the discriminator, where there is one, do its step, and all processes share what corrections learnt."""
        if self.here.world_size > 1 and isinstance(self.criterion, MultiLoss):
            for name, loss in self._corrected().items():
                if step % self.criterion.every[name] == 0:
                    dist.all_reduce(loss.fit)
                    loss.fit /= self.here.world_size
        return {} if self.adversary is None else self.adversary.learn(step)

    def _corrected(self) -> dict[str, Corrected]:
        """Return the objectives that fit a coefficient, by name."""
        if not isinstance(self.criterion, MultiLoss):
            return {}
        return {k: loss for k, loss in self.criterion.objectives.items() if isinstance(loss, Corrected)}

    def counters(self) -> dict[str, Any]:
        """Return what the objectives have fitted."""
        return {name: [*loss.fit.tolist(), float(loss.coefficient)] for name, loss in self._corrected().items()}

    def restore(self, counters: dict[str, Any]) -> None:
        """Give the objectives what they had fitted; the state of a run from before there were fits has none."""
        for name, loss in self._corrected().items():
            *sums, coefficient = counters.get(name, (0.0, 0.0, 0.0))
            loss.fit.copy_(torch.tensor(sums))
            loss.coefficient.fill_(coefficient)

    def parts(self) -> dict[str, tuple[nn.Module, torch.optim.Optimizer]]:
        """Return the network and the discriminator, where there is one, with their optimisers."""
        if self.adversary is None:
            return super().parts()
        return super().parts() | {"discriminator": (self.adversary.discriminator, self.adversary.optimizer)}

    def _output(self, x: Tensor, lam: Tensor) -> Tensor:
        """Return the network's output; samples that share a lambda go through it together."""
        if not isinstance(self.net, TunableModel):
            return self.forward(x)
        groups = self.config.sampler.groups
        if groups is None or lam.dim() == 1:
            return self.forward(x, lam)
        size = x.shape[0] // groups
        parts = [self.forward(part, lam[k * size]) for k, part in enumerate(x.split(size))]
        return parts[0] if groups == 1 else torch.cat(parts)

    def clip(self) -> Tensor:
        """Bound the norm of the whole gradient by ``optim.clip``."""
        return nn.utils.clip_grad_norm_(self.net.parameters(), self.config.optim.clip or math.inf)

    @property
    def lams(self) -> list[list[float]]:
        """The points of a validation sweep."""
        if not isinstance(self.net, TunableModel):
            return [self.config.fixed_lam]
        return self.config.validation.lams or positions(self.net.spec)

    def validate(self, average: nn.Module, pictures: Sequence[tuple[str, Tensor]]) -> dict[str, float]:
        """Measure PSNR over lambda; with ``data.grey`` of the same pictures in grey, too."""
        degradation = self.config.validation.degradation or self.config.degradation
        seed, measure = self.config.seed, Measure(ssim=False)
        self.scores = sweep(average, pictures, degradation, self.lams, seed, self.config.spec, measure=measure)
        values = {f"psnr {label}": value for label, value in self._psnr(self.scores).items()}
        if self.config.data.grey:
            in_grey = [(name, grey(picture.unsqueeze(0))[0]) for name, picture in pictures]
            scores = sweep(average, in_grey, degradation, self.lams, seed, self.config.spec, measure=measure)
            values |= {f"psnr grey {label}": value for label, value in self._psnr(scores).items()}
        return values

    def strips(self, average: nn.Module, pictures: Sequence[tuple[str, Tensor]]) -> dict[str, Tensor]:
        """Return strips over lambda of the first few pictures: the input, the output at each point, the clean picture.

        Where the degradation follows lambda, all outputs are of the input at the network's default.
        """
        degradation = self.config.validation.degradation or self.config.degradation
        at = list(average.spec.defaults) if isinstance(average, TunableModel) else self.config.fixed_lam
        at = self.config.spec.normalise(torch.tensor(at)).tolist()
        labels = ["input", *(_label(lam) for lam in self.lams), "clean"]
        found = {}
        for name, clean, degraded in degraded_pictures(pictures[:_STRIPS], degradation, self.config.seed, at):
            outputs = [restore(average, degraded, lam) for lam in self.lams]
            found[f"strip {name}"] = strip([degraded, *outputs, clean], labels)
        return found

    def describe(self, values: dict[str, float]) -> str:
        """Return the PSNR over lambda as a line of text."""
        return ", ".join(f"PSNR {name.removeprefix('psnr ')}: {value:.2f} dB" for name, value in values.items())

    def _psnr(self, scores: list[Score]) -> dict[str, float]:
        return {_label(lam): mean_psnr(scores, lam) for lam in self.lams}

    def save(self, average: nn.Module, path: Path, step: int) -> None:
        """Write the checkpoint, and the knob of a frozen base; the configuration and the last validation are notes."""
        psnr = self._psnr(self.scores) if self.scores else {}
        about: dict[str, Any] = {
            "architecture": self.config.model.name,
            "arguments": self.config.model.arguments,
            "notes": {
                "step": step,
                "config": self.config.model_dump(mode="json"),
                "validation_psnr": {label: value if math.isfinite(value) else None for label, value in psnr.items()},
            },
        }
        save(average, path, **about)
        if self.config.tuning.freeze:
            assert isinstance(average, TunableModel)
            save_knob(average, path.with_name(KNOB), dtype=torch.float16, **about)


def _damage(batch: Batch) -> Tensor:
    """Return by how much a sample was damaged, [B, 1]: the mean square, and that of noise of 15 of 255 as a floor."""
    difference = batch.input - batch.targets["clean"]
    return difference.square().flatten(1).mean(1, keepdim=True) + (15 / 255) ** 2


def _label(lam: Sequence[float]) -> str:
    return ",".join(f"{value:g}" for value in lam)
