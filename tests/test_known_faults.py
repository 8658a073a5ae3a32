"""The faults of docs/known_faults.md: our operators are right where the libraries below fail.

Each fault runs in a process of its own, since some kill it. A test first asserts that our operator is right in the same
situation, then looks whether the library still fails; where it does not, the test is skipped with the word "gone".
"""

import ctypes.util
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import tunable_ops
from tests.ops.conv2d_cases import kernels_last
from tunable_ops import reference

WHERE = f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}"


def process(program: str) -> subprocess.CompletedProcess[str]:
    """Run a program in which glibc checks the heap, where it can."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if sys.platform == "linux" and ctypes.util.find_library("c_malloc_debug"):
        environment |= {"LD_PRELOAD": "libc_malloc_debug.so.0", "MALLOC_CHECK_": "3"}
    return subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)


POINTWISE = """
import torch, tunable_ops
torch.set_num_threads(1)
calls = {calls}
for _ in range(25):
    for call in calls:
        x = torch.randn(5, 7, 10, 12).to(memory_format=torch.channels_last).requires_grad_()
        w = torch.randn(2, 9, 7, 1, 1)
        w = w.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, (2, 9)).requires_grad_()
        y = eval(call)
        y.backward(torch.randn_like(y))
        del x, w, y
"""


def test_pointwise_backward_with_a_stride_keeps_to_its_memory() -> None:
    """oneDNN's writes outside its memory on machines with AVX2, if the channels are no multiple of 8."""
    alphas = ("torch.rand(2)", "torch.rand(5, 2)", "torch.rand(5, 2, 5, 6)")
    names = ["torch", "reference"]
    if tunable_ops.backends.cpp.unavailable_reason("tunable_conv2d") is None:
        names.append("cpp")
    calls = [f"tunable_ops.tunable_conv2d(x, w, None, {a}, 2, backend={n!r})" for a in alphas for n in names]
    ours = process(POINTWISE.format(calls=calls))
    assert ours.returncode == 0, ours.stderr
    if process(POINTWISE.format(calls=["torch.conv2d(x, w[0], None, 2)"])).returncode == 0:
        pytest.skip(f"gone, or out of glibc's sight, in {WHERE}")


class Convolutions(TorchDispatchMode):
    """Record which of PyTorch's convolutions run, forward and backward, as (kernel's sizes, stride)."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[tuple[int, ...], tuple[int, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.convolution.default:
            self.seen.append((tuple(args[1].shape[2:]), tuple(args[3])))
        if func is torch.ops.aten.convolution_backward.default:
            self.seen.append((tuple(args[2].shape[2:]), tuple(args[4])))
        return func(*args, **(kwargs or {}))


def layers() -> dict[str, tuple[Callable[..., Tensor], tuple[int, ...]]]:
    return {
        "conv1d": (lambda x, a, **b: tunable_ops.tunable_conv1d(x, torch.randn(2, 9, 7, 1), None, a, 2, **b), (13,)),
        "conv2d": (lambda x, a, **b: tunable_ops.tunable_conv2d(x, STACK, None, a, (2, 1), 1, **b), (10, 12)),
        "conv3d": (lambda x, a, **b: tunable_ops.tunable_conv3d(x, STACK[..., None], None, a, 2, **b), (4, 5, 6)),
        "transposed": (
            lambda x, a, **b: tunable_ops.tunable_conv_transpose2d(x, STACK.mT.transpose(1, 2), None, a, 2, **b),
            (5, 6),
        ),
    }


STACK = torch.randn(2, 9, 7, 1, 1)


@pytest.mark.parametrize("backend", [None, "torch", "reference"])
@pytest.mark.parametrize("rows", [(), (5,)], ids=["shared", "sample"])
@pytest.mark.parametrize("name", layers())
def test_no_pointwise_convolution_with_a_stride_is_dispatched(
    name: str, rows: tuple[int, ...], backend: str | None
) -> None:
    function, size = layers()[name]
    x = torch.randn(5, 7, *size)
    if x.dim() == 4:
        x = x.to(memory_format=torch.channels_last)
    with Convolutions() as convolutions:
        function(x.requires_grad_(), torch.rand(*rows, 2), backend=backend).sum().backward()
    strided = [(taps, stride) for taps, stride in convolutions.seen if set(taps) == {1} and set(stride) != {1}]
    assert strided == []


def test_no_pointwise_convolution_with_a_stride_in_a_network() -> None:
    plain = torch.nn.Sequential(torch.nn.Conv2d(7, 9, 1, 2), torch.nn.ConvTranspose2d(9, 7, 1, 2))
    net = tunable_ops.convert(plain, 2)
    for lam in ([0.5, 0.5], torch.rand(5, 2)):
        with Convolutions() as convolutions:
            net(torch.randn(5, 7, 10, 12).to(memory_format=torch.channels_last), torch.as_tensor(lam)).sum().backward()
        assert [s for taps, s in convolutions.seen if set(taps) == {1} and set(s) != {1}] == []


@pytest.mark.parametrize("extra", [(0, 0), (1, 0)])
@pytest.mark.parametrize("padding", [0, (1, 0)])
@pytest.mark.parametrize("groups", [1, 2])
def test_transposed_pointwise_with_a_stride(groups: int, padding: Any, extra: tuple[int, int]) -> None:
    x, w = torch.randn(2, 4, 5, 6, dtype=torch.float64), torch.randn(4, 6 // groups, 1, 1, dtype=torch.float64)
    bias, options = torch.randn(6, dtype=torch.float64), ((3, 2), padding, extra, groups)
    right = torch.conv_transpose2d(x, w, bias, *options)
    for backend in ("torch", "reference"):
        out = tunable_ops.tunable_conv_transpose2d(x, w[None], bias[None], torch.ones(1), *options, backend=backend)
        torch.testing.assert_close(out, right)


GROUPED = """
import torch
torch.manual_seed(0)
torch.set_num_threads(1)
last = torch.channels_last
x, w = torch.randn(1, 4, 5, 6, dtype={dtype}), torch.randn(8, 2, {taps}, dtype={dtype}).to(memory_format=last)
results = []
for picture in (x, x.to(memory_format=last)[0][None]):
    kernel = w.detach().requires_grad_()
    y = torch.conv2d(picture, kernel, groups=2)
    y.backward(torch.linspace(-1, 1, y.numel()).view(y.shape).to(y.dtype))
    results.append(kernel.grad)
