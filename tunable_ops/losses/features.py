"""Feature networks of the perceptual losses: VGG, AlexNet and SqueezeNet without classifiers, in plain PyTorch.

Parameters have torchvision's names (``features.0.weight``), but torchvision is not needed. Pictures are RGB in [0, 1];
the networks normalise them with ImageNet's mean and standard deviation. The weights are frozen: only the pictures get
gradients.
"""

import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tunable_ops.losses.reduction import check_pictures
from tunable_ops.losses.weights import IMAGENET_MEAN, IMAGENET_STD, read_weights
from tunable_ops.modules.accelerate import accelerate

_WIDTHS = (64, 128, 256, 512, 512)  # channels of VGG's five blocks
POOLS = ("max", "avg", "l2")


class L2Pool2d(nn.Module):
    """``sqrt(blur(x**2) + 1e-12)`` at every second pixel; blur is [1 2 1]/4 along both axes, with zero padding.

    The anti-aliased pooling of DISTS (Ding et al., 2020), after Henaff and Simoncelli.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to [B, C, ceil(H/2), ceil(W/2)]."""
        taps = torch.tensor([0.25, 0.5, 0.25], device=x.device, dtype=x.dtype)
        kernel = (taps[:, None] * taps).expand(x.shape[1], 1, 3, 3)
        return (F.conv2d(x * x, kernel, stride=2, padding=1, groups=x.shape[1]) + 1e-12).sqrt()


class Fire(nn.Module):
    """SqueezeNet's module: a 1x1 convolution to fewer channels, then a 1x1 and a 3x3 side by side; ReLU after each.

    Args:
        inputs: Channels of the input.
        narrow: Channels after the first convolution.
        wide: Channels of each of the two others.

    Attributes:
        out_channels: 2 * wide.
    """

    def __init__(self, inputs: int, narrow: int, wide: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(inputs, narrow, 1)
        self.expand1x1 = nn.Conv2d(narrow, wide, 1)
        self.expand3x3 = nn.Conv2d(narrow, wide, 3, padding=1)
        self.out_channels = 2 * wide

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, inputs, H, W] to [B, out_channels, H, W]."""
        x = F.relu(self.squeeze(x))
        return torch.cat((F.relu(self.expand1x1(x)), F.relu(self.expand3x3(x))), dim=1)


class Features(nn.Module):
    """Base of the feature networks: convolutions, ReLUs, Fire modules and poolings; returns outputs of selected ReLUs.

    Args:
        modules: All layers of the network.
        names: Name of every ReLU and every Fire module, in order.
        layers: Names of the ReLUs to return; layers after the deepest one are dropped.
        weights: As for `VGG16Features`.

    Attributes:
        layers: Names of what `forward` returns, from the shallowest to the deepest.
        channels: Number of channels of each layer.
        min_size: Smallest height and width of a picture for which the deepest layer has a value.
        receptive_field: Side of the square of pixels that a value of the deepest layer depends on. Smaller pictures
            are accepted down to ``min_size`` (the layers pad with zeros).
    """

    network = ""
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        modules: Sequence[nn.Module],
        names: Sequence[str],
        layers: Sequence[str],
        weights: str | os.PathLike[str] | None,
    ) -> None:
        super().__init__()
        op = type(self).__name__
        if isinstance(layers, str) or not layers:
            raise ValueError(f"{op}: layers must be one or more names of {', '.join(names)}; got {layers!r}")
        for layer in layers:
            if layer not in names:
                raise ValueError(f"{op}: layers must be among {', '.join(names)}; got {layer!r}")
        relus = [index for index, module in enumerate(modules) if isinstance(module, nn.ReLU | Fire)]
        self._wanted = {index: name for index, name in zip(relus, names, strict=True) if name in layers}
        self.layers = tuple(self._wanted.values())
        self.features = nn.Sequential(*modules[: max(self._wanted) + 1])
        self.channels = tuple(self._channels(index) for index in self._wanted)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)
        self.min_size, self.receptive_field = _sizes(self.features)
        if weights != "random":
            found = read_weights(op, self.network, list(self.state_dict()), weights)
            _check_shapes(op, found, self.state_dict())
            self.load_state_dict({name: value.to(self.mean.device) for name, value in found.items()}, assign=True)
        # On a CPU channels_last halves the time of the convolutions, and the filtering takes a quarter of VGG's again.
        self.requires_grad_(False).eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        accelerate(self)

    def _channels(self, relu: int) -> int:
        module = self.features[relu]
        layer = module if isinstance(module, Fire) else self.features[relu - 1]
        assert isinstance(layer, nn.Conv2d | Fire)
        return layer.out_channels

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return the features of pictures.

        Args:
            x: [B, 3, H, W], RGB in [0, 1], H and W at least ``min_size``. The range is checked only where that is
                cheap: on the CPU, outside compilation and transforms.

        Returns:
            Dict layer -> [B, C_l, H_l, W_l], in the network's order and dtype.

        Raises:
            TypeError: x is not a floating point tensor.
            ValueError: Not [B, 3, H, W], too small, or outside [0, 1].
        """
        check_pictures(type(self).__name__, "x", x, self.min_size)
        return self.extract(x)

    def extract(self, x: Tensor) -> dict[str, Tensor]:
        """Do the same as `forward` without its checks: for losses, which have their own."""
        x = (x.to(self.mean.dtype) - self.mean) / self.std
        found = {}
        for index, module in enumerate(self.features):
            x = module(x)
            if index in self._wanted:
                found[self._wanted[index]] = x
        return found

    def train(self, mode: bool = True) -> "Features":
        """Stay in evaluation mode: nothing here is trained."""
        return super().train(False)


