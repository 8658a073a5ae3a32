"""The Triton kernels on a GPU: exactness of every configuration, random shapes against float64, and launches."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.comparison import assert_agrees
from tests.ops.conv2d_cases import ALPHAS, CASES, Case, options_of
from tests.triton_kernels.kernel_cases import check
from tunable_ops import reference, tunable_conv2d

pytest.importorskip("triton")
from tunable_ops.triton_kernels.audit_cases import name_of, problems
from tunable_ops.triton_kernels.choose_algorithm import Problem
from tunable_ops.triton_kernels.plan_problem import Operands, candidates, make_operands, plan_problem

pytestmark = [pytest.mark.gpu, pytest.mark.compiles(4)]
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def on_gpu(case: Case, alpha: str, dtype: torch.dtype, channels_last: bool = True, device: str = "cuda") -> list[Any]:
    return [None if t is None else t.to(device) for t in case.tensors(alpha, dtype, channels_last)]


def gradients(function: Any, tensors: list[Any], case: Case, grad: Tensor, **options: Any) -> list[Tensor]:
    leaves = [
        None if t is None else t.detach().clone(memory_format=torch.preserve_format).requires_grad_() for t in tensors
    ]
    output = function(*leaves, *case.geometry, **options)
    return [output, *torch.autograd.grad(output, [t for t in leaves if t is not None], grad.to(output.dtype))]


@pytest.mark.parametrize(
    "problem",
    [
        pytest.param(p, marks=pytest.mark.compiles(5 + len(candidates(p))))
        for p in dict.fromkeys(p for p, _ in problems())
    ],
    ids=name_of,
)
def test_every_configuration_is_exact_on_integers(problem: Problem) -> None:
    check_exact(problem, "cuda")


def check_exact(problem: Problem, device: str) -> None:
    """Check on small integers, whose products and sums are exact, so that a wrong term cannot hide in rounding."""
    # A tenth of the audited size, with tails; the compiled constants are the same.
    small = problem._replace(batch=3, size=(min(problem.size[0], 19), min(problem.size[1], 21)))
    operands = make_operands(small, device)
    for tensor in (operands.x, operands.y, operands.weight, operands.bias):
        tensor.copy_(torch.randint(-2, 3, tensor.shape))
    if operands.alpha is not None:
        operands.alpha.copy_(torch.randint(-1, 2, operands.alpha.shape))
    expected = _expected(small, operands)
    with conv_precision("tf32" if problem.dtype == "tf32" else "ieee"):
        for config in candidates(problem):
            launches, target = plan_problem(small, operands, config)
            if small.direction in ("forward", "input"):
                target.fill_(float("nan"))
                launches, target = plan_problem(small, operands, config)  # it zeroes pixels that no tap reaches
            for launch in launches:
                launch.run()
            found = target.double()
            if small.direction in ("weight", "alpha"):
                found = found.sum(1 if small.direction == "weight" else 0)
            assert torch.equal(found, expected), f"{name_of(problem)} {config}"


@contextmanager
def conv_precision(name: str) -> Iterator[None]:
    before = torch.backends.cudnn.conv.fp32_precision
    torch.backends.cudnn.conv.fp32_precision = name
    try:
        yield
    finally:
        torch.backends.cudnn.conv.fp32_precision = before


def _expected(problem: Problem, operands: Operands) -> Tensor:
    x, weight, bias, alpha, y, geometry = operands
    x, weight, bias, y = (t.double() for t in (x, weight, bias, y))
    options = (*geometry[:3], problem.groups)
    if alpha is None:  # a different kernel for every sample
        alpha = torch.eye(problem.batch, device=x.device)
    alpha = alpha.double()
    if problem.direction == "forward":
        output = reference.tunable_conv2d(x, weight, bias, alpha, *options)
        return output.to(operands.y.dtype).double()
    if problem.direction == "weight" and problem.alpha != "map":
        shared = problem.alpha == "shared"
        weight = torch.zeros(1 if shared else problem.batch, *weight.shape[1:], dtype=torch.double, device=x.device)
        alpha = torch.ones(1).to(x) if shared else torch.eye(problem.batch).to(x)
    leaf = {"input": x, "weight": weight, "alpha": alpha}[problem.direction].requires_grad_()
    output = reference.tunable_conv2d(x, weight, bias if problem.direction == "alpha" else None, alpha, *options)
    (gradient,) = torch.autograd.grad(output, leaf, y)
    return gradient.to(operands.x.dtype).double() if problem.direction == "input" else gradient


@pytest.mark.compiles(5)
@pytest.mark.parametrize("seed", range(60))
def test_random_shapes(seed: int) -> None:
    draw = random.Random(seed)
    groups = draw.choice((1, 1, 1, 2, 3))
    taps = draw.choice(((1, 1), (3, 3), (3, 3), (5, 5), (2, 3), (7, 7)))
    dilation = draw.choice((1, 1, 2))
    case = Case(
        batch=draw.randint(1, 5),
        channels=groups * draw.choice((1, 3, 16, 31, 32, 48, 64, 129)),
        outputs=groups * draw.choice((1, 3, 16, 17, 64, 65, 128)),
        size=(draw.randint(14, 70), draw.randint(14, 70)),
        taps=taps,
        stride=draw.choice(((1, 1), (1, 1), (2, 2), (2, 1), (3, 2))),
        padding=(draw.randint(0, taps[0] // 2), draw.randint(0, taps[1] // 2)),
        dilation=(dilation, dilation),
        groups=groups,
        kernels=draw.choice((1, 2, 3, 5, 16)),
        bias=draw.random() < 0.7,
    )
    _agrees(case, draw.choice(ALPHAS), draw.choice(DTYPES), draw.random() < 0.7, draw.choice((None, "relu", "silu")))


def _agrees(case: Case, alpha: str, dtype: torch.dtype, channels_last: bool, activation: str | None) -> None:
    tensors = on_gpu(case, alpha, dtype, channels_last)
    grad = torch.randn(case.batch, case.outputs, *case.grid, device="cuda").to(dtype)
    options = {"activation": activation}
    out = gradients(tunable_conv2d, tensors, case, grad, backend="triton", **options)
    base = gradients(reference.tunable_conv2d, tensors, case, grad, **options)
    ref = gradients(
        reference.tunable_conv2d, [None if t is None else t.double() for t in tensors], case, grad, **options
    )
    for name, o, r, b in zip(("output", "x", "w", "b", "a"), out, ref, base, strict=False):
        assert_agrees(o, r, b, f"{case} {alpha} {name}")


@pytest.mark.parametrize("index, case", list(enumerate(CASES)), ids=str)
def test_cases(index: int, case: Case) -> None:
    """Every kind of alpha; dtypes and layouts alternate, because each combination needs a compilation."""
    for turn, alpha in enumerate(ALPHAS, start=index):
        _agrees(case, alpha, DTYPES[turn % 3], turn % 2 == 0, None)


@pytest.mark.parametrize(
    "algorithm, alpha", [(n, a) for n in ("fused", "premix") for a in ("shared", "sample")] + [("library", "shared")]
)
def test_algorithms(alpha: str, algorithm: str) -> None:
    for case in (CASES[0], CASES[2], CASES[8]):
        check(case, alpha, torch.float16, algorithm=algorithm, device="cuda")


def test_the_default_takes_triton() -> None:
    from tunable_ops import backends

    assert backends.select("tunable_conv2d", None, torch.ones(1, device="cuda")) == "triton"
    assert backends.select("tunable_conv2d", None, torch.ones(1, device="cuda", dtype=torch.double)) == "torch"


def test_opcheck() -> None:
    case = CASES[0]
    for alpha in ("shared", "sample", "map"):
        tensors = [t.requires_grad_() for t in on_gpu(case, alpha, torch.float32)]
        options = options_of(case, "silu")
        torch.library.opcheck(torch.ops.tunable_ops.tunable_conv2d_triton.default, (*tensors, *options))


@pytest.mark.parametrize("alpha", ["shared", "sample"])
def test_compile(alpha: str) -> None:
    case = Case(channels=16, outputs=32, size=(20, 24), kernels=2)
    tensors = [t.requires_grad_() for t in on_gpu(case, alpha, torch.float32)]

    def function(*leaves: Tensor) -> Tensor:
        return tunable_conv2d(*leaves, *case.geometry, activation="gelu")

    compiled = torch.compile(function, fullgraph=True)
    expected = function(*tensors)
    torch.testing.assert_close(compiled(*tensors), expected)
    grads = (torch.autograd.grad(f(*tensors).square().sum(), tensors) for f in (compiled, function))
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("alpha", ["shared", "sample"])
def test_graph_replay_follows_alpha(alpha: str) -> None:
    for case in (Case(channels=32, outputs=32, size=(33, 31), kernels=2), CASES[2], CASES[8]):
        tensors = on_gpu(case, alpha, torch.float16)
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for _ in range(3):
                tunable_conv2d(*tensors, *case.geometry)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = tunable_conv2d(*tensors, *case.geometry)
        for _ in range(3):
            tensors[3].copy_(torch.rand_like(tensors[3]))
            graph.replay()
            assert torch.equal(output, tunable_conv2d(*tensors, *case.geometry))


@pytest.mark.parametrize("alpha", ["sample", "map"])
def test_graph_replay_of_a_training_step(alpha: str) -> None:
    case = Case(channels=32, outputs=32, size=(33, 31), stride=(2, 2), kernels=2)
    tensors = [t.requires_grad_() for t in on_gpu(case, alpha, torch.float16)]
    grad = torch.randn(case.batch, case.outputs, *case.grid, device="cuda", dtype=torch.float16)

    def step() -> list[Tensor]:
        output = tunable_conv2d(*tensors, *case.geometry, activation="silu", backend="triton")
        return [output, *torch.autograd.grad(output, tensors, grad)]

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for _ in range(2):
        with torch.no_grad():
            tensors[3].copy_(torch.rand_like(tensors[3]))
        graph.replay()
        for value, expected in zip(captured, step(), strict=True):
            assert torch.equal(value, expected)


def test_a_side_stream() -> None:
    """The kernel runs on the current stream after work queued there, not on the default stream."""
    case = Case(channels=16, outputs=16, size=(64, 64), kernels=2)
    x, *rest = on_gpu(case, "sample", torch.float16)
    expected = tunable_conv2d(x, *rest, *case.geometry)
    late = torch.zeros_like(x)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)
        late.copy_(x)
        output = tunable_conv2d(late, *rest, *case.geometry)
    stream.synchronize()
    assert torch.equal(output, expected)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_plans_of_cpp_compute_the_same(alpha: str) -> None:
    """The first calls run in Python, the others in C++: eagerly, and in a captured graph."""
    from tunable_ops.backends.triton import native, plans

    if not native.serves("cuda"):
        pytest.skip(f"the launcher is not there: {native.missing()}")
    case = Case(channels=16, outputs=24, size=(12, 20), kernels=2)
    tensors = on_gpu(case, alpha, torch.bfloat16)
    grad = torch.randn(case.batch, 24, 12, 20, device="cuda").to(memory_format=torch.channels_last)
    plans.forget()
    first = gradients(tunable_conv2d, tensors, case, grad, activation="silu", backend="triton")
    gradients(tunable_conv2d, tensors, case, grad, activation="silu", backend="triton")
    before = native.counts()
    again = gradients(tunable_conv2d, tensors, case, grad, activation="silu", backend="triton")
    assert native.counts() == (before[0] + 2, before[1])
    graph = torch.cuda.CUDAGraph()
    tunable_conv2d(*tensors, *case.geometry, activation="silu", backend="triton")
    with torch.cuda.graph(graph):
        captured = tunable_conv2d(*tensors, *case.geometry, activation="silu", backend="triton")
    graph.replay()
    torch.cuda.synchronize()
    assert all(map(torch.equal, first, again))
    torch.testing.assert_close(captured, first[0])


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_a_device_that_is_not_current() -> None:
    case = CASES[0]
    tensors = on_gpu(case, "sample", torch.float16, device="cuda:1")
    with torch.cuda.device(0):
        output = tunable_conv2d(*tensors, *case.geometry, backend="triton")
    assert output.device == torch.device("cuda:1")
    torch.testing.assert_close(output, reference.tunable_conv2d(*tensors, *case.geometry), rtol=1e-2, atol=1e-2)


def test_memory_of_a_forward_pass() -> None:
    """The fused kernel allocates only its output."""
    case = Case(batch=8, channels=64, outputs=64, size=(64, 64), kernels=2)
    tensors = on_gpu(case, "sample", torch.bfloat16)
    tunable_conv2d(*tensors, *case.geometry)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    output = tunable_conv2d(*tensors, *case.geometry)
    assert torch.cuda.max_memory_allocated() - before <= output.numel() * output.element_size() + (1 << 16)


def test_memory_of_the_gradients_of_a_map() -> None:
    """In addition to the gradients it takes at most two tensors of the output's size, not P."""
    case = Case(batch=4, channels=32, outputs=32, size=(192, 192), kernels=8)
    tensors = [t.requires_grad_() for t in on_gpu(case, "map", torch.float16)]
    output = tunable_conv2d(*tensors, *case.geometry, backend="triton")
    grad = torch.randn_like(output)
    torch.autograd.grad(output, tensors, grad, retain_graph=True)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    gradients = torch.autograd.grad(output, tensors, grad)
    results = sum(g.numel() * g.element_size() for g in gradients)
    assert torch.cuda.max_memory_allocated() - before <= results + 2 * output.numel() * output.element_size()


