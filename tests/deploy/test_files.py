"""Exported files in a Runner: pictures of any device, and options that a file cannot follow."""

import re

import pytest
import torch

from tunable_ops.deploy import Description, Runner, source
from tunable_ops.deploy import engine as engines
from tunable_ops.deploy.engines import _Program
from tunable_ops.deploy.exported import Exported
from tunable_ops.extras import install

ABOUT = Description("folded", 3, 1, 1.0)


@pytest.fixture
def file(monkeypatch, tmp_path):
    """A function (ending, description=ABOUT) -> path of a file that is loaded as the identity."""

    def make(ending, about=ABOUT):
        path = tmp_path / f"a.{ending}"
        path.write_bytes(b"a file")
        monkeypatch.setattr(source, "load", lambda path: Exported(about, torch.clone))
        monkeypatch.setattr(engines.importlib.util, "find_spec", lambda name: object())
        return path

    return make


def test_a_picture_elsewhere_is_brought_to_the_cpu():
    """Only its dtype was changed."""
    seen = []

    class Elsewhere(torch.Tensor):
        def cpu(self):
            seen.append(self.dtype)
            return torch.ones(1, 3, 2, 2, dtype=self.dtype)

    x = torch.zeros(1, 3, 2, 2).as_subclass(Elsewhere)
    assert _Program(Exported(ABOUT, torch.clone))(x, ()).sum() == 12 and seen == [torch.float32]


@pytest.mark.parametrize("ending", ["pt2", "onnx"])
def test_options_that_a_file_cannot_follow_are_refused(ending, file):
    path = file(ending)
    with pytest.raises(ValueError, match="precision must be auto or float32, that of the file; got 'float16'"):
        Runner(path, precision="float16")
    with pytest.raises(
        RuntimeError, match=r"engine must be one that works here; got .*, runs on the CPU alone, not on"
    ):
        Runner(path, device="cuda")


def test_a_file_keeps_its_precision(file):
    path = file("pt2", Description("folded", 3, 1, 1.0, "float16"))
    for precision in ("auto", "float16"):
        assert Runner(path, precision=precision)(torch.rand(1, 3, 4, 4)).dtype == torch.float32
    with pytest.raises(ValueError, match="precision must be auto or float16, that of the file; got 'float32'"):
        Runner(path, precision="float32")


def test_what_reads_a_file_is_named_beside_the_engine(file, monkeypatch):
    """The message spoke of the engine 'onnxruntime', where 'openvino' was asked for."""
    path = file("onnx")
    monkeypatch.setattr(engines.importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else object())
    text = r"model must be a file that can be read here, which takes ONNX Runtime with any engine; got .*a\.onnx', not "
    with pytest.raises(ModuleNotFoundError, match=text + "installed: onnxruntime ." + re.escape(install("onnx"))):
        Runner(path, "openvino")
