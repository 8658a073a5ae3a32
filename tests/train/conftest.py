"""A run small enough for a test: three pictures, a network of three thin layers, a few steps."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tunable_ops.images import write_image
from tunable_ops.train import Config


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small run faster on one thread, above all on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder with three smooth pictures of different sizes."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index, (height, width) in enumerate(((40, 50), (36, 33), (48, 40))):
        source = torch.Generator().manual_seed(index)
        small = torch.rand(1, 3, 5, 6, generator=source)
        picture = torch.nn.functional.interpolate(small, size=(height, width), mode="bicubic", align_corners=False)
        write_image(picture[0].clamp(0, 1), folder / f"{index}.png")
    return folder


@pytest.fixture
def make_config(pictures: Path) -> Callable[..., Config]:
    """Builds a configuration; keyword arguments replace whole sections' keys, as in ``optim={"steps": 3}``."""

    def build(**changes: dict) -> Config:
        tree: dict = {
            "model": {"arguments": {"features": 8, "depth": 3, "mean": 0.5}},
            "tuning": {"names": ["denoise", "keep"]},
            "objectives": [{"name": "clean"}, {"name": "noisy", "target": "input"}],
            "data": {"source": str(pictures), "crop": 16, "batch": 4},
            "degradation": {"noise": {"sigma": [10, 40]}},
            "optim": {"steps": 6, "lr": 3e-3, "warmup": 2},
            "ema": {"decay": 0.9},
            "compute": {"device": "cpu"},
            "log": {"every": 2, "tensorboard": False},
            "checkpoints": {"every": 100},
            "validation": {"every": 0},
        }
        for section, keys in changes.items():
            tree[section] = {**tree[section], **keys} if isinstance(tree.get(section), dict) else keys
        return Config.model_validate(tree)

    return build