def test_more_than_two_to_the_31_elements() -> None:
    """Offsets of samples must be 64-bit, as the last sample shows."""
    case = Case(batch=9, channels=64, outputs=8, size=(2048, 2048), taps=(1, 1), padding=(0, 0), kernels=2)
    if torch.cuda.get_device_properties(0).total_memory < 24 << 30:
        pytest.skip("needs 24 GB")
    x = torch.randn(9, 64, 2048, 2048, device="cuda", dtype=torch.float16)
    x = x.to(memory_format=torch.channels_last)
    _, weight, bias, alpha = on_gpu(case, "sample", torch.float16)
    for a in (alpha, alpha[0]):
        output = tunable_conv2d(x, weight, bias, a, backend="triton")
        last = tunable_conv2d(x[-1:], weight, bias, a[-1:] if a.dim() == 2 else a, backend="triton")
        assert torch.equal(output[-1:], last)


def test_tf32_follows_the_setting() -> None:
    case = Case(channels=64, outputs=64, size=(32, 32), kernels=2)
    tensors = on_gpu(case, "sample", torch.float32)
    ref = reference.tunable_conv2d(*[t.double() for t in tensors], *case.geometry)
    errors = {}
    for precision in ("ieee", "tf32"):
        with conv_precision(precision):
            output = tunable_conv2d(*tensors, *case.geometry, backend="triton")
        errors[precision] = ((output - ref).norm() / ref.norm()).item()
    assert errors["ieee"] < 1e-6
    assert 1e-5 < errors["tf32"] < 1e-2


