"""Which backend serves a call: named ones are used or raise, the default chooses."""

import pytest
import torch

from tunable_ops import backends


def test_default_and_named() -> None:
    assert backends.select("tunable_conv2d", None) == "torch"
    assert backends.select("tunable_conv2d", "torch") == "torch"
    assert backends.select("tunable_conv2d", "reference") == "reference"
    assert [backends.unavailable_reason("tunable_conv2d", name) for name in ("torch", "reference")] == [None, None]


@pytest.mark.parametrize("name", ["cpp", "triton", "cuda"])
def test_a_backend_that_is_not_there_says_why(name: str) -> None:
    with pytest.raises(RuntimeError, match=f"backend must be one that can run here; got '{name}': .*backend=None"):
        backends.select("tunable_conv2d", name, torch.ones(1))


def test_triton_names_what_it_takes() -> None:
    pytest.importorskip("triton")
    reason = backends.unavailable_reason("tunable_conv2d", "triton", torch.ones(1))
    assert reason == (
        "it takes CUDA tensors (CPU ones only where TRITON_INTERPRET=1 was set before the import), got one on cpu"
    )
    reason = backends.unavailable_reason("tunable_conv3d", "triton", torch.ones(1))
    assert reason == "this version has no Triton kernel for tunable_conv3d"


def test_unknown_name_lists_the_known() -> None:
    with pytest.raises(
        ValueError, match="backend must be None or one of 'torch', 'reference', 'cpp', 'triton', 'cuda'; got 'x'"
    ):
        backends.select("tunable_conv2d", "x")
