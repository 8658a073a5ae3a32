"""A module with as much of spandrel's interface as `tunable_ops.models.zoo` uses, for tests without the real one."""

import sys
import types
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn


class UnsupportedModelError(Exception):
    """What spandrel raises, without a message, where its detectors find nothing."""


class SizeRequirements:
    def __init__(self, multiple_of: int = 1, minimum: int = 0) -> None:
        self.multiple_of, self.minimum = multiple_of, minimum

    def get_padding(self, width: int, height: int) -> tuple[int, int]:
        wanted = [-(-max(side, self.minimum) // self.multiple_of) * self.multiple_of for side in (width, height)]
        return wanted[0] - width, wanted[1] - height


class ModelDescriptor:
    """As spandrel's, whose call clamps and cannot be differentiated."""

    def __init__(self, model: nn.Module, **about: Any) -> None:
        self.model, self.architecture = model, SimpleNamespace(name="Stand-in")
        self.purpose, self.scale, self.input_channels, self.output_channels = "Restoration", 1, 3, 3
        self.size_requirements = SizeRequirements()
        self._call_fn = lambda model, image: model(image)
        self.__dict__.update(about)


class ImageModelDescriptor(ModelDescriptor):
    pass


class MaskedImageModelDescriptor(ModelDescriptor):
    pass


class Enlarging(nn.Module):
    """Twice as large, for pictures whose sides are multiples of 4; returns a pair, as some networks of spandrel do."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 12, 3, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        if x.shape[-2] % 4 or x.shape[-1] % 4:
            raise RuntimeError(f"sides must be multiples of 4; got {list(x.shape)}")
        return nn.functional.pixel_shuffle(self.body(x), 2), None


def enlarging(**about: Any) -> ImageModelDescriptor:
    """Describe an `Enlarging` with drawn weights."""
    torch.manual_seed(5)
    wanted = {
        "purpose": "SR",
        "scale": 2,
        "size_requirements": SizeRequirements(4),
        "_call_fn": lambda model, image: model(image)[0],
    }
    return ImageModelDescriptor(Enlarging(), **{**wanted, **about})


def install(monkeypatch: pytest.MonkeyPatch, found: Any) -> None:
    """Make it importable; every file holds what `found()` returns or raises."""

    class ModelLoader:
        def __init__(self, device: str | None = None) -> None:
            assert device == "cpu"

        def load_from_file(self, path: str) -> ModelDescriptor:
            assert Path(path).is_file()
            return found()

    module = types.ModuleType("spandrel")
    for each in (ModelLoader, ImageModelDescriptor, MaskedImageModelDescriptor, UnsupportedModelError):
        setattr(module, each.__name__, each)
    monkeypatch.setitem(sys.modules, "spandrel", module)
