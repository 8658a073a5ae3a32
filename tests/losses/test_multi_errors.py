import math

import pytest
import torch
from torch import nn

from tunable_ops import losses

TWO = {"clean": losses.mse, "noisy": losses.mse}


@pytest.mark.parametrize(
    ("objectives", "scales", "error", "text"),
    [
        ([losses.mse], None, TypeError, r"objectives must be a mapping name -> callable; got list"),
        ({}, None, ValueError, r"objectives must name at least one objective; got none"),
        ({1: losses.mse}, None, TypeError, r"objectives must have names that are strings; got 1"),
        (
            {"": losses.mse},
            None,
            ValueError,
            r"objectives must have names that are not empty and contain no dot; got ''",
        ),
        ({"a.b": losses.mse}, None, ValueError, r"objectives must have names .* no dot; got 'a.b'"),
        (
            {"keys": nn.Identity()},
            None,
            ValueError,
            r"a Module's name must not be an attribute of nn.ModuleDict; got 'keys'",
        ),
        ({"a": 3.0}, None, TypeError, r"objective 'a' must be callable; got float"),
        ({"a": None}, None, TypeError, r"objective 'a' must be callable; got NoneType"),
        ({"a": nn.MSELoss}, None, TypeError, r"objective 'a' must be an instance; got the class MSELoss"),
        ({"a": (losses.mse,)}, None, TypeError, r"objective 'a' must be a callable or a pair \(callable, scale\); got"),
        ({"a": (1.0, losses.mse)}, None, TypeError, r"objective 'a' must be callable; got float"),
        ({"a": (losses.mse, "x")}, None, TypeError, r"scale of 'a' must be a number; got 'x'"),
        ({"a": (losses.mse, math.nan)}, None, ValueError, r"scale of 'a' must be finite and at least 0; got nan"),
        ({"a": (losses.mse, -1)}, None, ValueError, r"scale of 'a' must be finite and at least 0; got -1.0"),
        (TWO, {"noisy": math.inf}, ValueError, r"scale of 'noisy' must be finite and at least 0; got inf"),
        (TWO, [1, -2], ValueError, r"scale of 'noisy' must be finite and at least 0; got -2.0"),
        (TWO, {"noisi": 1}, ValueError, r"scales must have .* clean, noisy; got 'noisi'; did you mean 'noisy'\?"),
        (TWO, [1], ValueError, r"scales must have one number for each of clean, noisy; got 1"),
        (TWO, 2.0, TypeError, r"scales must be a mapping or a sequence of numbers; got 2.0"),
        (TWO, "12", TypeError, r"scales must be a mapping or a sequence of numbers; got '12'"),
        ({"a": (losses.mse, 1)}, {"a": 1}, ValueError, r"scales must be given once; got two for 'a'"),
    ],
)
def test_wrong_construction(objectives, scales, error, text):
    with pytest.raises(error, match="^MultiLoss: " + text):
        losses.MultiLoss(objectives, scales)


PICTURE = torch.zeros(2, 3)
PAIR = {"clean": PICTURE, "noisy": PICTURE}
LAM = [0.5, 0.5]


