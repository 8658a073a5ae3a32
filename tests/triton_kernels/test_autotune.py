"""Autotuning as far as possible without a GPU: candidates of a problem compute the same; the list for an audit."""

import pytest
import torch
from tunable_ops.triton_kernels import INTERPRETED

from tests.triton_kernels.kernel_cases import NOT_INTERPRETED


@pytest.mark.skipif(torch.cuda.is_available(), reason="tells what happens without a CUDA device")
def test_needs_a_gpu() -> None:
    pytest.importorskip("triton")
    from tunable_ops.triton_kernels.autotune import autotune

    with pytest.raises(RuntimeError, match="autotune: the kernels must be able to run here: it needs a CUDA device"):
        autotune([])


@pytest.mark.skipif(torch.cuda.is_available(), reason="acts as if there were a CUDA device")
def test_not_while_a_graph_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    from tunable_ops.triton_kernels.autotune import autotune

    for name in ("is_available", "is_current_stream_capturing"):
        monkeypatch.setattr(torch.cuda, name, lambda: True)
    with pytest.raises(RuntimeError, match="the kernels must be able to run here: a CUDA graph is being captured"):
        autotune([])


@pytest.mark.skipif(not INTERPRETED, reason=NOT_INTERPRETED)
@pytest.mark.parametrize(
    "direction, alpha",
    [
        *((d, a) for d in ("forward", "input", "weight") for a in ("shared", "sample")),
        ("input", "map"),
        ("alpha", "map"),
    ],
)
@pytest.mark.parametrize("kind", ["dense", "pointwise", "depthwise"])
def test_candidates_agree(kind: str, direction: str, alpha: str) -> None:
    from tunable_ops.triton_kernels.autotune import _candidates
    from tunable_ops.triton_kernels.choose_algorithm import Problem
    from tunable_ops.triton_kernels.plan_problem import make_operands

    if kind == "pointwise" and (direction == "weight" or alpha == "map"):
        kind = "dense"
    sizes = (1, 1, 3) if kind == "depthwise" else (3, 5, 1)
    taps = (1, 1) if kind == "pointwise" else (3, 3)
    problem = Problem(direction, kind, alpha, "float32", "nhwc", 2, 2, *sizes, taps, (1, 1), (4, 3))
    operands = make_operands(problem, "cpu")
    if direction != "forward":
        operands.y.normal_()
    expected = None
    # One of each kind and the last, which is "library" if there is one: interpreted launches are slow.
    tried = list(_candidates(problem, operands))
    for _, run, result in [tried[0], tried[-1]]:
        run()
        value = result().float()
        expected = value if expected is None else expected
        torch.testing.assert_close(value, expected)


def test_audit_cases_are_distinct_and_complete() -> None:
    pytest.importorskip("triton")
    from tunable_ops.triton_kernels.audit_cases import cases

    found = list(cases())
    assert len({c.name for c in found}) == len(found)
    kernels = {c.launch.kernel.__name__ for c in found}
    assert kernels == {
        "_tunable_conv2d_forward_kernel",
        "_tunable_conv2d_pointwise_kernel",
        "_tunable_conv2d_depthwise_kernel",
        "_tunable_conv2d_depthwise_rows_kernel",
        "_tunable_conv2d_weight_kernel",
        "_tunable_conv2d_map_input_kernel",
        "_tunable_conv2d_depthwise_weight_kernel",
        "_tunable_conv2d_depthwise_weight_rows_kernel",
        "_tunable_parameter_forward_kernel",
        "_tunable_parameter_backward_kernel",
        "_tunable_parameter_sum_kernel",
        "_tunable_parameters_forward_kernel",
        "_tunable_parameters_backward_kernel",
        "_tunable_parameters_sum_kernel",
    }
    assert {c.launch.kernel.__name__ for c in found if c.quick} >= kernels
