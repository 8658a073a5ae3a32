"""CFSNet: a tuning branch in parallel with the main one, coupled channel by channel."""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tunable_ops.control.additions import add, copy_plain, find, on_input_and_output, out_channels
from tunable_ops.control.phased import PhasedModel
from tunable_ops.modules.layer import TunableLayer

# Of the vector of repeated coefficients, and of the shared layers' outputs.
_WIDTHS = (512, 256, 128)


class Coupling(TunableLayer):
    """``y = (1 - c) * main(x) + c * tune(x)``, c [C] (or [B, C]) computed from lambda_1.

    tune is two 3x3 convolutions with a ReLU in between, without a skip, as published.

    A vector of 512 copies of lambda_1 passes through linear layers 512-256-128-C that all blocks share, and two of the
    block; ``c = 2 lambda_1 sigmoid(result)``. So c = 0 at lambda_1 = 0, where y is the main network's output, and c
    stays in [0, 2]: without the sigmoid, the product of five linear layers diverges within a few steps.

    Args:
        channels: C.
        shared: The linear layers 512-256-128-C.
        like: Tensor with the device and dtype to use.
    """

    def __init__(self, channels: int, shared: nn.Module, like: Tensor) -> None:
        super().__init__(2, None, "identity", "simplex", like.device, like.dtype)

        def plain() -> nn.Conv2d:
            return nn.Conv2d(channels, channels, 3, padding=1, device=like.device, dtype=like.dtype)

        self.first, self.second = plain(), plain()
        self.shared = shared
        self.own = _linears((channels, channels, channels), like)
        nn.init.zeros_(self.own[-1].weight)  # type: ignore[arg-type]  # so that initially c = lambda_1

    def coefficients(self) -> Tensor:
        """Return the coefficients c [C] or [B, C] at the current lambda."""
        weight: Tensor = self.own[-1].weight  # type: ignore[assignment]
        level = self.alpha(None, None)[..., 1:].to(weight.dtype)
        filled = level.expand(*level.shape[:-1], _WIDTHS[0])
        return 2 * level * torch.sigmoid(self.own(self.shared(filled)))

    def forward(self, x: Tensor, main: Tensor) -> Tensor:
        """Mix the main branch and the tuning branch.

        Args:
            x: [B, C, H, W], input of the main block.
            main: [B, C, H, W], output of the main block.

        Raises:
            ValueError: The main block changes the shape.
        """
        if x.shape != main.shape:
            raise ValueError(
                f"cfsnet: after must name blocks that keep their input's shape; got {list(x.shape)} -> "
                f"{list(main.shape)}"
            )
        tune = self.second(torch.relu(self.first(x)))
        return torch.lerp(main, tune, self.coefficients().to(main.dtype)[..., None, None].expand_as(main))


def cfsnet(
    network: nn.Module,
    *,
    after: Sequence[str],
    names: Sequence[str] | None = None,
    defaults: Sequence[float] | None = None,
) -> PhasedModel:
    """Add CFSNet: a tuning block in parallel with every main block; p = 2. The result cannot be folded.

    Args:
        network: Plain network; it is copied.
        after: Patterns of the main blocks, which must keep their input's shape [B, C, H, W] and have the same C.
        names: Names of the two tuning parameters.
        defaults: Initial positions of the sliders.

    Raises:
        TypeError, ValueError: A pattern matches nothing, or blocks have different widths.

    Source: Wang et al., "CFSNet: Toward a Controllable Feature Space for Image Restoration", ICCV 2019. The
    sigmoid, the linear layers without bias and their initialisation are our choices.
    """
    network = copy_plain("cfsnet", network)
    blocks = find("cfsnet", network, after, nn.Module)
    widths = {name: out_channels("cfsnet", name, module) for name, module in blocks.items()}
    if len(set(widths.values())) > 1:
        raise ValueError(f"cfsnet: after must name blocks of one width; got {widths}")
    channels = next(iter(widths.values()))
    like = next(network.parameters()).detach()
    shared = _linears((*_WIDTHS, channels), like)
    additions: list[tuple[nn.Module, int | None]] = []
    for module in blocks.values():
        coupling = Coupling(channels, shared, like)
        add(module, coupling, on_input_and_output)
        additions.append((coupling, 1))
    return PhasedModel(network, 2, additions, {"control": "cfsnet", "after": list(after)}, names, defaults)


def _linears(widths: Sequence[int], like: Tensor) -> nn.Sequential:
    return nn.Sequential(
        *(nn.Linear(i, o, bias=False, device=like.device, dtype=like.dtype) for i, o in itertools.pairwise(widths))
    )
