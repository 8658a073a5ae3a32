"""The adversarial objective of a training: its discriminator, which learns beside the network at the same lambdas."""

from __future__ import annotations

from typing import Literal

import torch
import torch.distributed as dist
from pydantic import Field
from torch import Tensor

from tunable_ops import losses
from tunable_ops.train.distributed import Process
from tunable_ops.train.sections import Section
from tunable_ops.train.seeding import derive_seed

__all__ = ["Adversarial", "Adversary"]


class Adversarial(Section):
    """The discriminator of the objective with ``loss = "adversarial"`` (`losses.PatchDiscriminator`), and its Adam.

    Attributes:
        form: Of `losses.generator_loss`.
        features: Channels of the discriminator's first layer.
        depth: Number of its layers that halve the picture.
        lr: Learning rate, constant.
        betas: Of Adam.
        start: Step, counted from 0, with which the discriminator begins to learn; the objective's weight is 0 before.
        ramp: Number of steps from there over which that weight rises along a straight line.
        r1: Weight of half the gradient penalty on real pictures (`losses.r1_penalty`); 0 for none.
        r1_every: The penalty is taken at every so many steps, and that much stronger.
    """

    form: Literal["relativistic", "hinge", "non_saturating"] = "relativistic"
    features: int = Field(default=32, ge=1)
    depth: int = Field(default=3, ge=1, le=6)
    lr: float = Field(default=1e-4, gt=0)
    betas: tuple[float, float] = (0.9, 0.99)
    start: int = Field(default=0, ge=0)
    ramp: int = Field(default=0, ge=0)
    r1: float = Field(default=0.0, ge=0)
    r1_every: int = Field(default=16, ge=1)


class Adversary:
    """A discriminator and its optimiser; a step of the network first, then one of the discriminator.

    Both see the same pictures at the same lambdas: `scores` for the network's loss, `learn` when that step is done.

    Args:
        config: Of the discriminator.
        seed: Of the run; its weights are drawn from it.
        num_params: Number of tuning parameters.
        channels: Of the pictures.
        here: This process; several share their gradients.
    """

    def __init__(self, config: Adversarial, seed: int, num_params: int, channels: int, here: Process) -> None:
        self.config, self.here = config, here
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "discriminator"))
            discriminator = losses.PatchDiscriminator(num_params, channels, config.features, config.depth)
        self.discriminator = discriminator.to(here.device)
        self.discriminator.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        parameters = self.discriminator.parameters()
        self.optimizer = torch.optim.Adam(parameters, lr=config.lr, betas=config.betas, fused=True)
        self._seen: tuple[Tensor, Tensor, Tensor] | None = None  # fake, real, lambda of this step

    def strength(self, step: int) -> float:
        """Return the factor on the objective's weight: 0 before ``start``, 1 after the ramp."""
        since = step - self.config.start
        if since < 0:
            return 0.0
        return min(1.0, (since + 1) / (self.config.ramp + 1))

    def scores(self, fake: Tensor, real: Tensor, lam: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Return the scores of outputs and of real pictures for `losses.generator_loss`.

        Args:
            fake: [B, C, H, W], outputs of the network; only they get a gradient.
            real: Same shape, what they could have been.
            lam: [p] or [B, p].
            step: Counted from 0; before ``start`` all scores are 0 and cost nothing.
        """
        if not self.strength(step):
            nothing = fake.detach().new_zeros(len(fake), 1)
            return nothing, nothing
        self._seen = fake.detach(), real, lam
        self.discriminator.requires_grad_(False)
        try:
            scored = self.discriminator(fake, lam)
            with torch.no_grad():
                wanted = self.discriminator(real, lam) if self.config.form == "relativistic" else scored
        finally:
            self.discriminator.requires_grad_(True)
        return scored, wanted.detach()

    def learn(self, step: int) -> dict[str, Tensor]:
        """Do a step of the discriminator on what `scores` saw last; return what is logged, NaN before ``start``.

        ``loss``, the mean scores ``real`` and ``fake``, and the penalty ``r1`` as it enters the loss.
        """
        config, names = self.config, ("loss", "real", "fake", *["r1"] * bool(self.config.r1))
        if self._seen is None:
            return dict.fromkeys((f"adversarial/{name}" for name in names), torch.tensor(torch.nan))
        (fake, real, lam), self._seen = self._seen, None
        both = self.discriminator(torch.cat((fake, real)), lam if lam.dim() == 1 else torch.cat((lam, lam)))
        scored, wanted = both.chunk(2)
        loss = losses.discriminator_loss(scored, wanted, config.form).mean()
        values = {"loss": loss, "real": wanted.mean(), "fake": scored.mean()}
        if config.r1:
            values["r1"] = torch.zeros_like(loss)
            if (step - config.start) % config.r1_every == 0:
                penalty = losses.r1_penalty(self.discriminator, real, lam).mean()
                values["r1"] = config.r1 / 2 * config.r1_every * penalty
        self.optimizer.zero_grad(set_to_none=True)
        (loss + values.get("r1", 0)).backward()
        self._share_gradients()
        self.optimizer.step()
        return {f"adversarial/{name}": values[name].detach() for name in names}

    def _share_gradients(self) -> None:
        """Replace gradients by their means over the processes."""
        if self.here.world_size == 1:
            return
        for parameter in self.discriminator.parameters():
            dist.all_reduce(parameter.grad)
            assert parameter.grad is not None
            parameter.grad /= self.here.world_size
