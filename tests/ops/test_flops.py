"""FLOP formulas: the convolution's own count plus the blend, forward and backward."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

import tunable_ops
from tunable_ops import tunable_conv2d

B, C, O, P, N = 2, 3, 4, 5, 8  # noqa: E741
KERNEL = O * C * 9
CONV = 2 * B * N * N * KERNEL


def count(function) -> int:
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


@pytest.mark.parametrize("rows", [(), (B,)])
def test_conv2d(rows: tuple[int, ...]) -> None:
    x, w, b = torch.randn(B, C, N, N), torch.randn(P, O, C, 3, 3), torch.randn(P, O)
    a = torch.rand(*rows, P)
    blend = 2 * P * (KERNEL + O) * (rows[0] if rows else 1)
    assert count(lambda: F.conv2d(x, w[0], b[0], padding=1)) == CONV
    assert count(lambda: tunable_conv2d(x, w, b, a, padding=1)) == CONV + blend
    for t in (x, w, b, a):
        t.requires_grad_()
    assert count(lambda: tunable_conv2d(x, w, b, a, padding=1).sum().backward()) == 3 * CONV + 4 * blend


def test_only_the_gradients_that_are_asked_for_count() -> None:
    x, w, a = torch.randn(B, C, N, N), torch.randn(P, O, C, 3, 3), torch.rand(P, requires_grad=True)
    blend = 2 * P * KERNEL
    assert count(lambda: tunable_conv2d(x, w, None, a, padding=1).sum().backward()) == 2 * CONV + 2 * blend


def test_map() -> None:
    x, w, a = torch.randn(B, C, N, N), torch.randn(P, O, C, 3, 3), torch.rand(B, P, N, N)
    assert count(lambda: tunable_conv2d(x, w, None, a, padding=1)) == P * (CONV + 2 * B * O * N * N)


def test_parameter_and_the_operators_that_premix() -> None:
    w, a = torch.randn(P, O, C), torch.rand(P)
    assert count(lambda: tunable_ops.tunable_parameter(w, a)) == 2 * P * O * C
    x = torch.randn(7, C)
    assert count(lambda: tunable_ops.tunable_linear(x, w, None, a)) == 2 * P * O * C + 2 * 7 * O * C


def test_importing_the_package_registers_the_formulas() -> None:
    """An operator without a registered formula silently counts as zero."""
    code = (
        "import torch, tunable_ops\n"
        "from torch.utils.flop_counter import FlopCounterMode\n"
        "with FlopCounterMode(display=False) as counter:\n"
        "    tunable_ops.tunable_conv2d(torch.ones(1, 1, 2, 2), torch.ones(2, 1, 1, 1, 1), None, torch.ones(2))\n"
        "print(counter.get_total_flops())\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.stdout.strip() == str(2 * 4 + 2 * 2), result.stderr
