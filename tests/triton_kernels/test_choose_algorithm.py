"""The rule: a heuristic for every problem, tables with or without a near entry, damaged tables."""

import json
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from tunable_ops.triton_kernels import choose_algorithm as rule
from tunable_ops.triton_kernels.launch import Config

PROBLEM = rule.Problem("forward", "dense", "sample", "bfloat16", "nhwc", 8, 2, 64, 64, 1, (3, 3), (1, 1), (64, 64))
CONFIG = Config(64, 32, 32, 8, 4)


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    yield
    rule.load_table.cache_clear()
    rule.choose_algorithm.cache_clear()
    rule.blends_first.cache_clear()


def write(folder: Path, monkeypatch: pytest.MonkeyPatch, **changes: object) -> None:
    entry = {"problem": PROBLEM._asdict(), "algorithm": "premix", "config": list(CONFIG), "milliseconds": 0.1}
    table = {"version": rule.VERSION, "device": "A GPU", "entries": [entry]} | changes
    (folder / "a_gpu.json").write_text(json.dumps(table))
    monkeypatch.setattr(rule, "TABLES", folder)


def test_the_heuristic_serves_every_size() -> None:
    for direction in ("forward", "input", "weight"):
        for kind in ("dense", "pointwise", "depthwise"):
            for alpha in ("shared", "sample", "map", "none"):
                for channels, size, kernels in ((1, 1, 1), (3, 7, 5), (129, 33, 16), (512, 256, 2)):
                    for dtype in ("float32", "tf32", "bfloat16"):
                        problem = PROBLEM._replace(
                            direction=direction,
                            kind=kind,
                            alpha=alpha,
                            dtype=dtype,
                            inputs=channels,
                            outputs=channels,
                            kernels=kernels,
                            size=(size, size),
                        )
                        algorithm, config = rule.choose_algorithm(problem)
                        assert algorithm in ("fused", "premix", "library")
                        assert all(n & (n - 1) == 0 and n > 0 for n in config[:4]), (problem, config)
                        assert kind == "depthwise" or min(config[:3]) >= 16
                        assert 1 <= config.num_stages <= 4
                        assert rule.choose_splits(problem, config, 132, 100) in range(1, 101)


def test_stages_fit_into_shared_memory() -> None:
    for kernels in (1, 2, 4, 16):
        config = rule.fit_stages(Config(128, 64, 64, 4, 3), kernels, "bfloat16")
        stage = 64 * (128 + kernels * 64) * 2
        assert (config.num_stages - 1) * stage + 64 * (128 + 64) * 2 <= rule.SHARED_MEMORY


def test_a_table_serves_what_is_near(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, monkeypatch)
    heuristic = rule.Choice(rule.default_algorithm(PROBLEM), rule.default_config(PROBLEM))
    measured = rule.Choice("premix", CONFIG)
    assert heuristic != measured
    assert rule.choose_algorithm(PROBLEM, "A GPU") == measured
    assert rule.choose_algorithm(PROBLEM._replace(batch=16, inputs=96), "A GPU") == measured
    far = [
        PROBLEM._replace(size=(256, 256)),
        PROBLEM._replace(dtype="float16"),
        PROBLEM._replace(taps=(1, 1)),
        PROBLEM._replace(alpha="shared"),
    ]
    for problem in far:
        assert rule.choose_algorithm(problem, "A GPU") == rule.choose_algorithm(problem)
    assert rule.choose_algorithm(PROBLEM, "Another GPU") == rule.choose_algorithm(PROBLEM, "") == heuristic


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 0},
        {"entries": [{"algorithm": "fused"}]},
        {"entries": 3},
        {"entries": [{"problem": PROBLEM._asdict(), "algorithm": "winograd", "config": list(CONFIG)}]},
        {"entries": [{"problem": PROBLEM._asdict(), "algorithm": "fused", "config": [63, 32, 32, 4, 3]}]},
        {"entries": [{"problem": PROBLEM._asdict() | {"batch": 0}, "algorithm": "fused", "config": list(CONFIG)}]},
    ],
)
def test_a_damaged_table_warns_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict) -> None:
    write(tmp_path, monkeypatch, **changes)
    with pytest.warns(UserWarning, match=r"a_gpu.json is ignored: .*`tunable-ops autotune` replaces it"):
        choice = rule.choose_algorithm(PROBLEM, "A GPU")
    assert choice == rule.choose_algorithm(PROBLEM)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rule.choose_algorithm(PROBLEM._replace(batch=3), "A GPU")


def test_a_file_that_is_no_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a_gpu.json").write_text("{")
    monkeypatch.setattr(rule, "TABLES", tmp_path)
    with pytest.warns(UserWarning, match="is ignored"):
        rule.choose_algorithm(PROBLEM, "A GPU")


def test_names_of_tables() -> None:
    assert rule.table_name("NVIDIA H200") == "nvidia_h200.json"
    assert {path.name for path in rule.TABLES.glob("*")} <= {path.name for path in rule.TABLES.glob("*.json")}


def test_what_a_network_blends_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small 3x3 and depthwise kernels stay fused; a table decides for similar layers, whatever their spatial size."""
    layer = PROBLEM._replace(alpha="shared", batch=1, size=(1, 1))
    assert not rule.blends_first(layer)
    assert not rule.blends_first(layer._replace(kind="depthwise", inputs=1, outputs=1, groups=64))
    assert rule.blends_first(layer._replace(kind="pointwise", taps=(1, 1)))
    assert rule.blends_first(layer._replace(inputs=256, outputs=256))
    assert rule.blends_first(layer._replace(dtype="float32"))
    entry = {"problem": PROBLEM._replace(alpha="shared", size=(512, 512))._asdict(), "algorithm": "premix"}
    write(tmp_path, monkeypatch, entries=[entry | {"config": list(CONFIG), "milliseconds": 0.1}])
    assert rule.blends_first(layer, "A GPU")
    assert not rule.blends_first(layer, "Another GPU")
    assert not rule.blends_first(layer._replace(inputs=4), "A GPU")  # too far from the entry


def test_depthwise_splits_share_the_strips_evenly() -> None:
    """512 strips of 32 rows for all samples, 32 for each of 16; no split is without one."""
    sizes = (16, 2, 1, 1, 64, (3, 3), (1, 1), (128, 128))
    problem = rule.Problem("weight", "depthwise", "sample", "bfloat16", "nhwc", *sizes)
    config = rule.default_config(problem)
    assert config[:3] == (32, 16, 64)
    assert rule.choose_splits(problem, config, 132, 1000) == 32
    assert rule.choose_splits(problem, config, 132, 20) == 16  # two strips each
    assert rule.choose_splits(problem._replace(alpha="shared"), config, 132, 1000) == 512


def test_channels_that_vectors_do_not_fit_get_smaller_tiles() -> None:
    """18 channels are loaded one by one; those of a first layer, of one step, stay."""
    sizes = (32, 2, 18, 18, 1, (3, 3), (1, 1), (56, 56))
    layer = rule.Problem("forward", "dense", "sample", "bfloat16", "nhwc", *sizes)
    assert rule.default_config(layer)[:3] == (64, 32, 32)
    assert rule.default_config(layer._replace(direction="weight"))[:3] == (32, 64, 32)
    assert rule.default_config(layer._replace(inputs=20, outputs=20))[:3] == (128, 32, 64)
    assert rule.default_config(layer._replace(inputs=3, outputs=64))[:2] == (128, 64)
