"""examples/style: the strip over seven points of the simplex, the table of losses there, and two knobs compared."""

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from tunable_ops import control, convert, models
from tunable_ops.images import read_image
from tunable_ops.serialization import save
from tunable_ops.train import load_config

ARGUMENTS = {"width": 2, "num_blocks": [0, 1, 0]}


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "examples" / "style"))  # the programs import each other


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


def two_ways(folder: Path, name: str, net: torch.nn.Module) -> Path:
    """Write a run of two_ways.toml, with features drawn at random, that trained nothing."""
    shallow = ["style.weights=random", "style.size=24", "style.layers=['relu1_2']", "style.content_layer=relu2_1"]
    config = load_config(Path(__file__).parents[2] / "examples" / "style" / "two_ways.toml", shallow)
    (folder / name).mkdir()
    notes = {"config": config.model_dump(mode="json")}
    save(net, folder / name / "model.safetensors", architecture="stylenet", arguments=ARGUMENTS, notes=notes)
    return folder / name


def test_two_knobs_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    torch.manual_seed(0)
    plain, names = models.build("stylenet", **ARGUMENTS), ["waterfall", "autumn", "faint"]
    blocks = control.attach(plain, "dynamic_net", 3, after=["body.1.0", "up1"], init="published", names=names)
    kernels = convert(plain, num_params=3, names=names)
    runs = [f"{name}={two_ways(tmp_path, name, net)}" for name, net in (("blocks", blocks), ("kernels", kernels))]
    program("knobs").main([*runs, "--side", "16", "--out", str(tmp_path / "k.png")])
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("blocks, ") and lines.count("| position | waterfall | autumn | content | total |") == 2
    rows = [line for line in lines if line.startswith(("| +", "| -0", "| -1"))]
    assert len(rows) == 2 * 9 + 1  # the slider twice, and "-1, 1"
    assert len([line for line in lines if line.endswith(" |  |")]) == 4  # coefficients that differ have no total
    # fresh, the kernels are alike at every position: the first style's loss stands still
    found = [[float(v) for v in row.split("|")[2:5]] for row in rows[-9:]]
    assert max(abs(a - b) for row in found for a, b in zip(row, found[0], strict=True)) < 0.011
    assert read_image(tmp_path / "k.png").shape[2] > 6 * 16


def test_positions_and_evenness() -> None:
    knobs = program("knobs")
    assert [knobs.lam(a) for a in (-0.25, 0.0, 1.0)] == [[0.75, 0.0, 0.25], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    assert knobs.evenness([4.0, 3.0, 3.5, 1.0]) == (pytest.approx(2 / 3), pytest.approx(2.5))
    assert knobs.evenness([3.0, 2.0, 1.0]) == (1.0, 1.0)
    assert knobs.apart(3)[2:] == [[0, 0, 1], [1, 0, -1], [-1, 0, 1]]
    assert knobs.evenness([1.0, 1.0]) == (0.0, float("inf"))
