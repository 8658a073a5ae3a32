"""ONNX files: values in ONNX Runtime, what they are made of, what they say of themselves, and what cannot be one."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.export import Dim

from tests.comparison import assert_agrees
from tunable_ops import TunableModel, convert, fold, models, pretrained
from tunable_ops.deploy import Description, export_onnx
from tunable_ops.modules import LambdaSpec

onnx = pytest.importorskip("onnx", reason="onnx is not installed (tunable-ops[onnx])")
pytest.importorskip("onnxscript", reason="onnxscript is not installed (tunable-ops[onnx])")
ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (tunable-ops[onnx])")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

WINDOWED = {"Conv", "ConvTranspose", "MaxPool", "AveragePool"}


def open_file(path):
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(**inputs):
        return torch.from_numpy(session.run(None, {name: value.numpy() for name, value in inputs.items()})[0])

    return run


def assert_same(run, net, pairs, bound=1e-4):
    """Compare with the network on pairs of a picture and a lambda, in parts of the result's range.

    The pictures are of the range [0, 1], but what networks of super-resolution make of noise is not.
    """
    for x, lam in pairs:
        with torch.no_grad():
            expected = net(x, lam)
        out = run(input=x, lam=lam)
        assert out.shape == expected.shape
        span = max(1.0, float(expected.max() - expected.min()))
        assert (out - expected).abs().max() <= bound * span, (list(x.shape), lam.flatten()[:4])


def operators(path):
    return list(onnx.load(path).graph.node)


@pytest.fixture(scope="module")
def shared(small, tmp_path_factory):
    path = tmp_path_factory.mktemp("onnx") / "small.onnx"
    return path, export_onnx(small, path)


def test_shared_lambda_gives_the_networks_values(shared, small, cases):
    assert_same(open_file(shared[0]), small, cases(small, "shared"))


def test_the_file_passes_the_checker_and_names_its_sizes(shared):
    model = onnx.load(shared[0])
    onnx.checker.check_model(model, full_check=True)
    sizes = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    assert sizes == {"input": ["batch", 3, "height", "width"], "lam": [2], "output": ["batch", 3, "height", "width"]}
    assert {entry.domain for entry in model.opset_import} == {""}
    assert [entry.version for entry in model.opset_import] == [18]
    assert not model.functions


def test_convolutions_are_plain_and_whole(shared):
    """Some readers take kernel_shape and the others from the attributes alone."""
    nodes = operators(shared[0])
    convolutions = [node for node in nodes if node.op_type == "Conv"]
    assert len(convolutions) == 3
    for node in convolutions:
        given = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
        assert given == {
            "auto_pad": b"NOTSET",
            "dilations": [1, 1],
            "group": 1,
            "kernel_shape": [3, 3],
            "pads": [1, 1, 1, 1],
            "strides": [1, 1],
        }
    assert sum(node.op_type == "ReduceSum" for node in nodes) == 6  # the blends of kernels and biases


def test_the_metadata_describe_lambda(shared, small):
    texts = {entry.key: entry.value for entry in onnx.load(shared[0]).metadata_props}
    found = Description.from_strings(texts)
    assert found == shared[1] == Description("shared", 3, 1, 1.0, "float32", small.spec)
    assert found.spec.units == ("of 255", "") and found.spec.defaults == (25, 0)


def test_a_lambda_per_sample(small, cases, tmp_path):
    description = export_onnx(small, tmp_path / "a.onnx", per_sample=True)
    assert description.form == "per_sample"
    assert_same(open_file(tmp_path / "a.onnx"), small, cases(small, "per_sample"))
    widths = [
        next(v for v in onnx.load(tmp_path / "a.onnx").graph.value_info if v.name == node.output[0])
        for node in operators(tmp_path / "a.onnx")
        if node.op_type == "Conv"
    ]
    # P = 2 kernels of 8, 8 and 12 outputs: one convolution for both, as groups are constants
    assert [value.type.tensor_type.shape.dim[1].dim_value for value in widths] == [16, 16, 24]


def test_a_users_own_export(small, cases, tmp_path):
    """torch.onnx.export knows the operators; it said "No ONNX function found for tunable_conv2d_torch"."""
    x, lam, path = torch.rand(5, 3, 37, 44), torch.tensor([20.0, 0.5]), tmp_path / "a.onnx"
    shapes = ({0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}, None)
    names = ["input", "lam"]
    torch.onnx.export(small, (x, lam), path, dynamo=True, verbose=False, dynamic_shapes=shapes, input_names=names)
    assert_same(open_file(tmp_path / "a.onnx"), small, cases(small, "shared"))


@pytest.mark.slow
def test_a_map(small, cases, tmp_path):
    """FFDNet works on blocks of 2 x 2: the map is averaged down, to a size that is rounded up."""
    export_onnx(small, tmp_path / "a.onnx", lambda_map=True)
    assert_same(open_file(tmp_path / "a.onnx"), small, cases(small, "map"))


@pytest.mark.slow
def test_half_precision(small, cases, tmp_path):
    assert export_onnx(small, tmp_path / "a.onnx", half=True).dtype == "float16"
    run = open_file(tmp_path / "a.onnx")
    reference, half = (convert_to(small, dtype) for dtype in (torch.float64, torch.float16))
    for x, lam in cases(small, "shared"):
        x = x.half()
        with torch.no_grad():
            ref, base = reference(x.double(), lam.double()), half(x, lam)
        out = run(input=x, lam=lam)
        assert out.dtype == torch.float16
        assert_agrees(out, ref, base)


def convert_to(net, dtype):
    import copy

    return copy.deepcopy(net).to(dtype)


@pytest.mark.slow
def test_a_folded_network_takes_no_lambda(small, cases, tmp_path):
    """Odd sizes failed in a folded network: its export fixed what the padding was for the example."""
    lam = {"sigma": 10.0, "texture": 0.5}
    description = export_onnx(fold(small, lam), tmp_path / "a.onnx", folded_at=lam)
    assert (description.form, description.spec, description.lam) == ("folded", None, lam)
    run = open_file(tmp_path / "a.onnx")
    for x, _ in cases(small, "shared"):
        with torch.no_grad():
            assert (run(input=x) - small(x, lam)).abs().max() <= 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("opset", [20, 23])
def test_later_opsets(small, cases, tmp_path, opset):
    export_onnx(small, tmp_path / "a.onnx", opset=opset)
    assert [entry.version for entry in onnx.load(tmp_path / "a.onnx").opset_import] == [opset]
    assert_same(open_file(tmp_path / "a.onnx"), small, cases(small, "shared"))


ARCHITECTURES = {
    "carn": {"features": 8},
    "dncnn": {"features": 4, "depth": 3, "downscale": 2},
    "edsr": {"features": 8, "num_blocks": 1},
    "ffdnet": {"features": 8, "depth": 3, "knob": 0},
    "imdn": {"features": 8, "blocks": 1},
    "nafnet": {"width": 4, "middle_blk_num": 1, "enc_blk_nums": [1, 1], "dec_blk_nums": [1, 1]},
    "rlfn": {"features": 8, "hidden": 8, "attention": 4, "blocks": 1},
    "stylenet": {"width": 4, "num_blocks": [1, 1, 1]},
    "swinir": {"embed_dim": 8, "depths": [2], "num_heads": [2], "window_size": 4, "img_size": 8},
}


@pytest.mark.slow
@pytest.mark.parametrize("per_sample", [False, True], ids=["shared", "per_sample"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture(name, per_sample, cases, tmp_path):
    assert set(ARCHITECTURES) == set(models.ARCHITECTURES)
    net = convert(models.build(name, **ARCHITECTURES[name]), 2, domain="box").eval()
    with torch.no_grad():
        for layer in net.layers:
            for stack in layer.parameters(recurse=False):
                stack.add_(0.02 * torch.randn_like(stack))
    description = export_onnx(net, tmp_path / "a.onnx", per_sample)
    pairs = cases(net, "per_sample" if per_sample else "shared", least=description.smallest)
    assert_same(open_file(tmp_path / "a.onnx"), net, pairs)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["shared", "per_sample"])
@pytest.mark.parametrize("name", pretrained.names())
def test_every_network_that_ships(name, form, cases, tmp_path):
    net = pretrained.load(name)
    description = export_onnx(net, tmp_path / "a.onnx", form == "per_sample")
    assert description.scale == {"super_resolution_x2": 2, "super_resolution_x4": 4}.get(name, 1)
    assert description.smallest == (15 if name == "super_resolution_x4" else 1)
    assert_same(open_file(tmp_path / "a.onnx"), net, cases(net, form, least=description.smallest))


@pytest.mark.slow
@pytest.mark.parametrize("per_sample", [False, True], ids=["shared", "per_sample"])
def test_openvino_reads_the_file(small, cases, tmp_path, per_sample):
    openvino = pytest.importorskip("openvino", reason="openvino is not installed")
    export_onnx(small, tmp_path / "a.onnx", per_sample)
    hints = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = openvino.compile_model(tmp_path / "a.onnx", "CPU", hints)
    for x, lam in cases(small, "per_sample" if per_sample else "shared"):
        with torch.no_grad():
            expected = small(x, lam)
        out = compiled({"input": x.numpy(), "lam": lam.numpy()})[0]
        assert np.abs(out - expected.numpy()).max() <= 1e-4


def test_attributes_that_a_reader_could_infer_are_filled_in():
    import onnx_ir as ir

    from tunable_ops.deploy.onnx import _fill_attributes

    kernel = ir.Value(name="kernel", shape=ir.Shape([4, 3, 3, 5]), type=ir.TensorType(ir.DataType.FLOAT))
    picture = ir.Value(name="picture", shape=ir.Shape([1, 3, 9, 9]), type=ir.TensorType(ir.DataType.FLOAT))
    pooled = ir.node("MaxPool", [picture], {"kernel_shape": [2, 2], "strides": [2, 2]})
    nodes = [ir.node("Conv", [picture, kernel]), ir.node("ConvTranspose", [picture, kernel], {"group": 3}), pooled]
    graph = ir.Graph([picture, kernel], [node.outputs[0] for node in nodes], nodes=nodes, opset_imports={"": 18})
    _fill_attributes(graph)
    found = [{name: attribute.value for name, attribute in node.attributes.items()} for node in nodes]
    common = {"auto_pad": "NOTSET", "pads": (0, 0, 0, 0), "dilations": (1, 1)}
    convolution = {**common, "kernel_shape": (3, 5), "strides": (1, 1)}
    assert [{k: tuple(v) if isinstance(v, list) else v for k, v in each.items()} for each in found] == [
        {**convolution, "group": 1},
        {**convolution, "group": 3, "output_padding": (0, 0)},
        {**common, "kernel_shape": (2, 2), "strides": (2, 2), "ceil_mode": 0},
    ]


def test_bad_arguments(small, tmp_path):
    plain = models.build("dncnn", features=4, depth=2)
    path = tmp_path / "a.onnx"
    cases = [
        (TypeError, r"^export_onnx: net must be a module; got str$", ("net", path), {}),
        (
            ValueError,
            "net must be a TunableModel to take a lambda; got DnCNN, a plain network",
            (plain, path, True),
            {},
        ),
        (ValueError, "per_sample must be False with lambda_map", (small, path, True), {"lambda_map": True}),
        (ValueError, "opset must be an int of at least 18; got 17", (small, path), {"opset": 17}),
        (ValueError, "path must lie in an existing folder; got", (small, tmp_path / "no" / "a.onnx"), {}),
        (ValueError, r"net must run on a picture \[1, 4, ", (small, path), {"example": torch.rand(1, 4, 8, 8)}),
    ]
    for kind, text, args, options in cases:
        with pytest.raises(kind, match=text):
            export_onnx(*args, **options)
    assert not list(tmp_path.iterdir())


class FixedSize(nn.Module):
    """Multiplies rows by a matrix of the size of its first picture."""

    def forward(self, x):
        return x @ torch.eye(int(x.shape[-1])) if x.shape[-1] == 53 else x * 1.0


class Sorts(nn.Module):
    def forward(self, x):
        return torch.special.airy_ai(x)


@pytest.mark.parametrize(
    ("layer", "text"),
    [
        (FixedSize(), "net must be one whose graph holds for every batch and size; got FixedSize 1, whose code makes"),
        (Sorts(), r"net must have operators alone that ONNX knows; got aten::special_airy_ai.default in Sorts 1$"),
    ],
    ids=["size", "operator"],
)
def test_what_onnx_cannot_hold_names_the_layer(layer, text, tmp_path):
    net = TunableModel(nn.Sequential(*convert(nn.Sequential(nn.Conv2d(3, 3, 1)), 2).network, layer), num_params=2)
    with pytest.raises(ValueError, match=text):
        export_onnx(net.eval(), tmp_path / "a.onnx")
    assert not list(tmp_path.iterdir())


def test_a_description_comes_back_from_its_strings():
    spec = LambdaSpec.create(2, "simplex", names=("a", "b"))
    for description in (
        Description("map", 1, 15, 0.5, "float16", spec),
        Description("folded", 3, 1, 4.0, lam={"sigma": 2.5}),
    ):
        assert Description.from_strings({"other": "x", **description.to_strings()}) == description
    with pytest.raises(ValueError, match="file must be one that this package exported; got one without channels"):
        Description.from_strings({"tunable_ops.form": "shared"})
