"""PyTorch's own files: a graph (torch.export), and compiled code (AOTInductor), with lambda as an input."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from tunable_ops.deploy.capture import capture, choose_form, leaf_spec_warning_off, prepare
from tunable_ops.deploy.description import Description, describe
from tunable_ops.ops.registration import decompositions

__all__ = ["METADATA", "compile_package", "export_program"]

_SEARCHED = 16  # sizes
METADATA = "tunable_ops.json"  # the extra file of a graph


@leaf_spec_warning_off()
def export_program(
    net: nn.Module,
    path: str | os.PathLike[str],
    per_sample: bool = False,
    *,
    lambda_map: bool = False,
    half: bool = False,
    example: Tensor | None = None,
    folded_at: Mapping[str, float] | None = None,
) -> Description:
    """Write ``output = net(input, lam)`` as a graph of PyTorch's own operators, which `torch.export.load` reads.

    Loading it needs torch alone. Arguments, inputs and errors are those of `export_onnx`; the extra file
    ``tunable_ops.json`` has the metadata.

    Args:
        net: A TunableModel, or a plain network, which gets no lam.
        path: File to write, ``*.pt2``; an existing one is replaced atomically.
        per_sample: Take a lambda for each sample.
        lambda_map: Take a lambda for each pixel.
        half: Convert kernels, input and output to float16.
        example: A picture [B, C, H, W], for networks that do not say how many channels they take.
        folded_at: For a plain network that `fold` returned: its lambda by name.

    Returns:
        What the file says of itself.
    """
    path = _check_path("export_program", path)
    program, description = _capture("export_program", net, per_sample, lambda_map, half, example, folded_at, False)
    texts = json.dumps(description.to_strings())
    _write(path, lambda file: torch.export.save(program, file, extra_files={METADATA: texts}))
    return description


@leaf_spec_warning_off()
def compile_package(
    net: nn.Module,
    path: str | os.PathLike[str],
    per_sample: bool = False,
    *,
    lambda_map: bool = False,
    half: bool = False,
    operators: bool = False,
    example: Tensor | None = None,
    folded_at: Mapping[str, float] | None = None,
) -> Description:
    """Compile ``output = net(input, lam)`` ahead of time (AOTInductor), for this machine's CPU and version of torch.

    The package is read by `torch._inductor.aoti_load_package`, and by programs without Python (examples/cpp). Other
    arguments and errors are those of `export_onnx`.

    Args:
        net: A TunableModel, or a plain network, which gets no lam.
        path: File to write, ``*.pt2``; an existing one is replaced atomically.
        per_sample: Take a lambda for each sample.
        lambda_map: Take a lambda for each pixel.
        half: Convert kernels, input and output to float16.
        operators: Keep the C++ operators in float32 and take pictures in channels_last. Who loads the package then
            needs the operators (`import tunable_ops`, or its libraries in a program without Python); its metadata say
            so, ``tunable_ops.operators``. Otherwise it needs torch alone, and takes contiguous pictures.
        example: A picture [B, C, H, W], for networks that do not say how many channels they take.
        folded_at: For a plain network that `fold` returned: its lambda by name.

    Returns:
        What the file says of itself.

    Raises:
        ValueError: With `operators`, no layer is served by the C++ operators, or these are not there.
        RuntimeError: There is no compiler.
    """
    op = "compile_package"
    path = _check_path(op, path)
    if operators and half:
        raise ValueError(f"{op}: operators must be False in half precision; got True")
    program, description = _capture(op, net, per_sample, lambda_map, half, example, folded_at, operators)
    # the compiler may leave hints on the graph of sizes that must not be more than assumptions
    configs = {"aot_inductor.metadata": description.to_strings()}
    _write(path, lambda file: torch._inductor.aoti_compile_and_package(
        program, package_path=str(file), inductor_configs=configs
    ))  # fmt: skip
    return description


def _capture(
    op: str,
    net: nn.Module,
    per_sample: bool,
    lambda_map: bool,
    half: bool,
    example: Tensor | None,
    folded_at: Mapping[str, float] | None,
    operators: bool,
) -> tuple[ExportedProgram, Description]:
    form = choose_form(op, net, per_sample, lambda_map)
    prepared: Any = prepare(net, half)
    description = replace(describe(prepared, form, op, example), lam=folded_at)
    table: dict[Any, Callable[..., Any]] = torch.export.default_decompositions() | decompositions()
    if operators:
        kept = [each for each in table if str(each).startswith("tunable_ops.") and "_cpp" in str(each)]
        for each in kept:
            del table[each]
        prepared.to(memory_format=torch.channels_last)
    if half:
        prepared, description = prepared.half(), description.halved()
    program = capture(
        prepared,
        form,
        channels=description.channels,
        smallest=description.smallest,
        op=op,
        table=table,
        channels_last=operators,
    )
    called = {str(node.target) for node in program.graph.nodes if str(node.target).startswith("tunable_ops.")}
    if operators and not called:
        raise ValueError(
            f"{op}: operators must be False for a network without a layer that gets channels_last pictures in an "
            "export, as those after an unshuffling of pixels do not; got True"
        )
    description = replace(description, smallest=_smallest(op, program, description))
    return program, replace(description, operators=tuple(sorted(called)))


def _smallest(op: str, program: ExportedProgram, description: Description) -> int:
    """Return the smallest height and width that the guards of a graph let through: some refuse sizes of 1."""
    module = program.module()
    first, count = description.smallest, 0 if description.spec is None else description.spec.num_params
    for size in range(first, first + _SEARCHED):
        dtype = getattr(torch, description.dtype)
        inputs = [torch.zeros(1, description.channels, size, size, dtype=dtype)]
        if count:
            shape = {"shared": (), "per_sample": (1,), "map": (1, size, size)}[description.form]
            lam = torch.zeros(*shape, count)
            inputs.append(lam.movedim(-1, 1).contiguous() if description.form == "map" else lam)
        try:
            module(*inputs)
        except (AssertionError, RuntimeError):  # a guard
            continue
        return size
    raise ValueError(
        f"{op}: net must be one whose graph holds for one picture of {first} x {first} pixels, or somewhat more; got a "
        "graph that does not run on it"
    )


def _check_path(op: str, path: str | os.PathLike[str]) -> Path:
    path = Path(path)
    if path.suffix != ".pt2":
        raise ValueError(f"{op}: path must end in .pt2; got {str(path)!r}")
    if not path.parent.is_dir():
        raise ValueError(f"{op}: path must lie in an existing folder; got {str(path)!r}")
    return path


def _write(path: Path, write: Callable[[Path], object]) -> None:
    temporary = path.with_name(f".{path.stem}.{os.getpid()}-{threading.get_ident()}.pt2")
    try:
        write(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
