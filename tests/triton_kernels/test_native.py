"""Calls that C++ serves from their plans: the same launches as Python's, without Python, and what goes to Python still.

Triton's own launcher and the C++ one reach a driver that runs nothing, so values are compared only where PyTorch's
operators compute them.
"""

import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor
from tunable_ops.bench.stand_in_driver import Driver, Launched

from tests.triton_kernels.native_cases import OP, Case, each, forward, in_python, named, served
from tunable_ops import tunable_conv2d
from tunable_ops.backends.triton import native


@each
def test_a_forward_pass_launches_what_python_does(driver: Driver, unused_memory: None, case: Case) -> None:
    def run(*tensors: Any) -> Tensor:
        return OP(*tensors, *case.options())

    before = native.counts()
    first, output = forward(case, driver, run)
    assert served(before) == (0, 1)
    ours, again = forward(case, driver, run)
    assert served(before) == (1, 1)
    theirs, planned = forward(case, driver, in_python(case))
    assert ours == theirs == first
    assert bool(ours) == (case.kernels <= 16)
    assert all(one.block == (one.block[0], 1, 1) and one.block[0] in (32, 64, 128, 256) for one in ours)
    for other in (again, planned):
        assert (other.shape, other.stride(), other.dtype) == (output.shape, output.stride(), output.dtype)


def step(case: Case, driver: Driver) -> tuple[list[Launched], list[Any]]:
    leaves = [None if t is None else t.requires_grad_() for t in case.tensors()]
    wanted = [t for t in leaves if t is not None]
    output = OP(*leaves, *case.options())
    driver.take()
    grad = torch.randn_like(output)
    found = torch.autograd.grad(output, wanted, grad)
    names = {f"leaf {i}": t for i, t in enumerate(leaves)} | {f"gradient {i}": t for i, t in enumerate(found)}
    assert [(g.shape, g.stride(), g.dtype) for g in found] == [(t.shape, t.stride(), t.dtype) for t in wanted]
    return named(driver.take(), {"grad": grad, **names}), list(found)


@each
def test_a_backward_pass_launches_what_python_does(driver: Driver, unused_memory: None, case: Case) -> None:
    before = native.counts()
    first, _ = step(case, driver)
    assert served(before) == (0, 2)
    ours, _ = step(case, driver)
    assert served(before) == (2, 2)
    native.serve_no_more("cpu")  # now the autograd.Function, plans and launches of Python
    theirs, _ = step(case, driver)
    native.serve("cpu")
    assert served(before) == (2, 2)
    assert ours == theirs
    assert [one._replace(parameters=()) for one in ours] == [one._replace(parameters=()) for one in first]


@pytest.mark.parametrize("mask", [(True, False, False, False), (False, True, True, False), (False, False, False, True)])
def test_some_gradients(driver: Driver, mask: tuple[bool, ...]) -> None:
    case, grads = Case(), []
    for _ in range(2):
        leaves = [t.requires_grad_(need) for t, need in zip(case.tensors(), mask, strict=True)]
        output = OP(*leaves, *case.options())
        before = native.counts()
        output.sum().backward()
        grads.append([None if t.grad is None else (t.grad.shape, t.grad.stride()) for t in leaves])
        assert [t.grad is not None for t in leaves] == list(mask)
    assert served(before) == (1, 0) and grads[0] == grads[1]


def test_values_of_pytorchs_operators(driver: Driver) -> None:
    """17 kernels take the torch backend: all of the plan is calls, whose results are real."""
    case = Case(kernels=17, dtype=torch.float32, activation="gelu")
    before = native.counts()
    for repeat in range(3):
        leaves = [t.requires_grad_() for t in case.tensors()]
        output = OP(*leaves, *case.options())
        grad = torch.randn_like(output)
        found = torch.autograd.grad(output, leaves, grad)
        definition = tunable_conv2d(*leaves, padding=1, activation="gelu", backend="reference")
        torch.testing.assert_close(output, definition)
        torch.testing.assert_close(found, torch.autograd.grad(definition, leaves, grad), rtol=1e-4, atol=1e-4)
        assert served(before) == (2 * repeat, 2)


