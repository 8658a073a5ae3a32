"""Dynamic-Net: blocks whose weighted output is added to the features."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tunable_ops.control.additions import add, copy_plain, find, on_output, out_channels
from tunable_ops.control.phased import PhasedModel
from tunable_ops.modules import TunableConv2d


class TuningBlock(nn.Module):
    """``y = x + lambda_k * psi(x)``; psi is three 3x3 convolutions with reflection padding and ReLUs in between.

    The last convolution blends P kernels, of which all but the k-th stay zero, so that lambda_k scales it.

    Args:
        channels: C of x [B, C, H, W].
        index: k, 1 to p - 1.
        num_params: p.
        like: Tensor with the device and dtype to use.
    """

    def __init__(self, channels: int, index: int, num_params: int, like: Tensor) -> None:
        super().__init__()

        def plain() -> nn.Conv2d:
            return nn.Conv2d(
                channels, channels, 3, padding=1, padding_mode="reflect", device=like.device, dtype=like.dtype
            )

        self.index = index
        self.first, self.second = plain(), plain()
        self.last = TunableConv2d(
            channels,
            channels,
            3,
            padding=1,
            padding_mode="reflect",
            device=like.device,
            dtype=like.dtype,
            num_params=num_params,
            tuning="identity",
        )
        with torch.no_grad():
            # psi starts at 0, so that a phase starts from the main network
            self.last.weight.zero_()
            if self.last.bias is not None:
                self.last.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """Return x + lambda_k * psi(x)."""
        return x + self.last(torch.relu(self.second(torch.relu(self.first(x)))))


def dynamic_net(
    network: nn.Module,
    num_params: int = 2,
    *,
    after: Sequence[str],
    names: Sequence[str] | None = None,
    defaults: Sequence[float] | None = None,
) -> PhasedModel:
    """Add Dynamic-Net: ``x <- x + sum_k lambda_k * psi_k(x)`` after chosen modules.

    The published coefficient is in [0, 1], or in [-1, 1] with a second set of blocks for the negative half ("dual"):
    here p = 2 with the coefficient lambda_1, or p = 3 with lambda_1 - lambda_2. `fold` keeps the blocks, with the
    weight folded into their last convolution.

    Args:
        network: Plain network; it is copied.
        num_params: p.
        after: Patterns of the modules to be followed by a block (in the published style network: residual blocks 2 and
            5, and the module before the last up-sampling convolution). Their output is [B, C, H, W].
        names: Names of the tuning parameters.
        defaults: Initial positions of the sliders.

    Raises:
        TypeError, ValueError: An argument is out of range, or a pattern matches nothing.

    Source: Shoshan et al., "Dynamic-Net: Tuning the Objective Without Re-training for Synthesis Tasks", ICCV 2019
    (arXiv 1811.08760). The initial psi = 0 is our choice.
    """
    network = copy_plain("dynamic_net", network)
    additions: list[tuple[nn.Module, int | None]] = []
    for name, module in find("dynamic_net", network, after, nn.Module).items():
        channels = out_channels("dynamic_net", name, module)
        like = next(module.parameters())
        blocks = [TuningBlock(channels, k, num_params, like) for k in range(1, num_params)]
        add(module, nn.Sequential(*blocks), on_output)
        additions += [(block, block.index) for block in blocks]
    return PhasedModel(
        network, num_params, additions, {"control": "dynamic_net", "after": list(after)}, names, defaults
    )
