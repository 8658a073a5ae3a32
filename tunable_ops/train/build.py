"""From a configuration to the objects of a run: network, criterion, sampler of lambda, optimiser, learning rate."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tunable_ops import control, losses, models
from tunable_ops.images import read_image
from tunable_ops.losses.features import Features
from tunable_ops.losses.pgn import PGN
from tunable_ops.models import zoo
from tunable_ops.modules import LambdaPlanes, TunableModel, convert, freeze_all_but_new, optimizer_groups
from tunable_ops.pretrained import weights_file
from tunable_ops.serialization import fill, read_weights
from tunable_ops.train.adversarial import Adversary
from tunable_ops.train.config import Config
from tunable_ops.train.data import skimage_files
from tunable_ops.train.distributed import Process
from tunable_ops.train.measure import in_colour
from tunable_ops.train.objectives import Objective
from tunable_ops.train.optim import Optim
from tunable_ops.train.seeding import derive_seed

__all__ = [
    "build_adversary",
    "build_criterion",
    "build_network",
    "build_optimizer",
    "build_sampler",
    "learning_rate",
    "named_files",
    "objective_weights",
]


def build_network(config: Config, fresh: bool = True) -> nn.Module:
    """Return the network with the weights that the seed gives; plain where ``tuning.kind`` is "none", else tunable.

    All start from the same plain weights, so that runs are compared like with like.

    Args:
        config: Of the run.
        fresh: Read ``model.weights``; a run that is resumed has its own.

    Raises:
        FileNotFoundError, ValueError: ``model.weights`` is not there, or does not fit the network.
        ValueError, TypeError: As `tunable_ops.models.build`, `tunable_ops.convert` and `tunable_ops.control.attach`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(config.seed, "weights"))
        plain = _plain(config)
        _check_planes(config, plain)
        start = config.model.weights if fresh and config.model.name != zoo.ARCHITECTURE else None
        weights, metadata = ({}, {}) if start is None else read_weights(weights_file(start))
        if start is not None and not metadata.get("conversion"):
            fill(start, plain, weights)
        net = plain if config.tuning.kind == "none" else _tunable(config, plain)
        if start is not None and metadata.get("conversion"):
            _check_conversion(config, net, start, metadata)
            fill(start, net.network, weights)  # type: ignore[arg-type]
        if config.tuning.freeze:
            freeze_all_but_new(net)  # type: ignore[arg-type]
            for module in net.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()  # their statistics belong to the base
        return net


def _plain(config: Config) -> nn.Module:
    """Return the plain network: of this package, of another one, or (with its weights) of spandrel."""
    model = config.model
    if model.name == zoo.ARCHITECTURE:
        plain: nn.Module = zoo.load(str(model.weights)).network
    else:
        plain = (models.build_imported if ":" in model.name else models.build)(model.name, **model.arguments)
    channels = getattr(plain, "channels", 3)
    if channels != config.channels and not config.trains_styles:
        raise ValueError(
            f"train: model.channels must be the attribute `channels` of the network (3 where it has none), {channels}; "
            f"got {config.channels} for {model.name}"
        )
    return plain


def _check_planes(config: Config, plain: nn.Module) -> None:
    """Check that a network that reads the noise level from lambda, of 255, is told the level that there is."""
    noise, spec = config.degradation.noise, config.spec
    if noise is None or noise.levels is None:
        return
    for planes in (module for module in plain.modules() if isinstance(module, LambdaPlanes)):
        for entry, divisor in zip(planes.entries, planes.divisors, strict=True):
            if divisor != 255 or entry >= spec.num_params:
                continue
            level, end = noise.levels[entry], spec.scales[entry]
            if level != end:
                raise ValueError(
                    f"train: degradation.noise.levels must be the end of the range of {spec.names[entry]!r}, {end:g}, "
                    f"which the network reads as the noise level, of 255; got {level:g}"
                )


def _check_conversion(config: Config, net: nn.Module, path: str, metadata: Mapping[str, Any]) -> None:
    """Check that a tunable start is the same network, made tunable in the same way."""
    model = net if isinstance(net, TunableModel) else None
    wanted = {
        "architecture": config.model.name,
        "arguments": config.model.arguments,
        "conversion": model and model.conversion,
        "scales": model and model.spec.scales,
    }
    conversion = metadata.get("conversion") or {}
    count = conversion.get("num_params", 0)
    found = {
        **metadata,
        "conversion": {"units": [""] * count, **conversion},
        "scales": (metadata.get("spec") or {}).get("scales", [1.0] * count) if model else None,  # of before units: 1
    }
    for key, value in wanted.items():
        if json.loads(json.dumps(value)) != found.get(key):
            raise ValueError(
                f"train: model.weights must hold the network of the configuration, whose {key} is {value}; got "
                f"{found.get(key)} in {path!r}"
            )