@pytest.mark.parametrize(
    ("outputs", "targets", "lam", "error", "text"),
    [
        (
            PICTURE,
            {"clean": PICTURE},
            LAM,
            ValueError,
            r"targets must have an entry for every objective; got none for 'noisy'",
        ),
        (
            PICTURE,
            {"claen": PICTURE, "noisy": PICTURE},
            LAM,
            ValueError,
            r"targets must have the objectives' names clean, noisy; got 'claen'; did you mean 'clean'\?$",
        ),
        (PICTURE, {**PAIR, "zzz": PICTURE}, LAM, ValueError, r"targets must have .* clean, noisy; got 'zzz'$"),
        (PICTURE, {**PAIR, 3: PICTURE}, LAM, ValueError, r"targets must have .* clean, noisy; got 3$"),
        (PICTURE, {**PAIR, "noisy": 1.0}, LAM, TypeError, r"targets must be Tensors; got float for 'noisy'"),
        (PICTURE, [PICTURE, PICTURE], LAM, TypeError, r"targets must be Tensors; got list for 'clean'"),
        (
            {"clean": PICTURE},
            PAIR,
            LAM,
            ValueError,
            r"outputs must have an entry for every objective; got none for 'noisy'",
        ),
        (
            {**PAIR, "noise": PICTURE},
            PAIR,
            LAM,
            ValueError,
            r"outputs must have .*; got 'noise'; did you mean 'noisy'\?",
        ),
        (None, PAIR, LAM, TypeError, r"outputs must be Tensors; got NoneType for 'clean'"),
        (
            torch.tensor(1.0),
            PAIR,
            LAM,
            ValueError,
            r"outputs must have a batch dimension, .*; got a scalar for 'clean'",
        ),
        (
            {**PAIR, "noisy": torch.zeros(3, 3)},
            PAIR,
            LAM,
            ValueError,
            r"outputs must share a batch size; got 2 for 'clean', 3 for",
        ),
        (
            torch.zeros(0, 3),
            torch.zeros(0, 3),
            LAM,
            ValueError,
            r"outputs must hold at least one sample; got an empty batch",
        ),
        (
            PICTURE,
            PAIR,
            [1.0],
            ValueError,
            r"lam must be \[2\] or \[B, 2\], one number for each of clean, noisy; got \[1\]",
        ),
        (PICTURE, PAIR, torch.zeros(2, 3), ValueError, r"lam must be \[2\] or \[B, 2\].*; got \[2, 3\]"),
        (PICTURE, PAIR, torch.tensor(1.0), ValueError, r"lam must be \[2\] or \[B, 2\].*; got \[\]"),
        (PICTURE, PAIR, torch.zeros(2, 2, 4, 2), ValueError, r"lam must be \[2\] or \[B, 2\].*; got \[2, 2, 4, 2\]"),
        (PICTURE, PAIR, torch.zeros(3, 2), ValueError, r"lam must be \[2\] or \[2, 2\] for a batch of 2; got \[3, 2\]"),
        (PICTURE, PAIR, torch.zeros(2, dtype=torch.int64), TypeError, r"lam must be floating point; got torch.int64"),
        (PICTURE, PAIR, "01", TypeError, r"lam must be a Tensor or a sequence of numbers; got '01'"),
        (PICTURE, PAIR, None, TypeError, r"lam must be a Tensor or a sequence of numbers; got None"),
    ],
)
def test_wrong_call(outputs, targets, lam, error, text):
    with pytest.raises(error, match="^MultiLoss: " + text):
        losses.MultiLoss(TWO)(outputs, targets, lam)


@pytest.mark.parametrize(
    ("objective", "error", "text"),
    [
        (
            nn.MSELoss(),
            ValueError,
            r"objective 'a' must return one value for each sample, \[2\]; got \[\]; take its mean",
        ),
        (nn.MSELoss(reduction="none"), ValueError, r"objective 'a' must return .*, \[2\]; got \[2, 3\]"),
        (lambda o, t: (o - t).mean(0), ValueError, r"objective 'a' must return .*, \[2\]; got \[3\]"),
        (lambda o, t: 1.0, TypeError, r"objective 'a' must return a Tensor; got float"),
        (lambda o, t: (o == t).all(1), TypeError, r"objective 'a' must return floating point values; got torch.bool"),
    ],
)
def test_wrong_objective(objective, error, text):
    with pytest.raises(error, match="^MultiLoss: " + text):
        losses.MultiLoss({"a": objective})(PICTURE, PICTURE, [1.0])


def test_an_objective_without_its_target():
    with pytest.raises(TypeError, match=r"^mse: target must be a Tensor; got NoneType"):
        losses.MultiLoss(TWO)(PICTURE, {"clean": PICTURE, "noisy": None}, LAM)
