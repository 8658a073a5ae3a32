"""Training a PGN: on the pictures that its own gradients lead toy autoencoders to."""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tunable_ops.losses import Perceptual
from tunable_ops.pgn.config import PGNConfig
from tunable_ops.pgn.network import PGN
from tunable_ops.pgn.state import load_state, save_state
from tunable_ops.pgn.toys import DEPTHS, ImagePrior, Toy
from tunable_ops.train.data import Photographs, draw_crop, find_training_files
from tunable_ops.train.ema import Ema
from tunable_ops.train.sections import flatten
from tunable_ops.train.seeding import derive_seed, generator
from tunable_ops.train.trainer import StopSignals

__all__ = ["LOG", "MODEL", "STATE", "PGNTrainer", "agreement", "true_gradient"]

MODEL = "pgn.safetensors"
STATE = "state.safetensors"
LOG = "log.jsonl"
_REFERENCE = 3 * 224 * 224  # values of the pictures for which the weights of the terms are published


def true_gradient(loss: Perceptual, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """(gradient of each sample's loss for its x, [B, 3, H, W]; the losses [B])."""
    leaf = x.detach().requires_grad_()
    with torch.enable_grad():
        values = loss(leaf, y)
        (gradient,) = torch.autograd.grad(values.sum(), leaf)
    return gradient, values.detach()


def agreement(predicted: Tensor, true: Tensor) -> tuple[Tensor, Tensor]:
    """(angle in degrees, ratio of the norms predicted / true) between two fields, per sample [B]."""
    a, b = predicted.flatten(1).double(), true.flatten(1).double()
    norms = a.norm(dim=1), b.norm(dim=1)
    cosine = (a * b).sum(1) / (norms[0] * norms[1]).clamp_min(1e-300)
    return torch.rad2deg(torch.acos(cosine.clamp(-1, 1))), norms[0] / norms[1].clamp_min(1e-300)


@dataclass
class _Clip:
    """Gradient clipping at ``factor`` times a running mean of the norms that came before."""

    factor: float
    running: float = math.nan

    def __call__(self, parameters: list[Tensor]) -> float:
        limit = math.inf if math.isnan(self.running) else self.factor * self.running
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, limit))
        if math.isfinite(norm):
            kept = min(norm, limit)
            self.running = kept if math.isnan(self.running) else 0.98 * self.running + 0.02 * kept
        return norm


