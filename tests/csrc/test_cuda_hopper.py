"""The source of the wgmma kernel without a GPU: boxes, swizzles, descriptors, barriers and products are emulated."""

import shutil
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from tests.csrc import emulated
from tests.csrc.test_cuda_emulated import integers
from tests.ops.conv2d_cases import Case, options_of
from tunable_ops import reference
from tunable_ops.reference.activation import CODES

# Named by the kernel's tile (channels per step x outputs per block) and its edge case.
CASES = {
    "16x32-two-columns": Case(channels=8, outputs=40, size=(9, 66), kernels=2, padding=(2, 1)),
    "16x32-7x7": Case(batch=1, channels=16, outputs=8, size=(8, 9), kernels=3, taps=(7, 7), padding=(3, 0)),
    "32x32-tail-of-channels": Case(batch=3, channels=24, outputs=32, size=(10, 7), kernels=3, taps=(3, 2)),
    "32x64-wide": Case(channels=32, outputs=56, size=(5, 65), kernels=2, taps=(1, 2), padding=(0, 1)),
    "64x64-three-rows": Case(batch=1, channels=40, outputs=64, size=(7, 5), kernels=2),
    "32x64-three-chunks": Case(batch=2, channels=72, outputs=64, size=(3, 4), kernels=1),
    "64x128-two-rows-five-kernels": Case(
        channels=64, outputs=136, size=(16, 8), kernels=5, taps=(1, 1), padding=(0, 0)
    ),
    "64x128-one-row": Case(batch=1, channels=64, outputs=120, size=(3, 9), kernels=2, bias=False),
}


@pytest.fixture(autouse=True, scope="module")
def _operators() -> Iterator[None]:
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    torch.ops.load_library(emulated.build())
    yield


@pytest.fixture(params=["halo", "columns"])
def boxes(request: pytest.FixtureRequest) -> Iterator[str]:
    """Boxes that all column shifts of the kernel read, or one box for each."""
    torch.ops.tunable_ops_emulated.use_columns(torch.tensor(float(request.param == "columns")))
    yield request.param
    torch.ops.tunable_ops_emulated.use_columns(torch.tensor(0.0))


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, case: Case, act: str | None = None) -> Tensor:
    return torch.ops.tunable_ops_emulated.tunable_conv2d_wgmma(x, weight, bias, a, *options_of(case)[:-1], CODES[act])


@pytest.mark.parametrize("alpha", ["shared", "sample"])
@pytest.mark.parametrize("name", CASES)
def test_integers_are_exact(name: str, alpha: str) -> None:
    """Every sum is exact in fp32, whatever its order; some cases run in bfloat16."""
    case = CASES[name]
    dtype = torch.bfloat16 if alpha == "shared" and case.kernels == 2 else torch.float16
    tensors = [None if t is None else integers(t, 1).to(dtype) for t in case.tensors(alpha, dtype, True)]
    out = forward(*tensors, case)
    ref = reference.tunable_conv2d(*(None if t is None else t.double() for t in tensors), *case.geometry)
    assert torch.equal(out, ref.to(dtype)), (out.double() - ref).abs().max()
    assert out.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", ["16x32-two-columns", "32x32-tail-of-channels"])
def test_the_gradient_of_the_input_is_the_same_kernel(name: str, boxes: str) -> None:
    case = CASES[name]
    x, weight, bias, a = (integers(t, 1).half() for t in case.tensors("sample", torch.float16, True))
    grad = torch.randint(-1, 2, (case.batch, case.outputs, *case.grid)).half()
    op = torch.ops.tunable_ops_emulated.tunable_conv2d_wgmma_input
    leaf = x.double().requires_grad_()
    ref = reference.tunable_conv2d(leaf, weight.double(), bias.double(), a.double(), *case.geometry)
    expected = torch.autograd.grad(ref, leaf, grad.double())[0]
    out = op(grad, x, weight, a, *options_of(case)[:-1])
    assert torch.equal(out, expected.half()), (out.double() - expected).abs().max()
    assert torch.equal(forward(x, weight, bias, a, case), ref.half())


@pytest.mark.parametrize("act", ["relu", "gelu", "silu", "leaky_relu"])
def test_activations_and_layouts(act: str) -> None:
    """Slices and contiguous inputs are converted; alpha may have another dtype."""
    case = Case(batch=2, channels=16, outputs=16, size=(5, 6), kernels=2)
    x, weight, bias, a = case.tensors("sample", torch.float16, True)
    ref = reference.tunable_conv2d(*(t.double() for t in (x, weight, bias, a)), *case.geometry, activation=act)
    wide = torch.zeros(2, 32, 5, 6, dtype=torch.float16).index_copy_(1, torch.arange(0, 32, 2), x)
    for variant in (x, wide[:, ::2], x.contiguous()):
        out = forward(variant, weight, bias, a.float(), case, act)
        assert (out.double() - ref).abs().max() <= 2**-10 * ref.abs().max()


@pytest.mark.parametrize("act", ["relu", "leaky_relu", "gelu", "silu"])
def test_nan_passes_activations(act: str) -> None:
    case = Case(batch=1, channels=8, outputs=8, size=(5, 6), kernels=1)
    x, weight, bias, a = case.tensors("shared", torch.float16, True)
    x[0, 3, 2, 4] = float("nan")
    out = forward(x, weight, bias, a, case, act)
    ref = reference.tunable_conv2d(*(t.float() for t in (x, weight, bias, a)), *case.geometry, activation=act)
    assert torch.equal(out.isnan(), ref.isnan())
    assert 0 < out.isnan().sum() < out.numel()


def test_whether_it_is_ready() -> None:
    """The check of the first use runs for a call, and for the gradient of its input; what is not served is no error."""
    case = Case(channels=8, outputs=16, size=(5, 6), kernels=2)
    x, weight, _, a = case.tensors("sample", torch.float16, True)
    op = torch.ops.tunable_ops_emulated.tunable_conv2d_wgmma_prepare
    for gradient in (False, True):
        assert op(x, weight, a, *options_of(case)[:-1], 0, gradient)
        assert not op(x.float(), weight.float(), a.float(), *options_of(case)[:-1], 0, gradient)


@pytest.mark.parametrize(
    "case, dtype, text",
    [
        (Case(channels=16, outputs=16), torch.float32, "fp16 or bf16"),
        (Case(channels=16, outputs=16, stride=(2, 1)), torch.float16, "stride and dilation 1"),
        (Case(channels=16, outputs=16, groups=2), torch.float16, "groups 1"),
        (Case(channels=12, outputs=16), torch.float16, "multiples of 8"),
        (Case(channels=16, outputs=5), torch.float16, "multiples of 8"),
        (Case(channels=512, outputs=8), torch.float16, "fit the shared memory"),
        (Case(channels=8, outputs=8, taps=(8, 1)), torch.float16, "fit the shared memory"),
    ],
    ids=str,
)
def test_what_it_does_not_serve_is_named(case: Case, dtype: torch.dtype, text: str) -> None:
    with pytest.raises(RuntimeError, match=f"the wgmma kernel must be given .*{text}"):
        forward(*case.tensors("shared", dtype, True), case)


def test_kernels_must_be_in_channels_last() -> None:
    case = Case(channels=16, outputs=16)
    x, weight, bias, a = case.tensors("shared", torch.float16, True)
    with pytest.raises(RuntimeError, match="the wgmma kernel must be given kernels in channels_last"):
        forward(x, weight.contiguous(), bias, a, case)
