"""Properties that hold for all shapes, strides, dilations, groups and dtypes, which hypothesis draws."""

from typing import Any

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.comparison import assert_agrees
from tests.ops.conv2d_cases import ALPHAS, Case
from tunable_ops import reference, tunable_conv2d

SETTINGS = settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


@st.composite
def cases(draw: Any) -> Case:
    pair = lambda low, high: st.tuples(st.integers(low, high), st.integers(low, high))  # noqa: E731
    groups = draw(st.integers(1, 3))
    taps, dilation, padding = draw(pair(1, 4)), draw(pair(1, 3)), draw(pair(0, 3))
    least = [max(1, d * (k - 1) + 1 - 2 * p) for k, d, p in zip(taps, dilation, padding, strict=True)]
    return Case(
        batch=draw(st.integers(1, 4)),
        channels=groups * draw(st.integers(1, 4)),
        outputs=groups * draw(st.integers(1, 4)),
        size=(draw(st.integers(least[0], least[0] + 6)), draw(st.integers(least[1], least[1] + 6))),
        taps=taps,
        stride=draw(pair(1, 3)),
        padding=padding,
        dilation=dilation,
        groups=groups,
        kernels=draw(st.integers(1, 5)),
        bias=draw(st.booleans()),
    )


@SETTINGS
@given(cases(), st.sampled_from(ALPHAS), st.sampled_from([torch.float32, torch.float16, torch.bfloat16]), st.booleans())
def test_agrees_with_the_reference(case: Case, alpha: str, dtype: torch.dtype, channels_last: bool) -> None:
    tensors = case.tensors(alpha, dtype, channels_last)
    doubles = [None if t is None else t.double() for t in tensors]
    out = tunable_conv2d(*tensors, *case.geometry)
    base = reference.tunable_conv2d(*tensors, *case.geometry)
    assert_agrees(out, reference.tunable_conv2d(*doubles, *case.geometry), base, str(case))


@SETTINGS
@given(cases(), st.sampled_from(ALPHAS))
def test_gradients_agree_with_the_reference(case: Case, alpha: str) -> None:
    leaves = [None if t is None else t.requires_grad_() for t in case.tensors(alpha)]
    wanted = [t for t in leaves if t is not None]
    grads = torch.autograd.grad(tunable_conv2d(*leaves, *case.geometry).square().sum(), wanted)
    expected = torch.autograd.grad(reference.tunable_conv2d(*leaves, *case.geometry).square().sum(), wanted)
    for g, e in zip(grads, expected, strict=True):
        torch.testing.assert_close(g, e, rtol=1e-9, atol=1e-9)


@SETTINGS
@given(cases(), st.sampled_from(ALPHAS), st.floats(-3, 3))
def test_linear_in_alpha(case: Case, alpha: str, factor: float) -> None:
    x, w, b, a = case.tensors(alpha)
    other = torch.rand_like(a)
    left = tunable_conv2d(x, w, b, a + factor * other, *case.geometry)
    right = tunable_conv2d(x, w, b, a, *case.geometry) + factor * tunable_conv2d(x, w, b, other, *case.geometry)
    torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-9)


@SETTINGS
@given(cases())
def test_the_three_alphas_agree_where_they_say_the_same(case: Case) -> None:
    x, w, b, a = case.tensors("shared")
    shared = tunable_conv2d(x, w, b, a, *case.geometry)
    sample = tunable_conv2d(x, w, b, a.expand(case.batch, -1), *case.geometry)
    over = tunable_conv2d(x, w, b, a[None, :, None, None].expand(case.batch, -1, *case.grid), *case.geometry)
    torch.testing.assert_close(sample, shared, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(over, shared, rtol=1e-10, atol=1e-10)


@SETTINGS
@given(cases(), st.permutations(range(4)))
def test_the_order_of_samples_and_kernels_does_not_matter(case: Case, order: list[int]) -> None:
    x, w, b, a = case.tensors("sample")
    rows = [i for i in order if i < case.batch]
    out = tunable_conv2d(x, w, b, a, *case.geometry)
    torch.testing.assert_close(
        tunable_conv2d(x[rows], w, b, a[rows], *case.geometry), out[rows], rtol=1e-10, atol=1e-10
    )
    flipped = tunable_conv2d(x, w.flip(0), None if b is None else b.flip(0), a.flip(1), *case.geometry)
    torch.testing.assert_close(flipped, out, rtol=1e-10, atol=1e-10)
