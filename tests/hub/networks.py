"""Networks for the tests of sharing."""

import torch
from torch import nn

import tunable_ops
from tunable_ops import models

DNCNN = {"features": 8, "depth": 3}


def small(**options):
    torch.manual_seed(0)
    options = {"domain": "box", "names": ["sigma", "texture"], "ranges": [(0, 50), (0, 1)], **options}
    net = tunable_ops.convert(models.DnCNN(**DNCNN), 2, units=["of 255", ""], **options).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return net


def own():
    """A network of a class that is none of this package."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 3, padding=1))


X = torch.linspace(0, 1, 2 * 3 * 8 * 9).reshape(2, 3, 8, 9)
LAM = {"sigma": 20, "texture": 0.5}
