"""tunable-ops tune: without a GPU it says so; with one, tests/gpu measures."""

import pytest
import torch

from tunable_ops.cli import main


@pytest.mark.skipif(torch.cuda.is_available(), reason="tells what happens without a CUDA device")
def test_without_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune"]) == 2
    assert capsys.readouterr().err == "tunable-ops tune: error: it needs a CUDA device; there is none here\n"


def test_sizes_must_be_positive(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", "--channels", "0"]) == 2
    assert "must be at least 1" in capsys.readouterr().err
