"""A comparison of knobs that trains in seconds: its setting and its pictures."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from tunable_ops.bench.comparison import plan

from tunable_ops.images import write_image
from tunable_ops.losses import VGG16Features

LAYERS = ("relu1_1", "relu2_1")
TINY = plan.Setting(
    "tiny",
    4,
    4,
    16,
    2,
    4,
    seeds=2,
    test_crop=24,
    warmup=1,
    blocks=3,
    tasks=("strength", "level"),
    methods=("film", "dni", "dni_2x", "cfsnet", "mix"),
    perceptual="vgg16",
    layers=LAYERS,
    lpips=False,
)
UNITS = 2 * 2 * (5 + 5)


def make_pictures(folder: Path) -> plan.Data:
    """Smooth pictures, two to train on and three for tests."""
    draws = torch.Generator().manual_seed(0)
    for part, count in (("train", 2), ("test", 3)):
        (folder / part).mkdir()
        for number in range(count):
            coarse = torch.rand(1, 3, 5, 6, generator=draws)
            picture = nn.functional.interpolate(coarse, size=(40, 48), mode="bicubic").clamp(0, 1)[0]
            write_image(picture, folder / part / f"{number}.png")
    features = VGG16Features(list(LAYERS), weights="random")
    save_file({name: value.contiguous() for name, value in features.state_dict().items()}, folder / "vgg.safetensors")
    return plan.Data(str(folder / "train"), str(folder / "test"), every=2, weights=str(folder / "vgg.safetensors"))