class _VGG(Features):
    counts: tuple[int, ...] = ()  # convolutions per block

    def __init__(
        self, layers: str | Sequence[str] = "relus", pool: str = "max", weights: str | os.PathLike[str] | None = None
    ) -> None:
        if pool not in POOLS:
            raise ValueError(f"{type(self).__name__}: pool must be one of {', '.join(POOLS)}; got {pool!r}")
        modules: list[nn.Module] = []
        names = []
        inputs = 3
        with _undrawn(weights):
            for block, (count, width) in enumerate(zip(self.counts, _WIDTHS, strict=True), 1):
                if block > 1:
                    modules.append({"max": nn.MaxPool2d, "avg": nn.AvgPool2d}[pool](2) if pool != "l2" else L2Pool2d())
                for index in range(1, count + 1):
                    modules += [nn.Conv2d(inputs, width, 3, padding=1), nn.ReLU(inplace=True)]
                    names.append(f"relu{block}_{index}")
                    inputs = width
        chosen = names[: names.index("relu5_1") + 1] if isinstance(layers, str) and layers == "relus" else layers
        super().__init__(modules, names, chosen, weights)


class VGG16Features(_VGG):
    """VGG16 (Simonyan and Zisserman, 2015): 13 convolutions in blocks of 2, 2, 3, 3, 3.

    Args:
        layers: Names such as "relu3_3", or "relus" for all ReLUs up to relu5_1.
        pool: "max", as trained; "avg", for smoother gradients; or "l2" (`L2Pool2d`), for DISTS.
        weights: Path of a file; None to search for it as described in `tunable_ops.losses.weights`; "download" for
            torchvision's; "random" for tests.

    Raises:
        FileNotFoundError: No weights were found; the message says where they were looked for and how to get them.
        ValueError: An unknown layer or pool, or weights with the wrong checksum or shape.

    Example:
        >>> features = VGG16Features(["relu1_2", "relu2_2"], weights="random")
        >>> {name: list(value.shape) for name, value in features(torch.rand(1, 3, 16, 24)).items()}
        {'relu1_2': [1, 64, 16, 24], 'relu2_2': [1, 128, 8, 12]}
    """

    network = "vgg16"
    counts = (2, 2, 3, 3, 3)


class VGG19Features(_VGG):
    """VGG19: like `VGG16Features`, with 16 convolutions in blocks of 2, 2, 4, 4, 4."""

    network = "vgg19"
    counts = (2, 2, 4, 4, 4)


