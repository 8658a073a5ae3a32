"""Choice of the backend: one requested by name is used or raises, the default chooses."""

from pathlib import Path

import pytest
import torch

from tests.ops.conv2d_cases import Case
from tunable_ops import backends, tunable_conv2d
from tunable_ops.backends import cpp, cuda, triton


def test_default_and_named() -> None:
    assert backends.select("tunable_conv2d", None) == "torch"
    assert backends.select("tunable_conv2d", "torch") == "torch"
    assert backends.select("tunable_conv2d", "reference") == "reference"
    assert [backends.unavailable_reason("tunable_conv2d", name) for name in ("torch", "reference")] == [None, None]


@pytest.mark.parametrize("name", ["cpp", "triton", "cuda"])
def test_a_backend_that_is_not_there_says_why(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for backend in (cpp, cuda):
        monkeypatch.setattr(backend, "_missing", "this build has no compiled operators")
    with pytest.raises(RuntimeError, match=f"backend must be one that can run here; got '{name}': .*backend=None"):
        backends.select("tunable_conv2d", name, torch.ones(1))


def test_triton_names_what_it_takes() -> None:
    pytest.importorskip("triton")
    assert triton.unfit("tunable_parameter", torch.ones(1)) == (
        "it takes CUDA tensors (CPU ones only where TRITON_INTERPRET=1 was set before the import), got one on cpu"
    )
    assert (
        backends.unavailable_reason("tunable_conv3d", "triton")
        == "this version has no triton kernel for tunable_conv3d"
    )


def test_unknown_name_lists_the_known() -> None:
    with pytest.raises(
        ValueError, match="backend must be None or one of 'torch', 'reference', 'cpp', 'triton', 'cuda'; got 'x'"
    ):
        backends.select("tunable_conv2d", "x")


def test_without_the_library_the_default_is_torch_and_everything_works(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = Case().tensors("sample", torch.float32, channels_last=True)
    expected = tunable_conv2d(*tensors, padding=1, backend="torch")
    monkeypatch.setattr(cpp, "_missing", "this build has no compiled operators")
    input, weight, _, alpha = tensors
    assert backends.select("tunable_conv2d", None, input, weight, alpha) == "torch"
    assert torch.equal(tunable_conv2d(*tensors, padding=1), expected)


def test_a_library_that_does_not_load_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: object) -> None:
        raise OSError("undefined symbol")

    if cpp.unavailable_reason("tunable_conv2d") is not None:
        pytest.skip("needs the compiled operators")
    monkeypatch.setattr(cpp, "_missing", None)
    monkeypatch.setattr(torch.ops, "load_library", fail)
    cpp.load()
    with pytest.raises(RuntimeError, match=r"do not load here .*undefined symbol.*install\.md"):
        backends.select("tunable_conv2d", "cpp")


def test_the_default_takes_cpp_for_channels_last_fp32() -> None:
    if cpp.unavailable_reason("tunable_conv2d") is not None:
        pytest.skip("needs the compiled operators")
    case = Case()
    for dtype, channels_last, name in (
        (torch.float32, True, "cpp"),
        (torch.float32, False, "torch"),
        (torch.float64, True, "torch"),
    ):
        input, weight, _, alpha = case.tensors("sample", dtype, channels_last)
        assert backends.select("tunable_conv2d", None, input, weight, alpha) == name
    input, weight, _, alpha = case.tensors("sample", torch.float32, True)
    with torch.autocast("cpu", torch.bfloat16):
        assert backends.select("tunable_conv2d", None, input, weight, alpha) == "torch"
    input, weight, _, alpha = case.tensors("map", torch.float32, True)
    assert backends.select("tunable_conv2d", None, input, weight, alpha) == "torch"


def test_the_default_takes_cpp_for_bfloat16_inference_where_the_processor_multiplies_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if cpp.unavailable_reason("tunable_conv2d") is not None:
        pytest.skip("needs the compiled operators")

    def chosen(case: Case, alpha: str, dtype: torch.dtype = torch.bfloat16, channels_last: bool = True) -> str:
        input, weight, _, rows = case.tensors(alpha, dtype, channels_last)
        weight.requires_grad_()
        return backends.select("tunable_conv2d", None, input, weight, rows)

    monkeypatch.setattr(cpp, "_multiplies_bfloat16", True)
    monkeypatch.setattr(cpp, "_emulates_half", False)
    assert [chosen(Case(), alpha) for alpha in ("shared", "sample")] == ["torch", "torch"]
    with torch.no_grad():
        assert [chosen(Case(), alpha) for alpha in ("shared", "sample")] == ["cpp", "cpp"]
        assert chosen(Case(), "sample", channels_last=False) == "torch"
        assert chosen(Case(), "sample", torch.float16) == "torch"
        assert chosen(Case(taps=(1, 1), padding=(0, 0)), "sample") == "torch"
        monkeypatch.setattr(cpp, "_multiplies_bfloat16", False)
        assert chosen(Case(), "sample") == "torch"


def test_the_default_takes_cpp_for_contiguous_pictures_that_winograd_filters() -> None:
    class Net(torch.nn.Module):
        def forward(self, input: torch.Tensor, weight: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
            return tunable_conv2d(input, weight, None, alpha, *case.geometry)

    if cpp.unavailable_reason("tunable_conv2d") is not None:
        pytest.skip("needs the compiled operators")
    wide = {"channels": 16, "outputs": 32}
    for case, alpha, name in (
        (Case(**wide), "shared", "cpp"),
        (Case(**wide), "sample", "cpp"),
        (Case(**wide), "map", "torch"),
        (Case(channels=32, outputs=32, groups=2), "sample", "cpp"),
        (Case(channels=15, outputs=32), "sample", "torch"),
        (Case(channels=32, outputs=15), "sample", "torch"),
        (Case(**wide, stride=(1, 2)), "sample", "torch"),
        (Case(**wide, dilation=(2, 1)), "sample", "torch"),
        (Case(**wide, taps=(3, 1)), "sample", "torch"),
        (Case(channels=32, outputs=32, groups=32), "sample", "torch"),
    ):
        input, weight, _, weights = case.tensors(alpha, torch.float32)
        program = torch.export.export(Net(), (input, weight, weights))
        called = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
        assert called == [f"tunable_ops.tunable_conv2d_{name}.default"], case


def test_a_size_that_export_leaves_open_is_no_condition() -> None:
    class Net(torch.nn.Module):
        def forward(self, input: torch.Tensor, weight: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
            return tunable_conv2d(input, weight, None, alpha)

    if cpp.unavailable_reason("tunable_conv2d") is not None:
        pytest.skip("needs the compiled operators")
    input, weight, _, alpha = Case().tensors("shared", torch.float32, True)
    rows, columns = torch.export.Dim("rows", min=8, max=4096), torch.export.Dim("columns", min=8, max=4096)
    program = torch.export.export(Net(), (input, weight, alpha), dynamic_shapes=({2: rows, 3: columns}, None, None))
    called = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert called == ["tunable_ops.tunable_conv2d_cpp.default"]


def test_what_cuda_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case()
    input, weight, _, alpha = case.tensors("sample", torch.float16, channels_last=True)
    tensors = (input, weight, alpha)
    assert "these are on cpu" in str(cuda.unfit("tunable_conv2d", *tensors))
    assert not cuda.is_fastest("tunable_conv2d", *tensors)
    monkeypatch.setattr(cuda, "_missing", None)
    assert cuda.unavailable_reason("tunable_conv3d") == "this version has no cuda kernel for tunable_conv3d"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cuda.unavailable_reason("tunable_conv2d") == "no CUDA device is there"
    assert not cuda.is_fastest("tunable_conv2d", *tensors)


def test_why_there_are_no_cuda_operators(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The reason is a torch without CUDA, what setup.py wrote, or the error of a library that does not load."""
    monkeypatch.setattr(cuda, "_missing", None)
    monkeypatch.setattr(cuda, "_PACKAGE", tmp_path)
    monkeypatch.setattr(torch.version, "cuda", None)
    cuda.load()
    assert cuda.unavailable_reason("tunable_conv2d") == "this torch has no CUDA"
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    cuda.load()
    assert "the CUDA operators are left out: this build has none" in str(cuda.unavailable_reason("tunable_conv2d"))
    (tmp_path / "_cuda_left_out.txt").write_text("the CUDA operators are left out: for a reason\n")
    cuda.load()
    with pytest.raises(RuntimeError, match=r"got 'cuda': the CUDA operators are left out: for a reason\. Use backend"):
        backends.select("tunable_conv2d", "cuda")
    (tmp_path / "_ops_cuda.abi3.so").write_text("not a library" * 1000)
    cuda.load()
    said = str(cuda.unavailable_reason("tunable_conv2d"))
    assert said.startswith("the CUDA operators are left out: they do not load here (OSError: ")
    assert said.endswith("To get them: docs/start/install.md, 'Compiled operators'")