def _tunable(config: Config, plain: nn.Module) -> TunableModel:
    tuning, count, names = config.tuning, config.num_params, config.param_names
    if tuning.attached:
        arguments: dict[str, Any] = {"names": names, "defaults": tuning.defaults, **tuning.control}
        if not tuning.phased:
            arguments |= {"domain": tuning.domain, "ranges": tuning.ranges, "units": tuning.units}
        return control.attach(plain, tuning.kind, count, **arguments)
    return convert(
        plain,
        num_params=count,
        num_kernels=tuning.num_kernels,
        tuning=tuning.kind,
        domain=tuning.domain,
        include=tuning.include,
        exclude=tuple(tuning.exclude),
        parameters=tuple(tuning.parameters),
        names=names,
        ranges=tuning.ranges,
        defaults=tuning.defaults,
        units=tuning.units,
        rank=tuning.rank,
    )


def build_criterion(config: Config) -> losses.MultiLoss | losses.StyleTransfer:
    """Return the multi-loss of the configured objectives, in their order.

    Raises:
        ValueError: A loss does not take the arguments given, or a style picture cannot be read.
        FileNotFoundError: The weights of the features are not at hand.
    """
    if config.trains_styles:
        return _style_criterion(config)
    objectives = {objective.name: (_loss(objective, config), objective.scale) for objective in config.objectives}
    return losses.MultiLoss(objectives, every={objective.name: objective.every for objective in config.objectives})


def objective_weights(objectives: Sequence[Objective], names: Sequence[str], lam: Tensor) -> Tensor:
    """Return the weights of n objectives, [n] or [B, n], for lambda [p] or [B, p] divided by its scales.

    lambda_i for objective i; 1 for those that do not follow it; and ``prod_k (a_k + (b_k - a_k) * lambda_k)`` for those
    with ``weight``, over the knobs k that it names and their weights a_k at 0 and b_k at 1.

    Args:
        objectives: In the order of the configuration.
        names: Of the tuning parameters, in lambda's order.
        lam: Between 0 and 1.
    """
    columns = []
    for place, objective in enumerate(objectives):
        if objective.has_own_knob:
            columns.append(lam[..., place])
            continue
        weight = torch.ones_like(lam[..., 0])
        for knob, (at_zero, at_one) in (objective.weight or {}).items():
            position = lam[..., names.index(knob)]
            weight = weight * (at_zero * (1 - position) + at_one * position)
        columns.append(weight)
    return torch.stack(columns, dim=-1)


_FEATURES: dict[str, tuple[Callable[..., nn.Module], tuple[str, ...]]] = {
    "perceptual": (
        functools.partial(losses.Perceptual, network="vgg16", bounded=False),
        ("network", "layers", "pool", "distance", "weights"),
    ),
    "lpips": (functools.partial(losses.LPIPS, bounded=False), ("net", "weights", "heads")),
    "dists": (functools.partial(losses.DISTS, bounded=False), ("weights", "heads")),
}
"""Losses on features: their class, and the arguments that a configuration may give."""


class _OnGrey(nn.Module):
    """A loss on features of pictures in colour, for grey ones: [B, 1, H, W], each repeated on three channels."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the loss of each sample, [B]."""
        return self.loss(in_colour(output), in_colour(target))


def _loss(objective: Objective, config: Config) -> Callable[[Tensor, Any], Tensor]:
    """Return the function or module of an objective, with its arguments and its crop."""
    loss = _whole_loss(objective, config)
    _check_side(objective, loss, config)
    if objective.crop is None or objective.correct_with is not None:
        return loss
    return losses.Cropped(loss, objective.crop)


def _check_side(objective: Objective, loss: object, config: Config) -> None:
    """Refuse crops on which the deepest layer of a loss on features has no value."""
    networks = (m for m in loss.modules() if isinstance(m, Features)) if isinstance(loss, nn.Module) else ()
    least = max((network.min_size for network in networks), default=1)
    key, side = ("data.crop", config.data.crop) if objective.crop is None else ("objectives.crop", objective.crop)
    if side < least:
        raise ValueError(
            f"train: {key} must be at least {least} for the features of the objective {objective.name!r}; got {side}"
        )


def _whole_loss(objective: Objective, config: Config) -> Callable[[Tensor, Any], Tensor]:
    given = objective.arguments
    if objective.loss == "adversarial":  # of scores in place of pictures
        return functools.partial(losses.generator_loss, form=config.adversarial.form)
    if objective.loss == "perceptual_gradient":
        _check_arguments(objective.loss, given, objective.name, ("path",))
        path = given.get("path")
        pgn = PGN.pretrained(False) if path is None else PGN.load(str(path), False)
        loss: nn.Module = losses.PerceptualGradient(pgn)
        if config.channels == 1:
            loss = _OnGrey(loss)
        exact = objective.correct_with
        if exact is None:
            return loss
        return losses.Corrected(loss, _on_features(exact.loss, exact.arguments, objective.name, config), objective.crop)
    if objective.loss in _FEATURES:
        return _on_features(objective.loss, given, objective.name, config)
    function = getattr(losses, objective.loss)
    known = function.__code__.co_varnames[2 : function.__code__.co_argcount]
    _check_arguments(objective.loss, given, objective.name, known)
    return functools.partial(function, **given)


