"""Single optimiser steps: the rates of kernels, and gradients that are not finite."""

import itertools
import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tunable_ops.train import MODEL, train
from tunable_ops.train.build import build_network, build_optimizer
from tunable_ops.train.config import Config
from tunable_ops.train.log import LOG
from tunable_ops.train.restoration import Restoration
from tunable_ops.train.sections import validate


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / MODEL)


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("bad", [{2}, set(range(1, 12))])
def test_a_gradient_that_is_not_finite_moves_nothing(make_config, tmp_path: Path, monkeypatch, caplog, bad) -> None:
    calls, clip = itertools.count(), Restoration.clip

    def spoiled(task: Restoration) -> torch.Tensor:
        if next(calls) in bad:
            next(p.grad for p in task.net.parameters() if p.grad is not None).fill_(math.nan)
        return clip(task)

    monkeypatch.setattr(Restoration, "clip", spoiled)
    config = make_config(log={"every": 1}, optim={"steps": 12}, ema={"decay": 0})
    if len(bad) > 1:
        with pytest.raises(RuntimeError, match="gradients must be finite; got none in 10 steps at step 11"):
            train(config, tmp_path / "x", progress=False)
        return
    two, three = (train(config, tmp_path / "x", stop_at=n, resume=True, progress=False) for n in (2, 3))
    assert same(two.net.state_dict(), three.net.state_dict())
    assert "step 3: 100 % of the last steps left out" in caplog.text
    four = train(config, tmp_path / "x", stop_at=4, resume=True, progress=False)
    assert not same(three.net.state_dict(), four.net.state_dict())
    lines = [json.loads(line) for line in (tmp_path / "x" / LOG).read_text().splitlines()]
    assert [line.get("optim/left_out") for line in lines] == [None, None, 1, None]
    assert all(value.isfinite().all() for value in weights(tmp_path / "x").values())


@pytest.mark.parametrize(
    "tuning, optim, rates",
    [
        ({"domain": "box"}, {}, {"base": 1.0, "new": 1 / 3, "phi": 1.0}),
        ({"domain": "box"}, {"phi_lr": 0.5}, {"base": 1.0, "new": 1 / 3, "phi": 0.5}),
        ({"domain": "box"}, {"kernel_lr": 1.0}, {"new": 1.0, "phi": 1.0}),
        ({"domain": "box"}, {"base_lr": 0.5}, {"base": 0.5, "new": 1.0, "phi": 1.0}),
        ({"domain": "box", "rank": 2}, {}, {"base": 1.0, "new": 1.0, "phi": 1.0}),
        ({"domain": "box", "freeze": True}, {}, {"new": 1.0}),
        ({"domain": "simplex"}, {}, {"new": 1.0, "phi": 1.0}),
        ({"domain": "simplex"}, {"kernel_lr": 0.5}, {"new": 0.5, "phi": 1.0}),
    ],
)
def test_kernels_that_add_up_learn_at_a_share_of_the_rate(make_config, tuning, optim, rates) -> None:
    config = make_config(tuning=tuning, optim=optim)
    groups = build_optimizer(build_network(config), config.optim).param_groups
    assert {group["name"]: group.get("scale", 1.0) for group in groups} == rates
    assert validate(Config, json.loads(config.model_dump_json())) == config