class PGNTrainer:
    """A run in a folder: ``pgn.safetensors``, ``state.safetensors`` (to resume from) and ``log.jsonl``.

    At every step toy autoencoders reproduce a batch of pictures y as x (and an image prior its own, where the
    configuration has some); the PGN writes the gradient for (x, y), which they follow; the PGN itself follows that
    of::

        2**26 * mean((g_n - g_true_n)**2) * (C*H*W / (3*224*224))**2 + 0.2 * perceptual(t, y) + 0.5 * mean(|t_n - y_n|)

    The factor in the middle, 1 at the published size, keeps the balance of the terms at any other: fields shrink as
    1 / (C*H*W). What is drawn depends on the seed and the step alone, so a run that is stopped and resumed ends with
    the same bits on the same machine.

    Args:
        config: from `load_pgn_config`.
        out: folder of the run; made if missing.
        resume: continue the run in ``out``, or start it if there is none.

    Raises:
        ValueError: if ``out`` holds a run and ``resume`` is not asked for, or the configurations differ.
        FileNotFoundError: no weights for the loss.
    """

    def __init__(self, config: PGNConfig, out: str | Path, resume: bool = False) -> None:
        self.config, self.out, self.step = config, Path(out), 0
        if (self.out / STATE).exists() and not resume:
            raise ValueError(
                f"pgn: out must be a new folder; got {str(out)!r}, which holds a run: resume it (--resume)"
            )
        name = ("cuda" if torch.cuda.is_available() else "cpu") if config.device == "auto" else config.device
        self.device = torch.device(name)
        loss = config.loss
        self.loss = Perceptual(loss.network, loss.layers, loss.pool, weights=loss.weights, bounded=False)
        self.loss.to(self.device, getattr(torch, loss.dtype))
        self.photographs = Photographs(find_training_files(config.data.source), config.data.crop, config.data.cache_mb)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(config.seed, "weights"))
            self.pgn = PGN(config.network, bounded=False).to(self.device)
            self.toys = [Toy(depth, config.optim.toy_lr, self.device) for depth in DEPTHS]
            self.priors = [
                ImagePrior(config.data.crop, config.optim.prior_lr, self.device) for _ in range(config.optim.priors)
            ]
        self.optimizer = torch.optim.Adam(self.pgn.parameters(), lr=config.optim.lr, foreach=True)
        self.clip = _Clip(config.optim.clip)
        self.ema = Ema(self.pgn, config.optim.ema)
        if (self.out / STATE).exists():
            load_state(self, self.out / STATE)

    def run(self, stop_at: int | None = None, progress: bool = False) -> int | None:
        """Train to the end, or until ``stop_at`` steps are done in all.

        SIGINT and SIGTERM let the step end, save and return.

        Returns:
            The number of the signal that stopped it, or None.
        """
        end = min(self.config.optim.steps, stop_at or self.config.optim.steps)
        started, first = time.perf_counter(), self.step
        lines: list[dict[str, float]] = []
        with StopSignals() as signals:
            while self.step < end and signals.received is None:
                lines.append(self.advance())
                if self.step % self.config.every.log == 0 or self.step == end:
                    speed = (time.perf_counter() - started) / (self.step - first)
                    self._write_log(lines, speed, progress)
                    lines = []
                if self.step % self.config.every.checkpoint == 0 and self.step < end:
                    self.save()
            self.save()
        return signals.received

    def advance(self) -> dict[str, float]:
        """One step; returns what is logged."""
        config = self.config
        source = generator(config.seed, "step", self.step)
        y = torch.stack([draw_crop(self.photographs, config.data, source) for _ in range(config.data.batch)])
        first = config.optim.toys * self.step
        toys = [self.toys[(first + k) % len(self.toys)] for k in range(config.optim.toys)]
        outputs = [toy.net(y.to(self.device)) for toy in toys]
        which = list(range(len(y))) * len(toys)  # x[k] is to become y[which[k]]
        if self.priors:
            index = self.step % len(self.priors)
            prior = self.priors[index]
            crop = draw_crop(self.photographs, config.data, self._life(index, "crop"))
            y, which = torch.cat((y, crop.unsqueeze(0))), [*which, len(y)]
            toys, outputs = [*toys, prior], [*outputs, prior.net()]
        y = y.to(self.device)
        x = torch.cat([output.detach() for output in outputs])
        fraction = self.step / config.optim.steps
        for group in self.optimizer.param_groups:
            falling = config.optim.final + (1 - config.optim.final) * 0.5 * (1 + math.cos(math.pi * fraction))
            group["lr"] = config.optim.lr * falling
        self.pgn.train()
        target = self.pgn(x, y[which])
        predicted = self.pgn.field(x, target)
        total, line, true = self._terms(x, y, which, target, predicted)
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        norm = self.clip(list(self.pgn.parameters()))
        self.optimizer.step()
        self.ema.update(self.pgn, self.step)
        self._drive(toys, outputs, predicted.detach(), y[which])
        angle, ratio = agreement(predicted.detach(), true)
        self.step += 1
        return {**line, "norm": norm, "angle": float(angle.mean()), "ratio": float(ratio.mean())}

    def _life(self, index: int, purpose: str) -> torch.Generator:
        """What is drawn once for the life of an image prior."""
        return generator(self.config.seed, "prior", index, self.priors[index].resets, purpose)

    def _terms(
        self, x: Tensor, y: Tensor, which: list[int], target: Tensor, predicted: Tensor
    ) -> tuple[Tensor, dict[str, float], Tensor]:
        """The loss of a step, its parts for the log, and the true gradient; x[k] is compared with y[which[k]]."""
        terms, size = self.config.terms, x[0].numel()
        # one pass through the big network gives the true gradient at x and the proxy's own
        both = torch.cat((x, target.detach())).requires_grad_()
        wanted = {k: v[which * 2] for k, v in self.loss.features.extract(y).items()}
        values = self.loss.between(self.loss.features.extract(both), wanted)
        (gradients,) = torch.autograd.grad(values.sum(), both)
        true, pull = gradients.chunk(2)
        difference = (predicted - true) * self.pgn.std  # in units of normalised pictures
        field = terms.field * (size / _REFERENCE) ** 2 * (difference**2).mean()
        l1 = terms.l1 * ((target - y[which]) / self.pgn.std).abs().mean()
        proxy = terms.proxy * values[len(x) :].mean()
        # its value is known already, so only its gradient goes back, by the product rule's linear part
        linear = terms.proxy * ((target - target.detach()) * pull).sum() / len(x)
        parts = {"field": field, "proxy": proxy, "l1": l1, "perceptual": values[: len(x)].mean()}
        return field + l1 + linear + proxy.detach(), {k: float(v.detach()) for k, v in parts.items()}, true

    def _drive(self, toys: list[Toy], outputs: list[Tensor], predicted: Tensor, y: Tensor) -> None:
        """Let the toys follow the predicted gradients, and reset those whose time has come."""
        counts = [len(output) for output in outputs]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(self.config.seed, "reset", self.step))
            for toy, x, gradient, wanted in zip(toys, outputs, predicted.split(counts), y.split(counts), strict=True):
                draw = torch.rand(())
                if isinstance(toy, ImagePrior):
                    draw = torch.rand((), generator=self._life(self.priors.index(toy), "life"))
                toy.step(x, gradient)
                toy.watch(float((x.detach() - wanted).abs().mean()), float(draw))

    def _write_log(self, lines: list[dict[str, float]], seconds: float, progress: bool) -> None:
        means = {key: sum(line[key] for line in lines) / len(lines) for key in lines[0]}
        if not all(math.isfinite(value) for value in means.values()):
            raise RuntimeError(f"pgn: the loss must stay finite; got {means} at step {self.step}: lower optim.lr")
        toys = self.driven
        extra = {
            "toys": [None if math.isnan(toy.average) else round(toy.average, 5) for toy in toys],
            "resets": [toy.resets for toy in toys],
        }
        entry = {"step": self.step, **{k: round(v, 6) for k, v in means.items()}, **extra, "seconds": round(seconds, 4)}
        self.out.mkdir(parents=True, exist_ok=True)
        with open(self.out / LOG, "a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        if progress:
            print(json.dumps(entry), flush=True)

    def save(self) -> None:
        """The network so far, and all that decides the rest of the run."""
        for name, value in self.pgn.named_parameters():
            if not torch.isfinite(value).all():
                raise RuntimeError(f"pgn: weights must stay finite; got NaN or infinity in {name} at step {self.step}")
        self.average.save(self.out / MODEL, notes=self.notes)
        save_state(self, self.out / STATE)

    @property
    def driven(self) -> list[Toy]:
        """Everything that follows the predicted gradients: the autoencoders, then the image priors."""
        return [*self.toys, *self.priors]

    @property
    def average(self) -> PGN:
        """The averaged network, the one that is delivered."""
        assert isinstance(self.ema.module, PGN)
        return self.ema.module

    @property
    def notes(self) -> dict[str, Any]:
        """What the network's file says about its training."""
        return {"step": self.step, "config": flatten(self.config)}
