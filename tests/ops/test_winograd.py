"""Winograd's filtering in the C++ operators: values, gradients, tails of tiles, the choice, and `exact`."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import tunable_ops
from tests.ops.conv2d_cases import Case
from tests.ops.test_tunable_conv2d import ACTIVATIONS, check, run
from tunable_ops import backends, reference, set_algorithm, tunable_conv2d

pytestmark = pytest.mark.skipif(
    backends.unavailable_reason("tunable_conv2d", "cpp") is not None, reason="needs the compiled operators"
)
NAMED = ("winograd2", "winograd4")
cpp = partial(tunable_conv2d, backend="cpp")
# Tiles of 2x2 and 4x4 outputs that end inside and at the edge, vectors of 4, 8 and 16 that do, 14 tiles at a time, sums
# of up to 96 channels, paddings that make whole tiles of zeros.
CASES = [
    Case(kernels=2),
    Case(channels=16, outputs=32, size=(12, 8), kernels=2),
    Case(channels=17, outputs=31, size=(13, 10), kernels=2, padding=(0, 2)),
    Case(channels=34, outputs=18, groups=2, size=(8, 9), kernels=3, padding=(0, 3)),
    Case(channels=48, outputs=50, size=(22, 17), kernels=2, padding=(2, 0), batch=3),
    Case(channels=20, outputs=7, size=(3, 3), kernels=2, padding=(0, 0)),
    Case(channels=100, outputs=36, size=(9, 9), kernels=1, padding=(6, 5), bias=False),
    Case(channels=1, outputs=5, size=(40, 31), kernels=2),
]
# More channels than let 14 tiles of 4x4 stay in the L2 cache, of the second case of 2x2 too: blocks of up to 56 tiles,
# 128 outputs at a time. But for the second, one copy of the sums of the kernels' gradient, whose outputs the threads
# share; the last has fewer parts of them than the test below has threads. So many numbers resolve that F(4x4) has a
# gain of 4.5e-8, of the constants of its transforms: compared as integers.
WIDE = [
    Case(channels=160, outputs=200, size=(30, 29), kernels=2, batch=2),
    Case(channels=300, outputs=36, size=(15, 17), kernels=2, batch=2, bias=False),
    Case(channels=320, outputs=300, groups=2, size=(17, 18), kernels=2, batch=3),
    Case(channels=300, outputs=100, size=(9, 10), kernels=2, batch=4),
]

# The same for 5x5 kernels, which tiles of 2x2 serve.
FIVE = [
    Case(taps=(5, 5), kernels=2, padding=(2, 2)),
    Case(taps=(5, 5), channels=17, outputs=31, size=(13, 10), kernels=2, padding=(0, 3)),
    Case(taps=(5, 5), channels=34, outputs=18, groups=2, size=(8, 9), kernels=3, padding=(4, 1)),
    Case(taps=(5, 5), channels=48, outputs=34, size=(21, 16), kernels=1, padding=(2, 2), batch=3, bias=False),
    Case(taps=(5, 5), channels=3, outputs=4, size=(5, 6), kernels=2, padding=(0, 0)),
]
NAMED_CASES = [(case, name) for case in CASES for name in NAMED] + [(case, "winograd2") for case in FIVE]


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    before = set_algorithm("default")
    yield
    set_algorithm(before)


def integers(case: Case, alpha: str, channels_last: bool) -> list[Any]:
    tensors = case.tensors(alpha, torch.float32, channels_last)
    for t in tensors:
        if t is not None:
            t.copy_(torch.randint(-2, 3, t.shape))
    return tensors


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("alpha", ["shared", "one", "sample"])
@pytest.mark.parametrize(("case", "name"), NAMED_CASES, ids=str)
def test_agrees(case: Case, name: str, alpha: str, channels_last: bool) -> None:
    set_algorithm(name)
    check(case, alpha, torch.float32, channels_last, None, backend="cpp", winograd=2 if case in FIVE else True)


@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("name", NAMED)
def test_activations(name: str, act: str | None) -> None:
    set_algorithm(name)
    for alpha in ("shared", "sample"):
        check(CASES[2], alpha, torch.float32, True, act, backend="cpp", winograd=True)


def test_integers() -> None:
    """Off-by-one errors cannot hide in rounding: 2x2 tiles are exact for small integers, 4x4 tiles after rounding."""
    for case in CASES + WIDE:
        for alpha in ("shared", "sample"):
            for channels_last in (False, True):
                tensors = integers(case, alpha, channels_last)
                doubles = [None if t is None else t.double() for t in tensors]
                expected = run(reference.tunable_conv2d, doubles, case, None, None)
                for name in NAMED:
                    set_algorithm(name)
                    for o, r in zip(run(cpp, tensors, case, None, None), expected, strict=True):
                        assert torch.equal(o.double().round() if name == "winograd4" else o.double(), r), (case, name)


def test_kernels_in_unusual_strides() -> None:
    case = Case(channels=20, outputs=18, size=(9, 10), kernels=2)
    x, weight, bias, alpha = integers(case, "sample", True)
    expected = run(reference.tunable_conv2d, [t.double() for t in (x, weight, bias, alpha)], case, None, None)
    set_algorithm("winograd2")
    wide = torch.zeros(2, 18, 20, 3, 6)[..., ::2]
    for variant in (weight.mT.contiguous().mT, weight.transpose(0, 1).contiguous().transpose(0, 1), wide.copy_(weight)):
        leaves = [t.detach().requires_grad_() for t in (x, variant, bias, alpha)]
        output = cpp(*leaves, *case.geometry)
        for o, r in zip([output, *torch.autograd.grad(output.sum(), leaves)], expected, strict=True):
            assert torch.equal(o.double(), r)


@pytest.mark.parametrize("case", [Case(batch=5, channels=40, outputs=33, size=(33, 40), kernels=2), *WIDE[2:]], ids=str)
def test_the_same_bits_with_every_number_of_threads_and_for_every_sample(case: Case) -> None:
    threads = torch.get_num_threads()
    for name in NAMED:
        set_algorithm(name)
        for alpha in ("shared", "sample"):
            x, weight, bias, rows = case.tensors(alpha, torch.float32, channels_last=True)
            results = []
            for count in (1, 2, 3, 5, 12):
                torch.set_num_threads(count)
                try:
                    results.append(run(cpp, [x, weight, bias, rows], case, "relu", None))
                finally:
                    torch.set_num_threads(threads)
            for other in results[1:]:
                assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
            alone = cpp(x[2:3], weight, bias, rows if alpha == "shared" else rows[2], *case.geometry, activation="relu")
            assert torch.equal(alone, results[0][0][2:3])


UNSERVED = [
    Case(taps=(7, 7), padding=(3, 3)),
    Case(taps=(5, 3)),
    Case(taps=(1, 1), padding=(0, 0)),
    Case(stride=(2, 1)),
    Case(dilation=(1, 2)),
    Case(channels=6, outputs=6, groups=6),
]


@pytest.mark.parametrize("case", UNSERVED, ids=str)
def test_what_it_does_not_serve(case: Case) -> None:
    tensors = case.tensors("shared", torch.float32, channels_last=True)
    expected = cpp(*tensors, *case.geometry)
    for name in NAMED:
        set_algorithm(name)
        with pytest.raises(RuntimeError, match=r"algorithm must be one that serves the call; .*3x3 with stride 1"):
            cpp(*tensors, *case.geometry)
        set_algorithm("default")
        assert torch.equal(cpp(*tensors, *case.geometry), expected)


def test_tiles_of_4x4_do_not_serve_5x5() -> None:
    tensors = FIVE[0].tensors("shared", torch.float32, channels_last=True)
    set_algorithm("winograd4")
    with pytest.raises(RuntimeError, match="with tiles of 2x2 those of 5x5 too"):
        cpp(*tensors, *FIVE[0].geometry)


@pytest.mark.parametrize("taps", [3, 5])
def test_maps_take_it_by_default(taps: int) -> None:
    padding = (taps // 2, taps // 2)
    case = Case(channels=32, outputs=48, size=(40, 36), taps=(taps, taps), padding=padding, kernels=2)
    check(case, "map", torch.float32, True, "relu", backend="cpp", winograd=2 if taps == 5 else True)
    tensors = case.tensors("map", torch.float32, True)
    filtered = cpp(*tensors, *case.geometry)
    with tunable_ops.exact():
        assert not torch.equal(cpp(*tensors, *case.geometry), filtered)


def test_maps_and_16_bits_are_not_served_by_name() -> None:
    set_algorithm("winograd4")
    for alpha, dtype in (("map", torch.float32), ("shared", torch.bfloat16), ("sample", torch.float16)):
        with pytest.raises(RuntimeError, match="algorithm must be one that serves the call"):
            cpp(*CASES[0].tensors(alpha, dtype), *CASES[0].geometry)


def test_an_empty_batch() -> None:
    case = Case(batch=0, channels=64, outputs=64, size=(64, 64))
    for name in ("default", *NAMED):
        set_algorithm(name)
        output, *grads = run(cpp, case.tensors("shared", torch.float32, True), case, None, None)
        assert output.shape == (0, 64, 64, 64) and not grads[1].any()


def results(channels: int, size: int) -> dict[str, Tensor]:
    """Return the output of every setting, and that inside `exact`."""
    case = Case(batch=2, channels=channels, outputs=channels, size=(size, size), kernels=2)
    x, weight, _, alpha = case.tensors("sample", torch.float32, channels_last=True)
    found = {}
    for name in ("default", "direct", *NAMED):
        set_algorithm(name)
        found[name] = cpp(x, weight, None, alpha, padding=1)
    set_algorithm("default")
    with tunable_ops.exact():
        found["exact"] = cpp(x, weight, None, alpha, padding=1)
    return found


def test_the_choice() -> None:
    large, wide, small = results(64, 64), results(512, 48), results(8, 16)
    for found in (large, wide):
        assert torch.equal(found["default"], found["winograd4"]) and not torch.equal(found["default"], found["direct"])
    assert torch.equal(small["default"], small["direct"]) and not torch.equal(small["default"], small["winograd2"])
    for found in (large, wide, small):
        assert torch.equal(found["exact"], found["direct"])


def test_exact_is_put_back() -> None:
    set_algorithm("winograd2")
    with pytest.raises(KeyError), tunable_ops.exact():
        assert set_algorithm("direct") == "direct"
        raise KeyError
    assert set_algorithm("default") == "winograd2"


def test_a_backward_pass_follows_the_setting() -> None:
    case = Case(batch=2, channels=64, outputs=64, size=(32, 32), kernels=2)
    tensors = case.tensors("sample", torch.float32, channels_last=True)
    by_default = run(cpp, tensors, case, None, None)
    with tunable_ops.exact():
        exact = run(cpp, tensors, case, None, None)
    for i in (0, 1, 2):  # output, gradients of input and kernels
        assert not torch.equal(by_default[i], exact[i])


def test_bad_names() -> None:
    with pytest.raises(TypeError, match="name must be a string; got int"):
        set_algorithm(2)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"name must be one of 'default', 'direct', .* got 'fft'"):
        set_algorithm("fft")


@pytest.mark.parametrize("groups", [1, 2])
def test_the_rounding_error_stays_within_four_times_that_of_the_direct_kernels(groups: int) -> None:
    for channels in (16, 64, 256):
        case = Case(channels=channels, outputs=32, size=(12, 12), groups=groups, kernels=2, bias=False)
        x, weight, _, alpha = case.tensors("sample", torch.float32, channels_last=True)
        x = x.relu()
        ref = reference.tunable_conv2d(x.double(), weight.double(), None, alpha.double(), *case.geometry)
        errors = {}
        for name in ("direct", *NAMED):
            set_algorithm(name)
            errors[name] = (cpp(x, weight, None, alpha, *case.geometry) - ref).square().mean().sqrt()
        assert errors["winograd4"] <= 4 * errors["direct"] and errors["winograd2"] <= 2 * errors["direct"]
