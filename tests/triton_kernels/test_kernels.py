"""The kernels in Triton's interpreter: values and all gradients against the definition, at the tails of tiles."""

import pytest
import torch
from tunable_ops.triton_kernels import INTERPRETED

from tests.ops.conv2d_cases import CASES, Case
from tests.triton_kernels.kernel_cases import (
    NOT_INTERPRETED,
    check,
    depthwise_cases,
    expected,
    large_tiles,
    run,
    small_tiles,
    tile_cases,
)

pytestmark = pytest.mark.skipif(not INTERPRETED, reason=NOT_INTERPRETED)
DEPTHWISE = CASES[8]
SMALL = Case(channels=3, outputs=5, size=(4, 5), kernels=2)
SMALL_DEPTHWISE = Case(channels=3, outputs=3, groups=3, size=(4, 5), kernels=2)


def alternating(cases: list[Case]) -> list[tuple[Case, str, bool, torch.dtype]]:
    """Return each case with one kind of alpha, layout and dtype, in turn: tails do not depend on these."""
    kinds = [
        ("shared", True, torch.float32),
        ("sample", False, torch.float16),
        ("sample", True, torch.float16),
        ("shared", False, torch.float32),
        ("sample", True, torch.float32),
    ]
    return [(case, *kinds[i % 5]) for i, case in enumerate(cases)]


@pytest.mark.parametrize("case, alpha, channels_last, dtype", alternating(tile_cases() + depthwise_cases()), ids=str)
def test_tails(case: Case, alpha: str, channels_last: bool, dtype: torch.dtype) -> None:
    check(case, alpha, dtype, channels_last, tiles=small_tiles(case))


# Interpreted blocks are slow, so there are fewer depthwise cases and maps, and the largest batch occurs once.
@pytest.mark.parametrize(
    "case, alpha",
    [
        *((c, a) for c in CASES[:-1] if c != DEPTHWISE for a in ("shared", "sample") if a == "sample" or c.groups < 4),
        *((c, "map") for c in (CASES[0], CASES[2], CASES[5], CASES[6])),
        (CASES[-1], "shared"),
    ],
    ids=str,
)
def test_cases(case: Case, alpha: str) -> None:
    check(case, alpha, channels_last=alpha != "map")


@pytest.mark.parametrize("kernels", [1, 2, 5, 16])
@pytest.mark.parametrize("taps", [1, 2])
def test_numbers_of_kernels(kernels: int, taps: int) -> None:
    case = Case(channels=4, outputs=3, size=(3, 4), taps=(taps, taps), padding=(0, 0), kernels=kernels)
    check(case, "sample")
    if taps == 2:
        check(case, "shared", torch.float16, channels_last=False)


@pytest.mark.parametrize("alpha", ["shared", "sample"])
@pytest.mark.parametrize("case", [CASES[0], CASES[2], CASES[6], SMALL_DEPTHWISE], ids=str)
def test_premixed(case: Case, alpha: str) -> None:
    check(case, alpha, algorithm="premix")


@pytest.mark.parametrize("case", [CASES[0], CASES[6]], ids=str)
def test_blended_for_the_library(case: Case) -> None:
    check(case, "shared", algorithm="library")


@pytest.mark.parametrize("activation", ["relu", "leaky_relu"])
@pytest.mark.parametrize("case", [SMALL, CASES[2], SMALL_DEPTHWISE], ids=str)
def test_activations(case: Case, activation: str) -> None:
    check(case, "sample", activation=activation)
    check(case, "shared", algorithm="premix", activation=activation)


@pytest.mark.parametrize("taps, stride, dilation, padding", [(3, 2, 1, 1), (3, 3, 2, 2), (2, 2, 3, 0), (4, 1, 1, 2)])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_geometry(taps: int, stride: int, dilation: int, padding: int, groups: int) -> None:
    case = Case(
        channels=4,
        outputs=4,
        size=(7, 5),
        taps=(taps, taps - 1),
        stride=(stride, 1),
        padding=(padding, 1),
        dilation=(dilation, 1),
        groups=groups,
        kernels=2,
    )
    check(case, "sample", channels_last=groups != 2)


# Geometries and sizes where depthwise kernels differ: several outputs of a channel, many kernels with many taps, seven
# rows of sums, steps and gaps between columns (the row kernel) or rows (the general one), less padding than taps.
ROW_CASES = [
    Case(channels=3, outputs=6, groups=3, size=(6, 7), kernels=2),
    Case(channels=2, outputs=2, groups=2, size=(5, 9), taps=(5, 4), padding=(2, 1), kernels=16),
    Case(channels=2, outputs=2, groups=2, size=(8, 5), taps=(7, 7), padding=(3, 3), kernels=2),
    Case(channels=3, outputs=3, groups=3, size=(5, 11), taps=(3, 2), stride=(1, 2), dilation=(1, 3), kernels=2),
    Case(channels=3, outputs=3, groups=3, size=(7, 6), taps=(2, 3), dilation=(2, 1), kernels=2),
    Case(channels=17, outputs=17, groups=17, size=(9, 19), padding=(0, 2), kernels=2, bias=False),
]


