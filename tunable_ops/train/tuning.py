"""The sections `model`, `tuning` and `sampler` of a configuration: the network, its knobs, and how lambda is drawn."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from tunable_ops.control import METHODS, PHASED
from tunable_ops.models import zoo
from tunable_ops.modules.convert import USUAL_PARAMETERS
from tunable_ops.train.sections import Section

__all__ = ["Model", "Sampler", "Tuning"]


class Model(Section):
    """The plain network.

    Attributes:
        name: In `tunable_ops.models.ARCHITECTURES`; or "package.module:Class" of any network that can be imported; or
            "spandrel" for a file in ``weights`` that spandrel reads (`tunable_ops.models.zoo`).
        arguments: Of its class; none for "spandrel". ``channels = 1`` trains on grey pictures.
        weights: File to start from: weights of the plain network under its own names (safetensors), or a checkpoint of
            this package, plain or converted as the configuration says; or the name of a base that ships
            (`pretrained.BASES`), such as "ffdnet_color". Left out: random weights, which the seed decides.
        channels: Of the pictures, 3 for RGB, 1 for grey, as the network has them in its attribute ``channels``; left
            out: those of ``arguments``, or 3.
    """

    name: str = "dncnn"
    arguments: dict[str, Any] = Field(default_factory=dict)
    weights: str | None = None
    channels: Literal[1, 3] | None = None

    @model_validator(mode="after")
    def _whole(self) -> Model:
        if self.name == zoo.ARCHITECTURE and (self.weights is None or self.arguments):
            what = "nothing in weights" if self.weights is None else f"the arguments {self.arguments}"
            raise ValueError(
                f'model must have weights, a file that spandrel reads, and no arguments for "spandrel"; got {what}'
            )
        return self


class Tuning(Section):
    """How the network is made tunable; the arguments of `tunable_ops.convert`.

    Attributes:
        kind: Map from lambda to the blend, "affine" (trained) or "identity"; "none" trains the plain network itself
            with fixed weights of the objectives. The other kinds are those of `tunable_ops.control`: "film", "planes",
            "cresmd" and "low_rank" are trained as the first two are; "dni", "adafm", "dynamic_net" and "cfsnet" in as
            many phases as there are objectives, each with an equal part of the steps and a schedule of its own.
        control: Arguments of the kinds of `tunable_ops.control`.
        domain: "simplex" (the parameters sum to 1) or "box" (each by itself).
        num_kernels: Kernels per layer; left out: as many as parameters, one more on the box.
        include: Patterns of the modules that become tunable; left out: all that can.
        exclude: Patterns of the modules that stay plain.
        parameters: Patterns of the network's own parameters that become tunable too (SwinIR's position tables:
            "*.relative_position_bias_table").
        names: Of the tuning parameters; left out: those of the objectives that follow lambda. Names beyond these
            objectives are knobs of the degradation, or of objectives with a ``weight``.
        ranges: [low, high] of each, in its unit; left out: [0, 1]. On the box an objective's weight is lambda divided
            by the largest end of its range.
        defaults: Of lambda, in its units, which the checkpoint keeps; left out: the middle of the simplex, 0 on the
            box.
        units: What each parameter is counted in, such as "of 255" or "pixels"; left out: none.
        lam: For the kind "none", the fixed lambda, in its units; left out: the first objective alone.
        freeze: On the box, let only the new kernels learn: the plain ones, phi and all that is not tunable stay, so
            that at lambda = 0 the network is what it was, bit for bit. The run then writes knob.safetensors too
            (`tunable_ops.save_knob`, in half precision): all that whoever has the network needs.
        rank: Of the new kernels, on the box; left out: full.
    """

    kind: Literal[
        "affine",
        "identity",
        "none",
        "dni",
        "adafm",
        "dynamic_net",
        "cfsnet",
        "film",
        "planes",
        "cresmd",
        "low_rank",
    ] = "affine"
    control: dict[str, Any] = Field(default_factory=dict)
    domain: Literal["simplex", "box"] = "simplex"
    num_kernels: int | None = Field(default=None, ge=1)
    rank: int | None = Field(default=None, ge=1)
    include: list[str] | None = None
    exclude: list[str] = Field(default_factory=list)
    parameters: list[str] = Field(default_factory=lambda: list(USUAL_PARAMETERS))
    names: list[str] | None = None
    ranges: list[tuple[float, float]] | None = None
    defaults: list[float] | None = None
    units: list[str] | None = None
    lam: list[float] | None = None
    freeze: bool = False

    @property
    def attached(self) -> bool:
        """True if the knob is one of `tunable_ops.control`."""
        return self.kind in METHODS

    @property
    def phased(self) -> bool:
        """True if the knob is one of these that are trained objective after objective."""
        return self.kind in PHASED

    @model_validator(mode="after")
    def _fit(self) -> Tuning:
        if self.control and not self.attached:
            raise ValueError(f"tuning.control must be left out for kind {self.kind!r}; got {self.control}")
        if self.freeze and (self.domain != "box" or self.kind != "affine"):
            raise ValueError(
                'tuning.freeze must go with kind "affine" on the box, where the plain kernels are apart; got kind '
                f'"{self.kind}", domain "{self.domain}"'
            )
        foreign = [k for k in ("num_kernels", "rank", "include", "exclude") if getattr(self, k)]
        foreign += ["parameters"] * (self.parameters != list(USUAL_PARAMETERS))
        if self.phased:
            foreign += [k for k in ("ranges", "units") if getattr(self, k)] + ["domain"] * (self.domain != "simplex")
        if self.attached and foreign:
            raise ValueError(
                f"tuning must leave {', '.join(foreign)} alone for kind {self.kind!r}, which has arguments of its own "
                "in tuning.control" + (" and lives on the simplex" if self.phased else "")
            )
        if self.rank is not None and (self.domain != "box" or self.kind == "none"):
            raise ValueError(
                'tuning.rank must be left out where no new kernels stand beside a base, that is for kind "none" and '
                f'outside the domain "box"; got {self.rank} for kind "{self.kind}", domain "{self.domain}"'
            )
        return self


class Sampler(Section):
    """How lambda is drawn.

    Attributes:
        kind: Distribution over the domain; left out: uniform over the domain that the network has.
        corners: Probability with which one of the domain's corners is drawn instead.
        groups: How many lambdas are drawn per batch and process, each for an equal part of it; left out: one per
            sample. Few make a step faster on a CPU, where per-sample kernels cost most, and its gradient noisier.
        balanced: Let each draw come with its mirror images, cyclic shifts (low + high - lambda on the box), so that
            every batch weighs the objectives alike.
        stratified: Let the draws of a batch cover the domain evenly (`losses.sampler`); where they are balanced, those
            that the others mirror.
    """

    kind: Literal["simplex", "uniform"] | None = None
    corners: float = Field(default=0.1, ge=0, le=1)
    groups: int | None = Field(default=None, ge=1)
    balanced: bool = True
    stratified: bool = False
