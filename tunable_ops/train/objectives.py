"""The section `objectives` of a configuration, and `style`, which style objectives share."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from tunable_ops.train.sections import Section

__all__ = ["Correction", "Objective", "Style"]

_Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Correction(Section):
    """The loss that corrects a predicted gradient; see ``objectives.correct_with``.

    Attributes:
        loss: "perceptual", "lpips" or "dists", as of an objective.
        arguments: Of the loss, as of an objective.
    """

    loss: Literal["perceptual", "lpips", "dists"] = "perceptual"
    arguments: dict[str, float | int | str | bool | list[str] | dict[str, float]] = Field(default_factory=dict)


class Objective(Section):
    """One objective of the multi-loss; objective i has the weight lambda_i.

    Attributes:
        name: Of the objective, in the logs and for the knob.
        loss: A function of `tunable_ops.losses`, or a loss on features: "perceptual" (`losses.Perceptual`), "lpips",
            "dists", "perceptual_gradient" (`losses.PGN`). With "style" the objective is the style of ``picture``, and
            ``target`` the content; where one objective is a style all are, and share the section ``style``.
            With "adversarial" the outputs are to look as real as the targets to a discriminator, which is trained
            beside the network; one objective may have it.
        target: What the output is compared with: the "clean" picture, the "noiseless" one (blurred and down-sampled
            only), the "noisy" one (the clean one with the noise of the input, not blurred), or the "input" of the
            network.
        scale: Fixed factor that brings objectives to comparable sizes.
        follows: Let the weight be lambda_i, on the box divided by the largest end of its range. Objectives with false
            come after those that follow; their weight is 1 whatever lambda is: for knobs of the degradation, whose
            levels follow lambda.
        weight: Knobs that move the objective, whatever its place: knob -> [weight where the knob is 0, weight at the
            largest end of its range], and between them a straight line; several knobs multiply, others leave it alone.
            Such objectives come after those that follow the lambda of their place, and ``tuning.names`` must then list
            all knobs. An L1 that fades as ``texture`` rises has ``{ texture = [1, 0.1] }``; a loss towards the sharp,
            noisy picture, at its corner of two knobs, ``{ keep = [0, 1], deblur = [0, 1] }``.
        arguments: Of the loss; those on features take the arguments of their class ("perceptual": network "vgg16" if
            none is given; "lpips": net "alex" if none is given, "vgg" or "squeeze"; "perceptual_gradient": ``path``, a
            file of `losses.PGN`, default the one that ships). Empty for "style".
        picture: For "style": a file, or "skimage:NAME" for one that scikit-image ships.
        every: Compute the objective at every so many-th step only, with so many times its weight: its gradient is the
            same in the mean, and most steps are spared an expensive loss. Steps are counted from the beginning of the
            run, so a resumed one goes on as it would have. Not for "style" and "adversarial".
        crop: Compute the objective on a random crop of this side of each sample, in pixels (`losses.Cropped`): a share
            of the work at every step, in place of all of it at some (``every``). Not for "style" and "adversarial".
        correct_with: For "perceptual_gradient" with ``crop``, or with ``every`` = N above 1: the loss whose gradient is
            predicted, such as ``{ loss = "perceptual" }``. The predicted gradient then acts at every step on all of
            the output, and what it lacks is added on the crop, or N times at every N-th step (`losses.Corrected`).
    """

    name: str
    loss: Literal[
        "mse",
        "log_mse",
        "l1",
        "charbonnier",
        "ssim",
        "tv",
        "grid",
        "perceptual",
        "perceptual_gradient",
        "lpips",
        "dists",
        "adversarial",
        "style",
    ] = "mse"
    target: Literal["clean", "noiseless", "noisy", "input"] = "clean"
    scale: float = Field(default=1.0, gt=0)
    follows: bool = True
    weight: dict[str, tuple[_Weight, _Weight]] | None = Field(default=None, min_length=1)
    arguments: dict[str, float | int | str | bool | list[str] | dict[str, float]] = Field(default_factory=dict)
    picture: str | None = None
    every: int = Field(default=1, ge=1)
    crop: int | None = Field(default=None, ge=1)
    correct_with: Correction | None = None

    @model_validator(mode="after")
    def _in_part(self) -> Objective:
        if self.every > 1 and self.loss in ("style", "adversarial"):
            raise ValueError(f"objectives.every must be 1 for the loss {self.loss!r}; got {self.every}")
        if self.crop is not None and self.loss in ("style", "adversarial"):
            raise ValueError(f"objectives.crop must be left out for the loss {self.loss!r}; got {self.crop}")
        if self.correct_with is None:
            return self
        if self.loss != "perceptual_gradient":
            raise ValueError(
                f"objectives.correct_with must be left out for a loss other than 'perceptual_gradient'; got it for "
                f"{self.loss!r} of {self.name!r}"
            )
        if self.every == 1 and self.crop is None:
            raise ValueError(
                f"objectives.every must be above 1, or crop given, with correct_with; got 1 for {self.name!r}: "
                "corrected at every step, the objective is the loss of correct_with itself"
            )
        return self

    @model_validator(mode="after")
    def _one_weight(self) -> Objective:
        if self.weight is not None and not self.follows:
            raise ValueError(
                f"objectives.follows must be left out where weight says what the objective follows; got false for "
                f"{self.name!r}"
            )
        idle = [knob for knob, ends in (self.weight or {}).items() if ends[0] == ends[1]]
        if idle:
            raise ValueError(
                f"objectives.weight must differ between the two ends of a knob; got equal ones for "
                f"{', '.join(idle)} of {self.name!r}: leave the knob out, and give the factor as scale"
            )
        return self

    @property
    def has_own_knob(self) -> bool:
        """True if its weight is the lambda of its place."""
        return self.follows and self.weight is None

    @model_validator(mode="after")
    def _picture_of_a_style(self) -> Objective:
        if (self.loss == "style") != (self.picture is not None):
            raise ValueError(
                f"objectives.picture must be given for the loss 'style' and no other; got {self.picture!r} for the "
                f"loss {self.loss!r} of {self.name!r}"
            )
        if self.loss in ("style", "adversarial") and self.arguments:
            raise ValueError(f"objectives.arguments must be empty for the loss {self.loss!r}; got {self.arguments}")
        return self


class Style(Section):
    """What style objectives share; the rest of `tunable_ops.losses.StyleTransfer`.

    Attributes:
        size: Shorter side to which the style pictures are brought, in pixels: with small ones the strokes are small.
        layers: Of the Gram matrices.
        content_layer: Layer of the content term.
        content: Weight of the content term.
        smooth: Weight of the total variation.
        network: Of the features.
        pool: How the features are pooled.
        weights: Where the features' weights come from; left out: see `tunable_ops.losses.weights`.
    """

    size: int = Field(default=256, ge=16)
    layers: list[str] = Field(default=["relu1_2", "relu2_2", "relu3_3", "relu4_3"], min_length=1)
    content_layer: str = "relu3_3"
    content: float = Field(default=0.25, ge=0)
    smooth: float = Field(default=0.0, ge=0)
    network: Literal["vgg16", "vgg19"] = "vgg16"
    pool: Literal["avg", "max"] = "avg"
    weights: str | None = None
