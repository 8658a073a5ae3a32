"""What the distribution asks for, and what its smallest form does without."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli", reason="tomli is not installed (tunable-ops[train])")

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text()) if (ROOT / "pyproject.toml").exists() else {}
pytestmark = pytest.mark.skipif(not PROJECT, reason="needs the sources")
MINIMAL = """
import sys
for name in ("triton", "numpy", "PIL", "safetensors", "pydantic", "huggingface_hub"):
    sys.modules[name] = None  # an import of it fails
import torch, tunable_ops
from torch import nn
net = tunable_ops.convert(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 1)), 2)
x = torch.rand(2, 3, 9, 8)
for lam in ([0.5, 0.5], torch.tensor([[0.0, 1.0], [1.0, 0.0]])):
    net(x, lam).sum().backward()
plain = tunable_ops.fold(net, [1.0, 0.0])
torch.testing.assert_close(plain(x), net(x, [1.0, 0.0]))
tunable_ops.losses.MultiLoss({"a": tunable_ops.losses.mse, "b": tunable_ops.losses.l1})
try:
    tunable_ops.tunable_conv2d(x, torch.rand(2, 4, 3, 3, 3), None, torch.rand(2), backend="triton")
except RuntimeError as error:
    assert "backend must be one that can run here" in str(error), error
else:
    raise AssertionError("no error")
print("done")
"""


def requirements(extra: str | None = None) -> dict[str, str]:
    """Return what is required, by the name of the package."""
    project = PROJECT["project"]
    found = project["dependencies"] if extra is None else project["optional-dependencies"][extra]
    return {re.split(r"[\[<>=; ]", each)[0]: each for each in found}


def test_only_torch_and_triton_are_required() -> None:
    assert requirements() == {"torch": "torch>=2.11", "triton": "triton>=3.6; platform_system == 'Linux'"}


def test_no_torch_is_pinned_or_pulled_in_by_the_build() -> None:
    """A pin, or torch in the isolated build, would bring a second torch beside the one that is there."""
    assert not [each for each in PROJECT["build-system"]["requires"] if each.startswith("torch")]
    for extra in PROJECT["project"]["optional-dependencies"]:
        assert not {"torch", "torchvision", "torchaudio"} & set(requirements(extra)), extra
        assert not [each for each in requirements(extra).values() if "==" in each and "clang-format" not in each
                    and "python_version ==" not in each and "sys_platform ==" not in each], extra  # fmt: skip


def test_every_extra_is_named_in_the_installation() -> None:
    page = (ROOT / "docs" / "start" / "install.md").read_text()
    missing = [extra for extra in PROJECT["project"]["optional-dependencies"] if f"`[{extra}]`" not in page]
    assert missing == []


def test_the_smallest_form_needs_torch_alone() -> None:
    """Triton, numpy and Pillow are blocked, and what the extras bring."""
    result = subprocess.run([sys.executable, "-c", MINIMAL], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "done\n"


def test_the_wheels_are_built_with_the_oldest_torch() -> None:
    settings = PROJECT["tool"]["cibuildwheel"]
    lowest = requirements()["torch"].partition(">=")[2]
    assert f"torch=={lowest}.0" in settings["before-build"], "one binary then serves this and later ones"
    assert settings["build-frontend"]["args"] == ["--no-build-isolation"]
    pythons = {f"cp3{each.rpartition('3.')[2]}" for each in PROJECT["project"]["classifiers"]
               if re.search(r":: 3\.\d+$", each)}  # fmt: skip
    assert {each.partition("-")[0] for each in settings["build"].split()} == pythons
    workflow = (ROOT / ".github" / "workflows" / "wheels.yml").read_text()
    assert "macos" in workflow and "windows" in workflow and "cibuildwheel" in workflow
