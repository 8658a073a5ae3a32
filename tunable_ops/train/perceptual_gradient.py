"""The task "perceptual_gradient": a PGN learns the gradient of a perceptual loss where its own gradients lead."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from tunable_ops.losses import Perceptual
from tunable_ops.losses.pgn import PGN
from tunable_ops.train import agreement
from tunable_ops.train.config import PGNConfig
from tunable_ops.train.data import Photographs, draw_crop, find_training_files
from tunable_ops.train.distortions import distort
from tunable_ops.train.distributed import Process
from tunable_ops.train.fingerprint import fingerprints
from tunable_ops.train.generators import Generator, Tangent, tangent
from tunable_ops.train.precision import choose_precision
from tunable_ops.train.sections import flatten
from tunable_ops.train.seeding import derive_seed, generator
from tunable_ops.train.task import Task
from tunable_ops.train.toys import DEPTHS, ImagePrior, Toy

__all__ = ["PerceptualGradient", "RunningClip"]

_log = logging.getLogger(__name__)
_SHORT = {"float32": "fp32", "bfloat16": "bf16"}
_LEAST = 0.01  # of the step's mean squared norm, for the denominator of a relative error: at x = y the gradient is 0
_REFERENCE = 3 * 224 * 224  # values of the pictures for which the weights of the terms are published


@dataclass
class RunningClip:
    """Clip gradients at ``factor`` times a running mean of the norms that came before."""

    factor: float
    running: float = math.nan

    def __call__(self, parameters: list[Tensor]) -> Tensor:
        """Clip; return the norm before that."""
        limit = math.inf if math.isnan(self.running) else self.factor * self.running
        norm = torch.nn.utils.clip_grad_norm_(parameters, limit)
        if math.isfinite(norm):
            kept = min(float(norm), limit)
            self.running = kept if math.isnan(self.running) else 0.98 * self.running + 0.02 * kept
        return norm


class Crops(Dataset[Tensor]):
    """The pictures y [B, 3, crop, crop] of step k, for k = 0, 1, ..."""

    def __init__(self, photographs: Photographs, config: PGNConfig) -> None:
        self.photographs, self.config = photographs, config

    def __len__(self) -> int:
        return self.config.optim.steps

    def __getitem__(self, step: int) -> Tensor:
        source, data = generator(self.config.seed, "step", step), self.config.data
        return torch.stack([draw_crop(self.photographs, data, source) for _ in range(data.batch)])


class Ride(NamedTuple):
    """A toy at a step: its output x with its graph, and the pictures y that x is to become.

    Attributes:
        toy: The toy; None for a distorted picture, which follows nothing.
        output: [n, 3, H, W].
        which: Places of the n pictures among those of the step.
        lam: [n, 2] of a generator.
    """

    toy: Toy | None
    output: Tensor
    which: list[int]
    lam: Tensor | None = None


class Driven(NamedTuple):
    """What follows the gradients at a step: the toys with their outputs, and how the two fields agree."""

    rides: list[Ride]
    y: Tensor
    predicted: Tensor
    true: Tensor
    tangents: list[Tangent]


class PerceptualGradient(Task):
    """On-policy training of a `PGN`.

    At every step toy autoencoders reproduce a batch of pictures y as x (and an image prior its own, where the
    configuration has some); the PGN writes the gradient for (x, y), which they follow; the PGN itself follows that
    of::

        2**26 * mean((g_n - g_true_n)**2) * (C*H*W / (3*224*224))**2 + 0.2 * perceptual(t, y) + 0.5 * mean(|t_n - y_n|)

    The factor in the middle, 1 at the published size, keeps the balance of the terms at any other: fields shrink as
    1 / (C*H*W). Generators (`tunable_ops.train.generators`) may take part, led by the true field or the predicted one,
    and the terms of the relative error and of the generator's tangent may be added (`pgn_config.Terms`).

    Args:
        config: Of the run.
        here: This process, the only one.
        fresh: True for a new run.

    Raises:
        FileNotFoundError: No weights for the loss.
    """

    net: PGN
    parallel = False
    precision_key = "loss.dtype"
    harmless = (*Task.harmless, "optim.steps")
    shown = ("loss/total", "agreement/angle")

    def __init__(self, config: PGNConfig, here: Process, fresh: bool = True) -> None:
        super().__init__()
        self.config, self.device = config, here.device
        loss = config.loss
        self.judge = Perceptual(loss.network, loss.layers, loss.pool, weights=loss.weights, bounded=False)
        self.judge.to(here.device)
        chosen, reason = choose_precision(_SHORT.get(loss.dtype, loss.dtype), here)
        self.precision = {short: long for long, short in _SHORT.items()}[chosen]
        if fresh:
            _log.info("loss.dtype %s: %s", self.precision, reason)
        self._build_criterion()
        found = find_training_files(config.data.source)
        self.photographs = Photographs(found, config.data.crop, config.data.cache_mb)
        named = {"data.source": self.photographs.files, "loss.weights": loss.weights, "start": config.start}
        self.files = fingerprints(named)
        self.batches = Crops(self.photographs, config)
        toys = config.toys
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(config.seed, "weights"))
            self.net = self._build_network(fresh).to(here.device)
            self.autoencoders = [Toy(depth, toys.lr, here.device) for depth in DEPTHS]
            self.priors = [ImagePrior(config.data.crop, toys.prior_lr, here.device) for _ in range(toys.priors)]
            options = (config.seed, toys.generator_lr, toys.direct, toys.generator_l1, here.device)
            self.generators = [Generator(kind, index, *options) for index, kind in enumerate(toys.generators)]
        self.toys: list[Toy] = [*self.autoencoders, *self.priors, *self.generators]
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=config.optim.lr, foreach=True)
        self.running_clip = RunningClip(config.optim.clip)
        self.driven: Driven | None = None

    def _build_network(self, fresh: bool) -> PGN:
        """Return the network with the weights to begin with."""
        net, start = PGN(self.config.network, False, self.config.contraction), self.config.start
        if start is not None and fresh:
            found = PGN.pretrained() if start == "shipped" else PGN.load(start)
            if found.name != net.name:
                raise ValueError(f"train: start must hold the network {net.name!r}; got {found.name!r} in {start!r}")
            net.load_state_dict(found.state_dict())
        return net

    def _build_criterion(self) -> None:
        dtype = getattr(torch, self.precision)
        self.criterion = self.judge if dtype == torch.float32 else copy.deepcopy(self.judge).to(dtype)

    def resume(self, step: int) -> None:
        """Compute in the precision that the run began with."""
        self._build_criterion()

    def rate(self, step: int) -> float:
        """Return the rate on a cosine from ``optim.lr`` down to ``optim.lr * optim.final``."""
        optim = self.config.optim
        cosine = 0.5 * (1 + math.cos(math.pi * (step / optim.steps)))
        return optim.lr * (optim.final + (1 - optim.final) * cosine)

    def loss(self, batch: Tensor, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the terms' sum for pictures y [B, 3, H, W], and what it is made of."""
        rides, y = self._rides(batch.to(self.device), step)
        which = [index for ride in rides for index in ride.which]  # x[k] is to become y[which[k]]
        x = torch.cat([ride.output.detach() for ride in rides])
        self.net.train()
        target = self.net(x, y[which])
        predicted = self.net.field(x, target)
        total, parts, true = self.terms(x, y, which, target, predicted, step)
        tangents, terms = [], self.config.terms
        counts = [len(ride.which) for ride in rides]
        for ride, ours, wanted in zip(rides, predicted.split(counts), true.split(counts), strict=True):
            weight = terms.tangent if isinstance(ride.toy, Generator) else terms.tangent_others
            if ride.toy is not None and weight:
                found = tangent(ride.output, ride.toy.net, ours.detach(), wanted)
                term = weight * found.value
                total = total + term + weight * ((ours - ours.detach()) * found.gradient).sum()
                parts["tangent"] = parts.get("tangent", 0) + term
                tangents.append(found)
        self.driven = Driven(rides, y[which], predicted.detach(), true, tangents)
        return total, parts

    def _rides(self, y: Tensor, step: int) -> tuple[list[Ride], Tensor]:
        """Return the toys of a step with their outputs, and the pictures of all of them."""
        toys, rides, pictures, own = self.config.toys, [], y, list(range(len(y)))
        if self.generators:
            toy = self.generators[step % len(self.generators)]
            lam = toy.draw(len(y), step)
            rides.append(Ride(toy, toy.output(y, lam), own, lam))
        source = generator(self.config.seed, "distorted", step)
        for _ in range(toys.distorted):
            crop = draw_crop(self.photographs, self.config.data, source).unsqueeze(0)
            rides.append(Ride(None, distort(crop, source).to(self.device), [len(y)]))
            y = torch.cat((y, crop.to(self.device)))
        turn, rest = divmod(step, toys.others_every)
        if rest:
            return rides, y
        for k in range(toys.autoencoders):
            autoencoder = self.autoencoders[(toys.autoencoders * turn + k) % len(self.autoencoders)]
            rides.append(Ride(autoencoder, autoencoder.net(pictures), own))
        if self.priors:
            index = turn % len(self.priors)
            crop = draw_crop(self.photographs, self.config.data, self._life(index, "crop"))
            rides.append(Ride(self.priors[index], self.priors[index].net(), [len(y)]))
            y = torch.cat((y, crop.unsqueeze(0).to(self.device)))
        return rides, y

    def _life(self, index: int, purpose: str) -> torch.Generator:
        """Return the source of what is drawn once for the life of an image prior."""
        return generator(self.config.seed, "prior", index, self.priors[index].resets, purpose)

    def terms(
        self, x: Tensor, y: Tensor, which: list[int], target: Tensor, predicted: Tensor, step: int = 0
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Return the loss of a step, its parts, and the true gradient; x[k] is compared with y[which[k]]."""
        terms, size, count = self.config.terms, x[0].numel(), len(x)
        values, true, pull = self._true_gradients(x, y, which, target)
        difference = (predicted - true) * self.net.std  # in units of normalised pictures
        field = terms.field * (size / _REFERENCE) ** 2 * (difference**2).mean()
        early = terms.l1_steps is None or step < terms.l1_steps
        l1 = (terms.l1 if early else 0.0) * ((target - y[which]) / self.net.std).abs().mean()
        parts = {"field": field, "l1": l1, "perceptual": values[:count].mean()}
        total = field + l1
        if pull is not None:
            parts["proxy"] = terms.proxy * values[count:].mean().detach()
            # its value is known already, so only its gradient goes back, by the product rule's linear part
            total = total + parts["proxy"] + terms.proxy * ((target - target.detach()) * pull).sum() / count
        if terms.relative:
            norms = ((true * self.net.std) ** 2).flatten(1).sum(1)
            norms = torch.maximum(norms, _LEAST * norms.mean()).clamp_min(1e-30)
            parts["relative"] = terms.relative * ((difference**2).flatten(1).sum(1) / norms).mean()
            total = total + parts["relative"]
        return total, {k: v.detach() for k, v in parts.items()}, true

    def _true_gradients(
        self, x: Tensor, y: Tensor, which: list[int], target: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the perceptual losses, of x and where a term needs it of the proxy target too, and their gradients."""
        features, proxy = self.criterion.features, self.config.terms.proxy > 0
        # one pass through the big network gives the true gradient at x and the proxy's own
        both = (torch.cat((x, target.detach())) if proxy else x.clone()).requires_grad_()
        wanted = {k: v[which * (2 if proxy else 1)] for k, v in features.extract(y).items()}
        values = self.criterion.between(features.extract(both), wanted)
        (gradients,) = torch.autograd.grad(values.sum(), both)
        return values.detach(), gradients[: len(x)], gradients[len(x) :] if proxy else None

    def clip(self) -> Tensor:
        """Clip at ``optim.clip`` times the running mean of the norms."""
        return self.running_clip(list(self.net.parameters()))

    def after_step(self, step: int) -> dict[str, Tensor]:
        """Let the toys follow their gradients, and reset those whose time has come."""
        assert self.driven is not None
        rides, y, predicted, true, tangents = self.driven
        counts = [len(ride.which) for ride in rides]
        fields = (predicted.split(counts), true.split(counts), y.split(counts))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(self.config.seed, "reset", step))
            for (toy, x, _, lam), ours, exact, wanted in zip(rides, *fields, strict=True):
                if toy is None:
                    continue
                draw = torch.rand(())
                if isinstance(toy, ImagePrior):
                    draw = torch.rand((), generator=self._life(self.priors.index(toy), "life"))
                if isinstance(toy, Generator):
                    assert lam is not None
                    toy.step(x, toy.pull(x, wanted, lam, exact if toy.direct else ours))
                else:
                    toy.step(x, ours)
                toy.watch(float((x.detach() - wanted).abs().mean()), float(draw))
        self.driven = None  # it holds the graphs of the toys
        angle, ratio = agreement.agreement(predicted, true)
        found = {"agreement/angle": angle.mean(), "agreement/ratio": ratio.mean()}
        return found | ({"agreement/parameters": tangents[0].cosine} if tangents else {})

    def gauges(self) -> dict[str, float]:
        """Return every toy's running error and how often it was reset."""
        errors = {f"toys/{k} error": toy.average for k, toy in enumerate(self.toys)}
        return errors | {f"toys/{k} resets": float(toy.resets) for k, toy in enumerate(self.toys)}

    def parts(self) -> dict[str, tuple[nn.Module, torch.optim.Optimizer]]:
        """Return the network and every toy with their optimisers."""
        return super().parts() | {f"toy{k}": (toy.net, toy.optimizer) for k, toy in enumerate(self.toys)}

    def counters(self) -> dict[str, str | list[list[str | int]]]:
        """Return the running norm of the clipping and the counters of the resets; str, for infinity is no JSON."""
        toys: list[list[str | int]] = [[str(t.best), t.since, str(t.average), t.resets] for t in self.toys]
        return {"running": str(self.running_clip.running), "toys": toys}

    def restore(self, counters: dict[str, str | list[list[str | int]]]) -> None:
        """Take over what `counters` returned."""
        self.running_clip.running = float(counters["running"])  # type: ignore[arg-type]
        for toy, (best, since, average, resets) in zip(self.toys, counters["toys"], strict=True):
            toy.best, toy.since, toy.average, toy.resets = float(best), int(since), float(average), int(resets)

    def validate(self, average: nn.Module, pictures: Sequence[tuple[str, Tensor]]) -> dict[str, float]:
        """Measure the angles between predicted and true gradients, the latter in float32."""
        assert isinstance(average, PGN)
        found = agreement.evaluate(average, self.judge, [p for _, p in pictures], self.config.seed)
        self.scores = list(found.items())
        return {f"angle {change}": row.angle for change, row in found.items()}

    def describe(self, values: dict[str, float]) -> str:
        """Return the angles as a line of text."""
        return ", ".join(f"{name}: {value:.1f} degrees" for name, value in values.items())

    def save(self, average: nn.Module, path: Path, step: int) -> None:
        """Write the network, with its configuration in its notes."""
        assert isinstance(average, PGN)
        average.save(path, notes={"step": step, "config": flatten(self.config)})
