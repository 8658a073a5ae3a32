"""The sources of the CUDA operators, host and device, run without a GPU: exact on integers, close to the reference."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.comparison import assert_agrees
from tests.csrc import emulated
from tests.ops.conv2d_cases import CASES, Case, options_of
from tunable_ops import reference

# Vectorised channels, several tiles, and the edges of both; the shared cases take the paths without vectors.
VECTORS = [
    Case(channels=32, outputs=40, kernels=2),
    Case(batch=3, channels=16, outputs=24, size=(10, 7), kernels=4),  # outputs in one narrow tile
    Case(channels=72, outputs=72, size=(6, 13), kernels=3, taps=(3, 2)),  # a tail of channels and of outputs
    Case(channels=16, outputs=16, size=(9, 10), kernels=5, stride=(2, 2)),  # blended in a pass of its own
    Case(channels=16, outputs=8, size=(11, 10), kernels=2, taps=(4, 3), stride=(3, 2), padding=(2, 1), dilation=(2, 3)),
    Case(channels=16, outputs=8, size=(8, 8), kernels=2, taps=(1, 1), stride=(2, 3), padding=(0, 0)),  # empty phases
    Case(channels=48, outputs=32, size=(5, 9), kernels=2, groups=2),
    Case(batch=1, channels=8, outputs=136, size=(7, 5), kernels=16, taps=(1, 1), padding=(0, 0)),
    Case(batch=5, channels=24, outputs=40, size=(3, 4), kernels=2),  # a gradient per chunk; the others take one for all
    Case(batch=9, channels=16, outputs=8, size=(4, 3), kernels=3),  # three gradients per chunk
    Case(channels=8, outputs=8, size=(24, 23), kernels=2),  # segments of the weight gradient
    Case(channels=3, outputs=8, size=(20, 30), kernels=2),  # vectors of outputs only; two segments
    Case(channels=16, outputs=16, size=(19, 21), kernels=2, groups=16),  # depthwise from here on
    Case(channels=24, outputs=24, size=(9, 17), kernels=3, groups=24, taps=(5, 4), stride=(2, 1), padding=(2, 0)),
    Case(channels=8, outputs=8, size=(9, 17), kernels=3, groups=8, taps=(3, 8), padding=(1, 4)),
    Case(batch=1, channels=72, outputs=72, size=(9, 5), kernels=2, groups=72),
]
# bfloat16 differs from float16 only in conversions and one instruction, which the comparisons below cover.
DTYPES = [torch.float32, torch.float16, pytest.param(torch.bfloat16, marks=pytest.mark.slow)]
# Every third vectorised case in fp32: its tiles differ from the 16-bit ones, the arithmetic around them does not.
IN_VECTORS = [
    pytest.param(
        case,
        dtype,
        id=f"{case}-{dtype}",
        marks=[] if dtype is torch.float16 or (i % 3 == 0 and dtype is torch.float32) else [pytest.mark.slow],
    )
    for i, case in enumerate(VECTORS)
    for dtype in (torch.float16, torch.float32, torch.bfloat16)
]


@pytest.fixture(autouse=True, scope="module")
def _operators() -> Iterator[None]:
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    torch.ops.load_library(emulated.build())
    yield


def run(function: Any, tensors: list[Any], case: Case, act: str | None, grad: Tensor) -> list[Tensor]:
    """Return the output and the gradients of all tensors."""
    leaves = [None if t is None else t.detach().clone(memory_format=torch.preserve_format) for t in tensors]
    wanted = [t.requires_grad_() for t in leaves if t is not None]
    output = function(*leaves, *case.geometry, activation=act)
    return [output, *torch.autograd.grad(output, wanted, grad)]


def integers(like: Tensor, most: int) -> Tensor:
    """Draw small integers in the layout of `like`."""
    return torch.empty_like(like).copy_(torch.randint(-most, most + 1, like.shape))


def check_exact(case: Case, alpha: str, dtype: torch.dtype, channels_last: bool) -> None:
    """Check that results equal the reference rounded once: all sums are exact in fp32."""
    tensors = [None if t is None else integers(t, 2).to(dtype) for t in case.tensors(alpha, dtype, channels_last)]
    grad = torch.randint(-1, 2, (case.batch, case.outputs, *case.grid)).to(dtype)
    out = run(emulated.tunable_conv2d, tensors, case, None, grad)
    ref = run(reference.tunable_conv2d, [t if t is None else t.double() for t in tensors], case, None, grad.double())
    for i, (o, r) in enumerate(zip(out, ref, strict=True)):
        assert torch.equal(o, r.to(dtype)), f"result {i} of {case}: {(o.double() - r).abs().max()}"
    if channels_last:
        assert out[0].is_contiguous(memory_format=torch.channels_last)
        assert out[1].is_contiguous(memory_format=torch.channels_last)
    else:
        assert out[0].is_contiguous()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_integers_are_exact(case: Case, dtype: torch.dtype) -> None:
    for alpha in ("shared", "sample"):
        for channels_last in (False, True):
            check_exact(case, alpha, dtype, channels_last)


@pytest.mark.parametrize("case, dtype", IN_VECTORS)
def test_integers_are_exact_in_vectors(case: Case, dtype: torch.dtype) -> None:
    for alpha, channels_last in (("shared", True), ("sample", True), ("sample", False)):
        check_exact(case, alpha, dtype, channels_last)


@pytest.mark.slow
@pytest.mark.parametrize("alpha", ["shared", "sample"])
def test_a_tile_of_128_pixels(alpha: str) -> None:
    """More than two waves of tiles use the large tile."""
    case = Case(batch=3, channels=8, outputs=40, size=(110, 111), taps=(3, 1), padding=(1, 0), kernels=2)
    tensors = [integers(t, 2) for t in case.tensors(alpha, torch.float16, True)]
    ref = reference.tunable_conv2d(*(t.double() for t in tensors), *case.geometry)
    assert torch.equal(emulated.tunable_conv2d(*tensors, *case.geometry), ref.half())


@pytest.fixture
def tf32() -> Iterator[None]:
    before = torch.backends.cudnn.conv.fp32_precision
    torch.backends.cudnn.conv.fp32_precision = "tf32"
    yield
    torch.backends.cudnn.conv.fp32_precision = before


@pytest.mark.usefixtures("tf32")
@pytest.mark.parametrize("case", [VECTORS[0], VECTORS[1], VECTORS[4], CASES[0]], ids=str)
def test_tf32(case: Case) -> None:
    """Small integers are exact in TF32 too; other values show that it was used."""
    for alpha in ("shared", "sample"):
        check_exact(case, alpha, torch.float32, True)
    x, weight, bias, a = case.tensors("sample", torch.float32, True)
    out = emulated.tunable_conv2d(x, weight, bias, a, *case.geometry)
    ref = reference.tunable_conv2d(*(t.double() for t in (x, weight, bias, a)), *case.geometry)
    error = (out - ref).abs().max() / ref.abs().max()
    assert 2e-6 < error < 2e-3


@pytest.mark.parametrize("act", [None, "relu", "gelu", "silu", "leaky_relu"])
@pytest.mark.parametrize("case", [CASES[0], CASES[8], Case(channels=16, outputs=8, size=(5, 6))], ids=str)
def test_low_precision_agrees(case: Case, act: str | None) -> None:
    for dtype in (torch.float16, torch.bfloat16):
        for alpha in ("shared", "sample"):
            tensors = case.tensors(alpha, dtype, True)
            grad = torch.randn(case.batch, case.outputs, *case.grid).to(dtype)
            out = run(emulated.tunable_conv2d, tensors, case, act, grad)
            base = run(reference.tunable_conv2d, tensors, case, act, grad)
            wide = [t if t is None else t.double() for t in tensors]
            ref = run(reference.tunable_conv2d, wide, case, act, grad.double())
            for i, (o, r, b) in enumerate(zip(out, ref, base, strict=True)):
                assert_agrees(o, r, b, f"result {i}")


@pytest.mark.parametrize("case", [CASES[0], CASES[5], CASES[8], VECTORS[1]], ids=str)
def test_fp32_agrees(case: Case) -> None:
    """The bound is fixed, because sums have another order and longer runs than those of PyTorch on a CPU."""
    for alpha in ("shared", "sample"):
        tensors = case.tensors(alpha, torch.float32, True)
        grad = torch.randn(case.batch, case.outputs, *case.grid)
        out = run(emulated.tunable_conv2d, tensors, case, "silu", grad)
        wide = [t if t is None else t.double() for t in tensors]
        for o, r in zip(out, run(reference.tunable_conv2d, wide, case, "silu", grad.double()), strict=True):
            torch.testing.assert_close(o.double(), r, rtol=1e-5, atol=2e-6 * r.abs().max().item())


def test_a_long_sum_in_fp32() -> None:
    """The expected error of 9216 pixels in a single sum is 39 * 2**-24, in sums of 128 pixels 5 * 2**-24."""
    case = Case(batch=1, channels=64, outputs=64, size=(96, 96), kernels=1, taps=(1, 1), padding=(0, 0), bias=False)
    x, weight, _, a = case.tensors("shared", torch.float32, True)
    grad = torch.randn(1, 64, 96, 96)
    op = torch.ops.tunable_ops_emulated.tunable_conv2d_cuda_backward
    ones = torch.ones_like(a)
    got = op(grad, None, x, weight, None, ones, *options_of(case), [False, True, False, False])[1]
    ref = torch.einsum("bohw,bchw->oc", grad.double(), x.double())
    error = (got.double().view(64, 64) - ref).square().mean().sqrt() / ref.square().mean().sqrt()
    assert error < 8 * 2**-24


@pytest.mark.parametrize("wanted", range(4))
def test_only_what_is_asked_for(wanted: int) -> None:
    for case in (CASES[0], CASES[8]):
        tensors = case.tensors("sample", torch.float32)
        grad = torch.randn(case.batch, case.outputs, *case.grid)
        full = run(emulated.tunable_conv2d, tensors, case, None, grad)[1:]
        mask = [i == wanted for i in range(4)]
        op = torch.ops.tunable_ops_emulated.tunable_conv2d_cuda_backward
        grads = op(grad, None, *tensors, *options_of(case), mask)
        for i, g in enumerate(grads):
            assert torch.equal(g, full[i]) if i == wanted else g.numel() == 0


def test_strides_of_any_kind() -> None:
    """Sliced, expanded and transposed tensors, an alpha of another dtype, and unaligned addresses."""
    case = Case(channels=16, outputs=8, size=(6, 6), kernels=2)
    x, weight, bias, a = (integers(t, 2) for t in case.tensors("sample", torch.float16, True))
    expected = reference.tunable_conv2d(*(t.double() for t in (x, weight, bias, a)), *case.geometry)
    wide = torch.zeros(2, 32, 12, 12, dtype=torch.float16)
    wide[:, ::2, 1::2, ::2] = x
    shifted = torch.zeros(x.numel() + 1, dtype=torch.float16)[1:].view(2, 6, 6, 16).permute(0, 3, 1, 2).copy_(x)
    stacks = [weight, weight.contiguous(), weight.transpose(0, 1).contiguous().transpose(0, 1), weight.flip(0)]
    for variant in (x, wide[:, ::2, 1::2, ::2], x.transpose(2, 3).contiguous().transpose(2, 3), shifted):
        for stack, blend in zip(stacks, (a, a.float(), a.bfloat16(), a.flip(1)), strict=True):
            shift = bias if blend.shape == a.shape and stack is not stacks[3] else bias.flip(0)
            out = emulated.tunable_conv2d(variant, stack, shift, blend, *case.geometry)
            assert torch.equal(out.double(), expected)


def test_same_bits_twice() -> None:
    case = Case(batch=3, channels=5, outputs=6, size=(20, 17), kernels=2)
    for alpha in ("shared", "sample"):
        tensors = case.tensors(alpha, torch.float32)
        grad = torch.randn(case.batch, case.outputs, *case.grid)
        first = run(emulated.tunable_conv2d, tensors, case, None, grad)
        for one, two in zip(first, run(emulated.tunable_conv2d, tensors, case, None, grad), strict=True):
            assert torch.equal(one, two)


def test_bad_arguments_are_named() -> None:
    case = Case(kernels=2)
    op = torch.ops.tunable_ops_emulated.tunable_conv2d_cuda
    for change, text in (
        (lambda x, w, b, a: (x.double(), w, b, a), "input must be float32, bfloat16 or float16"),
        (lambda x, w, b, a: (x, w, b, torch.rand(2, 2, 9, 11)), "alpha must be"),
        (lambda x, w, b, a: (x, w.repeat(9, 1, 1, 1, 1), None, torch.rand(18)), "at most 16 kernels.*got 18"),
    ):
        with pytest.raises(RuntimeError, match=text):
            op(*change(*case.tensors("shared", torch.float32)), *options_of(case))


@pytest.mark.parametrize("name", ["test_geometry", "test_emulator", "test_hopper_emulator"])
def test_on_the_host(name: str, tmp_path: Path) -> None:
    """Run the C++ tests: index arithmetic against loops, and the emulator against seeded faults."""
    check_program(tmp_path / name, "tests/" + name)


def test_the_wgmma_kernel_passes_the_check_of_its_first_use(tmp_path: Path) -> None:
    sources = ("tests/test_hopper_kernel", "tests/emulated_hopper", "cuda/hopper_run", "cuda/hopper_check")
    check_program(tmp_path / "test_hopper_kernel", *sources)


def check_program(program: Path, *sources: str) -> None:
    """Build a C++ test of these files of csrc and run it."""
    flags = ["-std=c++17", "-O1", "-Wall", "-Werror", "-Wno-psabi", "-Wno-unknown-pragmas", "-U_FORTIFY_SOURCE"]
    files = [emulated.ROOT / "csrc" / f"{source}.cpp" for source in sources]
    subprocess.run(["g++", *flags, *files, "-o", program], check=True)
    result = subprocess.run([program], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
