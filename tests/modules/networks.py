"""Networks and lambdas for the tests of the modules, in float64 so that rounding hides no mistakes."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

DTYPE = torch.float64


class Block(nn.Module):
    """Residual block with its own scales."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, padding_mode="reflect")
        self.conv2 = nn.Conv2d(channels, channels, (3, 1), padding="same", groups=2, bias=False)
        self.beta = nn.Parameter(torch.rand(1, channels, 1, 1))
        self.note = "kept"

    def forward(self, x: Tensor) -> Tensor:
        return x + self.beta * self.conv2(self.conv1(self.norm(x)).relu())


class Net(nn.Module):
    """Convolutions, a transposed one, a linear layer, residual scales and batch norm; [B, 3, 8, 8] -> [B, 5]."""

    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, channels, 3, stride=2, padding=1)
        self.blocks = nn.ModuleList(Block(channels) for _ in range(2))
        self.up = nn.ConvTranspose2d(channels, 6, 2, stride=2)
        self.tail = nn.Sequential(nn.Conv2d(6, 6, 3, padding=2, dilation=2, groups=3), nn.GELU())
        self.gamma = nn.Parameter(torch.rand(1, 6, 1, 1))
        self.classify = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(x)
        for block in self.blocks:
            x = block(x)
        x = self.tail(self.up(x)) * self.gamma
        return self.classify(x.mean((2, 3)))


class Picture(nn.Module):
    """Convolutions only, from picture to picture, on two scales."""

    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, channels, 3, padding=1)
        self.down = nn.Conv2d(channels, channels, 2, stride=2)
        self.mid = nn.Sequential(nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU())
        self.up = nn.ConvTranspose2d(channels, channels, 2, stride=2)
        self.tail = nn.Conv2d(channels, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        start = self.head(x)
        return x + self.tail(start + self.up(self.mid(self.down(start))))


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = DTYPE) -> Tensor:
    """Draw normal numbers with a seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def point(domain: str, num_params: int, *batch: int, seed: int = 0) -> Tensor:
    """Draw a random lambda of the domain, [*batch, p]."""
    values = torch.rand(*batch, num_params, generator=torch.Generator().manual_seed(seed), dtype=DTYPE) + 0.05
    return values / values.sum(-1, keepdim=True) if domain == "simplex" else values


def perturb(module: nn.Module, seed: int = 0) -> None:
    """Change every parameter, phi included, as training does, so that all kernels differ."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in filter(torch.is_floating_point, module.parameters()):
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=DTYPE).to(parameter.dtype))


def plain_net(kind: type[nn.Module] = Net, **arguments: int) -> nn.Module:
    """Return a network in float64 and evaluation mode, with running statistics in its batch norms."""
    net = kind(**arguments).to(DTYPE)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
    return net.eval()


def rows(run, x: Tensor, lam: Sequence[Tensor]) -> Iterator[Tensor]:
    """Run each sample by itself, which defines a per-sample lambda."""
    for b, each in enumerate(lam):
        yield run(x[b : b + 1], each)


def assert_equal(actual: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)
