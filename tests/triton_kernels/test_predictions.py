"""Predicted calls: the launches that the backend really makes, the table, and the counts beside it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from tunable_ops.triton_kernels import audit, predictions, unavailable_reason
from tunable_ops.triton_kernels.audit_loop import Loop, main_loop
from tunable_ops.triton_kernels.choose_algorithm import Choice, Problem, blends_first, choose_algorithm, default_config

from tunable_ops import models
from tunable_ops.backends import wgmma

needs_triton = pytest.mark.skipif(unavailable_reason() is not None, reason="the plans need triton")


def tensors(problem: Problem) -> list[torch.Tensor]:
    from tunable_ops.triton_kernels.plan_problem import make_operands

    operands = make_operands(problem, "meta")
    assert operands.alpha is not None
    return [operands.x, operands.weight, operands.bias, operands.alpha]


@contextmanager
def recorded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """The launches of our kernels and the library's convolutions, in order, on a pretended GPU; nothing runs.

    A launch is (name, blocks), and "wgmma" for the kernel that is not Triton's.
    """
    from tunable_ops.triton_kernels import tunable_parameter as kernels
    from tunable_ops.triton_kernels.launch import Launch

    from tunable_ops.backends.triton import tunable_conv2d as backend
    from tunable_ops.backends.triton import tunable_parameter

    made: list[Any] = []

    def run(launch: Launch) -> None:
        made.append((launch.kernel.__name__, launch.grid[0]))

    def convolve(input: torch.Tensor, kernel: torch.Tensor, *_: Any) -> torch.Tensor:
        made.append("library")
        return torch.empty(input.shape[0], kernel.shape[0], *input.shape[2:], device="meta", dtype=input.dtype)

    def convolve_backward(
        grad: torch.Tensor, input: torch.Tensor, kernel: torch.Tensor, geometry: Any, groups: int, wanted: list[bool]
    ) -> list[Any]:
        made.extend(["library"] * sum(wanted))
        return [torch.empty_like(t) if want else None for want, t in zip(wanted, (input, kernel, kernel), strict=True)]

    def by_wgmma(like: int) -> Any:
        return lambda *args: made.append("wgmma") or torch.empty_like(args[like])

    with monkeypatch.context() as patch:
        patch.setattr(Launch, "run", run)
        patch.setattr(wgmma, "_missing", None)
        patch.setattr(wgmma, "_is_hopper", lambda device: True)
        patch.setattr(wgmma, "is_ready", lambda *_: True)
        patch.setattr(wgmma, "forward", by_wgmma(0))
        patch.setattr(wgmma, "input_gradient", by_wgmma(1))
        patch.setattr(backend, "convolve", convolve)
        patch.setattr(backend, "convolve_backward", convolve_backward)
        for module in (backend, tunable_parameter, kernels):
            patch.setattr(module, "multiprocessors", lambda _: predictions.FAST.multiprocessors)
        yield made


def said(works: list[Any]) -> list[Any]:
    """Predicted launches in the form of `recorded`: torch's own passes are not recorded."""
    found = []
    for work in works:
        if work.kernel.startswith("library"):
            found.append("library")
        elif work.kernel == "hopper_conv_kernel":
            found.append("wgmma")
        elif work.kernel.startswith("_"):
            found.append((work.kernel, work.blocks))
    return found


@needs_triton
@pytest.mark.parametrize("case", predictions.CASES, ids=lambda case: case.name)
def test_launches_are_those_of_the_backend(case: predictions.Case, monkeypatch: pytest.MonkeyPatch) -> None:
    from tunable_ops.backends.triton import tunable_conv2d as backend

    if case.problem is None:
        pytest.skip("a network: nafnet_layers is compared with it")
    options = [(1, 1), (1, 1), (1, 1), case.problem.groups]
    operands = tensors(case.problem)
    with recorded(monkeypatch) as made:
        output = backend.forward(*operands, *options, "none")
        forward = list(made)
        made.clear()
        backend.backward(output, None, *operands, *options, "none", [True, False, False, False])
        gradient = list(made)
        made.clear()
        backend.backward(output, None, *operands, *options, "none", [False, True, True, True])
        kernels = list(made)
    assert forward == said(predictions.forward(case.problem))
    assert gradient == said(predictions.input_gradient(case.problem))
    assert kernels == said(predictions.kernel_gradients(case.problem))


