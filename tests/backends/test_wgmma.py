"""When the wgmma kernel is chosen, on a pretended GPU, and that the Triton backend computes the same with it."""

import json
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.csrc import emulated
from tests.ops.conv2d_cases import Case
from tunable_ops import reference
from tunable_ops.backends import cuda, wgmma

pytest.importorskip("triton")
from tunable_ops.triton_kernels import choose_algorithm as rule
from tunable_ops.triton_kernels.launch import Geometry

from tunable_ops.backends.triton import problem, tunable_conv2d

USUAL = Case(channels=64, outputs=64, size=(16, 16), kernels=2)


@pytest.fixture(autouse=True)
def _hopper(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(wgmma, "_missing", None)
    monkeypatch.setattr(wgmma, "_is_hopper", lambda device: True)
    monkeypatch.setattr(wgmma, "_READY", {})
    monkeypatch.setattr(wgmma, "_OPS", SimpleNamespace(tunable_conv2d_wgmma_prepare=lambda *args: True))
    yield
    rule.load_table.cache_clear()
    rule.choose_algorithm.cache_clear()


def chosen(
    case: Case = USUAL,
    direction: str = "forward",
    alpha: str = "sample",
    dtype: torch.dtype = torch.float16,
    channels_last: bool = True,
) -> str:
    """Return the algorithm for a call on the pretended GPU."""
    x, weight, _, a = case.tensors(alpha, dtype, channels_last)
    y = torch.empty(case.batch, case.outputs, *case.grid, dtype=dtype)
    if channels_last:
        y = y.contiguous(memory_format=torch.channels_last)
    stride, padding, dilation, groups = case.geometry
    source, result = (y, x) if direction == "input" else (x, y)
    geometry = Geometry(tuple(stride), tuple(padding), tuple(dilation))
    kind = problem.forward_kind(weight, geometry, groups, x, y)
    return problem.choose(direction, kind, source, weight, a, geometry, groups, result).algorithm


def test_it_is_the_default_up_to_128_channels() -> None:
    for direction in ("forward", "input"):
        for dtype in (torch.float16, torch.bfloat16):
            for alpha in ("shared", "sample"):
                assert chosen(direction=direction, dtype=dtype, alpha=alpha) == "wgmma"
        for case in (
            replace(USUAL, channels=8, outputs=128),
            replace(USUAL, taps=(7, 5), padding=(3, 2)),
            replace(USUAL, taps=(1, 1), padding=(0, 0)),
            replace(USUAL, kernels=16),
        ):
            assert chosen(case, direction) == "wgmma", case


def test_what_the_triton_kernels_keep() -> None:
    for case in (
        replace(USUAL, outputs=136),
        replace(USUAL, channels=12),
        replace(USUAL, outputs=4),
        replace(USUAL, stride=(2, 1)),
        replace(USUAL, dilation=(1, 2)),
        replace(USUAL, groups=2),
        replace(USUAL, groups=64),
        replace(USUAL, taps=(8, 1), padding=(0, 0)),
    ):
        for direction in ("forward", "input"):
            assert chosen(case, direction) in ("fused", "premix", "library"), case
    assert chosen(direction="weight") == "fused"
    assert chosen(alpha="map") == "fused"
    assert chosen(dtype=torch.float32) == "fused"
    assert chosen(channels_last=False) == "fused"


def test_other_gpus_and_machines_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(wgmma, "_is_hopper", lambda device: False)
        assert chosen() == "fused"
    with monkeypatch.context() as patch:
        patch.setattr(wgmma, "_missing", "this build has none")
        assert chosen() == "fused"
    assert chosen() == "wgmma"


def test_only_compute_capability_9_0(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    capabilities = {0: (9, 0), 1: (8, 9), 2: (10, 0), 3: (12, 0)}
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capabilities[device.index])
    wgmma._is_hopper.cache_clear()
    found = [wgmma._is_hopper(torch.device("cuda", i)) for i in capabilities]
    wgmma._is_hopper.cache_clear()
    assert found == [True, False, False, False]
    assert not wgmma._is_hopper(torch.device("cpu"))


def test_why_it_cannot_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The reason is a torch without CUDA, what setup.py wrote, the error of a library that does not load, the GPU."""
    monkeypatch.setattr(wgmma, "_PACKAGE", tmp_path)
    monkeypatch.setattr(torch.version, "cuda", None)
    wgmma.load()
    assert wgmma.unavailable_reason() == "this torch has no CUDA"
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    wgmma.load()
    assert wgmma.unavailable_reason() == "this build has none"
    (tmp_path / "_wgmma_left_out.txt").write_text("the wgmma operators are left out: for a reason\n")
    wgmma.load()
    assert wgmma.unavailable_reason() == "the wgmma operators are left out: for a reason"
    (tmp_path / "_ops_wgmma.abi3.so").write_text("not a library" * 1000)
    wgmma.load()
    assert str(wgmma.unavailable_reason()).startswith("_ops_wgmma.abi3.so does not load here (OSError: ")
    monkeypatch.setattr(wgmma, "_missing", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert wgmma.unavailable_reason() == "no CUDA device is there"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    assert wgmma.unavailable_reason() is None
    monkeypatch.setattr(wgmma, "_is_hopper", lambda device: False)
    assert wgmma.unavailable_reason() == "it needs compute capability 9.0"


def test_a_kernel_that_fails_its_check_warns_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def fail(*args: Any) -> bool:
        calls.append(args)
        raise RuntimeError("hopper_conv_kernel could not be launched: it computes wrong results here (row 3)\nat ...")

    monkeypatch.setattr(wgmma, "_OPS", SimpleNamespace(tunable_conv2d_wgmma_prepare=fail))
    with pytest.warns(UserWarning, match=r"the wgmma kernel is left out, slower ones run: .* here \(row 3\)$"):
        assert chosen() == "fused"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert chosen() == "fused"
    assert len(calls) == 1
    monkeypatch.setattr(wgmma, "_OPS", SimpleNamespace(tunable_conv2d_wgmma_prepare=lambda *args: False))
    with warnings.catch_warnings():  # a layer that it does not support is no failure
        warnings.simplefilter("error")
        assert chosen(replace(USUAL, channels=128, outputs=128)) == "fused"


@pytest.mark.parametrize("algorithm", ["fused", "premix", "wgmma"])
def test_a_table_decides(algorithm: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Also beyond the channels of the heuristic; where it names a kernel that cannot run, the heuristic decides."""
    measured = rule.Problem("forward", "dense", "sample", "float16", "nhwc", 2, 2, 64, 64, 1, (3, 3), (1, 1), (16, 16))
    problems = (measured, measured._replace(inputs=160, outputs=160))
    rows = [{"problem": p._asdict(), "algorithm": algorithm, "config": [64, 32, 32, 4, 3]} for p in problems]
    (tmp_path / "a_gpu.json").write_text(json.dumps({"version": rule.VERSION, "entries": rows}))
    monkeypatch.setattr(rule, "TABLES", tmp_path)
    monkeypatch.setattr(problem, "device_name", lambda tensor: "A GPU")
    wide = replace(USUAL, channels=160, outputs=160)
    assert [chosen(USUAL), chosen(wide)] == [algorithm, algorithm]
    assert chosen(USUAL, "input") == "wgmma"  # nothing was measured
    monkeypatch.setattr(wgmma, "_is_hopper", lambda device: False)
    without = "fused" if algorithm == "wgmma" else algorithm
    assert [chosen(USUAL), chosen(wide)] == [without, without]


def test_the_backend_computes_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    torch.ops.load_library(emulated.build())
    monkeypatch.setattr(wgmma, "_OPS", torch.ops.tunable_ops_emulated)
    case = Case(channels=8, outputs=16, size=(7, 9), kernels=2)
    x, weight, bias, a = case.tensors("sample", torch.float16, True)
    tensors = (x.double().requires_grad_(), weight.double(), bias.double(), a.double())
    for act in ("none", "relu", "gelu"):
        ref = reference.tunable_conv2d(*tensors, *case.geometry, activation=act)
        before = reference.tunable_conv2d(*tensors, *case.geometry)
        out = tunable_conv2d.forward(x, weight, bias, a, *case.geometry, act)
        both = tunable_conv2d.forward_saving(x, weight, bias, a, *case.geometry, act)
        for found, expected in ((out, ref), (both[0], ref), (both[1], before)):
            assert (found.double() - expected).abs().max() <= 2**-9 * expected.abs().max(), act
            assert found.is_contiguous(memory_format=torch.channels_last)
    grad = torch.randn(case.batch, case.outputs, *case.grid).half().contiguous(memory_format=torch.channels_last)
    mask = (True, False, False, False)
    found = tunable_conv2d.backward(grad, None, x, weight, bias, a, *case.geometry, "none", mask)[0]
    (expected,) = torch.autograd.grad(before, tensors[0], grad.double())
    assert found is not None
    assert (found.double() - expected).abs().max() <= 2**-9 * expected.abs().max()
    assert {key[2] for key in wgmma._READY} == {False, True}  # both directions were checked before they ran


def test_the_cuda_backend_says_which_gpus_it_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    x = SimpleNamespace(device=torch.device("cuda", 0), dtype=torch.float16)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    reason = cuda.unfit("tunable_conv2d", x, torch.ones(1, 1, 1, 1, 1), torch.ones(1))  # type: ignore[arg-type]
    assert reason == "it needs a GPU of compute capability 8.0 or more, and this one has 7.5"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    assert cuda.unfit("tunable_conv2d", x, torch.ones(1, 1, 1, 1, 1), torch.ones(1)) is None  # type: ignore[arg-type]
