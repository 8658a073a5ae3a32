"""backend="triton" through the operator, in the interpreter: wiring, layouts, edge cases, transforms."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tunable_ops.triton_kernels import INTERPRETED

from tests.comparison import assert_agrees
from tests.ops.conv2d_cases import ALPHAS, Case, kernels_last, options_of
from tests.triton_kernels.kernel_cases import NOT_INTERPRETED
from tunable_ops import functional, reference, tunable_conv2d
from tunable_ops.backends.triton import native

pytestmark = pytest.mark.skipif(not INTERPRETED, reason=NOT_INTERPRETED)


def gradients(function: Any, tensors: list[Any], case: Case, **options: Any) -> list[torch.Tensor]:
    leaves = [
        None if t is None else t.detach().clone(memory_format=torch.preserve_format).requires_grad_() for t in tensors
    ]
    output = function(*leaves, *case.geometry, **options)
    return [output, *torch.autograd.grad(output.sum(), [t for t in leaves if t is not None])]


@pytest.mark.parametrize("activation", [None, "relu", "gelu", "silu", "leaky_relu"])
@pytest.mark.parametrize("alpha", ALPHAS)
def test_agrees(alpha: str, activation: str | None) -> None:
    case = Case(size=(5, 4), kernels=2)
    for channels_last, dtype in ((True, torch.float32), (False, torch.float16)):
        tensors = case.tensors(alpha, dtype, channels_last)
        out = gradients(tunable_conv2d, tensors, case, activation=activation, backend="triton")
        base = gradients(reference.tunable_conv2d, tensors, case, activation=activation)
        ref = gradients(
            reference.tunable_conv2d, [None if t is None else t.double() for t in tensors], case, activation=activation
        )
        for o, r, b in zip(out, ref, base, strict=True):
            assert_agrees(o, r, b)
        assert out[0].is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


@pytest.mark.parametrize("alpha", ["shared", "sample"])
@pytest.mark.parametrize("taps", [1, 3])
def test_unusual_strides(alpha: str, taps: int) -> None:
    case = Case(channels=4, outputs=4, size=(5, 6), taps=(taps, taps), padding=(taps // 2, taps // 2), kernels=2)
    x, weight, bias, a = case.tensors(alpha, torch.float32)
    wide = torch.randn(2, 8, 10, 12)
    wide[:, ::2, 1::2, ::2] = x
    expected = gradients(reference.tunable_conv2d, [x, weight, bias, a], case)
    bias_t = bias.T.contiguous().T
    for variant, kernel in (
        (wide[:, ::2, 1::2, ::2], weight.transpose(0, 1).contiguous().transpose(0, 1)),
        (x.transpose(2, 3).contiguous().transpose(2, 3), kernels_last(weight)),
    ):
        for o, e in zip(
            gradients(tunable_conv2d, [variant, kernel, bias_t, a], case, backend="triton"), expected, strict=True
        ):
            torch.testing.assert_close(o, e)


def test_only_what_is_asked_for() -> None:
    case = Case(size=(4, 5), kernels=2)
    tensors = case.tensors("sample", torch.float32)
    full = gradients(tunable_conv2d, tensors, case, backend="triton")[1:]
    for wanted in range(4):
        leaves = [t.clone().requires_grad_(i == wanted) for i, t in enumerate(tensors)]
        tunable_conv2d(*leaves, *case.geometry, backend="triton").sum().backward()
        assert [leaf.grad is not None for leaf in leaves] == [i == wanted for i in range(4)]
        torch.testing.assert_close(leaves[wanted].grad, full[wanted])


def test_empty_batch_and_unbatched() -> None:
    case = Case(batch=0)
    for alpha in ("shared", "sample"):
        out = gradients(tunable_conv2d, case.tensors(alpha, torch.float32), case, backend="triton")
        assert out[0].shape == (0, 5, 9, 11)
        assert not any(bool(g.any()) for g in out[1:])
    x, weight, bias, a = Case(batch=1).tensors("shared", torch.float32)
    out = tunable_conv2d(x[0], weight, bias, a, padding=1, backend="triton")
    torch.testing.assert_close(out, reference.tunable_conv2d(x[0], weight, bias, a, padding=1))


def test_more_kernels_than_a_launch_takes() -> None:
    case = Case(kernels=17, size=(3, 4))
    tensors = case.tensors("sample", torch.float32)
    for o, r in zip(
        gradients(tunable_conv2d, tensors, case, backend="triton"),
        gradients(reference.tunable_conv2d, tensors, case),
        strict=True,
    ):
        torch.testing.assert_close(o, r)


def test_conv1d() -> None:
    x, weight, bias, a = torch.randn(2, 3, 9), torch.randn(2, 4, 3, 3), torch.randn(2, 4), torch.rand(2, 2)
    out = functional.tunable_conv1d(x, weight, bias, a, padding=1, backend="triton")
    torch.testing.assert_close(out, functional.tunable_conv1d(x, weight, bias, a, padding=1, backend="reference"))


@pytest.mark.parametrize("alpha", ALPHAS)
def test_repeated_calls(alpha: str) -> None:
    """The second and third call of a kind repeat what the first one did, on tensors of their own."""
    from tunable_ops.backends.triton import plans

    plans.forget()
    case = Case(size=(5, 4), kernels=2)
    for _ in range(3):
        tensors = case.tensors(alpha, torch.float32)
        out = gradients(tunable_conv2d, tensors, case, activation="relu", backend="triton")
        base = gradients(reference.tunable_conv2d, tensors, case, activation="relu")
        ref = gradients(reference.tunable_conv2d, [t.double() for t in tensors], case, activation="relu")
        for o, r, b in zip(out, ref, base, strict=True):
            assert_agrees(o, r, b)
        again = gradients(tunable_conv2d, tensors, case, activation="relu", backend="triton")
        assert all(map(torch.equal, out, again))
    kept = list(plans._PLANS.values())
    assert len(kept) == 2 and all(isinstance(plan, plans.Plan) for plan in kept)


@pytest.fixture
def autograd_of_cpp() -> Iterator[None]:
    """The operators with the launcher's autograd, on the interpreter's values."""
    from tunable_ops.bench import stand_in_driver

    if (reason := stand_in_driver.unavailable_reason()) is not None:
        pytest.skip(reason)
    native.use(stand_in_driver.launcher())
    names = [f"tunable_{name}_triton" for name in ("conv2d", "parameter")]
    ops = [getattr(torch.ops.tunable_ops, name + end).default for name in names for end in ("", "_backward")]

    def forget_keys() -> None:  # tracing keeps which key of an operator has a kernel
        for op in ops:
            op._dispatch_cache.clear()

    forget_keys()
    native.serve("cpu")
    yield
    native.serve_no_more("cpu")
    forget_keys()


@pytest.mark.parametrize("activation", [None, "relu", "silu"])
@pytest.mark.parametrize("alpha", ALPHAS)
def test_gradients_by_cpp(autograd_of_cpp: None, alpha: str, activation: str | None) -> None:
    case = Case(size=(5, 4), kernels=2)
    tensors = case.tensors(alpha, torch.float32)
    before = native.counts()
    ours = gradients(tunable_conv2d, tensors, case, activation=activation, backend="triton")
    assert native.counts() == (before[0], before[1] + 2)
    native.serve_no_more("cpu")
    theirs = gradients(tunable_conv2d, tensors, case, activation=activation, backend="triton")
    assert all(map(torch.equal, ours, theirs))


def test_opcheck_and_compile_by_cpp(autograd_of_cpp: None) -> None:
    test_opcheck_and_compile()
    parameter, alpha = torch.randn(2, 3, 4, requires_grad=True), torch.rand(2, 2, requires_grad=True)
    torch.library.opcheck(torch.ops.tunable_ops.tunable_parameter_triton.default, (parameter, alpha))


def test_opcheck_and_compile() -> None:
    case = Case(size=(3, 4), kernels=2)
    tensors = [t.requires_grad_() for t in case.tensors("sample", torch.float32)]
    options = options_of(case, "silu")
    torch.library.opcheck(torch.ops.tunable_ops.tunable_conv2d_triton.default, (*tensors, *options))

    def function(*leaves: torch.Tensor) -> torch.Tensor:
        return tunable_conv2d(*leaves, *case.geometry, activation="silu", backend="triton")

    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(*tensors), function(*tensors))


@pytest.mark.parametrize("alpha_shape", [(3,), (2, 3)])
@pytest.mark.parametrize("shape", [(3,), (3, 1), (3, 4, 5), (3, 4, 5, 3, 3), (3, 600)])
def test_tunable_parameter(shape: tuple[int, ...], alpha_shape: tuple[int, ...]) -> None:
    stack, alpha = torch.randn(shape), torch.rand(alpha_shape)
    variants = [stack, stack.mT.contiguous().mT if len(shape) > 2 else stack.expand(3, *shape[1:])]
    for variant in [*variants, kernels_last(stack)] if len(shape) == 5 else variants:
        out, base, ref = (
            _parameter(variant.detach().to(dtype).requires_grad_(), alpha.to(dtype).requires_grad_(), backend)
            for backend, dtype in (
                ("triton", torch.float32),
                ("reference", torch.float32),
                ("reference", torch.float64),
            )
        )
        for o, r, b in zip(out, ref, base, strict=True):
            assert_agrees(o, r, b)


def _parameter(stack: torch.Tensor, alpha: torch.Tensor, backend: str) -> list[torch.Tensor]:
    output = functional.tunable_parameter(stack, alpha, backend=backend)
    return [
        output,
        *torch.autograd.grad((output * torch.arange(output.numel()).view(output.shape)).sum(), (stack, alpha)),
    ]


@pytest.mark.parametrize(
    "processors, chunk, dtype", [(1, 5, torch.float32), (16, 5, torch.float32), (16, 3, torch.bfloat16)]
)
def test_contraction(processors: int, chunk: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several slots, partial sums and calls; every gradient alone; the same bits again."""
    from tunable_ops.backends.triton import tunable_parameter

    monkeypatch.setattr(tunable_parameter, "multiprocessors", lambda _: processors)
    samples, splits, kernels = 5, 7, 2
    weight, bias = torch.randn(kernels, 13, 10, dtype=dtype), torch.randn(kernels, 13, dtype=dtype)
    alpha = torch.rand(samples, kernels)
    parts, shift = torch.randn(samples, splits, 130), torch.randn(samples, splits, 13)

    def run(*mask: bool) -> list[torch.Tensor | None]:
        contraction = tunable_parameter.Contraction(weight, bias, alpha, mask, splits, chunk)
        assert contraction.tiles.slots > 1 or processors == 1
        for start in range(0, samples, chunk):
            part = slice(start, min(start + chunk, samples))
            contraction.add(part, parts[part].flatten(0, 1), shift[part].flatten(0, 1))
        return list(contraction.result())

    full = run(True, True, True)
    whole = parts.sum(1, dtype=torch.float64)
    a, w, s = alpha.double(), weight.flatten(1).double(), shift.sum(1, dtype=torch.float64)
    expected = [(a.mT @ whole).view(weight.shape), a.mT @ s, whole @ w.mT + s @ bias.double().mT]
    for found, right, rounded in zip(full, expected, (dtype, dtype, torch.float32), strict=True):
        assert found is not None and found.dtype == rounded
        close = {} if rounded == torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-4}
        torch.testing.assert_close(found, right.to(rounded), **close)
    for wanted in range(3):
        alone = run(*(i == wanted for i in range(3)))
        assert [one is not None for one in alone] == [i == wanted for i in range(3)]
        assert torch.equal(alone[wanted], full[wanted])  # type: ignore[arg-type]


