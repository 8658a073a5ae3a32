"""The operators' graph forms: the values of the definitions, and graphs that hold for other batches and sizes."""

import pytest
import torch
from torch.export import Dim

import tunable_ops
from tests.comparison import assert_agrees
from tunable_ops import reference
from tunable_ops.ops import graph_form
from tunable_ops.ops.registration import decompositions
from tunable_ops.reference.activation import CODES


def alphas(kind: str, batch: int, kernels: int, grid: tuple[int, int]) -> torch.Tensor:
    shape = {"shared": (kernels,), "per_sample": (batch, kernels), "map": (batch, kernels, *grid)}[kind]
    return torch.randn(shape)


@pytest.mark.parametrize("kind", ["shared", "per_sample", "map"])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("activation", [None, "silu"])
def test_conv2d(kind, groups, activation):
    batch, kernels = 3, 4
    x, weight, bias = torch.randn(batch, 6, 9, 11), torch.randn(kernels, 8, 6 // groups, 3, 5), torch.randn(kernels, 8)
    geometry = ((2, 1), (1, 0), (1, 2), groups)
    alpha = alphas(kind, batch, kernels, (5, 3))
    options = (*geometry[0], *geometry[1], *geometry[2], groups, CODES[activation])
    out = graph_form.tunable_conv2d(x, weight, bias, alpha, *options)
    ref, base = (
        reference.tunable_conv2d(*(t.to(dtype) for t in (x, weight, bias, alpha)), *geometry, activation)
        for dtype in (torch.float64, torch.float32)
    )
    assert_agrees(out, ref, base)


@pytest.mark.parametrize("kind", ["shared", "per_sample", "map"])
def test_conv_transpose2d(kind):
    batch, kernels = 2, 3
    x, weight, bias = torch.randn(batch, 4, 5, 6), torch.randn(kernels, 4, 3, 3, 3), torch.randn(kernels, 6)
    alpha = alphas(kind, batch, kernels, (10, 12))
    out = graph_form.tunable_conv_transpose2d(x, weight, bias, alpha, 2, 2, 1, 1, 1, 1, 2, CODES["relu"])
    ref, base = (
        reference.tunable_conv_transpose2d(*(t.to(dtype) for t in (x, weight, bias, alpha)), 2, 1, 1, 2, 1, "relu")
        for dtype in (torch.float64, torch.float32)
    )
    assert_agrees(out, ref, base)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_blends(dtype):
    stacks = [torch.randn(3, 4, 5).to(dtype), torch.randn(2, 7).to(dtype)]
    alpha, starts = torch.randn(5), [0, 3]
    wide = [stack.double() for stack in stacks]
    results = graph_form.tunable_parameters(stacks, alpha, starts)
    for out, ref, base in zip(
        results,
        reference.tunable_parameters(wide, alpha.double(), starts),
        reference.tunable_parameters(stacks, alpha, starts),
        strict=True,
    ):
        assert_agrees(out, ref, base)
    rows = torch.randn(6, 3)
    out = graph_form.tunable_parameter(stacks[0], rows)
    assert_agrees(
        out, reference.tunable_parameter(wide[0], rows.double()), reference.tunable_parameter(stacks[0], rows)
    )


def test_every_operator_of_a_forward_call_has_a_form():
    forms = {str(op) for op in decompositions()}
    for name in ("tunable_conv2d", "tunable_parameter", "tunable_parameters"):
        for backend in ("torch", "cpp", "triton"):
            assert f"tunable_ops.{name}_{backend}.default" in forms
    assert {"tunable_ops.tunable_conv2d_cuda.default", "tunable_ops.tunable_conv_transpose2d_cpp.default"} <= forms


class Layers(torch.nn.Module):
    """One call of an operator, whose kernels are constants."""

    def __init__(self, name: str, shape: tuple[int, ...], **options: object) -> None:
        super().__init__()
        self.call, self.options = getattr(tunable_ops, name), options
        self.register_buffer("weight", torch.randn(shape))

    def forward(self, x, alpha):
        # a part of the alphas of many layers, as in a network
        return self.call(x, self.weight, None, alpha[:, 1:3], **self.options)


@pytest.mark.parametrize(
    ("name", "shape", "size", "options"),
    [
        ("tunable_conv1d", (2, 4, 3, 3), (11,), {"padding": 1}),
        ("tunable_conv2d", (2, 4, 3, 3, 3), (7, 9), {"padding": 1}),
        ("tunable_conv3d", (2, 4, 3, 3, 3, 3), (5, 6, 7), {"padding": 1}),
        ("tunable_conv_transpose2d", (2, 3, 4, 3, 3), (7, 9), {"stride": 2}),
        ("tunable_conv_transpose2d", (2, 3, 4, 2, 2), (7, 9), {"stride": 2}),
        ("tunable_linear", (2, 4, 3), (), {}),
    ],
)
def test_a_graph_per_sample_holds_for_every_batch(name, shape, size, options):
    layer = Layers(name, shape, **options)

    def inputs(batch: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.randn(batch, 3, *size), torch.rand(batch, 5)

    with torch.fx.experimental._config.patch(backed_size_oblivious=True):
        program = torch.export.export(layer, inputs(5), dynamic_shapes=({0: Dim.DYNAMIC}, {0: Dim.DYNAMIC}))
        program = program.run_decompositions(decompositions())
    assert not [node for node in program.graph.nodes if "tunable_ops" in str(node.target)]
    for batch in (1, 2, 3):
        x, alpha = inputs(batch)
        torch.testing.assert_close(program.module()(x, alpha), layer(x, alpha), rtol=1e-4, atol=1e-5)
