"""Strips over lambda beside TensorBoard's scalars, and runs without TensorBoard."""

import json
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tunable_ops.images import strip
from tunable_ops.modules import TunableModel
from tunable_ops.train import MODEL, Config, train
from tunable_ops.train.data import held_out
from tunable_ops.train.evaluate import degraded_pictures, restore
from tunable_ops.train.log import LOG


def images(out: Path) -> dict[str, dict[int, np.ndarray]]:
    """Name to step to picture [H, W, 3], from the event files of a run."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(out / "logs"), size_guidance={"images": 0})
    events.Reload()
    return {
        tag: {
            event.step: np.asarray(Image.open(BytesIO(event.encoded_image_string)).convert("RGB"))
            for event in events.Images(tag)
        }
        for tag in events.Tags()["images"]
    }


@pytest.fixture
def config(make_config, pictures: Path) -> Config:
    return make_config(
        log={"tensorboard": True}, validation={"every": 2, "source": str(pictures), "crop": 24, "strips": 2}
    )


def test_the_event_file_holds_strips_over_lambda(config: Config, tmp_path: Path) -> None:
    """Four validations, strips at every second one and at the last; stops in between change nothing of it."""
    config = config.model_copy(update={"optim": config.optim.model_copy(update={"steps": 7})})
    outcome = train(config, tmp_path / "x", stop_at=3, progress=False)
    outcome = train(config, tmp_path / "x", resume=True, progress=False)
    found = images(tmp_path / "x")
    assert set(found) == {"validation/strip 0", "validation/strip 1", "validation/strip 2"}
    assert all(set(steps) == {4, 7} for steps in found.values())
    assert isinstance(outcome.net, TunableModel)
    lams = [(1 - t, t) for t in (0.0, 0.25, 0.5, 0.75, 1.0)]
    cut = held_out(config.data.source, config.validation.crop)
    for name, clean, degraded in degraded_pictures(cut, config.degradation, config.seed):
        columns = [degraded, *(restore(outcome.net, degraded, lam) for lam in lams), clean]
        wanted = strip(columns, ["input", "1,0", "0.75,0.25", "0.5,0.5", "0.25,0.75", "0,1", "clean"])
        wanted = (wanted.permute(1, 2, 0) * 255).round().byte().numpy()
        assert np.abs(found[f"validation/strip {name}"][7].astype(int) - wanted).max() <= 1
        assert (found[f"validation/strip {name}"][4] != wanted).any()  # of the weights at that step


def test_strips_where_the_noise_follows_lambda(make_config, pictures: Path, tmp_path: Path) -> None:
    config = make_config(
        tuning={"names": ["noise"], "domain": "box", "defaults": [0.5]},
        objectives=[{"name": "clean", "follows": False}],
        degradation={"noise": {"levels": [50]}},
        log={"tensorboard": True},
        validation={"every": 6, "source": str(pictures), "crop": 24},
    )
    train(config, tmp_path / "x", progress=False)
    found = images(tmp_path / "x")
    assert [list(steps) for steps in found.values()] == [[6]] * 3


@pytest.mark.parametrize("strips", [0, 1])
def test_strips_can_be_turned_off(config: Config, tmp_path: Path, strips: int) -> None:
    validation = config.validation.model_copy(update={"strips": strips})
    train(config.model_copy(update={"validation": validation}), tmp_path / "x", progress=False)
    found = images(tmp_path / "x")
    assert [list(steps) for steps in found.values()] == [[2, 4, 6]] * 3 * strips


def test_without_tensorboard_everything_else_is_there(config: Config, tmp_path: Path, monkeypatch, caplog) -> None:
    with monkeypatch.context() as patch:
        for name in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")]:
            patch.delitem(sys.modules, name)
        patch.setitem(sys.modules, "tensorboard", None)
        assert train(config, tmp_path / "x", progress=False).finished
    assert caplog.text.count("no TensorBoard logs (") == 1
    assert "pip install tensorboard, or set log.tensorboard to false" in caplog.text
    assert not (tmp_path / "x" / "logs").exists()
    lines = [json.loads(line) for line in (tmp_path / "x" / LOG).read_text().splitlines()]
    assert any("validation/psnr 1,0" in line for line in lines)
    train(config, tmp_path / "y", progress=False)
    assert (tmp_path / "x" / MODEL).stat().st_size == (tmp_path / "y" / MODEL).stat().st_size
