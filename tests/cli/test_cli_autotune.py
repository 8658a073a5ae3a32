"""tunable-ops autotune: without a GPU it says so; with one, tests/gpu measures."""

import pytest
import torch

from tunable_ops.cli import main


@pytest.mark.skipif(torch.cuda.is_available(), reason="tells what happens without a CUDA device")
def test_without_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["autotune"]) == 2
    assert capsys.readouterr().err == "tunable-ops autotune: error: a CUDA device is needed, and there is none here\n"


def test_sizes_must_be_positive(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["autotune", "--channels", "0"]) == 2
    assert "must be at least 1" in capsys.readouterr().err