def test_an_empty_batch_stays_in_python(driver: Driver) -> None:
    case = Case(batch=0)
    before = native.counts()
    for _ in range(2):
        leaves = [t.requires_grad_() for t in case.tensors()]
        output = OP(*leaves, *case.options())
        output.sum().backward()
        assert output.shape == (0, 16, 9, 8)
        assert [t.grad.shape for t in leaves] == [t.shape for t in leaves] and not leaves[1].grad.any()
    assert served(before)[1] >= 2 and not driver.take()


@pytest.mark.parametrize("rows", [(3,), (2, 3)], ids=str)
def test_blends_launch_what_python_does(driver: Driver, unused_memory: None, rows: tuple[int, ...]) -> None:
    op = torch.ops.tunable_ops.tunable_parameter_triton

    def run() -> tuple[list[Launched], list[Launched]]:
        parameter, alpha = torch.randn(3, 6, 5).requires_grad_(), torch.rand(rows).requires_grad_()
        driver.take()
        with torch.no_grad():
            plain = op(parameter, alpha)
        output = op(parameter, alpha)
        first = named(driver.take(), {"parameter": parameter, "alpha": alpha, "plain": plain, "output": output})
        grad = torch.randn_like(output)
        found = torch.autograd.grad(output, (parameter, alpha), grad)
        assert output.shape == (*rows[:-1], 6, 5)
        assert [g.shape for g in found] == [parameter.shape, alpha.shape]
        given = {"parameter": parameter, "alpha": alpha, "grad": grad}
        return first, named(driver.take(), {**given, "grad 0": found[0], "grad 1": found[1]})

    before = native.counts()
    first = run()
    assert served(before) == (1, 2)
    ours = run()
    assert served(before) == (4, 2)
    native.serve_no_more("cpu")
    theirs = run()
    native.serve("cpu")
    assert ours == theirs and ours[0] == first[0] and len(ours[0]) == 2 and ours[1]


@pytest.mark.parametrize("agrees", [True, False])
def test_what_cpp_repeats_is_checked(driver: Driver, monkeypatch: pytest.MonkeyPatch, agrees: bool) -> None:
    """Once for each compiled kernel; the stand-in computes nothing, so the comparison is one too."""
    compared = []
    monkeypatch.setattr(native, "_same", lambda *results: compared.append(results) or agrees)
    native.serve_no_more("cpu")
    native.serve("cpu", checked=True)
    case, before = Case(), native.counts()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(3):
            OP(*case.tensors(), *case.options())
        assert len(compared) == 1
        assert compared[0][0].shape == compared[0][1].shape == (2, 16, 9, 8)
        OP(*case._replace(size=(9, 16)).tensors(), *case.options())  # the same kernel with another plan
    assert len(compared) == 1
    assert native.serves("cpu") is agrees
    assert served(before) == ((3, 2) if agrees else (1, 4))
    texts = [str(w.message) for w in said if w.category is RuntimeWarning]
    assert len(texts) == (0 if agrees else 1) and all("go through Python now" in text for text in texts)


def test_the_same_bits() -> None:
    one = torch.tensor([1.0, math.nan, -math.inf])
    assert native._same(one, one.clone()) and native._same((one, None), [one.clone(), None])
    for other in ([1.0, math.nan, math.inf], [math.nextafter(1.0, 2), math.nan, -math.inf], [1.0, 0.0, -math.inf]):
        assert not native._same(one.double(), torch.tensor(other, dtype=torch.float64))
    assert not native._same((one, None), (one, one))


def test_the_public_function_reaches_cpp(driver: Driver) -> None:
    case = Case()
    for _ in range(2):
        tunable_conv2d(*case.tensors(), padding=1, backend="triton")
    before = native.counts()
    driver.take()
    tensors = case.tensors()
    output = tunable_conv2d(*tensors, padding=1, backend="triton")
    assert served(before) == (1, 0)
    (launch,) = driver.take()
    assert launch.parameters[:5] == tuple(t.data_ptr() for t in (*tensors, output))
    with pytest.raises(ValueError, match=r"^tunable_conv2d: padding"):
        tunable_conv2d(*tensors, padding=-1, backend="triton")