@pytest.mark.parametrize("case", ROW_CASES, ids=str)
def test_depthwise_rows(case: Case) -> None:
    check(case, "sample", tiles=small_tiles(case))
    check(case, "shared", torch.float16, channels_last=False, activation="relu")


# Tails of every dimension, outputs in two parts, groups, phases without a tap, several outputs of a depthwise channel.
MAPS = [
    Case(channels=17, outputs=3, size=(3, 5), kernels=2),
    Case(channels=3, outputs=17, size=(5, 4), stride=(2, 1), kernels=3),
    Case(channels=4, outputs=4, groups=2, size=(7, 5), taps=(2, 1), stride=(3, 2), padding=(1, 0), kernels=2),
    Case(channels=17, outputs=17, groups=17, size=(5, 3), taps=(2, 2), stride=(2, 1), dilation=(1, 2), kernels=2),
    Case(channels=2, outputs=4, groups=2, size=(5, 3), taps=(2, 1), kernels=2),
]


@pytest.mark.parametrize("case", MAPS, ids=str)
def test_maps(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Maps need no convolution with P*O channels, for values or gradients."""
    from tunable_ops.backends.triton import tunable_conv2d

    monkeypatch.delattr(tunable_conv2d, "torch_backend")
    check(case, "map", torch.float16, tiles=small_tiles(case))


@pytest.mark.parametrize(
    "case, alpha, algorithm",
    [
        (SMALL, "shared", "premix"),
        (SMALL, "sample", "premix"),
        (SMALL, "map", "fused"),
        (CASES[2], "shared", "fused"),
        (SMALL_DEPTHWISE, "sample", "fused"),
    ],
    ids=str,
)
def test_the_value_before_the_activation(case: Case, alpha: str, algorithm: str) -> None:
    """It is stored next to the output, by the same launch if the kernel is ours."""
    from tunable_ops.triton_kernels.choose_algorithm import Choice

    from tunable_ops.backends.triton.tunable_conv2d import forward, forward_saving

    choice = Choice(algorithm, large_tiles(case))
    tensors = case.tensors(alpha, torch.float32, channels_last=True)
    output, saved = forward_saving(*tensors, *case.geometry, "silu", choice=choice)
    assert torch.equal(output, forward(*tensors, *case.geometry, "silu", choice))
    assert torch.equal(saved, forward(*tensors, *case.geometry, "none", choice))
    assert saved.stride() == output.stride()


def test_integers_are_exact() -> None:
    """Small integers are exact in every dtype, so off-by-one errors cannot hide in rounding."""
    for case, alpha in ((SMALL, "shared"), (CASES[5], "sample"), (SMALL_DEPTHWISE, "sample"), (SMALL, "map")):
        tensors = [None if t is None else torch.randint(-2, 3, t.shape).half() for t in case.tensors(alpha)]
        grad = torch.randint(-2, 3, (case.batch, case.outputs, *case.grid)).half()
        values = run(case, tensors, grad, "fused")
        for value, ref in zip(values, expected(case, tensors, grad, torch.float64, "none"), strict=True):
            assert (value is None) == (ref is None)
            assert value is None or torch.equal(value.double(), ref)


def test_the_gradient_in_parts_and_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pixels are summed in parts, and the gradients of the batch do not fit into the workspace at once."""
    from tunable_ops.backends.torch import per_sample
    from tunable_ops.backends.triton import tunable_conv2d

    monkeypatch.setattr(tunable_conv2d, "choose_splits", lambda *args: 3)
    for case in (SMALL, SMALL_DEPTHWISE):
        check(case, "shared", torch.float16)
        monkeypatch.setattr(per_sample, "CHUNK_BYTES", 4 * 27 * case.outputs)
        check(case, "sample", torch.float16, algorithm="premix")
        monkeypatch.setattr(per_sample, "CHUNK_BYTES", 64 << 20)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kernels", [1, 3, 16])
def test_blends_of_many_samples(kernels: int, dtype: torch.dtype) -> None:
    """A block blends eight samples of 11, and the last elements of 4100 and of the biases are no whole tile."""
    from tunable_ops.backends.triton.tunable_parameter import blend

    weight, bias = torch.randn(kernels, 41, 100).to(dtype), torch.randn(kernels, 41).to(dtype)
    alpha = torch.randn(11, kernels)
    for found, stack in zip(blend(weight, bias, alpha), (weight, bias), strict=True):
        assert found is not None
        expected = torch.einsum("bp,p...->b...", alpha.double(), stack.double())
        tolerance = 1e-5 if dtype == torch.float32 else 2**-7
        torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=1e-5)


def test_same_bits_twice() -> None:
    tensors = SMALL.tensors("sample", torch.float32)
    grad = torch.randn(SMALL.batch, SMALL.outputs, *SMALL.grid)
    for a, b in zip(run(SMALL, tensors, grad, "fused"), run(SMALL, tensors, grad, "fused"), strict=True):
        assert a is not None
        assert torch.equal(a, b)
