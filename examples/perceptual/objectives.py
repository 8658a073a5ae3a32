"""Perceptual objectives for the training of a generator, by name: the true loss, and what may stand in for it.

true              losses.Perceptual with VGG16: every step passes the output through VGG and back
crop              the same on a random crop of each sample
sparse            the same at every N-th step only, with N times its weight
pgn               the gradient that a PGN predicts
corrected_crop    the PGN on all of the output, and what it lacks on a random crop
corrected_sparse  the PGN at every step, and N times what it lacks at every N-th
corrected_both    the same on a random crop at every 2nd step
alex              LPIPS with AlexNet
squeeze           LPIPS with SqueezeNet 1.1
"""

from __future__ import annotations

from torch import nn

from tunable_ops import losses

CORRECTED = ("corrected_crop", "corrected_sparse", "corrected_both")
OBJECTIVES = ("true", "crop", "sparse", "pgn", *CORRECTED, "alex", "squeeze")
SCALE = 0.01  # the gradient then has about the norm of L1's
SCALES = {"pgn": 0.024, "alex": 0.022, "squeeze": 0.02}  # theirs then have about the norm of SCALE * the true loss's


def build_objective(name: str, pgn: str | None, weights: str | None, crop: int = 32) -> nn.Module:
    """Return the loss module of an objective.

    Args:
        name: One of `OBJECTIVES`.
        pgn: File of `losses.PGN`; None for the one that ships.
        weights: Of VGG16; None to search for them.
        crop: Side of the crops of those that need one.
    """
    if name in ("alex", "squeeze"):
        return losses.LPIPS(name, bounded=False)
    if name in ("true", "crop", "sparse"):
        true = losses.Perceptual("vgg16", weights=weights, bounded=False)
        return losses.Cropped(true, crop) if name == "crop" else true
    field = losses.PGN.load(pgn, bounded=False) if pgn else losses.PGN.pretrained(bounded=False)
    predicted = losses.PerceptualGradient(field)
    if name == "pgn":
        return predicted
    true = losses.Perceptual("vgg16", weights=weights, bounded=False)
    return losses.Corrected(predicted, true, None if name == "corrected_sparse" else crop)


def period_of(name: str, period: int) -> int:
    """Return at every how many steps an objective passes through VGG; ``period`` is the N of those that have one."""
    return {"sparse": period, "corrected_sparse": period, "corrected_both": 2}.get(name, 1)


def multi_loss(
    name: str, period: int, pgn: str | None = None, weights: str | None = None, crop: int = 32
) -> losses.MultiLoss:
    """Return L1 and the perceptual objective of a name; ``period`` is the N of those that need one."""
    objective = (build_objective(name, pgn, weights, crop), SCALES.get(name, SCALE))
    every = {"perceptual": period_of(name, period)}
    return losses.MultiLoss({"l1": losses.l1, "perceptual": objective}, every=every)