def _on_features(loss: str, arguments: Mapping[str, Any], name: str, config: Config) -> nn.Module:
    """Return a loss on features for the objective of a name."""
    build, known = _FEATURES[loss]
    _check_arguments(loss, arguments, name, known)
    return _OnGrey(build(**arguments)) if config.channels == 1 else build(**arguments)


def _check_arguments(loss: str, arguments: Mapping[str, Any], name: str, known: Sequence[str]) -> None:
    for key in arguments:
        if key not in known:
            raise ValueError(
                f"train: arguments of {loss} must be among ({', '.join(known)}); got {key!r} in objective {name!r}"
            )


def _style_criterion(config: Config) -> losses.StyleTransfer:
    shared = config.style
    network = {"vgg16": losses.VGG16Features, "vgg19": losses.VGG19Features}[shared.network]
    features = network([*shared.layers, shared.content_layer], pool=shared.pool, weights=shared.weights)
    return losses.StyleTransfer(
        features,
        {objective.name: style_picture(str(objective.picture), shared.size) for objective in config.objectives},
        [objective.scale for objective in config.objectives],
        style_layers=shared.layers,
        content_layer=shared.content_layer,
        content=shared.content,
        smooth=shared.smooth,
    )


def style_picture(source: str, size: int) -> Tensor:
    """Return a style picture [1, 3, h, w] in [0, 1] whose shorter side is ``size`` pixels.

    Args:
        source: A file, or "skimage:NAME" for one that scikit-image ships.
        size: In pixels.

    Raises:
        ValueError: It is not there or cannot be read.
    """
    picture = read_image(_style_file(source)).unsqueeze(0)
    height, width = picture.shape[-2:]
    target = [max(size, round(side * size / min(height, width))) for side in (height, width)]
    return F.interpolate(picture, size=target, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)


def build_adversary(config: Config, here: Process) -> Adversary | None:
    """Return the discriminator of the adversarial objective; None where there is no such objective."""
    if config.adversarial_objective is None:
        return None
    return Adversary(config.adversarial, config.seed, config.num_params, config.channels, here)


def _style_file(source: str) -> Path:
    kind, colon, name = source.partition(":")
    return skimage_files([name])[0] if colon and kind == "skimage" else Path(source)


def named_files(config: Config) -> dict[str, Sequence[Path] | str | None]:
    """Return the configuration keys whose files decide the objectives, with their paths, for `fingerprints`."""
    found: dict[str, Sequence[Path] | str | None] = {"style.weights": config.style.weights}
    for index, objective in enumerate(config.objectives):
        if objective.picture is not None:
            found[f"objectives.{index}.picture"] = [_style_file(objective.picture)]
        sources = {"arguments": objective.arguments}
        if objective.correct_with is not None:
            sources["correct_with.arguments"] = objective.correct_with.arguments
        for place, arguments in sources.items():
            for key in ("path", "weights"):
                given = arguments.get(key)
                if isinstance(given, str):
                    found[f"objectives.{index}.{place}.{key}"] = given
    return found


def build_sampler(config: Config) -> losses.Sampler | None:
    """Return what draws lambda as phi gets it, divided by its scales.

    None where it is fixed: for the plain network, and for each phase of a phased one.
    """
    if config.tuning.kind == "none" or config.tuning.phased:
        return None
    kind = config.sampler.kind or ("simplex" if config.tuning.domain == "simplex" else "uniform")
    spec = config.spec
    ends = zip(spec.ranges, spec.scales, strict=True)
    ranges = [(low / scale, high / scale) for (low, high), scale in ends] if kind == "uniform" else None
    return losses.sampler(
        kind, config.num_params, corners=config.sampler.corners, ranges=ranges, stratified=config.sampler.stratified
    )


def build_optimizer(net: nn.Module, optim: Optim) -> torch.optim.Optimizer:
    """Return AdamW over the parameters that want a gradient, in groups, each with its ``scale`` of the rate.

    Raises:
        ValueError: The base kernels are given a rate on the simplex, where there are none.
    """
    if isinstance(net, TunableModel):
        base = None if optim.base_lr is None else {"scale": optim.base_lr}
        new = {"scale": 1.0 if optim.kernel_lr is None else optim.kernel_lr}
        groups = optimizer_groups(net, base=base, new=new, phi={"scale": optim.phi_lr}, rest={"scale": 1.0})
    else:
        groups = [{"params": list(net.parameters()), "scale": 1.0}]
    # fused: one pass over the parameters, on the CPU too
    return torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas, weight_decay=optim.weight_decay, fused=True)


def learning_rate(optim: Optim, step: int) -> float:
    """Return the rate at a step: ``lr * (step+1)/warmup``, then ``lr * (final + (1-final) * (1+cos(pi t))/2)``.

    Steps count from 0; t runs from 0 after the warm-up to 1 at the last step.
    """
    if step < optim.warmup:
        return optim.lr * (step + 1) / optim.warmup
    t = (step - optim.warmup) / max(1, optim.steps - 1 - optim.warmup)
    return optim.lr * (optim.final + (1 - optim.final) * 0.5 * (1 + math.cos(math.pi * min(t, 1.0))))
