"""The schemas for programs without Python equal Python's, and cover only what C++ implements."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import tunable_ops
from tunable_ops.ops.algorithm import NAMES
from tunable_ops.reference.activation import LEAKY_SLOPE, TABLE

PACKAGE = Path(tunable_ops.__file__).parent
LIBRARIES = [*PACKAGE.glob("lib/schema.*"), *PACKAGE.glob("_ops_cpu.*")]
pytestmark = pytest.mark.skipif(len(LIBRARIES) != 2, reason="needs the compiled operators")

# In a process that never imports tunable_ops, so that the schemas are those of the compiled library.
CODE = """
import sys
import torch
for library in sys.argv[1:]:
    torch.ops.load_library(library)
for schema in sorted(str(s) for s in torch._C._jit_get_all_schemas() if s.name.startswith("tunable_ops::")):
    print(schema)
op, one, weight = torch.ops.tunable_ops.tunable_conv2d_cpp, torch.ones(1, 1, 1, 1), torch.ones(2, 1, 1, 1, 1)
print(op(one, weight, None, torch.ones(2), 1, 1, 0, 0, 1, 1, 1, 0).item())
for alpha, dilation, activation in ((torch.ones(3), 1, 0), (torch.ones(2), 0, 0), (torch.ones(2), 1, 5)):
    try:
        op(one, weight, None, alpha, 1, 1, 0, 0, dilation, 1, 1, activation)
    except RuntimeError as error:
        print(str(error).splitlines()[0])
"""


def test_the_schemas_are_pythons_and_the_operators_run_with_them() -> None:
    result = subprocess.run(
        [sys.executable, "-c", CODE, *map(str, LIBRARIES)], capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    names = [f"tunable_conv2d_{backend}{suffix}" for backend in ("cpp", "cuda") for suffix in ("", "_backward")]
    expected = [str(getattr(torch.ops.tunable_ops, name).default._schema) for name in names]
    *printed, shapes, sizes, activation = result.stdout.splitlines()
    assert printed == [*sorted(expected), "2.0"]
    assert "must fit each other" in shapes and "must fit each other" in sizes
    assert "activation must be a code of the schema; got 5" in activation


def test_the_codes_of_the_activations_are_pythons() -> None:
    header = (Path(__file__).parents[2] / "csrc" / "activation.h").read_text()
    found = re.search(r"enum class Activation : int32_t \{(.*?)\}", header)
    assert found is not None
    codes = dict(item.split("=") for item in found[1].replace(" ", "").split(","))
    named = {f"k{row.name.title().replace('_', '')}": str(code) for code, row in enumerate(TABLE)}
    assert codes == named
    assert f"kLeakySlope = {LEAKY_SLOPE}f" in header


def test_the_codes_of_the_algorithms_are_pythons() -> None:
    header = (Path(__file__).parents[2] / "csrc" / "cpu" / "algorithm.h").read_text()
    found = re.search(r"enum class Algorithm : int64_t \{(.*?)\}", header)
    assert found is not None
    codes = dict(item.split("=") for item in found[1].replace(" ", "").split(","))
    assert codes == {f"k{name.title()}": str(code) for code, name in enumerate(NAMES)}
