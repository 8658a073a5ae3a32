"""What this machine is: versions, tools, the compiled library, and the ceilings of copies and matrix products."""

import argparse
import platform
import shutil
import subprocess

import torch
from tunable_ops.bench import machine

from tunable_ops import backends
from tunable_ops.backends import wgmma


def main() -> int:
    """Print it; return 1 if a backend of the project cannot run on this GPU."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cuda")
    device = machine.check_device(parser.parse_args().device)
    if shutil.which("nvidia-smi"):
        subprocess.run(["nvidia-smi"], timeout=20, check=False)
    print(f"{platform.platform()}; {machine.describe(device)}")
    for tool in ("nvcc", "ninja", "ncu", "compute-sanitizer", "cuobjdump"):
        print(f"{tool}: {shutil.which(tool)}")
    reasons = {name: backends.unavailable_reason("tunable_conv2d", name) for name in ("cpp", "triton", "cuda")}
    for name, reason in reasons.items():
        print(f"backend {name}: {reason or 'runs here'}")
    print(f"wgmma kernel: {wgmma.unavailable_reason() or 'runs here'}")
    for name, value in machine.peaks(device, {"bf16", "tf32"} if device == "cuda" else {"fp32"}).items():
        print(f"{name}: {value:.4g}")
    print(f"clocks: {machine.clocks(device)}")
    if device == "cuda":
        print(torch.cuda.get_device_properties(0))
        no_wgmma = not wgmma.is_loaded() and torch.cuda.get_device_capability() == (9, 0)
        return 1 if reasons["triton"] or reasons["cuda"] or no_wgmma else 0
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
