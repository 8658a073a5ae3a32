"""Perceptual objectives for the training of a generator, by name: the true loss, and what may stand in for it.

true       losses.Perceptual with VGG16: every step passes the output through VGG and back
sparse     the same at every N-th step only, with N times its weight
pgn        the gradient that a PGN predicts
corrected  the PGN at every step, and N times what it lacks at every N-th
alex       LPIPS with AlexNet
squeeze    LPIPS with SqueezeNet 1.1
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from tunable_ops import losses

OBJECTIVES = ("true", "sparse", "pgn", "corrected", "alex", "squeeze")
PERIODIC = ("sparse", "corrected")  # these use N
SCALE = 0.01  # the gradient then has about the norm of L1's
SCALES = {"pgn": 0.024, "alex": 0.022, "squeeze": 0.02}  # theirs then have about the norm of SCALE * the true loss's


def build_objective(name: str, pgn: str | None, weights: str | None) -> nn.Module:
    """Return the loss module of an objective.

    Args:
        name: One of `OBJECTIVES`.
        pgn: File of `losses.PGN`; None for the one that ships.
        weights: Of VGG16; None to search for them.
    """
    if name in ("alex", "squeeze"):
        return losses.LPIPS(name, bounded=False)
    true = losses.Perceptual("vgg16", weights=weights, bounded=False) if name in ("true", *PERIODIC) else None
    if true is not None and name != "corrected":
        return true
    field = losses.PGN.load(pgn, bounded=False) if pgn else losses.PGN.pretrained(bounded=False)
    predicted = losses.PerceptualGradient(field)
    return predicted if true is None else losses.Corrected(predicted, true)


def multi_loss(name: str, period: int, pgn: str | None = None, weights: str | None = None) -> losses.MultiLoss:
    """Return L1 and the perceptual objective of a name; ``period`` is the N of those that need one."""
    objective = (build_objective(name, pgn, weights), SCALES.get(name, SCALE))
    every = {"perceptual": period if name in PERIODIC else 1}
    return losses.MultiLoss({"l1": losses.l1, "perceptual": objective}, every=every)


def steps_of(period: int, name: str) -> Sequence[int]:
    """Return the steps of one period of an objective, for its mean cost."""
    return range(period if name in PERIODIC else 1)