def test_a_network_in_one_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stacks have several dtypes, sizes and layouts; those that cannot be blended together are blended one by one."""
    from tunable_ops import backends

    monkeypatch.setattr(backends, "select", lambda op, name, *tensors: "torch" if name else "triton")
    stacks = [
        torch.randn(2, 700),
        torch.randn(3, 4, 5).half(),
        kernels_last(torch.randn(3, 4, 5, 3, 3)),
        torch.randn(2, 4, 6)[:, :, ::2],
        torch.randn(2, 5).double(),
        torch.randn(1, 3),
    ]
    alpha, starts = torch.rand(4), [0, 1, 1, 2, 0, 3]
    for _ in range(2):
        blends = [torch.full_like(stack[0], float("nan")) for stack in stacks]
        functional.blend_into(stacks, alpha, starts, blends)
        for plain, expected in zip(blends, reference.tunable_parameters(stacks, alpha, starts), strict=True):
            torch.testing.assert_close(plain, expected)


def test_live_fold(monkeypatch: pytest.MonkeyPatch) -> None:
    import tunable_ops
    from tunable_ops import backends

    plain = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Conv2d(4, 2, 1))
    net = tunable_ops.convert(plain, num_params=2)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter)
    x, lam = torch.randn(1, 3, 6, 6), torch.tensor([0.3, 0.7])
    expected = net(x, lam)
    monkeypatch.setattr(backends, "select", lambda op, name, *tensors: "torch" if name else "triton")
    live = tunable_ops.LiveFold(net)
    live.set(lam)
    torch.testing.assert_close(live(x), expected)