raise SystemExit(0 if torch.allclose(*results, rtol=0.01, atol=0.01) else 3)
"""


@pytest.mark.parametrize("dtype, taps", [(torch.float64, (3, 3)), (torch.float32, (1, 1))], ids=str)
def test_weight_gradient_of_an_unbatched_channels_last_picture(dtype: torch.dtype, taps: tuple[int, int]) -> None:
    """A picture whose batch stride is not C*H*W: torch's gradient of a grouped kernel is wrong without a word."""
    x = torch.randn(1, 4, 5, 6, dtype=dtype)
    w = kernels_last(torch.randn(2, 8, 2, *taps, dtype=dtype))
    alpha = torch.tensor([0.25, 0.75])
    expected = w.detach().double().contiguous().requires_grad_()
    reference.tunable_conv2d(x.double(), expected, None, alpha, groups=2).square().sum().backward()
    for backend in ("torch", "reference", None):
        for picture in (x.to(memory_format=torch.channels_last)[0], x.to(memory_format=torch.channels_last)[0][None]):
            stack = w.detach().requires_grad_()
            output = tunable_ops.tunable_conv2d(picture, stack, None, alpha, groups=2, backend=backend)
            output.square().sum().backward()
            torch.testing.assert_close(stack.grad.double(), expected.grad, rtol=1e-4, atol=1e-4)
    theirs = process(GROUPED.format(dtype=dtype, taps=", ".join(map(str, taps))))
    if theirs.returncode == 0:
        pytest.skip(f"gone in {WHERE}")
    assert theirs.returncode == 3, theirs.stderr


KERNEL = """
import torch
x, w = torch.randn(2, 4, 5, 6).to(memory_format=torch.channels_last), torch.randn(8, 2, 1, 3)
odd = w.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2).as_strided(w.shape, (6, 1, 7, 2))
try:
    same = torch.allclose(torch.conv2d(x, w, groups=2), torch.conv2d(x, odd, groups=2), atol=1e-4)
except RuntimeError:
    same = False
raise SystemExit(0 if same else 3)
"""


NARROW = """
import torch, tunable_ops
torch.manual_seed(0)
worst = 0.0
for stride, dilation in ((2, 2), (3, 1), (3, 2), ((1, 2), 2), ((1, 3), (2, 1))):
    for batch, alpha in ((3, torch.rand(3, 2)), (3, torch.rand(2))):
        x = torch.randn(batch, 16, 12, 5).contiguous(memory_format=torch.channels_last)
        w = torch.randn(2, 16, 16, 3, 3)
        options = dict(stride=stride, dilation=dilation)
        x, w = x.bfloat16(), w.bfloat16()
        want = tunable_ops.reference.tunable_conv2d(x.double(), w.double(), None, alpha.double(), **options)
        found = {call}
        error = (found.double() - want).abs().max() / want.abs().max()
        worst = max(worst, float("inf") if error.isnan() else error.item())
assert worst < 0.05, worst
"""


