"""AdaFM: a depthwise filter after every convolution."""

from collections.abc import Sequence

import torch
from torch import nn

from tunable_ops.control.additions import add, copy_plain, find, on_output
from tunable_ops.control.phased import PhasedModel
from tunable_ops.modules import TunableConv2d


def adafm(
    network: nn.Module,
    num_params: int = 2,
    *,
    kernel_size: int = 1,
    after: Sequence[str] | None = None,
    names: Sequence[str] | None = None,
    defaults: Sequence[float] | None = None,
) -> PhasedModel:
    """Add adaptive feature modification: ``y <- y + sum_k lambda_k * (g_k * y)``, g_k depthwise and initially zero.

    It is a depthwise tunable convolution with the kernels delta, delta + g_1, ..., the first of which is fixed: on the
    simplex ``sum_k lambda_k kernel_k = delta + sum_k lambda_k g_k``. `fold` turns it into a plain depthwise
    convolution.

    Args:
        network: Plain network; it is copied.
        num_params: p.
        kernel_size: Side of g, odd; 1 is a gain per channel.
        after: Patterns of the convolutions to be followed by a filter; None: every Conv2d.
        names: Names of the tuning parameters.
        defaults: Initial positions of the sliders.

    Raises:
        TypeError, ValueError: An argument is out of range, or a pattern matches nothing.

    Source: He et al., "Modulating Image Restoration with Continual Levels via Adaptive Feature Modification Layers",
    CVPR 2019.
    """
    if type(kernel_size) is not int or kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"adafm: kernel_size must be an odd int; got {kernel_size!r}")
    network = copy_plain("adafm", network)
    additions: list[tuple[nn.Module, int | None]] = []
    for name, module in find("adafm", network, after, nn.Conv2d).items():
        if not isinstance(module, nn.Conv2d):
            raise ValueError(f"adafm: after must name convolutions; got {name!r}, a {type(module).__name__}")
        channels = module.out_channels
        layer = TunableConv2d(
            channels,
            channels,
            kernel_size,
            padding=kernel_size // 2,
            groups=channels,
            bias=False,
            device=module.weight.device,
            dtype=module.weight.dtype,
            num_params=num_params,
            tuning="identity",
        )
        with torch.no_grad():
            layer.weight.zero_()
            layer.weight[..., kernel_size // 2, kernel_size // 2] = 1
        add(module, layer, on_output)
        additions.append((layer, None))
    conversion = {"control": "adafm", "kernel_size": kernel_size, "after": None if after is None else list(after)}
    return PhasedModel(network, num_params, additions, conversion, names, defaults)
