"""tunable_parameters: values, gradients, layouts, dtypes, errors and transforms."""

import pytest
import torch
from torch import Tensor

from tests.comparison import assert_agrees
from tunable_ops import functional, reference
from tunable_ops.backends import unavailable_reason

STARTS = [0, 2, 2, 0, 1, 4, 3]
BACKENDS = [
    "torch",
    pytest.param(
        "cpp",
        marks=pytest.mark.skipif(
            unavailable_reason("tunable_parameters", "cpp") is not None, reason="needs the compiled operators"
        ),
    ),
]


def stacks(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Return stacks of about one block: contiguous, channels_last, not dense, empty, and with one kernel."""
    torch.manual_seed(0)
    last = torch.randn(3 * 4, 5, 3, 3).contiguous(memory_format=torch.channels_last).unflatten(0, (3, 4))
    made = [torch.randn(2, 16385), torch.randn(3, 4, 5), last, torch.randn(2, 130, 129)]
    made += [torch.randn(2, 4, 6)[:, :, ::2], torch.randn(1, 3), torch.randn(2, 0, 3)]
    return [stack.to(dtype) for stack in made]


def alpha(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(5, generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.mark.parametrize("out", [None, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_values(backend: str, dtype: torch.dtype, out: torch.dtype | None) -> None:
    made = functional.tunable_parameters(stacks(dtype), alpha(), STARTS, dtype=out, backend=backend)
    exact = reference.tunable_parameters([s.double() for s in stacks(dtype)], alpha().double(), STARTS)
    base = reference.tunable_parameters(stacks(dtype), alpha(), STARTS, out)
    for stack, got, ref, plain in zip(stacks(dtype), made, exact, base, strict=True):
        assert got.dtype == (out or dtype)
        assert got.is_contiguous() or got.stride() == stack.stride()[1:]
        assert_agrees(got, ref, plain)


@pytest.mark.parametrize("backend", BACKENDS)
def test_special_numbers(backend: str) -> None:
    """Rounding to even, overflow, subnormals, infinity and NaN match torch's own casts."""
    values = torch.tensor([65519.0, 65520.0, 1e-7, 6e-8, 2.9e-8, 1 + 2**-11, 1 + 3 * 2**-11, 1 + 2**-8, 3.4e38])
    values = torch.cat([values, -values, torch.tensor([torch.inf, -torch.inf, torch.nan, 0.0, -0.0])])
    for dtype in (torch.float16, torch.bfloat16):
        (made,) = functional.tunable_parameters([values[None]], torch.ones(1), dtype=dtype, backend=backend)
        torch.testing.assert_close(made, values.to(dtype), rtol=0, atol=0, equal_nan=True)
        (back,) = functional.tunable_parameters([made[None]], torch.ones(1), dtype=torch.float32, backend=backend)
        torch.testing.assert_close(back, made.float(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients(backend: str, dtype: torch.dtype) -> None:
    """Only requested gradients are computed, None for an unused blend, from expanded and transposed grad_outputs."""
    results = []
    for name in (backend, "reference"):
        leaves = [stack.requires_grad_(i != 4) for i, stack in enumerate(stacks(dtype))]
        values = alpha(dtype if dtype == torch.float64 else torch.float32).requires_grad_()
        blends = functional.tunable_parameters(leaves, values, STARTS, backend=name)
        loss = blends[0].sum() + (blends[3].T * blends[3].T).sum() + blends[2].square().sum() + blends[4].sum()
        loss.backward()
        assert leaves[1].grad is None
        assert leaves[4].grad is None
        results.append([leaves[0].grad, leaves[2].grad, leaves[3].grad, values.grad])
        assert leaves[2].grad.stride() == leaves[2].stride()
    tolerance = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float64: 1e-10}[dtype]
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck(backend: str) -> None:
    def run(a: Tensor, b: Tensor, values: Tensor) -> tuple[Tensor, ...]:
        return tuple(functional.tunable_parameters([a, b], values, [0, 1], backend=backend))

    tensors = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((2, 3), (2, 2, 2), (3,))]
    torch.autograd.gradcheck(run, tensors)
    torch.autograd.gradgradcheck(run, tensors)


@pytest.mark.parametrize("backend", BACKENDS)
def test_same_bits_with_any_number_of_threads(backend: str) -> None:
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            leaves = [stack.requires_grad_() for stack in stacks()]
            values = alpha().requires_grad_()
            blends = functional.tunable_parameters(leaves, values, STARTS, backend=backend)
            results.append(torch.autograd.grad(sum(b.square().sum() for b in blends[:4]), [*leaves[:4], values]))
    finally:
        torch.set_num_threads(before)
    if backend == "cpp":  # the sums of PyTorch depend on it
        for other in results[1:]:
            assert all(map(torch.equal, results[0], other))


def test_opcheck_and_transforms() -> None:
    pair = [torch.randn(2, 3, requires_grad=True), torch.randn(2, 4, 2)]
    values = torch.rand(3, requires_grad=True)
    backend = "torch" if unavailable_reason("tunable_parameters", "cpp") else "cpp"
    op = getattr(torch.ops.tunable_ops, f"tunable_parameters_{backend}").default
    torch.library.opcheck(op, (pair, values, [0, 1], torch.bfloat16))
    rows = torch.rand(4, 3)
    swept = torch.func.vmap(lambda row: functional.tunable_parameters(pair, row, [0, 1])[1])(rows)
    expected = torch.stack([functional.tunable_parameters(pair, row, [0, 1])[1] for row in rows])
    torch.testing.assert_close(swept, expected)


def test_autocast_takes_its_dtype_unless_told() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert functional.tunable_parameters([torch.ones(1, 2)], torch.ones(1))[0].dtype == torch.bfloat16
        same = functional.tunable_parameters([torch.ones(1, 2)], torch.ones(1), dtype=torch.float32)
        assert same[0].dtype == torch.float32


def test_blend_into_keeps_addresses() -> None:
    """Some outputs have the layout of their stack, others do not."""
    sources = [*stacks(), torch.randn(2, 4, 5)]
    outputs = [torch.full_like(stack[0], torch.nan) for stack in sources[:-1]]
    outputs += [torch.full((5, 4), torch.nan).T]
    outputs[1] = outputs[1].half()
    addresses, versions = [o.data_ptr() for o in outputs], [o._version for o in outputs]
    functional.blend_into(sources, alpha(), [*STARTS, 3], outputs)
    for output, expected in zip(outputs, reference.tunable_parameters(sources, alpha(), [*STARTS, 3]), strict=True):
        torch.testing.assert_close(output, expected.to(output.dtype))
    assert [o.data_ptr() for o in outputs] == addresses
    assert all(o._version > v for o, v in zip(outputs, versions, strict=True))


ONE = torch.ones(2, 3)


@pytest.mark.parametrize(
    ("parameters", "values", "options", "error", "text"),
    [
        ([ONE], "a", {}, TypeError, "alpha must be a Tensor; got str"),
        ([ONE], torch.ones(2, dtype=torch.int), {}, TypeError, "alpha must be float32.*got torch.int32"),
        ([ONE], torch.ones(2).double(), {}, TypeError, "alpha must be float32 or have.*got torch.float64"),
        (["a"], torch.ones(2), {"starts": [0]}, TypeError, "parameters must be Tensors; got str"),
        ([ONE.int()], torch.ones(2), {}, TypeError, "parameters must be float32.*got torch.int32"),
        ([ONE], torch.ones(2), {"dtype": torch.int8}, TypeError, "dtype must be float32.*got torch.int8"),
        ([ONE], torch.ones(1, 2), {}, ValueError, r"alpha must be \[A\].*got shape \[1, 2\]"),
        ([ONE, ONE], torch.ones(2), {"starts": [0]}, ValueError, "starts must hold one index per parameter, 2; got 1"),
        ([ONE], torch.ones(2), {"starts": [1]}, ValueError, "starts must leave P = 2 of the 2 values.*got 1"),
        ([ONE], torch.ones(2), {"starts": [-1]}, ValueError, "starts must leave P = 2 of the 2 values.*got -1"),
        ([torch.ones(())], torch.ones(2), {}, ValueError, r"parameters must be \[P, \*shape\].*got shape \[\]"),
        ([ONE.to("meta")], torch.ones(2), {}, ValueError, "parameters must be on the device of alpha.*got meta"),
        ([ONE], torch.ones(2), {"backend": "no"}, ValueError, "backend must be None or one of"),
        ([ONE], torch.ones(2), {"backend": "cuda"}, RuntimeError, "has no cuda kernel for tunable_parameters"),
    ],
    ids=lambda v: str(v)[:20],
)
def test_errors(parameters: list, values: object, options: dict, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=f"^tunable_parameters: .*{text}"):
        functional.tunable_parameters(parameters, values, **options)


def test_nothing_to_blend() -> None:
    assert functional.tunable_parameters([], torch.ones(0)) == []
