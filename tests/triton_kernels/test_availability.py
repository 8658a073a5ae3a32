"""tunable_ops.triton_kernels: installed under that name, and able to say why it cannot run."""

import importlib.metadata

import pytest
import tunable_ops.triton_kernels as triton_kernels


def test_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "3.6.0+git1")
    assert triton_kernels.unavailable_reason() is None
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "3.5.1")
    assert triton_kernels.unavailable_reason() == "triton 3.5.1 is older than 3.6 (pip install -U triton)"

    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    assert triton_kernels.unavailable_reason() == "triton is not installed (pip install 'triton>=3.6')"
