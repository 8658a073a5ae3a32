"""What the figures were measured on: device, versions, commit, clocks, and the peaks that shares refer to."""

import os
import platform
import subprocess
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from tunable_ops.bench.cases import DTYPES

DEVICES = ("cpu", "cuda")
_ROOT = Path(__file__).resolve().parent.parent


def check_device(device: str) -> str:
    """Return the device.

    Raises:
        ValueError: An unknown one, or one that is not there; the message lists the known ones.
    """
    if device not in DEVICES:
        raise ValueError(f"bench: --device must be one of {', '.join(DEVICES)}; got {device!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("bench: --device must be one that is here; got 'cuda', and torch finds no GPU. Use cpu")
    return device


def describe(device: str) -> dict[str, Any]:
    """Return device, threads, versions and commit."""
    return {
        "device": device,
        "name": torch.cuda.get_device_name() if device == "cuda" else _cpu_name(),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "commit": commit(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "triton": _version("triton"),
            "timm": _version("timm"),
            "cuda": torch.version.cuda,
            "cudnn": str(torch.backends.cudnn.version()) if torch.backends.cudnn.is_available() else None,
        },
    }


def commit() -> str:
    """Return the checkout's commit, with `-dirty` where code differs from it.

    Where git or the repository is missing: the environment variable TUNABLE_OPS_COMMIT, or "unknown".
    """
    told = os.environ.get("TUNABLE_OPS_COMMIT") or "unknown"

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=_ROOT, capture_output=True, text=True, timeout=30).stdout.strip()

    try:
        head = git("rev-parse", "--short", "HEAD")
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!bench/results", ":!docs", ":!*.md")
    except (OSError, subprocess.TimeoutExpired):
        return told
    return f"{head}-dirty" if head and changed else head or told


def clocks(device: str) -> dict[str, float]:
    """Return clocks in MHz (and a GPU's temperature and power) as the system reports them now; {} where it does not."""
    if device == "cuda":
        fields = ("clocks.sm", "clocks.mem", "temperature.gpu", "power.draw")
        query = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits", "--id=0"]
        try:
            values = subprocess.run(query, capture_output=True, text=True, timeout=30).stdout.split(",")
            return {field: float(value) for field, value in zip(fields, values, strict=True)}
        except (OSError, ValueError, subprocess.TimeoutExpired):
            return {}
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        found = [float(line.split(":")[1]) for line in lines if line.startswith("cpu MHz")]
    except (OSError, ValueError):
        return {}
    return {"clocks.cpu": sum(found) / len(found)} if found else {}


def peaks(device: str, dtypes: set[str]) -> dict[str, float]:
    """Return the best of several: copy bandwidth (bytes read and written) in GB/s, large matrix products in TFLOP/s."""
    gpu = device == "cuda"
    x = torch.empty((512 if gpu else 128) << 20, dtype=torch.int8, device=device)
    y = torch.empty_like(x)
    found = {"copy_gbps": 2 * x.numel() / _best(lambda: y.copy_(x), gpu) / 1e9}
    size = 8192 if gpu else 1024
    before = torch.backends.cuda.matmul.fp32_precision
    for name in sorted(dtypes):
        a = torch.randn(size, size, device=device, dtype=DTYPES[name])
        out = torch.empty_like(a)
        torch.backends.cuda.matmul.fp32_precision = "tf32" if name == "tf32" else "ieee"
        try:
            found[f"matmul_tflops_{name}"] = (
                2 * size**3 / _best(lambda a=a, out=out: torch.mm(a, a, out=out), gpu) / 1e12
            )
        finally:
            torch.backends.cuda.matmul.fp32_precision = before
    return found


def _best(function: Callable[[], Any], gpu: bool, tries: int = 15) -> float:
    times = []
    for _ in range(tries):
        if gpu:
            torch.cuda.synchronize()
        start = time.perf_counter()
        function()
        if gpu:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times)


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":")[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
