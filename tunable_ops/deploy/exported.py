"""Exported files as functions: ``load(path)(picture, {"sigma": 25})``."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tunable_ops.deploy.capture import leaf_spec_warning_off
from tunable_ops.deploy.description import Description
from tunable_ops.deploy.program import METADATA
from tunable_ops.modules.read_lambda import Lambda

__all__ = ["Exported", "in_form", "load"]

_COMPILED = "data/aotinductor/"  # where compiled code lies in a package


class Exported:
    """An exported network, called as the network itself: ``y = exported(x, lam)``.

    Args:
        description: What the file says of itself.
        function: From its inputs, tensors on the CPU, to its output.

    Attributes:
        description: As above.
    """

    def __init__(self, description: Description, function: Callable[..., Tensor]) -> None:
        self.description, self._function = description, function

    def __call__(self, input: Tensor, lam: Lambda | None = None) -> Tensor:
        """Run the network.

        Args:
            input: [B, C, H, W] on the CPU, of the file's dtype.
            lam: As a TunableModel takes it: numbers in the units of the parameters, names with numbers, None for the
                defaults. One for the batch also serves files that take one per sample or per pixel.

        Returns:
            The output.

        Raises:
            TypeError: Another dtype.
            ValueError: A picture that is too small or has other channels, or a lambda that does not fit. Values outside
                the trained range give a `LambdaWarning`.
        """
        about = self.description
        if input.dim() != 4 or input.shape[1] != about.channels or min(input.shape[2:]) < about.smallest:
            raise ValueError(
                f"exported: input must be [B, {about.channels}, H, W] with H and W at least {about.smallest}; got "
                f"{list(input.shape)}"
            )
        if str(input.dtype) != f"torch.{about.dtype}":
            raise TypeError(f"exported: input must be {about.dtype}; got {input.dtype}")
        if about.spec is None:
            if lam is not None:
                raise ValueError(f"exported: lam must be None for a file that takes none; got {lam!r}")
            return self._function(input)
        values = about.spec.check(lam, op="exported", warn=True).to(torch.float32)
        return self._function(input, in_form(about, values, input))


def in_form(about: Description, values: Tensor, input: Tensor) -> Tensor:
    """Return lambda in the form that a file takes.

    Args:
        about: What the file says of itself.
        values: [p], [B, p] or [B, p, H, W].
        input: [B, C, H, W].

    Raises:
        ValueError: The file takes no lambda of that shape.
    """
    batch, _, *size = input.shape
    form, count = about.form, values.shape[0] if values.dim() == 1 else values.shape[1]
    rank = {"shared": 1, "per_sample": 2, "map": 4}[form]
    given = list(values.shape)
    if rank == 1 and values.dim() == 2 and values.shape[0] == 1:
        values = values[0]
    if rank > 1 and values.dim() < rank:
        values = values.expand(batch, count) if values.shape[0] in (1, count, batch) else values
        values = values if rank == 2 else values[:, :, None, None].expand(batch, count, *size)
    wanted = {"shared": [count], "per_sample": [batch, count], "map": [batch, count, *size]}[form]
    if list(values.shape) != wanted:
        raise ValueError(f"exported: lam must be {wanted} for a file of the form {form!r}; got {given}")
    return values.contiguous()


def load(path: str | os.PathLike[str]) -> Exported:
    """Load a file that `export_onnx`, `export_program` or `compile_package` wrote.

    Args:
        path: ``*.onnx``, run by ONNX Runtime on the CPU; or ``*.pt2``, a graph or compiled code, run by torch.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: It is none of these.
        ModuleNotFoundError: onnxruntime is not installed (the extra ``[onnx]``).
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"deploy.load: path must be an existing file; got {str(path)!r}")
    if path.suffix == ".onnx":
        return _load_onnx(path)
    if path.suffix != ".pt2" or not zipfile.is_zipfile(path):
        raise ValueError(f"deploy.load: path must be an .onnx or a whole .pt2 file; got {str(path)!r}")
    with zipfile.ZipFile(path) as archive:
        compiled = any(_COMPILED in name for name in archive.namelist())
    return _load_compiled(path) if compiled else _load_graph(path)


def _load_onnx(path: Path) -> Exported:
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors have a class for each code, without a public base
        raise ValueError(f"deploy.load: path must be a whole ONNX file; got {str(path)!r}: {error}") from None
    description = Description.from_strings(session.get_modelmeta().custom_metadata_map)
    names = [each.name for each in session.get_inputs()]

    def run(*inputs: Tensor) -> Tensor:
        values = {name: value.detach().numpy() for name, value in zip(names, inputs, strict=True)}
        return torch.from_numpy(session.run(None, values)[0])

    return Exported(description, run)


@leaf_spec_warning_off()
def _load_graph(path: Path) -> Exported:
    extra: dict[str, Any] = {METADATA: ""}
    program = torch.export.load(path, extra_files=extra)
    description = Description.from_strings(json.loads(extra[METADATA] or "{}"))
    module = program.module()

    def run(*inputs: Tensor) -> Tensor:
        with torch.no_grad():
            output: Tensor = module(*inputs)
        return output

    return Exported(description, run)


def _load_compiled(path: Path) -> Exported:
    package = torch._inductor.aoti_load_package(str(path))
    description = Description.from_strings(package.get_metadata())

    def run(*inputs: Tensor) -> Tensor:
        # compiled code takes the strides of its inputs as given
        layout = torch.channels_last if description.operators else torch.contiguous_format
        output: Tensor = package(inputs[0].contiguous(memory_format=layout), *inputs[1:])
        return output

    return Exported(description, run)
