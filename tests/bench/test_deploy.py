"""The benchmark of Runner's engines: what is timed and refused, and that a wrong output gets no time."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from tunable_ops.bench import deploy, measure, providers

import tunable_ops

FAST = measure.Settings(rounds=3, min_call=1e-4, budget=0.01)
CASE = deploy.DeployCase("small", 12, 1, threads=1)


@pytest.fixture(autouse=True)
def small_network(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 3, padding=1))
    net = tunable_ops.convert(plain, num_params=1, domain="box", names=("a",)).eval()
    for layer in net.layers:
        nn.init.normal_(layer.weight)  # type: ignore[arg-type]
    monkeypatch.setattr(deploy, "network", lambda name: (net, [{"a": 0.25}, {"a": 0.75}, {"a": 0.5}]))


def test_engines_are_timed_beside_the_plain_network_with_percentiles() -> None:
    row = deploy.measure(CASE, "cpu", FAST, ["livefold-moving", "eager-resting"])
    assert row["id"] == "small-12x12-B1-fp32-T1"
    assert {name: result["status"] for name, result in row["providers"].items()} == {
        "plain": "ok",
        "eager-resting": "ok",
        "livefold-moving": "ok",
    }
    for result in row["providers"].values():
        assert 0 < result["p50"] <= result["p95"] <= result["p99"] and result["rounds"] >= 5


def test_a_wrong_output_gets_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    real = deploy.Runner.__call__
    monkeypatch.setattr(deploy.Runner, "__call__", lambda self, x, lam: 1.01 * real(self, x, lam))
    result = deploy.measure(CASE, "cpu", FAST, ["livefold-moving"])["providers"]["livefold-moving"]
    assert set(result) == {"status", "reason"} and result["status"] == "wrong"
    assert "rms error of the output must be at most 0.001; got 0.01" in result["reason"]


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deploy, "unavailable_reason", lambda *_: "not installed: openvino")
    result = deploy.measure(CASE, "cpu", FAST, ["openvino-moving"])["providers"]["openvino-moving"]
    assert result == {"status": "unsupported", "reason": "not installed: openvino"}


def test_the_folder_of_exports_is_made_when_there_is_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    code = "import bench.deploy, pathlib, sys; print(list(pathlib.Path(sys.argv[1]).iterdir()))"
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    found = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, env=environment)
    assert (found.returncode, found.stdout) == (0, "[]\n"), found.stderr
    monkeypatch.setattr(deploy, "export_onnx", lambda net, path: path.write_text("a file"))
    path = deploy.exported("small")
    assert path.name == "small.onnx" and path.read_text() == "a file" and deploy.exported("small") == path


def test_percentiles() -> None:
    assert deploy.percentiles([float(n) for n in range(101)]) == {"p50": 50.0, "p95": 95.0, "p99": 99.0}


def test_the_suite() -> None:
    suite = deploy.deploy_suite("cpu")
    assert [case.id for case in suite] == [
        "denoise-256x256-B1-fp32-T1",
        "super_resolution_x4-128x128-B1-fp32-T1",
        "denoise-256x256-B1-fp32-T2",
        "super_resolution_x4-128x128-B1-fp32-T2",
    ]
    assert not deploy.deploy_suite("cuda")
    providers.check_names(["openvino-moving", "plain"], tuple(deploy.NAMES))