class AlexNetFeatures(Features):
    """AlexNet in torchvision's form (Krizhevsky, 2014), the network of LPIPS: five convolutions, "relu1" to "relu5".

    Args:
        layers: Names of ReLUs, or "relus" for all five.
        weights: As for `VGG16Features`.

    Raises:
        FileNotFoundError, ValueError: As for `VGG16Features`.
    """

    network = "alexnet"

    def __init__(self, layers: str | Sequence[str] = "relus", weights: str | os.PathLike[str] | None = None) -> None:
        names = [f"relu{k}" for k in range(1, 6)]
        with _undrawn(weights):
            modules: list[nn.Module] = [
                *(nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2)),
                *(nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2)),
                *(nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(inplace=True)),
                *(nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(inplace=True)),
                *(nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(inplace=True)),
            ]
        super().__init__(modules, names, names if isinstance(layers, str) and layers == "relus" else layers, weights)


class SqueezeNetFeatures(Features):
    """SqueezeNet 1.1 (Iandola et al., 2016): a convolution, "relu1", and Fire modules, "fire2" to "fire9".

    1.2 million parameters, a twelfth of VGG16's convolutions. Two sets of weights are known: torchvision's, and those
    of the network's authors, who trained it on BGR in 0..255; reading these scales the first convolution, so that
    both take the same pictures.

    Args:
        layers: Names, or "relus" for all nine.
        weights: As for `VGG16Features`. The authors' weights are recognised by the name of their file in
            `tunable_ops.losses.weights.FILES`; a file with another name must hold torchvision's.

    Raises:
        FileNotFoundError, ValueError: As for `VGG16Features`.
    """

    network = "squeezenet"

    def __init__(self, layers: str | Sequence[str] = "relus", weights: str | os.PathLike[str] | None = None) -> None:
        names = ["relu1", *(f"fire{k}" for k in range(2, 10))]
        with _undrawn(weights):
            modules: list[nn.Module] = [
                *(nn.Conv2d(3, 64, 3, stride=2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, ceil_mode=True)),
                *(Fire(64, 16, 64), Fire(128, 16, 64), nn.MaxPool2d(3, 2, ceil_mode=True)),
                *(Fire(128, 32, 128), Fire(256, 32, 128), nn.MaxPool2d(3, 2, ceil_mode=True)),
                *(Fire(256, 48, 192), Fire(384, 48, 192), Fire(384, 64, 256), Fire(512, 64, 256)),
            ]
        super().__init__(modules, names, names if isinstance(layers, str) and layers == "relus" else layers, weights)


NETWORKS: dict[str, type[Features]] = {
    "vgg16": VGG16Features,
    "vgg19": VGG19Features,
    "alexnet": AlexNetFeatures,
    "squeezenet": SqueezeNetFeatures,
}


def _undrawn(weights: str | os.PathLike[str] | None) -> AbstractContextManager[object]:
    """Create layers on "meta" if a file will fill them: initialising them takes longer than reading the file."""
    return nullcontext() if weights == "random" else torch.device("meta")


def _check_shapes(op: str, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    for name, value in wanted.items():
        if found[name].shape != value.shape:
            raise ValueError(
                f"{op}: weights must hold {name} of shape {list(value.shape)}; got {list(found[name].shape)}; "
                f"is this the file of another network?"
            )


def _sizes(modules: nn.Sequential) -> tuple[int, int]:
    """Return the smallest side that leaves a value at the end, and the receptive field."""
    least = field = 1
    for module in reversed(modules):
        beyond = 0  # how far a pooling's last window may reach past the border
        if isinstance(module, L2Pool2d):
            taps, stride, padding = 3, 2, 1
        elif isinstance(module, Fire):
            taps, stride, padding = 3, 1, 1
        elif isinstance(module, nn.Conv2d):
            taps, stride, padding = module.kernel_size[0], module.stride[0], int(module.padding[0])
        elif isinstance(module, nn.MaxPool2d | nn.AvgPool2d):
            taps, stride, padding = int(module.kernel_size), int(module.stride), 0  # type: ignore[arg-type]
            beyond = stride - 1 if module.ceil_mode else 0
        else:
            continue
        least = max(1, (least - 1) * stride + taps - 2 * padding - beyond)
        field = (field - 1) * stride + taps
    return least, field
