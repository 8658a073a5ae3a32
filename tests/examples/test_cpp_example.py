"""examples/cpp is built and run, and its pictures are Python's."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from tunable_ops.backends import unavailable_reason

FOLDER = Path(__file__).parents[2] / "examples" / "cpp"
MISSING = [tool for tool in ("cmake", os.environ.get("CXX", "c++")) if shutil.which(tool) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"needs {' and '.join(MISSING)}"),
    pytest.mark.skipif(unavailable_reason("tunable_conv2d", "cpp") is not None, reason="needs the compiled operators"),
]


def run(*command: object, cwd: Path, code: int = 0) -> str:
    result = subprocess.run([*map(str, command)], cwd=cwd, capture_output=True, text=True, timeout=1200)
    assert result.returncode == code, result.stdout + result.stderr
    return result.stdout + result.stderr


def read_ppm(path: Path, height: int, width: int) -> Tensor:
    data = path.read_bytes()
    head = f"P6\n{width} {height}\n255\n".encode()
    assert data.startswith(head)
    return torch.frombuffer(bytearray(data[len(head) :]), dtype=torch.uint8).view(height, width, 3)


def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tunable_ops_example_export", FOLDER / "export.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the program and the package, both made as the README says."""
    folder = tmp_path_factory.mktemp("example")
    run(sys.executable, FOLDER / "export.py", "network.pt2", cwd=folder)
    run("cmake", "-S", FOLDER, "-B", "build", f"-DPYTHON={sys.executable}", cwd=folder)
    run("cmake", "--build", "build", cwd=folder)
    return folder


def test_the_pictures_are_pythons(built: Path) -> None:
    height, width = 37, 53  # neither the size of the export nor a multiple of anything
    picture = torch.randint(0, 256, (height, width, 3), dtype=torch.uint8)
    (built / "in.ppm").write_bytes(f"P6\n# a comment\n{width} {height}\n255\n".encode() + picture.numpy().tobytes())
    run("build/tunable_picture", "network.pt2", "in.ppm", "1,0", "a.ppm", "0.2,0.8", "b.ppm", cwd=built)
    net = example().fresh_network().eval().to(memory_format=torch.channels_last)
    input = (picture.float() / 255)[None].permute(0, 3, 1, 2)
    outputs = []
    for name, lam in (("a.ppm", [1.0, 0.0]), ("b.ppm", [0.2, 0.8])):
        with torch.no_grad():
            expected = net(input, lam)[0].permute(1, 2, 0).clamp(0, 1) * 255
        outputs.append(read_ppm(built / name, height, width))
        # Half a step of rounding, and what compiled sums may differ by.
        assert (outputs[-1] - expected).abs().max() <= 0.5 + 1e-2
    assert (outputs[0].float() - outputs[1]).abs().mean() > 1  # the slider moves the picture


def test_the_operator_is_what_runs(built: Path) -> None:
    module = example()
    assert module.operators(module.export(module.fresh_network()))[str(module.OP)] == 4
    with zipfile.ZipFile(built / "network.pt2") as package:
        calls = [
            node["target"]
            for name in package.namelist()
            if name.endswith(".json") and b"tunable_ops" in package.read(name)
            for node in (entry["node"] for entry in json.loads(package.read(name))["nodes"])
        ]
    assert calls == ["tunable_ops::tunable_conv2d_cpp"] * 4


def test_the_program_names_what_is_wrong(built: Path) -> None:
    program = built / "build/tunable_picture"
    assert "usage: tunable_picture" in run(program, cwd=built, code=2)
    assert "no.ppm: cannot be opened" in run(program, "network.pt2", "no.ppm", "1,0", "x.ppm", cwd=built, code=1)
    (built / "short.ppm").write_bytes(b"P6 9 9 255\n123")
    assert "ends before its last pixel" in run(program, "network.pt2", "short.ppm", "1,0", "x.ppm", cwd=built, code=1)
