"""examples/style: the strip over seven points of the simplex, and the table of losses there."""

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from tunable_ops import convert, models
from tunable_ops.images import read_image
from tunable_ops.serialization import save
from tunable_ops.train import load_config

ARGUMENTS = {"width": 2, "num_blocks": [0, 1, 0]}


def program(name: str) -> ModuleType:
    file = Path(__file__).parents[2] / "examples" / "style" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"style_{name}", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return program("strip")


def checkpoint(folder: Path, styles: int, **notes: Any) -> Path:
    net = convert(models.build("stylenet", **ARGUMENTS), num_params=styles)
    save(net, folder / "net.safetensors", architecture="stylenet", arguments=ARGUMENTS, notes=notes)
    return folder / "net.safetensors"


def test_points_are_corners_midpoints_and_the_centre(script: ModuleType) -> None:
    points = torch.tensor(script.POINTS)
    assert points.sum(1).allclose(torch.ones(7))
    assert sorted((points > 0).sum(1).tolist()) == [1, 1, 1, 2, 2, 2, 3]
    assert len(points.unique(dim=0)) == 7
    assert script.labels(["a", "b", "c"])[1::5] == ["a +\nb", "a +\nb +\nc"]


def test_the_strip_is_written(script: ModuleType, tmp_path: Path) -> None:
    script.main([str(checkpoint(tmp_path, 3)), "--side", "24", "--out", str(tmp_path / "s.png")])
    drawn = read_image(tmp_path / "s.png")
    assert drawn.shape[2] > 8 * 24 and drawn.shape[1] > 24


def test_another_number_of_styles_is_refused(script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        script.main([str(checkpoint(tmp_path, 2)), "--out", str(tmp_path / "s.png")])
    assert "model must have three styles; got 2" in capsys.readouterr().err


def test_the_table_has_a_row_per_point(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    shallow = ["style.weights=random", "style.size=24", "style.layers=['relu1_2']", "style.content_layer=relu2_1"]
    config = load_config("style", shallow)
    model = checkpoint(tmp_path, 3, config=config.model_dump(mode="json"))
    program("table").main([str(model), "--side", "16"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| lambda | stain | retina | brick | content |"
    assert len(lines) == 2 + 1 + 7
    assert lines[2].startswith("| photograph |") and lines[2].endswith(" 0.00 |")
    assert lines[-1].startswith("| 0.33 0.33 0.33 |")
