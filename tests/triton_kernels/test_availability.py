"""tunable_ops.triton_kernels is installed under that name, and says why it cannot run."""

import importlib.metadata

import pytest
import torch
import tunable_ops.triton_kernels as triton_kernels

from tunable_ops.backends import triton as backend


def test_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "3.6.0+git1")
    assert triton_kernels.unavailable_reason() is None
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "3.5.1")
    assert triton_kernels.unavailable_reason() == "triton 3.5.1 is older than 3.6 (pip install -U triton)"

    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    assert triton_kernels.unavailable_reason() == "triton is not installed (pip install 'triton>=3.6')"


def test_an_interpreter_that_numpy_broke(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"triton": "3.6.0", "numpy": "2.4.1"}
    monkeypatch.setattr(importlib.metadata, "version", versions.__getitem__)
    monkeypatch.setattr(triton_kernels, "INTERPRETED", True)
    assert str(triton_kernels.unavailable_reason()).startswith("the interpreter of triton 3.6.0 needs numpy < 2.4 ")
    for name, version in (("numpy", "2.3.5"), ("numpy", "2.4.1")):
        versions[name] = version
        assert triton_kernels.unavailable_reason() is None
        versions["triton"] = "3.7.0"


def test_what_it_needs_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_missing", None)
    monkeypatch.setattr(backend, "_interpreted", False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert str(backend.unavailable_reason("tunable_conv2d")).startswith("no CUDA device is there (the interpreter ")
    monkeypatch.setattr(backend, "_interpreted", True)
    assert backend.unavailable_reason("tunable_conv2d") is None
