"""The arrows of the layout: who may import whom, read from the syntax trees."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Package (or module) of the project -> what it may import of the project. Its own package is always allowed.
ARROWS: dict[str, set[str]] = {
    "tunable_ops.reference": set(),
    "tunable_ops.checks": {"tunable_ops.reference"},
    "tunable_ops.backends": {"tunable_ops.reference", "tunable_ops.triton_kernels"},
    "tunable_ops.ops": {"tunable_ops.reference", "tunable_ops.checks", "tunable_ops.backends"},
    "tunable_ops.functional": {"tunable_ops.ops"},
    "tunable_ops.modules": {"tunable_ops.functional", "tunable_ops.checks"},
    "tunable_ops.losses": {"tunable_ops.functional", "tunable_ops.serialization"},
    "tunable_ops.models": {"tunable_ops.modules"},
    "tunable_ops.control": {"tunable_ops.modules"},
    "tunable_ops.serialization": {"tunable_ops.control", "tunable_ops.models", "tunable_ops.modules"},
    "tunable_ops.pretrained": {"tunable_ops.modules", "tunable_ops.serialization"},
    "tunable_ops.images": set(),
    "tunable_ops.tiles": set(),
    "tunable_ops.train": {
        "tunable_ops.control",
        "tunable_ops.images",
        "tunable_ops.losses",
        "tunable_ops.models",
        "tunable_ops.modules",
        "tunable_ops.serialization",
    },
    "tunable_ops.bench": {
        "tunable_ops",
        "tunable_ops.backends",
        "tunable_ops.images",
        "tunable_ops.losses",
        "tunable_ops.models",
        "tunable_ops.modules",
        "tunable_ops.reference",
        "tunable_ops.serialization",
        "tunable_ops.train",
        "tunable_ops.triton_kernels",
    },
    "tunable_ops.cli": {
        "tunable_ops",
        "tunable_ops.backends",
        "tunable_ops.bench",
        "tunable_ops.images",
        "tunable_ops.losses",
        "tunable_ops.models",
        "tunable_ops.modules",
        "tunable_ops.pretrained",
        "tunable_ops.serialization",
        "tunable_ops.tiles",
        "tunable_ops.train",
        "tunable_ops.triton_kernels",
    },
    "tunable_ops.triton_kernels": set(),
    "tunable_ops": {"tunable_ops.functional", "tunable_ops.losses", "tunable_ops.modules", "tunable_ops.reference"},
}
# Compiled and triton code is known to these alone.
KERNEL_IMPORTERS = {"tunable_ops.backends", "tunable_ops.triton_kernels"}


def sources() -> list[tuple[str, Path]]:
    """(module name, file) of everything that is installed."""
    found = []
    for folder, package in (
        (ROOT / "tunable_ops", "tunable_ops"),
        (ROOT / "bench", "tunable_ops.bench"),
        (ROOT / "triton_kernels", "tunable_ops.triton_kernels"),
    ):
        for file in sorted(folder.rglob("*.py")):
            parts = file.relative_to(folder).with_suffix("").parts
            found.append((".".join([package, *(p for p in parts if p != "__init__")]), file))
    return found


def owner(module: str) -> str:
    """The entry of ARROWS that a module belongs to: the longest name that begins it."""
    candidates = [
        name for name in ARROWS if module == name or (module.startswith(name + ".") and name != "tunable_ops")
    ]
    return max(candidates, key=len) if candidates else module


def imports(file: Path, module: str) -> list[str]:
    """Every module that a file imports, at any depth of the tree (inside functions too)."""
    known = {name for name, _ in sources()}
    found = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: imports must be absolute; got a relative one in line {node.lineno}"
            base = node.module or ""
            found += [f"{base}.{a.name}" if f"{base}.{a.name}" in known else base for a in node.names]
    return found


@pytest.mark.parametrize("module, file", sources(), ids=lambda v: v if isinstance(v, str) else "")
def test_arrows_point_one_way(module: str, file: Path) -> None:
    allowed = ARROWS[owner(module)] | {owner(module)}
    for target in imports(file, module):
        if target.split(".")[0] == "tunable_ops":
            assert owner(target) in allowed, f"{module} must not import {target}"
        if target.split(".")[0] == "triton" or target.endswith("._C"):
            assert owner(module) in KERNEL_IMPORTERS, f"{module} must not import {target}"


def test_every_source_has_an_owner() -> None:
    homeless = [module for module, _ in sources() if owner(module) not in ARROWS]
    assert homeless == []


def test_reading_a_tree_finds_imports(tmp_path: Path) -> None:
    file = tmp_path / "a.py"
    file.write_text(
        "import triton\ndef f():\n    from tunable_ops.modules import fold\n    from tunable_ops import ops\n"
    )
    assert imports(file, "a") == ["triton", "tunable_ops.modules.fold", "tunable_ops.ops"]


def test_import_needs_torch_alone_and_touches_no_device() -> None:
    """In a process where everything else refuses to be imported, and a device query would fail."""
    code = """
import builtins, sys
import torch, torch._dynamo
import torch.utils.flop_counter
before = set(sys.modules)
real = builtins.__import__
refused = {"triton", "numpy", "PIL", "safetensors", "pydantic", "torchmetrics", "matplotlib", "tqdm", "skimage"}
def guarded(name, globals=None, *args, **kwargs):
    if name.split(".")[0] in refused and (globals or {}).get("__name__", "").startswith("tunable_ops"):
        raise ImportError(name)
    return real(name, globals, *args, **kwargs)
builtins.__import__ = guarded
def fail(*args, **kwargs): raise AssertionError("a device was queried")
torch.cuda.is_available = torch.cuda.device_count = torch.cuda.get_device_properties = fail
import tunable_ops
print(tunable_ops.tunable_conv2d(torch.ones(1,1,1,1), torch.ones(2,1,1,1,1), None, torch.tensor([1.,1.])).item())
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "2.0"
