"""The schemas for programs without Python are Python's; only what C++ implements is there."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import tunable_ops

PACKAGE = Path(tunable_ops.__file__).parent
LIBRARIES = [*PACKAGE.glob("lib/schema.*"), *PACKAGE.glob("_ops_cpu.*")]
pytestmark = pytest.mark.skipif(len(LIBRARIES) != 2, reason="needs the compiled operators")

# In a process that never imports tunable_ops: there the schemas are the library's.
CODE = """
import sys
import torch
for library in sys.argv[1:]:
    torch.ops.load_library(library)
for schema in sorted(str(s) for s in torch._C._jit_get_all_schemas() if s.name.startswith("tunable_ops::")):
    print(schema)
out = torch.ops.tunable_ops.tunable_conv2d(
    torch.ones(1, 1, 1, 1), torch.ones(2, 1, 1, 1, 1), None, torch.ones(2), [1, 1], [0, 0], [1, 1], 1, "none", "cpp"
)
print(out.item())
one, weight = torch.ones(1, 1, 1, 1), torch.ones(2, 1, 1, 1, 1)
try:
    torch.ops.tunable_ops.tunable_conv2d(
        one, weight, None, torch.ones(2), [1, 1], [0, 0], [1, 1], 1, "none", "torch"
    )
except RuntimeError as error:
    print(str(error).splitlines()[0])
"""


def test_the_schemas_are_pythons_and_the_operators_run_with_them() -> None:
    result = subprocess.run(
        [sys.executable, "-c", CODE, *map(str, LIBRARIES)], capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    ops = torch.ops.tunable_ops
    expected = [str(op.default._schema) for op in (ops.tunable_conv2d, ops.tunable_conv2d_backward)]
    *printed, refused = result.stdout.splitlines()
    assert printed == [*expected, "2.0"]
    assert "tunable_conv2d: backend must be one that this program has; got 'torch'" in refused
