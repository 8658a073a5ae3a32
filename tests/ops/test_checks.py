"""The shortcut of the validation accepts nothing that the whole validation refuses, and finds the same options."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tunable_ops import checks

SMALL = st.integers(0, 3)
PAIR = st.tuples(st.integers(-1, 3), st.integers(-1, 3))
OPTION = st.one_of(PAIR, st.integers(-1, 3), st.just((1,)), st.just((1, True)), st.just([1, 1]))


@st.composite
def calls(draw: Any) -> tuple[Any, ...]:
    groups = draw(st.sampled_from([1, 1, 2, 0, True]))
    kernels, outputs, inputs, batch = (draw(st.integers(0 if draw(SMALL) == 0 else 1, 3)) for _ in range(4))
    channels = inputs * int(groups) if draw(SMALL) else draw(SMALL)
    outputs = outputs * max(1, int(groups)) if draw(SMALL) else outputs
    x = torch.empty(batch, channels, draw(st.integers(0, 6)), draw(st.integers(1, 6)))
    weight = torch.empty(kernels, outputs, inputs, draw(st.integers(1, 4)), draw(st.integers(1, 4)))
    bias = draw(st.sampled_from([None, torch.empty(kernels, outputs), torch.empty(kernels, outputs + 1)]))
    rows = draw(st.sampled_from([(kernels,), (batch, kernels), (1, kernels), (kernels, batch), (kernels, 1, 1, 1)]))
    alpha = torch.empty(rows, dtype=draw(st.sampled_from([torch.float32, torch.float32, torch.float16])))
    plain = draw(SMALL) > 0
    options = [(1, 1), (1, 1), (1, 1)] if plain else [draw(OPTION) for _ in range(3)]
    return x if draw(SMALL) else x[:1].sum(0), weight, bias, alpha, *options, groups


@settings(max_examples=2000, deadline=None)
@given(calls())
def test_the_shortcut_accepts_only_what_passes_every_check(call: tuple[Any, ...]) -> None:
    if not checks._is_plain(2, *call):
        return
    quick = checks.check_convolution("op", 2, *call, "relu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checks, "_is_plain", lambda *args: False)
        assert checks.check_convolution("op", 2, *call, "relu") == quick


def test_layers_take_the_shortcut() -> None:
    x, weight, bias = torch.empty(2, 4, 5, 5), torch.empty(3, 6, 2, 3, 3), torch.empty(3, 6)
    for alpha in (torch.empty(3), torch.empty(2, 3)):
        assert checks._is_plain(2, x, weight, bias, alpha, (2, 1), (1, 0), (1, 1), 2)
    assert not checks._is_plain(2, x, weight, bias, torch.empty(2, 3, 2, 2), (2, 1), (1, 0), (1, 1), 2)
