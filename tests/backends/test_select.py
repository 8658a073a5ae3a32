"""Which backend serves a call: named ones are used or raise, the default chooses."""

import pytest

from tunable_ops import backends


def test_default_and_named() -> None:
    assert backends.select("tunable_conv2d", None) == "torch"
    assert backends.select("tunable_conv2d", "torch") == "torch"
    assert backends.select("tunable_conv2d", "reference") == "reference"
    assert [backends.unavailable_reason("tunable_conv2d", name) for name in ("torch", "reference")] == [None, None]


@pytest.mark.parametrize("name", ["cpp", "triton", "cuda"])
def test_a_backend_that_is_not_there_says_why(name: str) -> None:
    with pytest.raises(RuntimeError, match=f"backend must be one that can run here; got '{name}': .*backend=None"):
        backends.select("tunable_conv2d", name)


def test_unknown_name_lists_the_known() -> None:
    with pytest.raises(
        ValueError, match="backend must be None or one of 'torch', 'reference', 'cpp', 'triton', 'cuda'; got 'x'"
    ):
        backends.select("tunable_conv2d", "x")