@needs_triton
@pytest.mark.parametrize("algorithm, alpha", [("premix", "shared"), ("premix", "sample"), ("library", "shared")])
@pytest.mark.parametrize("kind, taps", [("dense", 3), ("pointwise", 1)])
def test_launches_of_blended_kernels_are_those_of_the_backend(
    algorithm: str, alpha: str, kind: str, taps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tunable_ops.backends.triton import tunable_conv2d as backend

    sizes = (8, 2, 64, 32, 1, (taps, taps), (1, 1), (20, 20))
    problem = Problem("forward", kind, alpha, "bfloat16", "nhwc", *sizes)
    choice = Choice(algorithm, default_config(problem))
    with recorded(monkeypatch) as made:
        backend.forward(*tensors(problem), (1, 1), (taps // 2, taps // 2), (1, 1), 1, "none", choice)
    assert made == said(predictions.forward(problem, choice))


@needs_triton
def test_launches_after_the_blend_of_a_network_are_those_of_the_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    from tunable_ops.backends.triton import conv2d as backend

    first = [layer for layer in dict.fromkeys(predictions.nafnet_layers()) if blends_first(layer)]
    assert {layer.kind for layer in first} == {"pointwise", "dense"}
    for layer in first:
        x, weight, bias, _ = tensors(layer)
        padding = (layer.taps[0] // 2,) * 2 if layer.stride == (1, 1) else (0, 0)
        with recorded(monkeypatch) as made:
            monkeypatch.setattr(backend, "convolve", lambda *_, made=made: made.append("library"))
            backend.forward(x[:, :, : layer.stride[0] * layer.size[0], : layer.stride[1] * layer.size[1]],
                            weight[0], bias[0], layer.stride, padding, (1, 1), layer.groups)  # fmt: skip
        assert made == said(predictions.of_tunable(layer)), layer


def test_layers_of_nafnet_are_the_networks() -> None:
    found = []

    def note(module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> None:
        assert isinstance(module, torch.nn.Conv2d)
        groups, (taps, _) = module.groups, module.kernel_size
        sizes = (module.in_channels // groups, module.out_channels // groups, groups, taps, module.stride[0])
        found.append((*sizes, tuple(output.shape[2:])))

    with torch.device("meta"):
        net = models.NAFNet()
        for module in net.modules():
            if isinstance(module, torch.nn.Conv2d):
                module.register_forward_hook(note)
        net(torch.empty(1, 3, 256, 256))
    listed = [(p.inputs, p.outputs, p.groups, p.taps[0], p.stride[0], p.size) for p in predictions.nafnet_layers()]
    assert sorted(listed) == sorted(found)


def test_the_wgmma_kernel_is_predicted_where_the_rule_chooses_it() -> None:
    """Up to 128 channels at stride 1, forward and for the gradient of the input."""
    small = next(case.problem for case in predictions.CASES if case.problem is not None)
    for works in (predictions.forward(small), predictions.input_gradient(small)):
        assert [work.kernel for work in works] == ["hopper_conv_kernel"]
    assert predictions.choose(small._replace(alpha="shared", inputs=128, outputs=128)).algorithm == "wgmma"
    for changes in (
        {"inputs": 136},
        {"outputs": 4},
        {"stride": (2, 2)},
        {"groups": 2},
        {"dtype": "float32"},
        {"layout": "nchw"},
        {"alpha": "map"},
        {"direction": "weight"},
        {"taps": (9, 9)},
        {"inputs": 128, "outputs": 128, "taps": (7, 7)},  # its blended kernels do not fit
    ):
        assert predictions.choose(small._replace(**changes)).algorithm in ("fused", "premix", "library"), changes
    wide = small._replace(inputs=1024, outputs=1024)
    with pytest.raises(ValueError, match=r"^roofline: a problem must fit the wgmma kernel; got Problem\("):
        predictions.forward(wide, Choice("wgmma", default_config(wide)))
    with pytest.raises(ValueError, match=r"^predictions: stride must be 1 for an input gradient; got \(2, 2\)"):
        predictions.backwards(small._replace(stride=(2, 2)))


def test_the_other_kernels_are_those_that_the_rule_leaves_out() -> None:
    found = {row.name: row.by for row in map(predictions.predict, predictions.CASES) if row.other is not None}
    small, wide = "C64 3x3 56x56 B32 per sample", "C256 3x3 32x32 B32"
    assert found == {
        f"{small}, forward": "the Triton kernels",
        f"{small}, input gradient": "the Triton kernels",
        "C128 3x3 64x64 B16 shared, forward": "the Triton kernels",
        f"{wide} per sample, forward": "the wgmma kernel",
        f"{wide} shared, forward": "the wgmma kernel",
    }


def test_a_prediction_follows_the_choice() -> None:
    case = predictions.CASES[0]
    assert case.problem is not None
    default = predictions.total(predictions.forward(case.problem), predictions.FAST)
    without = choose_algorithm(case.problem)
    fused = predictions.total(predictions.forward(case.problem, without), predictions.FAST)
    narrow = without._replace(config=without.config._replace(block_m=64))
    assert predictions.total(predictions.forward(case.problem, narrow), predictions.FAST) > fused > default
    row = predictions.predict(case)
    assert row.by == "the Triton kernels" and row.other is not None
    assert row.other[0] == pytest.approx(fused * 1e6 / row.plain[0])
    assert row.microseconds[0] == pytest.approx(default * 1e6)
    assert row.ratio == tuple(a / b for a, b in zip(row.microseconds, row.plain, strict=True))
    assert row.microseconds[0] < row.microseconds[1]


def test_the_command_prints_every_case(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "unavailable_reason", lambda: "triton is not installed")
    assert audit.main(["--model"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("Predicted, not measured")
    for case in predictions.CASES:
        row = predictions.predict(case)
        (line,) = [line for line in printed.splitlines() if line.startswith(f"{case.name} ")]
        assert f"predicted {row.ratio[0]:.2f}" in line or f"predicted {row.ratio[1]:.2f}" in line
        assert f"target {case.target:.2f}" in line if case.target else "target -" in line
    assert "loop" not in printed.partition("sm_90.")[2]


@needs_triton
def test_the_command_prints_the_counts_of_main_loops(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = [case for case in predictions.CASES if case.name == "C256 3x3 32x32 B32 per sample, forward"]
    monkeypatch.setattr(predictions, "CASES", wide)
    assert audit.main(["--model"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if ": loop " in line]
    counts = Loop(*map(int, line.partition(": loop ")[2].partition(",")[0].split("/")))
    assert counts.products == 8  # 128x64x64 in products of 64x64x16
    assert counts.instructions > 50 and counts.barriers > 0 and counts.waits > 0


SASS = """
        /*0000*/                   BRA 0x0020 ;
        /*0010*/              @!P0 LDG.E R2, desc[UR4][R2.64] ;
        /*0020*/                   DEPBAR.LE SB0, 0x1 ;
        /*0030*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;
        /*0040*/             @!UPT HGMMA.64x64x16.F32.BF16 R24, gdesc[UR8], R24 ;
        /*0050*/                   WARPGROUP.DEPBAR.LE gsb0, 0x0 ;
        /*0060*/                   LDGDEPBAR ;
        /*0070*/               @P3 BRA 0x20 ;
        /*0080*/                   FFMA R1, R2, R3, R4 ;
        /*0090*/                   SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [UR4], R3 ;
        /*00a0*/               @P1 BRA 0x80 ;
        /*00b0*/               @P1 BRA 0x10 ;
        /*00c0*/                   EXIT ;
        /*00d0*/                   BRA 0xd0;
"""


def test_the_main_loop_of_machine_code() -> None:
    assert main_loop(SASS) == Loop(instructions=6, products=1, barriers=1, waits=2)
    assert main_loop(SASS.replace("HGMMA", "FMUL").replace("@P3 BRA 0x20", "NOP")) == Loop(3, 0, 0, 1)
    assert main_loop("        /*00d0*/                   BRA 0xd0;") is None
