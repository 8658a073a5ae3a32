"""Graphs and compiled packages: values, what they need to be loaded, and files as functions."""

import subprocess
import sys
import warnings
import zipfile

import pytest
import torch

from tunable_ops import convert, fold, models, pretrained
from tunable_ops.backends import unavailable_reason
from tunable_ops.deploy import Description, compile_package, export_program, load
from tunable_ops.modules import LambdaWarning

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
NO_OPERATORS = unavailable_reason("tunable_conv2d", "cpp")


@pytest.fixture(scope="module")
def graph(small, tmp_path_factory):
    path = tmp_path_factory.mktemp("graph") / "small.pt2"
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)  # torch's, about a class of its own
        return path, export_program(small, path)


def assert_same(path, net, pairs, bound=1e-4):
    exported = load(path)
    for x, lam in pairs:
        with torch.no_grad():
            expected = net(x, lam)
        out = exported(x, lam)
        assert out.shape == expected.shape and (out - expected).abs().max() <= bound, list(x.shape)


def test_a_graph(graph, small, cases):
    assert_same(graph[0], small, cases(small, "shared", least=3))


def test_a_graph_needs_torch_alone(graph):
    code = f"""
import sys, torch
program = torch.export.load({str(graph[0])!r})
assert not any(name.startswith("tunable_ops") for name in sys.modules)
assert not [node for node in program.graph.nodes if "tunable_ops" in str(node.target)]
print(tuple(program.module()(torch.rand(1, 3, 9, 11), torch.tensor([25.0, 0.5])).shape))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "(1, 3, 9, 11)\n"


def test_a_file_is_called_as_the_network(graph, small):
    exported = load(graph[0])
    assert exported.description == graph[1] == Description("shared", 3, 3, 1.0, "float32", small.spec)
    x = torch.rand(2, 3, 12, 13)
    with torch.no_grad():
        for lam in (None, {"texture": 0.5}, [10, 0.25], torch.tensor([[10.0, 0.25]])):
            torch.testing.assert_close(exported(x, lam), small(x, lam), rtol=1e-4, atol=1e-5)
    with pytest.warns(LambdaWarning, match=r"sigma = 80 of 255 is outside the range 0\.\.50 of the training"):
        exported(x, {"sigma": 80})
    for kind, text, args in (
        (ValueError, r"input must be \[B, 3, H, W\] with H and W at least 3; got \[2, 1, 4, 4\]", (x[:, :1, :4, :4],)),
        (TypeError, "input must be float32; got torch.float64", (x.double(),)),
        (ValueError, r"lam must be \[2\] for a file of the form 'shared'; got \[2, 2\]", (x, torch.rand(2, 2))),
        (ValueError, r"lam must name parameters of the network \(sigma, texture\); got 'noise'", (x, {"noise": 1})),
    ):
        with pytest.raises(kind, match=text):
            exported(*args)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["per_sample", "map"])
def test_graphs_of_other_forms(form, small, cases, tmp_path):
    path = tmp_path / "a.pt2"
    export_program(small, path, form == "per_sample", lambda_map=form == "map")
    assert_same(path, small, cases(small, form, least=3))
    x, exported = torch.rand(3, 3, 8, 9), load(path)
    with torch.no_grad():
        torch.testing.assert_close(exported(x, [10, 0.5]), small(x, [10, 0.5]), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_folded_graph_in_half_precision(small, tmp_path):
    lam = {"sigma": 10.0, "texture": 0.5}
    export_program(fold(small, lam), tmp_path / "a.pt2", half=True, folded_at=lam)
    exported = load(tmp_path / "a.pt2")
    assert (exported.description.form, exported.description.dtype) == ("folded", "float16")
    x = torch.rand(1, 3, 21, 22)
    with torch.no_grad():
        assert (exported(x.half()) - small(x, lam)).abs().max() <= 4e-3
    with pytest.raises(ValueError, match="lam must be None for a file that takes none; got"):
        exported(x.half(), lam)


@pytest.mark.slow
@pytest.mark.parametrize("name", pretrained.names())
def test_graphs_of_every_network_that_ships(name, cases, tmp_path):
    net = pretrained.load(name)
    description = export_program(net, tmp_path / "a.pt2")
    assert_same(tmp_path / "a.pt2", net, cases(net, "shared", least=description.smallest))


@pytest.mark.slow
@pytest.mark.parametrize("form", ["shared", "per_sample"])
def test_compiled_code(form, small, cases, tmp_path):
    path = tmp_path / "a.pt2"
    assert not compile_package(small, path, form == "per_sample").operators
    assert_same(path, small, cases(small, form, least=3))
    assert load(path).description.spec == small.spec


@pytest.mark.slow
@pytest.mark.skipif(NO_OPERATORS is not None, reason=f"needs the compiled operators: {NO_OPERATORS}")
def test_compiled_code_that_calls_the_operators_says_so(cases, tmp_path):
    path, net = tmp_path / "a.pt2", convert(models.build("dncnn", features=16, depth=3), 2).eval()
    with torch.no_grad():
        for layer in net.layers:
            layer.weight.add_(0.05 * torch.randn_like(layer.weight))
    description = compile_package(net, path, operators=True)
    assert description.operators == ("tunable_ops.tunable_conv2d_cpp.default",)
    assert load(path).description == description
    assert_same(path, net, cases(net, "shared", least=3))


@pytest.mark.skipif(NO_OPERATORS is not None, reason=f"needs the compiled operators: {NO_OPERATORS}")
def test_a_network_that_calls_no_operator_is_refused(small, tmp_path):
    """Its package was compiled for channels_last and took contiguous pictures: it gave wrong values."""
    with pytest.raises(ValueError, match="operators must be False for a network without a layer that gets"):
        compile_package(small, tmp_path / "a.pt2", operators=True)


def test_bad_paths(small, graph, tmp_path):
    (tmp_path / "text.pt2").write_text("no archive")
    for call, text in (
        (lambda: export_program(small, tmp_path / "a.onnx"), "export_program: path must end in .pt2; got"),
        (lambda: compile_package(small, tmp_path / "no/a.pt2"), "compile_package: path must lie in an existing folder"),
        (
            lambda: compile_package(small, tmp_path / "a.pt2", half=True, operators=True),
            "operators must be False in half",
        ),
        (lambda: load(tmp_path / "text.pt2"), "deploy.load: path must be an .onnx or a whole .pt2 file; got"),
    ):
        with pytest.raises(ValueError, match=text):
            call()
    with pytest.raises(FileNotFoundError, match=r"deploy.load: path must be an existing file; got"):
        load(tmp_path / "none.pt2")
    with zipfile.ZipFile(graph[0]) as archive:
        assert any(name.endswith("tunable_ops.json") for name in archive.namelist())
