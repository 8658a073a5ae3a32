"""The configuration of a PGN's training: a TOML file like that of `tunable_ops.train`, checked in full before work."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from tunable_ops.train.config import Data
from tunable_ops.train.sections import Section, configs_of, read_tree, validate

__all__ = ["PGNConfig", "load_pgn_config"]


class Loss(Section):
    """The loss that is imitated: `tunable_ops.losses.Perceptual` with these arguments.

    ``dtype`` is what its network computes in while training: with bfloat16 the true gradient turns by 4 to 9 degrees
    (at distances of 0.1 to 0.01), at random, and takes two thirds of the time on a CPU that multiplies bfloat16.
    """

    network: Literal["vgg16", "vgg19"] = "vgg19"
    layers: str | list[str] = "relus"
    pool: Literal["avg", "max"] = "avg"
    weights: str | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"


class Terms(Section):
    """Weights of the three terms: of the field's error, of the proxy's perceptual loss, and of its L1 distance."""

    field: float = Field(default=2.0**26, ge=0)
    proxy: float = Field(default=0.2, ge=0)
    l1: float = Field(default=0.5, ge=0)


class Optim(Section):
    """Adam; ``lr`` falls along a cosine to ``lr * final``. Gradients are clipped at ``clip`` times their running norm.

    ``toys`` of the three autoencoders take part at a step, in turn, and one of the ``priors`` image priors where there
    are any; ``toy_lr`` and ``prior_lr`` are their rates. ``ema`` is the decay of
    the average of the weights, which is what is delivered.
    """

    steps: int = Field(default=200_000, ge=1)
    lr: float = Field(default=1e-3, gt=0)
    final: float = Field(default=0.02, ge=0, le=1)
    clip: float = Field(default=5.0, gt=0)
    toys: int = Field(default=3, ge=1, le=3)
    toy_lr: float = Field(default=1e-3, gt=0)
    priors: int = Field(default=0, ge=0)
    prior_lr: float = Field(default=3e-3, gt=0)
    ema: float = Field(default=0.999, ge=0, lt=1)


class Every(Section):
    """Steps between lines of the log, and between checkpoints."""

    log: int = Field(default=50, ge=1)
    checkpoint: int = Field(default=1000, ge=1)


class PGNConfig(Section):
    """Everything that decides a PGN's training."""

    seed: int = 0
    network: Literal["resnet4", "resnet6", "resnet8", "unet"] = "unet"
    loss: Loss = Loss()
    terms: Terms = Terms()
    data: Data = Data(crop=224, batch=4, rotations=False)
    optim: Optim = Optim()
    every: Every = Every()
    device: str = "auto"


def load_pgn_config(path: str | Path, overrides: Sequence[str] = ()) -> PGNConfig:
    """Read a configuration; arguments and errors as `tunable_ops.train.load_config`."""
    assert __package__ is not None
    return validate(PGNConfig, read_tree(path, configs_of(__package__), overrides))
