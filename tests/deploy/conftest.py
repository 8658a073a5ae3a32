"""Small networks for exports, and the pictures and lambdas that they are compared on."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from tunable_ops import TunableModel, convert, models

Case = tuple[Tensor, Tensor]


@pytest.fixture(scope="session")
def small() -> TunableModel:
    """An FFDNet with its level and a knob of low rank, whose kernels all differ: the kind of network that ships."""
    torch.manual_seed(1)
    plain = models.build("ffdnet", features=8, depth=3, knob=0)
    names = {"names": ("sigma", "texture"), "ranges": ((0, 50), (0, 1)), "units": ("of 255", "")}
    net = convert(plain, 2, domain="box", defaults=(25, 0), rank=2, **names)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if "tuning" not in name:
                parameter.add_(0.05 * torch.randn_like(parameter))
    return net.eval()


@pytest.fixture(scope="session")
def cases() -> Callable[..., Iterator[Case]]:
    """A function (net, form, least=1) -> pictures and lambdas: random, of odd sizes, and batches of one."""

    def make(net: TunableModel, form: str, least: int = 1) -> Iterator[Case]:
        low, high = torch.tensor(net.spec.ranges).T
        for batch, height, width in ((1, 65, 67), (2, 64, 31), (3, least, least + 1)):
            height, width = max(height, least), max(width, least)
            shape = {"shared": (), "per_sample": (batch,), "map": (batch, height, width)}[form]
            lam = low + (high - low) * torch.rand(*shape, len(low))
            yield torch.rand(batch, 3, height, width), lam.movedim(-1, 1).contiguous() if form == "map" else lam

    return make
