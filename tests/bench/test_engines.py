"""The comparison with other inference engines: what is timed, what is refused, and that a wrong output gets no time."""

import importlib.util
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from tunable_ops.bench import engines, measure, providers, timing

import tunable_ops

FAST = measure.Settings(rounds=3, min_call=1e-4, budget=0.01)
CASE = engines.EngineCase("small", 12, 1, threads=1)
Session = Callable[[Any], Any]


@pytest.fixture(autouse=True)
def small_network(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 3, padding=1))
    net = tunable_ops.convert(plain, num_params=2, names=("first", "second"))
    monkeypatch.setattr(engines, "_network", lambda name: (net, {"first": 0.25, "second": 0.75}))


def statuses(*names: str) -> dict[str, str]:
    row = engines.measure(CASE, "cpu", FAST, names)
    assert row["id"].endswith("-T1") and row["network"]["threads"] == 1
    return {name: result["status"] for name, result in row["providers"].items()}


def test_ours_are_timed_beside_the_plain_network() -> None:
    assert statuses("accelerated", "tunable") == {"plain": "ok", "accelerated": "ok", "tunable": "ok"}


@pytest.mark.slow
@pytest.mark.parametrize("engine", engines.PACKAGES)
def test_an_engine_computes_what_the_plain_network_does(engine: str) -> None:
    if (reason := engines.unavailable_reason(engine)) is not None:
        pytest.skip(reason)
    assert statuses(engine) == {"plain": "ok", engine: "ok"}


def test_a_wrong_output_gets_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(engine: str, path: Any, threads: int) -> Session:
        return lambda array: 1.001 * engines._network("")[0](torch.from_numpy(array), [0.25, 0.75]).detach().numpy()

    monkeypatch.setattr(engines, "unavailable_reason", lambda engine: None)
    monkeypatch.setattr(engines, "export", lambda net, x, path: None)
    monkeypatch.setattr(engines, "session", wrong)
    row = engines.measure(CASE, "cpu", FAST, ["openvino"])
    result = row["providers"]["openvino"]
    assert set(result) == {"status", "reason"} and result["status"] == "wrong"
    assert "rms error of the output must be at most 0.0001; got 0.001" in result["reason"]


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else found(name))
    row = engines.measure(CASE, "cpu", FAST, ["onnxruntime"])
    assert row["providers"]["onnxruntime"]["status"] == "unsupported"
    assert "onnxscript" in row["providers"]["onnxruntime"]["reason"]


def test_threads_are_put_back() -> None:
    before = torch.get_num_threads()
    engines.measure(engines.EngineCase("small", 12, 1, threads=before + 1), "cpu", FAST, ["accelerated"])
    assert torch.get_num_threads() == before


def test_the_suite_is_for_cpus_and_its_providers_are_known() -> None:
    suite = engines.engine_suite("cpu")
    assert len({case.id for case in suite}) == len(suite) and {case.threads for case in suite} == {1, 2}
    assert not engines.engine_suite("cuda")
    providers.check_names(["openvino", "plain"], tuple(engines.NAMES))
    with pytest.raises(ValueError, match=r"--providers must be among plain, .*openvino; got 'tensorflow'"):
        providers.check_names(["tensorflow"], tuple(engines.NAMES))


def test_the_time_of_the_process_leaves_out_what_others_take() -> None:
    assert timing.ProcessClock().turn(lambda: time.sleep(0.05), 1) < 0.04
    assert timing.WallClock().turn(lambda: time.sleep(0.05), 1) >= 0.05