def test_live_fold_in_one_launch() -> None:
    import tunable_ops

    plain = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3), torch.nn.ReLU(), torch.nn.Conv2d(16, 8, 1)).cuda()
    net = tunable_ops.convert(plain, num_params=2).to(memory_format=torch.channels_last)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter)
    x, live = torch.randn(2, 3, 16, 16, device="cuda"), tunable_ops.LiveFold(net)
    for lam in ([0.3, 0.7], [1.0, 0.0]):
        live.set(lam)
        torch.testing.assert_close(live(x), net(x, lam), rtol=1e-4, atol=1e-4)


def test_autotuning_writes_a_table(tmp_path: Any) -> None:
    from tunable_ops.triton_kernels.autotune import autotune
    from tunable_ops.triton_kernels.choose_algorithm import load_table

    shape = Problem("forward", "dense", "sample", "bfloat16", "nhwc", 2, 2, 32, 32, 1, (3, 3), (1, 1), (32, 32))
    wanted = [shape, shape._replace(direction="input"), shape._replace(direction="weight", alpha="shared")]
    assert set(load_table(autotune(wanted, tmp_path / "table.json", repeats=3))) == set(wanted)


@pytest.mark.parametrize("alpha", ["shared", "sample", "map"])
@pytest.mark.parametrize("case", [CASES[0], CASES[2], CASES[5], CASES[8]], ids=str)
def test_sanitizer(case: Case, alpha: str) -> None:
    """The smallest launches that reach every kernel, for compute-sanitizer."""
    check(case, alpha, torch.float16, device="cuda")
