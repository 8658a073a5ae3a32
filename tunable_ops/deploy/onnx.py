"""ONNX files: lambda is an input, batch and size are dynamic, and every convolution is a plain Conv node."""

from __future__ import annotations

import logging
import os
import re
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from tunable_ops.deploy.capture import capture, choose_form, leaf_spec_warning_off, prepare, short_name
from tunable_ops.deploy.description import Description, describe
from tunable_ops.deploy.pooling import pooling_decompositions
from tunable_ops.modules import TunableModel

__all__ = ["OPSET", "export_onnx"]

OPSET = 18  # what the exporter of torch translates to; later ones are converted from it
_OP = "export_onnx"
_NOT_TRANSLATED = re.compile(r"No ONNX function found for <OpOverload\(op='([^']+)', overload='([^']+)'\)>")
_WINDOWED = ("Conv", "ConvTranspose", "MaxPool", "AveragePool")
_SYMBOLS = ("batch", "height", "width")


@leaf_spec_warning_off()
def export_onnx(
    net: nn.Module,
    path: str | os.PathLike[str],
    per_sample: bool = False,
    *,
    lambda_map: bool = False,
    half: bool = False,
    opset: int = OPSET,
    example: Tensor | None = None,
    folded_at: Mapping[str, float] | None = None,
) -> Description:
    """Write ``output = net(input, lam)`` as an ONNX file.

    Formula: shared lambda: ``alpha = phi(lam)``, ``kernel = sum_p alpha[p] weight[p]`` (Mul and ReduceSum), and a plain
    Conv. Per sample, or as a map: one Conv with P*O outputs and a sum weighted by alpha, which takes P times the plain
    network's arithmetic.

    Inputs of the file: ``input`` [batch, C, height, width] and, of a tunable network, ``lam`` in its units, float32:
    [p], with `per_sample` [batch, p], with `lambda_map` [batch, p, height, width]. Its output: ``output``, of the
    input's dtype. The metadata has names, units, ranges and defaults of lambda, and the smallest picture
    (`Description`).

    Args:
        net: A TunableModel; or a plain network, such as `fold` returns, which gets no lam. It is not changed.
        path: File to write, by convention ``*.onnx``; an existing one is replaced atomically.
        per_sample: Take a lambda for each sample.
        lambda_map: Take a lambda for each pixel.
        half: Convert kernels, input and output to float16. Blends are computed in float32.
        opset: Version of the operator set; 18 or later.
        example: A picture [B, C, H, W], for networks that do not say how many channels they take (`channels`).
        folded_at: For a plain network that `fold` returned: its lambda by name, a remark for the metadata.

    Returns:
        What the file says of itself.

    Raises:
        TypeError: `net` is no module.
        ValueError: Arguments do not fit, the network's code fixes a size, or ONNX has no operator for something in it;
            the message names the layer.
        ModuleNotFoundError: onnx or onnxscript are not installed (the extra ``[onnx]``).
    """
    form = choose_form(_OP, net, per_sample, lambda_map)
    if type(opset) is not int or opset < OPSET:
        raise ValueError(f"{_OP}: opset must be an int of at least {OPSET}; got {opset!r}")
    path = Path(path)
    if not path.parent.is_dir():
        raise ValueError(f"{_OP}: path must lie in an existing folder; got {str(path)!r}")
    import onnx  # noqa: F401 (before any work)
    import onnxscript  # noqa: F401

    net = prepare(net, half)
    description = replace(describe(net, form, _OP, example), lam=folded_at)
    if half:
        net, description = net.half(), description.halved()
    program = capture(net, form, channels=description.channels, smallest=description.smallest, op=_OP)
    if form == "map":
        program = program.run_decompositions(pooling_decompositions())
    model = _translate(program, opset, tunable=isinstance(net, TunableModel))
    _fill_attributes(model.graph)
    _name_sizes(model.graph, description)
    model.metadata_props.update(description.to_strings())
    model.producer_name = "tunable_ops"
    _write(model, path)
    return description


def _translate(program: ExportedProgram, opset: int, tunable: bool) -> Any:
    """Return the model of onnx_ir."""
    names = ["input", "lam"] if tunable else ["input"]
    try:
        with _quiet():
            exported = torch.onnx.export(
                program, input_names=names, output_names=["output"], opset_version=opset, dynamo=True, verbose=False
            )
    except Exception as error:
        found = next(filter(None, (_NOT_TRANSLATED.search(str(each)) for each in _chain(error))), None)
        if found is None:
            raise
        name, overload = found.groups()
        target = name.replace(".", "::", 1) if "::" not in name else name
        raise ValueError(
            f"{_OP}: net must have operators alone that ONNX knows; got {target}.{overload}{_place(program, name)}"
        ) from error
    assert exported is not None
    return exported.model


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _place(program: ExportedProgram, name: str) -> str:
    """Return which layer calls an operator first."""
    for node in program.graph.nodes:
        if node.op == "call_function" and str(node.target).startswith(name):
            stack = list((node.meta.get("nn_module_stack") or {}).values())
            if stack:
                layer, kind = stack[-1]
                kind = kind if isinstance(kind, str) else kind.__name__
                return f" in {kind.rpartition('.')[2]} {short_name(layer)}".rstrip()
    return ""


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what the exporter says about itself, such as each package that it looks for."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


def _fill_attributes(graph: Any) -> None:
    """Write out attributes of convolutions and poolings that a reader could also infer, for readers that do not."""
    import onnx_ir as ir

    for node in graph.all_nodes():
        if node.domain != "" or node.op_type not in _WINDOWED:
            continue
        if node.op_type.startswith("Conv"):
            taps = [int(size) for size in node.inputs[1].shape[2:]]
        else:
            taps = list(node.attributes["kernel_shape"].as_ints())
        defaults: dict[str, Any] = {
            "auto_pad": "NOTSET",
            "kernel_shape": taps,
            "strides": [1] * len(taps),
            "pads": [0] * 2 * len(taps),
            "dilations": [1] * len(taps),
        }
        if node.op_type.startswith("Conv"):
            defaults["group"] = 1
        else:
            defaults["ceil_mode"] = 0
        if node.op_type == "ConvTranspose":
            defaults["output_padding"] = [0] * len(taps)
        for name, value in defaults.items():
            if name not in node.attributes:
                node.attributes[name] = ir.convenience.convert_attribute(name, value)


def _name_sizes(graph: Any, description: Description) -> None:
    """Call the dynamic sizes batch, height and width, also in what is computed from them."""
    import onnx_ir as ir

    dims = graph.inputs[0].shape
    names = {str(dims[axis].value): name for axis, name in zip((0, 2, 3), _SYMBOLS, strict=True)}
    pattern = re.compile("|".join(rf"\b{re.escape(symbol)}\b" for symbol in names))
    values = [*graph.inputs, *graph.outputs, *(value for node in graph.all_nodes() for value in node.outputs)]
    for value in values:
        if value.shape is None:
            continue
        sizes = [
            size if isinstance(size, int) else pattern.sub(lambda found: names[found[0]], str(size.value))
            for size in value.shape
        ]
        value.shape = ir.Shape(sizes)
    if len(graph.outputs[0].shape) == 4:
        factor = "" if description.scale == 1 else f"{description.scale:g}*"
        graph.outputs[0].shape = ir.Shape(["batch", graph.outputs[0].shape[1], f"{factor}height", f"{factor}width"])


def _write(model: Any, path: Path) -> None:
    import onnx_ir as ir

    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        ir.save(model, temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
