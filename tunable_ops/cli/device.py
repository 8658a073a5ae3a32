"""The command line's --device."""

from __future__ import annotations

from typing import Any

__all__ = ["choose_device"]


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
