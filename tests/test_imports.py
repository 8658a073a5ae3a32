"""The arrows of the layout: who may import whom, read from the syntax trees."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Package (or module) of the project -> what it may import of the project. Its own package is always allowed.
ARROWS: dict[str, set[str]] = {
    "tunable_ops.convolution": set(),
    "tunable_ops.extras": set(),
    "tunable_ops.reference": {"tunable_ops.convolution"},
    "tunable_ops.geometry": set(),
    "tunable_ops.memory": set(),
    "tunable_ops.nearest": set(),
    "tunable_ops.checks": {"tunable_ops.geometry", "tunable_ops.reference"},
    "tunable_ops.backends": {
        "tunable_ops.checks",
        "tunable_ops.convolution",
        "tunable_ops.geometry",
        "tunable_ops.reference",
        "tunable_ops.triton_kernels",
    },
    "tunable_ops.ops": {
        "tunable_ops.backends",
        "tunable_ops.checks",
        "tunable_ops.convolution",
        "tunable_ops.geometry",
        "tunable_ops.reference",
    },
    "tunable_ops.functional": {"tunable_ops.backends", "tunable_ops.ops"},
    "tunable_ops.modules": {
        "tunable_ops.checks",
        "tunable_ops.convolution",
        "tunable_ops.functional",
        "tunable_ops.geometry",
        "tunable_ops.nearest",
    },
    "tunable_ops.losses": {
        "tunable_ops.checks",
        "tunable_ops.modules",
        "tunable_ops.nearest",
        "tunable_ops.serialization",
    },
    "tunable_ops.models": {"tunable_ops.extras", "tunable_ops.modules", "tunable_ops.nearest"},
    "tunable_ops.control": {"tunable_ops.modules"},
    "tunable_ops.serialization": {"tunable_ops.control", "tunable_ops.models", "tunable_ops.modules"},
    "tunable_ops.knob_files": {"tunable_ops.models", "tunable_ops.modules", "tunable_ops.serialization"},
    "tunable_ops.pretrained": {
        "tunable_ops.knob_files",
        "tunable_ops.models",
        "tunable_ops.modules",
        "tunable_ops.nearest",
        "tunable_ops.serialization",
    },
    "tunable_ops.hub": {
        "tunable_ops.extras",
        "tunable_ops.knob_files",
        "tunable_ops.models",
        "tunable_ops.modules",
        "tunable_ops.pretrained",
        "tunable_ops.serialization",
    },
    "tunable_ops.pgn": set(),
    "tunable_ops.ports": set(),
    "tunable_ops.grey": set(),
    "tunable_ops.images": set(),
    "tunable_ops.tiles": set(),
    "tunable_ops.restoration": {"tunable_ops.grey", "tunable_ops.images", "tunable_ops.tiles"},
    "tunable_ops.serve": {
        "tunable_ops",
        "tunable_ops.deploy",
        "tunable_ops.grey",
        "tunable_ops.images",
        "tunable_ops.modules",
        "tunable_ops.restoration",
    },
    "tunable_ops.positions": {"tunable_ops.grey", "tunable_ops.modules"},
    "tunable_ops.restorer": {
        "tunable_ops.grey",
        "tunable_ops.modules",
        "tunable_ops.pretrained",
        "tunable_ops.restoration",
        "tunable_ops.serialization",
        "tunable_ops.tiles",
    },
    "tunable_ops.app": {
        "tunable_ops.grey",
        "tunable_ops.images",
        "tunable_ops.knob_files",
        "tunable_ops.modules",
        "tunable_ops.ports",
        "tunable_ops.positions",
        "tunable_ops.pretrained",
        "tunable_ops.restoration",
        "tunable_ops.restorer",
        "tunable_ops.tiles",
    },
    "tunable_ops.video": {"tunable_ops.images"},
    "tunable_ops.train": {
        "tunable_ops.control",
        "tunable_ops.grey",
        "tunable_ops.images",
        "tunable_ops.knob_files",
        "tunable_ops.losses",
        "tunable_ops.models",
        "tunable_ops.modules",
        "tunable_ops.nearest",
        "tunable_ops.pretrained",
        "tunable_ops.serialization",
    },
    "tunable_ops.bench": {
        "tunable_ops",
        "tunable_ops.backends",
        "tunable_ops.control",
        "tunable_ops.deploy",
        "tunable_ops.extras",
        "tunable_ops.images",
        "tunable_ops.losses",
        "tunable_ops.memory",
        "tunable_ops.models",
        "tunable_ops.modules",
        "tunable_ops.pretrained",
        "tunable_ops.reference",
        "tunable_ops.serialization",
        "tunable_ops.tiles",
        "tunable_ops.train",
        "tunable_ops.triton_kernels",
        "tunable_ops.video",
    },
    "tunable_ops.deploy": {
        "tunable_ops.extras",
        "tunable_ops.modules",
        "tunable_ops.ops",
        "tunable_ops.pretrained",
        "tunable_ops.serialization",
        "tunable_ops.tiles",
    },
    "tunable_ops.cli": {
        "tunable_ops",
        "tunable_ops.app",
        "tunable_ops.backends",
        "tunable_ops.bench",
        "tunable_ops.deploy",
        "tunable_ops.extras",
        "tunable_ops.grey",
        "tunable_ops.images",
        "tunable_ops.knob_files",
        "tunable_ops.losses",
        "tunable_ops.memory",
        "tunable_ops.models",
        "tunable_ops.modules",
        "tunable_ops.nearest",
        "tunable_ops.ports",
        "tunable_ops.positions",
        "tunable_ops.pretrained",
        "tunable_ops.restoration",
        "tunable_ops.restorer",
        "tunable_ops.serialization",
        "tunable_ops.serve",
        "tunable_ops.tiles",
        "tunable_ops.train",
        "tunable_ops.triton_kernels",
        "tunable_ops.video",
    },
    "tunable_ops.triton_kernels": set(),
    "tunable_ops.__main__": {"tunable_ops.cli"},
    "tunable_ops": {
        "tunable_ops.functional",
        "tunable_ops.losses",
        "tunable_ops.modules",
        "tunable_ops.reference",
        # on first use
        "tunable_ops.control",
        "tunable_ops.deploy",
        "tunable_ops.hub",
        "tunable_ops.knob_files",
        "tunable_ops.models",
        "tunable_ops.pretrained",
        "tunable_ops.serialization",
        "tunable_ops.train",
    },
}
# Within tunable_ops.modules: each imports only what stands before it.
MODULES = [
    "accelerate",
    *("read_lambda", "spec", "tuning", "low_rank", "kernel_stacks", "kernels_in_place", "network_blend"),
    *("frame", "lambda_planes"),
    *(
        "read_only",
        "layer",
        "tunable_conv",
        "tunable_linear",
        "tunable_parameter",
        "shared",
        "model",
        "choice",
        "convert",
    ),
    *("fold", "finetune", "knobs"),
]
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
    """Every module that a file imports, at any depth of the tree: inside functions and under TYPE_CHECKING too."""
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


def find_circle(graph: dict[str, set[str]]) -> list[str]:
    """A circle of the graph, its first node again at the end; empty if there is none."""
    done: set[str] = set()

    def walk(node: str, way: list[str]) -> list[str]:
        if node in way:
            return [*way[way.index(node) :], node]
        if node not in done:
            for target in sorted(graph.get(node, ())):
                if circle := walk(target, [*way, node]):
                    return circle
            done.add(node)
        return []

    return next(filter(None, (walk(node, []) for node in sorted(graph))), [])


def test_no_circles() -> None:
    """Among all files, imports under TYPE_CHECKING and inside functions counted."""
    known = dict(sources())
    graph = {module: {t for t in imports(file, module) if t in known} for module, file in known.items()}
    assert find_circle(graph) == []


def test_finding_circles() -> None:
    assert find_circle({"a": {"b"}, "b": {"c", "d"}, "c": {"d"}, "d": set()}) == []
    assert find_circle({"a": {"b"}, "b": {"c"}, "c": {"d", "b"}, "d": set()}) == ["b", "c", "b"]
    assert find_circle({"a": {"a"}}) == ["a", "a"]


def test_modules_import_what_stands_before_them() -> None:
    package = "tunable_ops.modules."
    files = {module.removeprefix(package): file for module, file in sources() if module.startswith(package)}
    assert sorted(files) == sorted(MODULES)
    for place, name in enumerate(MODULES):
        found = {t.removeprefix(package) for t in imports(files[name], name) if t.startswith(package.rstrip("."))}
        assert found <= set(MODULES[:place]), f"{name} must import only what stands before it"


def test_contributing_shows_the_same_arrows() -> None:
    """Its table names every package, what each imports ("everything ..." is not compared), and nothing further up."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    table = text.partition("| package | holds | imports |\n")[2].partition("\n\n")[0]
    names = {name.removeprefix("tunable_ops."): arrows for name, arrows in ARROWS.items() if name != "tunable_ops"}
    rows = [line.strip("| ").split(" | ") for line in table.splitlines()[1:]]
    members = [[w for w in re.findall(r"`(?:tunable_ops\.)?(\w+)`", first) if w in names] for first, _, _ in rows]
    place = {name: number for number, row in enumerate(members) for name in row}
    assert set(place) == set(names)
    for row, (_, _, cell) in zip(members, rows, strict=True):
        found = {a.removeprefix("tunable_ops.") for name in row for a in names[name] if a != "tunable_ops"} - set(row)
        assert all(place[name] > place[row[0]] for name in found), f"{row} must import from rows further down only"
        if row and not cell.startswith("everything"):
            assert set(cell.split(", ")) & set(names) == found, row


