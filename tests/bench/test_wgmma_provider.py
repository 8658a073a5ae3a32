"""The provider of the wgmma kernel on a pretended GPU: both directions take the kernel, and it says what it refuses."""

from typing import Any

import pytest
import torch
from tunable_ops.bench import problem, providers, step
from tunable_ops.bench.case_text import read_case

from tunable_ops import reference
from tunable_ops.backends import wgmma

pytest.importorskip("triton")
PROVIDER = providers.PROVIDERS["wgmma"]


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The calls of the kernel, which the definition stands in for."""
    made: list[str] = []

    def forward(x: Any, weight: Any, bias: Any, alpha: Any, geometry: Any, activation: str) -> torch.Tensor:
        made.append("forward")
        tensors = (t.float() for t in (x, weight, bias, alpha))
        return reference.tunable_conv2d(*tensors, *geometry[:3], 1).to(x.dtype)

    def input_gradient(grad: Any, x: Any, weight: Any, alpha: Any, geometry: Any) -> torch.Tensor:
        made.append("input")
        leaf = x.detach().float().requires_grad_()
        with torch.enable_grad():
            output = reference.tunable_conv2d(leaf, weight.float(), None, alpha, *geometry[:3], 1)
        return torch.autograd.grad(output, leaf, grad.float())[0].to(x.dtype)

    monkeypatch.setattr(wgmma, "_missing", None)
    monkeypatch.setattr(wgmma, "_is_hopper", lambda device: True)
    monkeypatch.setattr(wgmma, "unavailable_reason", lambda: None)
    monkeypatch.setattr(wgmma, "is_ready", lambda *_: True)
    monkeypatch.setattr(wgmma, "forward", forward)
    monkeypatch.setattr(wgmma, "input_gradient", input_gradient)
    monkeypatch.setattr(providers, "_triton_refuses", lambda _: None)
    return made


@pytest.mark.parametrize("alpha", ["shared", "per_sample"])
@pytest.mark.parametrize("direction, calls", [("forward", ["forward"]), ("grad_input", ["forward", "input"])])
@pytest.mark.parametrize("layer", ["3x3 C16", "1x1 C8"])
def test_it_runs_the_kernel(layer: str, direction: str, calls: list[str], alpha: str, used: list[str]) -> None:
    made = problem.build(read_case(f"{layer} 6x5 B2 {alpha} bf16 {direction}"), "cpu")
    assert PROVIDER.refuses(made) is None
    run = step.make(PROVIDER.make(made), providers.leaves(made, "wgmma"), made.grad_output, direction)
    problem.check("wgmma", run(), problem.expected(made), made)
    assert used == calls


def test_what_it_refuses(used: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(text: str) -> str | None:
        return PROVIDER.refuses(problem.build(read_case(text), "cpu"))

    usual = "3x3 C16 6x5 B2 bf16"
    assert refused(f"{usual} both") is None
    assert refused(f"{usual} grad_weight") == "serves the forward pass and the gradient of the input"
    for other in ("3x3 C12 6x5 B2 bf16", "3x3 C16 6x6 S2 B2 bf16", "dw3x3 C16 6x5 B2 bf16", "3x3 C16 6x5 B2 fp32"):
        assert str(refused(other)).startswith("serves fp16 and bf16 in channels_last, multiples of 8"), other
    # The forward pass alone is asked for where nothing else is.
    monkeypatch.setattr(wgmma, "is_ready", lambda *args: not args[-1])
    assert refused(f"{usual} forward") is None
    assert str(refused(f"{usual} both")).startswith("cannot run this layer's input pass")
    monkeypatch.setattr(wgmma, "unavailable_reason", lambda: "this build has none")
    assert refused(usual) == "this build has none"
    assert used == []
