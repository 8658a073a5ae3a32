"""Networks out of Python's hands: files for other runtimes, with lambda as an input or folded away (docs/deploy.md).

export_onnx(net, "denoise.onnx")    # ONNX Runtime, OpenVINO and others: output = f(input, lam)
"""

from __future__ import annotations

from tunable_ops.deploy.capture import FORMS, capture
from tunable_ops.deploy.description import Description, describe
from tunable_ops.deploy.onnx import export_onnx
from tunable_ops.ops.registration import decompositions

__all__ = ["FORMS", "Description", "capture", "decompositions", "describe", "export_onnx"]
