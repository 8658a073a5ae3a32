"""examples/cpp is built and run, and its pictures are Python's."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from torch import Tensor

import tunable_ops
from tunable_ops.backends import unavailable_reason
from tunable_ops.deploy import compile_package
from tunable_ops.models import DnCNN

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


def network() -> tunable_ops.TunableModel:
    """A small network whose kernels all differ."""
    torch.manual_seed(0)
    ranges = {"names": ("sigma", "texture"), "ranges": ((0, 50), (0, 1)), "units": ("of 255", "")}
    net = tunable_ops.convert(DnCNN(features=16, depth=4, mean=0.5), 2, domain="box", defaults=(25, 0), **ranges)
    with torch.no_grad():
        for layer in net.layers:
            layer.weight.add_(0.05 * torch.randn_like(layer.weight))
    return net.eval().to(memory_format=torch.channels_last)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the program and two packages: one that calls the operators, and one that needs libtorch alone."""
    folder = tmp_path_factory.mktemp("example")
    compile_package(network(), folder / "operators.pt2", operators=True)
    compile_package(network(), folder / "portable.pt2")
    run("cmake", "-S", FOLDER, "-B", "build", f"-DPYTHON={sys.executable}", "-DOPERATORS=ON", cwd=folder)
    run("cmake", "--build", "build", cwd=folder)
    run("cmake", "-S", FOLDER, "-B", "alone", f"-DPYTHON={sys.executable}", cwd=folder)
    run("cmake", "--build", "alone", cwd=folder)
    return folder


@pytest.mark.parametrize(("program", "package"), [("build", "operators"), ("alone", "portable")])
def test_the_pictures_are_pythons(built: Path, program: str, package: str) -> None:
    height, width = 37, 53  # not a multiple of anything
    picture = torch.randint(0, 256, (height, width, 3), dtype=torch.uint8)
    (built / "in.ppm").write_bytes(f"P6\n# a comment\n{width} {height}\n255\n".encode() + picture.numpy().tobytes())
    words = ("texture=0.5", "a.ppm", "sigma=10,texture=1", "b.ppm", "40,0.25", "c.ppm")
    run(f"{program}/tunable_picture", f"{package}.pt2", "in.ppm", *words, cwd=built)
    net, input = network(), (picture.float() / 255)[None].permute(0, 3, 1, 2)
    outputs = []
    for name, lam in (("a.ppm", [25, 0.5]), ("b.ppm", [10, 1]), ("c.ppm", [40, 0.25])):
        with torch.no_grad():
            expected = net(input, lam)[0].permute(1, 2, 0).clamp(0, 1) * 255
        outputs.append(read_ppm(built / name, height, width))
        # Half a step of rounding, and what compiled sums may differ by.
        assert (outputs[-1] - expected).abs().max() <= 0.5 + 1e-2
    assert (outputs[0].float() - outputs[1]).abs().mean() > 1  # the slider moves the picture


def test_the_operator_is_what_runs(built: Path) -> None:
    found = {}
    for name in ("operators", "portable"):
        with zipfile.ZipFile(built / f"{name}.pt2") as package:
            found[name] = [
                node["target"]
                for entry in package.namelist()
                if entry.endswith(".json") and b"tunable_ops::" in package.read(entry)
                for node in (each["node"] for each in json.loads(package.read(entry))["nodes"])
            ]
    assert found == {"operators": ["tunable_ops::tunable_conv2d_cpp"] * 4, "portable": []}


def test_the_program_names_what_is_wrong(built: Path) -> None:
    program, package = built / "build/tunable_picture", "operators.pt2"
    assert "usage: tunable_picture" in run(program, cwd=built, code=2)
    assert "no.ppm: cannot be opened" in run(program, package, "no.ppm", "sigma=1", "x.ppm", cwd=built, code=1)
    (built / "short.ppm").write_bytes(b"P6 9 9 255\n123")
    words = (package, "short.ppm", "sigma=1", "x.ppm")
    assert "ends before its last pixel" in run(program, *words, cwd=built, code=1)
    (built / "grey.ppm").write_bytes(b"P6 8 8 255\n" + bytes(8 * 8 * 3))
    for lam, text in (
        ("noise=1", "lambda must be of sigma, texture; got noise=1"),
        ("25", "lambda must give a number to each of sigma, texture; got 25"),
        ("25,0,1", "lambda must be of sigma, texture; got 1"),
        ("sigma=x", "lambda must be numbers; got x"),
    ):
        assert text in run(program, package, "grey.ppm", lam, "x.ppm", cwd=built, code=1)
    text = "warning: sigma = 80 of 255 is outside the range of the training, 0 to 50"
    assert text in run(program, package, "grey.ppm", "sigma=80", "x.ppm", cwd=built)
