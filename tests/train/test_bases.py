"""A published network as the base of a training that cannot make it worse: `tuning.freeze`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tunable_ops import fold, models, serialization
from tunable_ops.train import MODEL, Config, train

FFDNET = {
    "model": {"name": "ffdnet", "arguments": {"features": 6, "depth": 3, "knob": 1}},
    "tuning": {"domain": "box", "freeze": True, "names": ["texture", "sigma"], "ranges": [[0, 1], [0, 50]]},
    "objectives": [{"name": "texture", "loss": "tv"}, {"name": "clean", "follows": False}],
    "degradation": {"noise": {"levels": [0, 50]}},
}
RLFN = {
    "model": {"name": "rlfn", "arguments": {"features": 6, "hidden": 6, "attention": 2, "blocks": 1, "scale": 2}},
    "tuning": {"domain": "box", "freeze": True, "names": ["perceptual"]},
    "objectives": [{"name": "perceptual", "loss": "tv"}, {"name": "accurate", "loss": "l1", "follows": False}],
    "degradation": {"noise": None, "downsample": {"factors": [2], "enlarge": False}},
    "data": {"crop": 32},
}


def begin(make_config: Callable[..., Config], folder: Path, changes: dict[str, Any]) -> tuple[Config, nn.Module]:
    """Return the configuration of a run from a plain network's own weights, and that network."""
    model = changes["model"]
    torch.manual_seed(3)
    plain = models.build(model["name"], **model["arguments"]).eval()
    save_file(plain.state_dict(), folder / "base.safetensors")
    return make_config(**{**changes, "model": {**model, "weights": str(folder / "base.safetensors")}}), plain


@pytest.mark.parametrize("changes", [FFDNET, RLFN], ids=["ffdnet", "rlfn"])
def test_whatever_is_trained_the_base_stays(make_config, tmp_path: Path, changes: dict[str, Any]) -> None:
    config, plain = begin(make_config, tmp_path, changes)
    train(config, tmp_path / "whole", progress=False)
    net, x = serialization.load(tmp_path / "whole" / MODEL), torch.rand(1, 3, 16, 18)
    knobs = len(net.spec.names)
    for other in (0.0, 30.0):  # FFDNet's own knob, of 255, does not move kernels
        lam = [0.0, other][:knobs]
        folded, wanted = fold(net, lam), plain.state_dict()
        assert all(torch.equal(value, folded.state_dict()[name]) for name, value in wanted.items())
        with torch.no_grad():
            level = (torch.tensor(other) / 255,) if knobs == 2 else ()
            assert torch.equal(net(x, lam), plain(x, *level))
            assert not torch.equal(net(x, [1.0, *lam[1:]]), plain(x, *level))
    # what was stopped and resumed ends with the same bits
    train(config, tmp_path / "parts", stop_at=2, progress=False)
    train(config, tmp_path / "parts", resume=True, progress=False)
    whole, parts = (load_file(tmp_path / name / MODEL) for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_run_may_start_from_one_of_its_own(make_config, tmp_path: Path) -> None:
    config, plain = begin(make_config, tmp_path, FFDNET)
    train(config, tmp_path / "first", progress=False)
    start = str(tmp_path / "first" / MODEL)
    train(
        make_config(**{**FFDNET, "model": {**FFDNET["model"], "weights": start}}), tmp_path / "second", progress=False
    )
    folded = fold(serialization.load(tmp_path / "second" / MODEL), [0.0, 0.0]).state_dict()
    assert all(torch.equal(value, folded[name]) for name, value in plain.state_dict().items())


@pytest.mark.parametrize("tuning", [{"kind": "none"}, {"domain": "simplex"}, {"kind": "dni", "domain": "simplex"}])
def test_freezing_needs_a_base(make_config, tuning: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r'tuning\.freeze must go with kind "affine" on the box'):
        make_config(tuning={"freeze": True, "domain": "box", **tuning})


@pytest.mark.parametrize("end", [1.0, 50.0])
def test_a_start_of_before_lambda_had_units(make_config, tmp_path: Path, end: float) -> None:
    """Its phi got lambda as it was; the same file at another scale is another network."""
    tuning = {"domain": "box", "ranges": [[0, end], [0, 1]]}
    train(make_config(tuning=tuning), tmp_path / "first", progress=False)
    start = tmp_path / "first" / MODEL
    tensors, metadata = serialization.read_weights(start)
    del metadata["spec"]["scales"], metadata["spec"]["units"], metadata["conversion"]["units"]
    kept = {key: value for key, value in metadata.items() if key not in ("format", "version")}
    serialization.write_file(start, tensors, kept, kind=serialization.FORMAT, version=serialization.VERSION)
    config = make_config(tuning=tuning, model={**make_config().model.model_dump(), "weights": str(start)})
    if end == 1:
        assert train(config, tmp_path / "second", progress=False).finished
        return
    with pytest.raises(ValueError, match=r"whose scales is \(50.0, 1.0\); got \[1.0, 1.0\]"):
        train(config, tmp_path / "second", progress=False)


@pytest.mark.parametrize(("ranges", "got"), [(None, 1), ([[0, 1], [0, 25]], 25)])
def test_a_level_that_the_network_reads_is_the_noise(make_config, tmp_path: Path, ranges: Any, got: int) -> None:
    """FFDNet reads sigma of 255 itself: at other ends of the range it would be told another noise than there is."""
    config = make_config(**{**FFDNET, "tuning": {**FFDNET["tuning"], "ranges": ranges}})
    message = rf"degradation.noise.levels must be the end of the range of 'sigma', {got}, .* network reads .*; got 50"
    with pytest.raises(ValueError, match=message):
        train(config, tmp_path / "x", progress=False)
    assert not (tmp_path / "x").exists()
