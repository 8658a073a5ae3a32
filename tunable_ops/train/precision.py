"""What a run computes in where its configuration leaves it open: bf16 where the processor multiplies it in hardware."""

from __future__ import annotations

from typing import NamedTuple

import torch

from tunable_ops.train.distributed import Process

__all__ = ["Precision", "choose_precision"]

# instruction sets by torch's names, the fastest first
_IN_HARDWARE = ("amx_bf16", "avx512_bf16")


class Precision(NamedTuple):
    """The precision, "fp32" or "bf16", and why this one."""

    name: str
    reason: str


def choose_precision(wanted: str, here: Process) -> Precision:
    """Return the precision of a new run.

    "auto" asks the processor: bf16 with AMX or AVX-512 BF16, and on GPUs that compute it themselves (NVIDIA: from
    compute capability 8.0 on), else fp32. Several processes take bf16 only if all of them would.

    Args:
        wanted: "auto", "fp32" or "bf16".
        here: This process.
    """
    found = _of_device(here.device)
    if wanted != "auto":
        emulated = wanted == "bf16" and found.name == "fp32"
        return Precision(wanted, f"as configured, and slow: {found.reason}" if emulated else "as configured")
    # every process asks every other one, whatever it found itself
    if here.any(found.name == "fp32") and found.name == "bf16":
        return Precision("fp32", "the processor of another process would emulate bf16")
    return found


def _of_device(device: torch.device) -> Precision:
    if device.type == "cuda":
        with torch.cuda.device(device):
            able, name = torch.cuda.is_bf16_supported(including_emulation=False), torch.cuda.get_device_name()
        return Precision("bf16", f"{name} computes it") if able else Precision("fp32", f"{name} only emulates bf16")
    if device.type != "cpu":
        return Precision("fp32", f"whether {device.type} computes bf16 is not known")
    features = _cpu_features()
    able = [name for name in _IN_HARDWARE if name in features]
    if able:
        return Precision("bf16", f"the processor has {able[0]}")
    return Precision("fp32", f"the processor has neither {' nor '.join(_IN_HARDWARE)}, and would emulate bf16")


def _cpu_features() -> set[str]:
    if hasattr(torch.cpu, "get_capabilities"):
        return {name for name, value in torch.cpu.get_capabilities().items() if value is True}
    # before torch 2.13; AMX comes with AVX-512 BF16
    return {"avx512_bf16"} if torch.cpu._is_avx512_bf16_supported() else set()