@pytest.mark.parametrize("backend", [None, "torch", "cpp"])
def test_bfloat16_one_pixel_wide(backend: str | None) -> None:
    if backend == "cpp" and tunable_ops.backends.cpp.unavailable_reason("tunable_conv2d") is not None:
        pytest.skip("no compiled operators")
    ours = process(NARROW.format(call=f"tunable_ops.tunable_conv2d(x, w, None, alpha, backend={backend!r}, **options)"))
    assert ours.returncode == 0, ours.stderr
    blended = "torch.einsum('bp,poihw->boihw', alpha.expand(3, 2), w.float()).bfloat16()"
    each = f"[torch.conv2d(s[None], k, None, **options) for s, k in zip(x, {blended})]"
    if process(NARROW.format(call=f"torch.cat({each})")).returncode == 0:
        pytest.skip(f"gone, in {WHERE}")


BESIDE = """
import torch, tunable_ops
torch.manual_seed(0)
torch.set_num_threads(1)
options = dict(stride=(1, 3), padding=(0, 2), dilation=(1, 2), groups=2)
x, w, b = torch.randn(1, 16, 7, 1).to(memory_format=torch.channels_last), torch.randn(32, 8, 5, 1), torch.randn(32)
x.requires_grad_(), w.requires_grad_()
for alpha in (torch.ones(1), torch.ones(1, 1), torch.ones(1, 1, 3, 2)):
    y = {call}
    y.sum().backward()
    assert torch.equal(y, b[None, :, None, None].expand_as(y)) and not x.grad.any() and not w.grad.any()
"""


@pytest.mark.parametrize("backend", [None, "torch", "reference", "cpp"])
def test_a_dilation_of_one_tap(backend: str | None) -> None:
    """oneDNN reads address 0 on machines with AVX-512: no output sees the picture."""
    if backend == "cpp" and tunable_ops.backends.cpp.unavailable_reason("tunable_conv2d") is not None:
        pytest.skip("no compiled operators")
    call = f"tunable_ops.tunable_conv2d(x, w[None], b[None], alpha, backend={backend!r}, **options)"
    ours = process(BESIDE.format(call=call))
    assert ours.returncode == 0, ours.stderr
    last = "memory_format=torch.channels_last"
    if process(BESIDE.format(call=f"torch.conv2d(x, w.contiguous({last}), b, **options)")).returncode == 0:
        pytest.skip(f"gone, in {WHERE}")


def test_kernels_of_one_row() -> None:
    """A kernel [8, 2, 1, 3] whose second dimension from the end has a stride of 7: torch's values are wrong."""
    x, w = torch.randn(2, 4, 5, 6).to(memory_format=torch.channels_last), torch.randn(1, 8, 2, 1, 3)
    odd = w.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3).as_strided(w.shape, (48, 6, 1, 7, 2))
    assert torch.equal(odd, w)
    right = reference.tunable_conv2d(x.double(), w.double(), None, torch.ones(1), groups=2)
    for backend in (None, "torch", "reference"):
        out = tunable_ops.tunable_conv2d(x, odd, None, torch.ones(1), groups=2, backend=backend)
        torch.testing.assert_close(out.double(), right, rtol=1e-4, atol=1e-4)
    theirs = process(KERNEL)
    if theirs.returncode == 0:
        pytest.skip(f"gone in {WHERE}")
    assert theirs.returncode == 3, theirs.stderr


COMPILED = """
import torch, tunable_ops.losses
class Double(torch.autograd.Function):
    @staticmethod
    def forward(x):
        y = x * 1
        return y.add_(x)
    @staticmethod
    def setup_context(ctx, inputs, output): pass
    @staticmethod
    def backward(ctx, grad): return grad * 2
x, y = torch.rand(1, 1, 12, 12, requires_grad=True), torch.rand(1, 1, 12, 12)
call = {call}
(want,), (found,) = (torch.autograd.grad(f(x, y).sum(), x) for f in (call, torch.compile(call, backend="aot_eager")))
assert torch.allclose(found, want), (found - want).abs().max()
"""


def test_a_compiled_function_that_writes_in_place() -> None:
    ours = process(COMPILED.format(call="tunable_ops.losses.ssim"))
    assert ours.returncode == 0, ours.stderr
    if process(COMPILED.format(call="lambda x, y: Double.apply(x)")).returncode == 0:
        pytest.skip(f"gone in {WHERE}")
