"""compute.precision = "auto": what the processor has, said, and kept by the run."""

from pathlib import Path

import pytest
import torch

from tunable_ops.serialization import read_file
from tunable_ops.train import STATE, Config, load_config, packaged_configs, precision, train
from tunable_ops.train.distributed import Process
from tunable_ops.train.resuming import precision_of
from tunable_ops.train.state import FORMAT, VERSION

HERE = Process(0, 1, torch.device("cpu"))


def has(monkeypatch: pytest.MonkeyPatch, **features: bool) -> None:
    """Let the processor have these features and no other."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"architecture": "x86_64", **features}, raising=False)


@pytest.mark.parametrize(
    ("features", "name", "reason"),
    [
        ({"amx_bf16": True, "avx512_bf16": True}, "bf16", "the processor has amx_bf16"),
        ({"avx512_bf16": True}, "bf16", "the processor has avx512_bf16"),
        ({"avx512_f": True, "avx512_bf16": False}, "fp32", "neither amx_bf16 nor avx512_bf16"),
        ({}, "fp32", "would emulate bf16"),
    ],
)
def test_a_cpu_is_asked(monkeypatch: pytest.MonkeyPatch, features: dict, name: str, reason: str) -> None:
    has(monkeypatch, **features)
    found = precision.choose_precision("auto", HERE)
    assert found.name == name and reason in found.reason
    assert precision.choose_precision("fp32", HERE) == ("fp32", "as configured")
    slow = "as configured" if name == "bf16" else "as configured, and slow: "
    assert precision.choose_precision("bf16", HERE).reason.startswith(slow)


@pytest.mark.parametrize(("supported", "name"), [(True, "bf16"), (False, "fp32")])
def test_an_older_torch_is_asked_too(monkeypatch: pytest.MonkeyPatch, supported: bool, name: str) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: supported)
    assert precision.choose_precision("auto", HERE).name == name


@pytest.mark.parametrize(("capability", "name"), [((9, 0), "bf16"), ((8, 0), "bf16"), ((7, 5), "fp32")])
def test_a_gpu_is_asked(monkeypatch: pytest.MonkeyPatch, capability: tuple, name: str) -> None:
    def supported(including_emulation: bool) -> bool:
        assert not including_emulation
        return capability >= (8, 0)

    monkeypatch.setattr(torch.cuda, "device", lambda device: torch.no_grad())
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "GPU")
    assert precision.choose_precision("auto", Process(0, 1, torch.device("cuda", 0))).name == name


def test_one_process_without_bf16_decides_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    has(monkeypatch, avx512_bf16=True)
    monkeypatch.setattr(Process, "any", lambda self, flag: True)
    assert precision.choose_precision("auto", HERE) == ("fp32", "the processor of another process would emulate bf16")


def test_a_run_says_and_keeps_what_it_began_with(make_config, tmp_path: Path, monkeypatch, caplog) -> None:
    caplog.set_level("INFO", "tunable_ops.train")
    has(monkeypatch, avx512_bf16=True)
    train(make_config(), tmp_path / "x", stop_at=2, progress=False)
    assert "compute.precision bf16: the processor has avx512_bf16" in caplog.text
    has(monkeypatch)
    with pytest.raises(ValueError, match=r"compute.precision was 'bf16', is 'fp32'"):
        train(make_config(compute={"precision": "fp32"}), tmp_path / "x", resume=True, progress=False)
    train(make_config(), tmp_path / "x", resume=True, stop_at=4, progress=False)
    assert "compute.precision bf16, as the run began" in caplog.text
    train(make_config(compute={"precision": "bf16"}), tmp_path / "x", resume=True, progress=False)
    train(make_config(compute={"precision": "bf16"}), tmp_path / "whole", progress=False)
    states = [read_file(tmp_path / name / STATE, kind=FORMAT, version=VERSION)[0] for name in ("x", "whole")]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize(
    ("configured", "device", "name"),
    [("auto", "cuda", "bf16"), ("auto", "cpu", "fp32"), ("bf16", "cpu", "bf16"), ("fp32", "cuda", "fp32")],
)
def test_states_without_a_precision_had_that_of_their_device(configured: str, device: str, name: str) -> None:
    saved = {"config": {"compute.precision": configured}, "circumstances": {"device": device}}
    assert precision_of(saved, "compute.precision") == name


def test_shipped_configurations_leave_the_precision_open() -> None:
    for name in packaged_configs():
        config = load_config(name)
        if isinstance(config, Config):
            assert config.compute.precision == "auto", name
        else:
            assert config.loss.dtype in ("auto", "float32"), name
