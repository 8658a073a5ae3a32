"""Triton kernels and their launchers. They depend on torch and triton only, never on tunable_ops.

The folder installs as `tunable_ops.triton_kernels`. This module tells whether the kernels can run here; importing it
needs neither triton nor a GPU.
"""

import importlib.metadata
import os

REQUIRED_TRITON = (3, 6)
# Triton reads the variable on import; its interpreter runs kernels on CPU tensors.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def unavailable_reason() -> str | None:
    """Return why Triton kernels cannot run here, or None if they can.

    Returns:
        A clause that completes "backend 'triton' cannot run: ...", or None.
    """
    try:
        version = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return f"triton is not installed (pip install 'triton>={_dotted(REQUIRED_TRITON)}')"
    if _release(version) < REQUIRED_TRITON:
        return f"triton {version} is older than {_dotted(REQUIRED_TRITON)} (pip install -U triton)"
    if INTERPRETED and _release(version) < (3, 7) and _release(importlib.metadata.version("numpy")) >= (2, 4):
        # It converts arrays of one element to scalars, which numpy 2.4 no longer allows.
        return f"the interpreter of triton {version} needs numpy < 2.4 (pip install 'numpy<2.4', or a newer triton)"
    return None


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2])


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
