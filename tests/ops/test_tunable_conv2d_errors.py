"""Bad input of tunable_conv2d: the type and form of the error, before any work is done."""

import re
from typing import Any

import pytest
import torch

from tunable_ops import tunable_conv2d

X, W, BIAS, A = torch.zeros(2, 4, 8, 8), torch.zeros(3, 6, 4, 3, 3), torch.zeros(3, 6), torch.zeros(3)
INT = torch.zeros(3, dtype=torch.int64)

CASES: dict[str, tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]] = {
    "input rank": ((X[0, 0], W, BIAS, A), {}, ValueError, "input must be [B, C, H, W] or [C, H, W]; got shape [8, 8]"),
    "weight rank": (
        (X, W[0], BIAS, A),
        {},
        ValueError,
        "weight must be [P, O, C/groups, *k] with 2 tap sizes; got shape",
    ),
    "alpha rank": (
        (X, W, BIAS, A.view(1, 3, 1)),
        {},
        ValueError,
        "alpha must be [P], [B, P] or a map [B, P, 6, 6]; got",
    ),
    "bias shape": (
        (X, W, BIAS[0], A),
        {},
        ValueError,
        "bias must be [P, O] = [3, 6], as the weight has it; got shape [6]",
    ),
    "P of bias": (
        (X, W, BIAS[:2], A),
        {},
        ValueError,
        "bias must be [P, O] = [3, 6], as the weight has it; got shape [2, 6]",
    ),
    "P of alpha": (
        (X, W, BIAS, A[:2]),
        {},
        ValueError,
        "alpha must hold one value per kernel, P = 3 as the weight has it; got P = 2",
    ),
    "P of alpha per sample": (
        (X, W, BIAS, torch.zeros(2, 4)),
        {},
        ValueError,
        "alpha must hold one value per kernel, P = 3",
    ),
    "batch of alpha": (
        (X, W, BIAS, torch.zeros(5, 3)),
        {},
        ValueError,
        "with B = 2, as the input has it; got shape [5, 3]",
    ),
    "batch of a map": (
        (X, W, BIAS, torch.zeros(1, 3, 6, 6)),
        {},
        ValueError,
        "with B = 2, as the input has it; got shape",
    ),
    "map size": (
        (X, W, BIAS, torch.zeros(2, 3, 8, 8)),
        {},
        ValueError,
        "alpha must have the output's size [6, 6] where it is a map",
    ),
    "unbatched with [B, P]": (
        (X[0], W, BIAS, torch.zeros(1, 3)),
        {},
        ValueError,
        "alpha must be [P] for an unbatched input",
    ),
    "channels": (
        (X[:, :3], W, BIAS, A),
        {},
        ValueError,
        "weight must be [P, O, C/groups, *k] with C/groups = 3; got shape",
    ),
    "channels by groups": (
        (X, W, BIAS, A),
        {"groups": 3},
        ValueError,
        "input must have channels divisible by groups=3; got 4",
    ),
    "outputs by groups": (
        (X, torch.zeros(3, 6, 1, 3, 3), BIAS, A),
        {"groups": 4},
        ValueError,
        "weight must have output channels divisible by groups=4; got 6",
    ),
    "groups 0": ((X, W, BIAS, A), {"groups": 0}, ValueError, "groups must be a positive int; got 0"),
    "groups type": ((X, W, BIAS, A), {"groups": 1.0}, ValueError, "groups must be a positive int; got 1.0"),
    "empty weight": (
        (X, torch.zeros(0, 6, 4, 3, 3), None, A[:0]),
        {},
        ValueError,
        "weight must have no dimension of size 0",
    ),
    "negative padding": ((X, W, BIAS, A), {"padding": -1}, ValueError, "padding must be at least 0; got -1"),
    "stride 0": ((X, W, BIAS, A), {"stride": (1, 0)}, ValueError, "stride must be at least 1; got (1, 0)"),
    "dilation 0": ((X, W, BIAS, A), {"dilation": 0}, ValueError, "dilation must be at least 1; got 0"),
    "stride type": ((X, W, BIAS, A), {"stride": 1.5}, TypeError, "stride must be an int or 2 ints; got 1.5"),
    "stride of a bool": ((X, W, BIAS, A), {"stride": True}, TypeError, "stride must be an int or 2 ints; got True"),
    "three strides": (
        (X, W, BIAS, A),
        {"stride": (1, 1, 1)},
        ValueError,
        "stride must be an int or 2 ints; got (1, 1, 1)",
    ),
    "padding name": (
        (X, W, BIAS, A),
        {"padding": "full"},
        ValueError,
        "padding must be ints, 'same' or 'valid'; got 'full'",
    ),
    "same with stride": (
        (X, W, BIAS, A),
        {"padding": "same", "stride": 2},
        ValueError,
        "padding must not be 'same' with a stride",
    ),
    "input too small": (
        (X[..., :2], W, BIAS, A),
        {},
        ValueError,
        "input must be at least as large as the dilated kernel",
    ),
    "not a tensor": ((X, W, BIAS, [0.5, 0.5, 0.0]), {}, TypeError, "alpha must be a Tensor; got list"),
    "integer alpha": (
        (X, W, BIAS, INT),
        {},
        TypeError,
        "alpha must be float32, float16, bfloat16 or float64; got torch.int64",
    ),
    "complex input": (
        (X.to(torch.complex64), W, BIAS, A),
        {},
        TypeError,
        "input must be float32, float16, bfloat16 or float64",
    ),
    "mixed dtypes": (
        (X, W.double(), BIAS, A),
        {},
        TypeError,
        "weight must have the input's dtype, torch.float32; got torch.float64",
    ),
    "mixed bias": (
        (X, W, BIAS.half(), A),
        {},
        TypeError,
        "bias must have the input's dtype, torch.float32; got torch.float16",
    ),
    "fp16 alpha with fp32": ((X, W, BIAS, A.half()), {}, TypeError, "alpha must be float32 or have the input's dtype"),
    "mixed devices": (
        (X, W.to("meta"), BIAS, A),
        {},
        ValueError,
        "weight must be on the input's device, cpu; got meta",
    ),
    "activation": (
        (X, W, BIAS, A),
        {"activation": "tanh"},
        ValueError,
        "activation must be None or one of 'relu', 'gelu'",
    ),
    "backend name": (
        (X, W, BIAS, A),
        {"backend": "cudnn"},
        ValueError,
        "backend must be None or one of 'torch', 'reference'",
    ),
    "backend cpp with fp64": (
        (X.double(), W.double(), BIAS.double(), A.double()),
        {"backend": "cpp"},
        RuntimeError,
        "backend must be one that can run here; got 'cpp'",
    ),
    "backend cpp with a map in 16 bits": (
        (X.half(), W.half(), BIAS.half(), torch.zeros(2, 3, 6, 6)),
        {"backend": "cpp"},
        RuntimeError,
        "backend must be one that can run here; got 'cpp'",
    ),
    "backend triton": (
        (X, W, BIAS, A),
        {"backend": "triton"},
        RuntimeError,
        "backend must be one that can run here; got 'triton'",
    ),
    "backend cuda": (
        (X, W, BIAS, A),
        {"backend": "cuda"},
        RuntimeError,
        "backend must be one that can run here; got 'cuda'",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_input(name: str) -> None:
    args, kwargs, error, text = CASES[name]
    with pytest.raises(error, match=re.escape(text)) as caught:
        tunable_conv2d(*args, **kwargs)
    assert str(caught.value).startswith("tunable_conv2d: ")
    assert type(caught.value) is error


def test_the_same_tensors_pass_without_the_fault() -> None:
    assert tunable_conv2d(X, W, BIAS, A).shape == (2, 6, 6, 6)
