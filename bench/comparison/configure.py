"""The configuration of every training run of the comparison."""

from __future__ import annotations

from typing import Any

from tunable_ops.bench.comparison.plan import GRID, METHOD, SEPARATE, Data, Setting, Unit, lam_of

from tunable_ops.train.config import Config
from tunable_ops.train.sections import validate


def placement(kind: str, setting: Setting) -> dict[str, Any]:
    """Return where a knob of `tunable_ops.control` sits.

    AdaFM: after every convolution, as published, with filters of 5 x 5 (the largest published, as recalled).
    Dynamic-Net: three blocks, as published, in the beginning, the middle and near the end. CFSNet: a tuning block
    beside every block that keeps its width. CResMD: every residual. FiLM: after every convolution; planes: before the
    first.

    EDSR has residual blocks there. DnCNN's chain lacks them: a tuning block of CFSNet stands beside a convolution (its
    k-th is ``model.{2 k}``), and CResMD scales what every convolution gives.
    """
    if kind == "adafm":
        return {"kernel_size": 5}
    if setting.backbone == "edsr":
        blocks = range(setting.blocks)
        return {
            "dynamic_net": {"after": [f"body.{k}" for k in sorted({0, setting.blocks // 2, setting.blocks - 1})]},
            "cfsnet": {"after": [f"body.{k}" for k in blocks]},
            "cresmd": {"after": [*(f"body.{k}.conv2" for k in blocks), "conv_after_body"]},
        }.get(kind, {})
    depth = setting.depth
    return {
        "dynamic_net": {"after": [f"model.{2 * k}" for k in sorted({1, depth // 2, depth - 2})]},
        "cfsnet": {"after": [f"model.{2 * k}" for k in range(1, depth - 1)]},
        "cresmd": {"after": [f"model.{2 * k}" for k in range(depth)]},
    }.get(kind, {})


def config_of(unit: Unit, setting: Setting, data: Data) -> Config:
    """Return the configuration of a training run.

    A separate network minimises the multi-loss at its own lambda, on inputs whose noise follows that lambda where the
    task says so.

    Raises:
        ValueError: As the configuration.
    """
    method = METHOD[unit.method]
    tuning: dict[str, Any] = {"kind": method.kind}
    if method.kind == SEPARATE:
        assert unit.t is not None
        tuning = {"kind": "none", "lam": lam_of(unit.task, unit.t)}
    elif control := placement(method.kind, setting):
        tuning["control"] = control
    steps = method.factor * setting.steps
    tree = {
        "seed": unit.seed,
        "model": _model(unit.task, setting),
        "tuning": tuning,
        # as often as the grid has them
        "sampler": {"corners": 2 / len(GRID)},
        "data": {"source": data.train, "crop": setting.crop, "batch": setting.batch, "workers": setting.workers},
        "optim": {"steps": steps, "lr": setting.lr, "warmup": setting.warmup},
        "ema": {"decay": setting.ema},
        "log": {"tensorboard": False},
        "checkpoints": {"every": max(1, steps // 4)},
        "validation": {"every": 0},
        "compute": {"device": setting.device},
    }
    more = {"strength": _strength, "level": _level, "perception": _perception, "box": _box}[unit.task]
    for section, keys in more(setting, data, method.phased).items():
        tree[section] = {**tree.get(section, {}), **keys} if isinstance(keys, dict) else keys
    return validate(Config, tree)


def _strength(setting: Setting, data: Data, phased: bool) -> dict[str, Any]:
    objectives = [{"name": "clean", "target": "clean"}, {"name": "input", "target": "input"}]
    return {"objectives": objectives, "degradation": {"noise": {"sigma": list(setting.sigma)}}}


def _level(setting: Setting, data: Data, phased: bool) -> dict[str, Any]:
    objectives = [{"name": "first"}, {"name": "second"}]
    return {"objectives": objectives, "degradation": {"noise": {"levels": list(setting.levels)}}}


def _perception(setting: Setting, data: Data, phased: bool) -> dict[str, Any]:
    if setting.perceptual == "alex":
        perceptual = {"loss": "lpips", "scale": 0.1, "arguments": {"net": "alex"}}
    else:
        layers = setting.layers if isinstance(setting.layers, str) else list(setting.layers)
        weights = {} if data.weights is None else {"weights": data.weights}
        arguments = {"network": "vgg16", "layers": layers, **weights}
        perceptual = {"loss": "perceptual", "scale": 0.01, "arguments": arguments}
    enlarge = setting.backbone == "dncnn"  # which keeps the size
    return {
        "objectives": [{"name": "accurate", "loss": "l1"}, {"name": "perceptual", **perceptual}],
        "degradation": {"downsample": {"factors": [2], "enlarge": enlarge}},
    }


def _box(setting: Setting, data: Data, phased: bool) -> dict[str, Any]:
    """Four targets at the corners of the box; phases see the three ends (0, 0), (1, 0) and (0, 1)."""
    targets = {(0, 0): "input", (1, 0): "noiseless", (0, 1): "noisy", (1, 1): "clean"}
    damage = {"blur": {"sigma": [setting.blur] * 2}, "noise": {"sigma": [setting.noise] * 2}}
    if phased:
        ends = {"keep": (0, 0), "denoise": (1, 0), "deblur": (0, 1)}
        return {
            "objectives": [{"name": name, "target": targets[end]} for name, end in ends.items()],
            "degradation": damage,
        }
    objectives = [
        {"name": target, "target": target, "weight": {"denoise": [1 - a, a], "deblur": [1 - b, b]}}
        for (a, b), target in targets.items()
    ]
    return {
        "objectives": objectives,
        "degradation": damage,
        "tuning": {"domain": "box", "names": ["denoise", "deblur"]},
    }


def _model(task: str, setting: Setting) -> dict[str, Any]:
    if setting.backbone == "dncnn":
        return {"name": "dncnn", "arguments": {**_features(setting), "depth": setting.depth, "downscale": 2}}
    scale = 2 if task == "perception" else 1
    return {"name": "edsr", "arguments": {**_features(setting), "num_blocks": setting.blocks, "scale": scale}}


def _features(setting: Setting) -> dict[str, Any]:
    return {"features": setting.features, "mean": 0.5}