def test_every_source_has_an_owner() -> None:
    homeless = [module for module, _ in sources() if owner(module) not in ARROWS]
    assert homeless == []


def test_reading_a_tree_finds_imports(tmp_path: Path) -> None:
    file = tmp_path / "a.py"
    file.write_text(
        "import triton\ndef f():\n    from tunable_ops.modules import fold\n    from tunable_ops import ops\n"
        "if TYPE_CHECKING:\n    from tunable_ops.checks import FLOATS\n"
    )
    found = imports(file, "a")
    assert sorted(found) == ["triton", "tunable_ops.checks", "tunable_ops.modules.fold", "tunable_ops.ops"]


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


def test_parts_of_the_package_are_imported_on_first_use() -> None:
    code = """
import sys
import tunable_ops
parts = ("control", "models", "pretrained", "serialization", "train")
assert not any(f"tunable_ops.{part}" in sys.modules for part in parts)
assert set(parts) <= set(dir(tunable_ops))
assert tunable_ops.models.NAFNet and "tunable_ops.train" not in sys.modules
assert all(getattr(tunable_ops, part) is sys.modules[f"tunable_ops.{part}"] for part in parts)
try:
    tunable_ops.nonsense
except AttributeError as error:
    print(error)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "module 'tunable_ops' has no attribute 'nonsense'\n"


@pytest.mark.parametrize("code", ["from tunable_ops.pgn import PGN", "from tunable_ops import pgn"])
def test_the_former_place_of_pgn_names_the_new_one(code: str) -> None:
    with pytest.raises(ImportError, match=r"^tunable_ops.pgn is now tunable_ops.losses.pgn: from tunable_ops.losses"):
        exec(code)


def test_pgn_is_found_where_it_is_now() -> None:
    import tunable_ops

    with pytest.raises(AttributeError, match=r"^tunable_ops.pgn is now tunable_ops.losses.pgn: "):
        _ = tunable_ops.pgn
    assert tunable_ops.losses.PGN.__name__ == "PGN" and "PGN" in dir(tunable_ops.losses)
    with pytest.raises(AttributeError, match=r"^module 'tunable_ops.losses' has no attribute 'nonsense'$"):
        _ = tunable_ops.losses.nonsense
