"""Generators as toys of a PGN's training: tunable super-resolution networks, led by the field that is being learnt.

What a PGN predicts for a generator in training is met by no autoencoder and by no image prior: pictures whose coarse
part is right and whose texture is missing, or invented. So the toy is the generator itself, with lambda drawn per
sample. `tangent` is the loss on what its parameters gather from an error of the field.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tunable_ops import pretrained
from tunable_ops.losses import sampler
from tunable_ops.models import EDSR
from tunable_ops.modules import TunableModel, convert
from tunable_ops.train.seeding import generator
from tunable_ops.train.toys import LOST, Toy

FACTOR = 4  # of every generator
SCALE = 0.01  # of the field beside L1: the gradients then have about the same norm
LIVES = (100, 1500)  # steps that a generator lives, uniform in the logarithm
CORNERS = 0.4  # of the sampler of lambda
LEAST = {"edsr_x4": 4, "rlfn_x4": 60}
"""Kind of generator -> the smallest side of a crop."""


class Enlarger(nn.Module):
    """Bicubic x4 enlargement plus the residual from a small EDSR (4 blocks, 24 channels); 0 in the beginning."""

    def __init__(self) -> None:
        super().__init__()
        self.edsr = EDSR(scale=FACTOR, num_blocks=4, features=24, mean=0.5)
        nn.init.zeros_(self.edsr.conv_last.weight)
        assert self.edsr.conv_last.bias is not None
        nn.init.zeros_(self.edsr.conv_last.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Enlarge [B, 3, H, W] to [B, 3, 4 H, 4 W]."""
        return F.interpolate(x, scale_factor=FACTOR, mode="bicubic") + self.edsr(x) - 0.5


def reduced(y: Tensor) -> Tensor:
    """Reduce pictures to a quarter of their size, bicubic."""
    return F.interpolate(y, scale_factor=1 / FACTOR, mode="bicubic", antialias=True).clamp(0, 1)


def build_generator(kind: str) -> TunableModel:
    """Return a fresh generator of a kind in `LEAST`, tunable with the parameters "l1" and "perceptual".

    "edsr_x4" is an `Enlarger`, whose weights come from torch's global generator; "rlfn_x4" the published RLFN.
    """
    plain = Enlarger() if kind == "edsr_x4" else pretrained.load_base(kind)
    return convert(plain, num_params=2, names=["l1", "perceptual"])


class Generator(Toy):
    """A tunable super-resolution network that lives for some steps, then is put back to its start.

    It follows ``mean_b(lam_l1 * L1 + lam_perceptual * SCALE * field)``. Drawn for each life: its length, whether the
    true field leads it (else the predicted one), and whether the L1 term is there.

    Args:
        kind: In `LEAST`.
        index: Of the toy, for what is drawn.
        seed: Of the run.
        lr: Adam's rate; a pretrained network takes a tenth of it.
        direct: Share of the lives that the true field leads.
        l1: Share of the lives with the L1 term.
        device: Where it runs.
    """

    net: TunableModel

    def __init__(
        self, kind: str, index: int, seed: int, lr: float, direct: float, l1: float, device: torch.device | str = "cpu"
    ) -> None:
        self.kind, self.index, self.seed, self.shares = kind, index, seed, (direct, l1)
        super().__init__(0, lr if kind == "edsr_x4" else 0.1 * lr, device)

    def build(self) -> nn.Module:
        """Return the generator as a life begins with it."""
        return build_generator(self.kind).requires_grad_(True)

    def _drawn(self) -> list[float]:
        """Return what is drawn for this life: length, leader, L1 term; uniform in [0, 1) each."""
        source = generator(self.seed, "generator", self.index, self.resets)
        return torch.rand(3, generator=source, dtype=torch.float64).tolist()

    @property
    def direct(self) -> bool:
        """True if the true field leads this life."""
        return self._drawn()[1] < self.shares[0]

    def draw(self, count: int, step: int) -> Tensor:
        """Return lambda of the samples of a step, [count, 2]."""
        source = generator(self.seed, "generator", self.index, "lambda", step)
        return sampler("simplex", 2, corners=CORNERS)(count, source)

    def output(self, y: Tensor, lam: Tensor) -> Tensor:
        """Return what it makes of pictures [B, 3, H, W] that are reduced before."""
        return self.net(reduced(y), lam.to(y.device))

    def pull(self, x: Tensor, y: Tensor, lam: Tensor, field: Tensor) -> Tensor:
        """Return the gradient for its outputs x, from the field there."""
        lam = lam.to(x.device)[:, :, None, None, None]  # [B, 2, 1, 1, 1]
        pull = SCALE * lam[:, 1] * field
        if self._drawn()[2] < self.shares[1]:
            pull = pull + lam[:, 0] * (x.detach() - y).sign() / x[0].numel()
        return pull / len(x)

    def watch(self, error: float, draw: float) -> None:
        """Count this step, and begin anew where the life is over; ``draw`` is not used, the life has its own."""
        self._note(error)
        self.since += 1
        if not error <= LOST or self.since > LIVES[0] * (LIVES[1] / LIVES[0]) ** self._drawn()[0]:
            self.reset()


class Tangent(NamedTuple):
    """The error of a field in a generator's parameters.

    Attributes:
        value: ``|J^T (g - g_true)|**2 / (|J^T g_true|**2 + |J^T g|**2)``, J the derivative of the outputs for the
            parameters and the denominator constant: between 0 and 2, however small the true gradient.
        gradient: Of the value, for g; the shape of g.
        cosine: Between ``J^T g`` and ``J^T g_true``.
    """

    value: Tensor
    gradient: Tensor
    cosine: Tensor


def tangent(output: Tensor, net: nn.Module, predicted: Tensor, true: Tensor) -> Tangent:
    """Compare two fields by what they would move in the parameters of a generator.

    The gradient is ``2 J J^T (g - g_true)`` over the denominator: one pull back of the error and one push forward,
    the latter by differentiating a pull back once more.

    Args:
        output: Of the generator, [B, 3, H, W], with its graph, which is kept.
        net: The generator.
        predicted: The field g, the shape of output; taken as constant.
        true: The field that it should be.
    """
    parameters = [p for p in net.parameters() if p.requires_grad]
    probe = torch.zeros_like(output, requires_grad=True)
    pulled = torch.autograd.grad(output, parameters, probe, create_graph=True, allow_unused=True)
    used = [(p, g) for p, g in zip(parameters, pulled, strict=True) if g is not None]

    def pull_back(field: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(output, [p for p, _ in used], field, retain_graph=True))

    def product(a: list[Tensor], b: list[Tensor]) -> Tensor:
        return torch.stack([(x * y).sum() for x, y in zip(a, b, strict=True)]).sum()

    wanted, found = pull_back(true), pull_back(predicted.detach())
    error = [a - b for a, b in zip(found, wanted, strict=True)]
    (pushed,) = torch.autograd.grad([g for _, g in used], probe, error)
    wanted_norm, found_norm = product(wanted, wanted).clamp_min(1e-30), product(found, found).clamp_min(1e-30)
    both = wanted_norm + found_norm
    cosine = product(found, wanted) / (wanted_norm.sqrt() * found_norm.sqrt())
    return Tangent(product(error, error) / both, 2 * pushed / both, cosine)
