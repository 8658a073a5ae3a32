"""The command line's --device and --threads."""

from __future__ import annotations

from typing import Any

__all__ = ["choose_device", "set_threads"]


def choose_device(name: str | None) -> Any:
    """Return the device of that name; for None a GPU if available, else the CPU.

    Raises:
        ValueError: The device does not work here.
    """
    import torch

    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        why = str(error).splitlines()[0]
        raise ValueError(f"--device must be one that works here; got {name!r} ({why})") from error
    return device


def set_threads(count: int | None) -> None:
    """Set the number of CPU threads; None keeps PyTorch's.

    Raises:
        ValueError: The number is below 1.
    """
    import torch

    if count is None:
        return
    if count < 1:
        raise ValueError(f"--threads must be at least 1; got {count}")
    torch.set_num_threads(count)
