"""Networks out of Python's hands: files for other runtimes, with lambda as an input or folded away (docs/deploy.md).

export_onnx(net, "denoise.onnx")      # ONNX Runtime, OpenVINO and others: output = f(input, lam)
export_program(net, "denoise.pt2")    # torch.export.load
compile_package(net, "denoise.pt2")   # AOTInductor, for Python and C++
y = load("denoise.onnx")(x, {"sigma": 25})
"""

from __future__ import annotations

from tunable_ops.deploy.capture import FORMS, capture
from tunable_ops.deploy.description import Description, describe
from tunable_ops.deploy.exported import Exported, load
from tunable_ops.deploy.onnx import export_onnx
from tunable_ops.deploy.program import compile_package, export_program
from tunable_ops.deploy.runner import Runner
from tunable_ops.ops.registration import decompositions

__all__ = [
    "FORMS",
    "Description",
    "Exported",
    "Runner",
    "capture",
    "compile_package",
    "decompositions",
    "describe",
    "export_onnx",
    "export_program",
    "load",
]
