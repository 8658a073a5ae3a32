"""StyleNet: sizes, the formula, any picture size, and its conversion for three styles."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import tunable_ops.ops.flops  # noqa: F401  (the formulas of the tunable operators)
from tunable_ops import convert, fold, models
from tunable_ops.models import StyleNet
from tunable_ops.modules import TunableConv2d, TunableModel
from tunable_ops.serialization import load, save

SMALL: dict[str, Any] = {"width": 2, "num_blocks": [1, 1, 0]}


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def small(**arguments: Any) -> StyleNet:
    """Return a small network in float64 with random norms."""
    net = StyleNet(**{**SMALL, **arguments}).double()
    for name, parameter in net.named_parameters():
        if parameter.dim() == 1:
            nn.init.normal_(parameter, mean=float(name.endswith("weight")), std=0.5)
    return net


def trained() -> TunableModel:
    """Return a small tunable network whose kernels differ."""
    net = convert(small(), num_params=3)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return net


def test_size_and_work() -> None:
    """Computed by hand from (inputs, outputs, side, share of the picture's pixels) of every convolution."""
    layers = [(3, 64, 9, 1.0), (64, 128, 3, 1 / 4), (128, 256, 3, 1 / 16)]
    layers += 2 * 4 * [(128, 128, 3, 1 / 4)] + 12 * [(256, 256, 3, 1 / 16)]
    layers += [(256, 128, 3, 1 / 4), (128, 64, 3, 1.0), (64, 3, 9, 1.0)]
    kernels = sum(c * o * k * k + o for c, o, k, _ in layers)
    norms = sum(2 * o for _, o, _, _ in layers[:-1])
    work = sum(c * o * k * k * share for c, o, k, share in layers) * 256**2
    assert (kernels, norms, round(work / 1e9, 2)) == (9_030_659, 9_472, 62.44)
    with torch.device("meta"):
        net = StyleNet()
        assert count(net) == kernels + norms
        with FlopCounterMode(display=False) as counter:
            net(torch.empty(1, 3, 256, 256))
        assert counter.get_total_flops() == 2 * work
        tunable = convert(net, num_params=3, tuning="identity")
        assert len(tunable.layers) == len(layers)
        assert all(isinstance(layer, TunableConv2d) for layer in tunable.layers)
        assert count(tunable) == 3 * kernels + norms
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            tunable(torch.empty(1, 3, 256, 256), torch.empty(3))
    assert counter.get_total_flops() / 2 == pytest.approx(work + 3 * kernels, rel=1e-9)


def test_against_the_formula() -> None:
    net = small()
    s, x = net.state_dict(), torch.rand(2, 3, 8, 12, dtype=torch.float64)

    def conv(name: str, x: Tensor, stride: int = 1) -> Tensor:
        weight = s[f"{name}.weight"]
        padded = F.pad(x, (weight.shape[-1] // 2,) * 4, mode="reflect")
        return F.conv2d(padded, weight, s[f"{name}.bias"], stride)

    def norm(name: str, x: Tensor) -> Tensor:
        mean, var = x.mean((2, 3), keepdim=True), x.var((2, 3), correction=0, keepdim=True)
        gain, offset = (s[f"{name}.{part}"].view(1, -1, 1, 1) for part in ("weight", "bias"))
        return (x - mean) / (var + 1e-5).sqrt() * gain + offset

    def unit(name: str, x: Tensor, first: int = 0, stride: int = 1) -> Tensor:
        return norm(f"{name}.{first + 1}", conv(f"{name}.{first}", x, stride)).clamp(min=0)

    def block(name: str, x: Tensor) -> Tensor:
        inner = norm(f"{name}.norm1", conv(f"{name}.conv1", x)).clamp(min=0)
        return x + norm(f"{name}.norm2", conv(f"{name}.conv2", inner))

    def double(x: Tensor) -> Tensor:
        return x.repeat_interleave(2, 2).repeat_interleave(2, 3)

    out = block("body.0.0", unit("down1", unit("intro", x), stride=2))
    out = block("body.1.0", unit("down2", out, stride=2))
    out = unit("up2", double(unit("up1", double(out), first=1)), first=1)
    torch.testing.assert_close(net(x), 1 / (1 + (-conv("ending", out) / 16).exp()), rtol=0, atol=1e-11)


@pytest.mark.parametrize("size", [(1, 1), (3, 21), (8, 12), (10, 9)])
def test_any_size_is_padded_by_its_border_and_cropped(size: tuple[int, int]) -> None:
    net = small()
    x = torch.rand(2, 3, *size, dtype=torch.float64)
    out = net(x)
    assert out.shape == x.shape
    full = [max(8, -(-n // 4) * 4) for n in size]
    rows, columns = (torch.arange(n).clamp(max=side - 1) for n, side in zip(full, size, strict=True))
    torch.testing.assert_close(out, net(x[:, :, rows][..., columns])[..., : size[0], : size[1]], rtol=0, atol=1e-11)


def test_empty_batch_and_grey() -> None:
    assert small()(torch.rand(0, 3, 8, 8, dtype=torch.float64)).shape == (0, 3, 8, 8)
    assert small(img_channel=1)(torch.rand(1, 1, 9, 8, dtype=torch.float64)).shape == (1, 1, 9, 8)


def test_convert_keeps_the_function() -> None:
    plain = small()
    net = convert(plain, num_params=3)
    assert net.spec.domain == "simplex"
    x = torch.rand(2, 3, 8, 9, dtype=torch.float64)
    lams = torch.tensor([[0.2, 0.3, 0.5], [0.0, 1.0, 0.0]], dtype=torch.float64)
    for lam in (lams, lams[0]):
        torch.testing.assert_close(net(x, lam), plain(x), rtol=0, atol=1e-11)


def test_per_sample_lambda_is_one_lambda_at_a_time() -> None:
    net = trained()
    x = torch.rand(3, 3, 10, 9, dtype=torch.float64)
    lam = torch.tensor([[1, 0, 0], [0.2, 0.3, 0.5], [0, 0, 1]], dtype=torch.float64)
    together = net(x, lam)
    for b in range(3):
        torch.testing.assert_close(together[b : b + 1], net(x[b : b + 1], lam[b]), rtol=0, atol=1e-11)
    corners = [net(x[:1], row) for row in torch.eye(3, dtype=torch.float64)]
    assert all((corners[i] - corners[i - 1]).abs().max() > 1e-3 for i in range(3))


def test_every_kernel_gets_a_gradient() -> None:
    """The exceptions are biases before a norm, which removes every constant."""
    net = trained()
    lam = torch.tensor([[0.2, 0.3, 0.5], [0.6, 0.3, 0.1]], dtype=torch.float64)
    net(torch.rand(2, 3, 8, 8, dtype=torch.float64), lam).square().sum().backward()
    for name, p in net.named_parameters():
        assert p.grad is not None, name
        without = name.endswith(".bias") and "tuning" not in name and p.dim() == 2 and "ending" not in name
        assert (p.grad.abs().max() > 1e-9) is not without, name


def test_fold_gives_the_class_back() -> None:
    net = trained()
    x, lam = torch.rand(2, 3, 9, 8, dtype=torch.float64), [0.2, 0.3, 0.5]
    folded = fold(net, lam)
    assert type(folded) is StyleNet
    torch.testing.assert_close(folded(x), net(x, lam), rtol=0, atol=1e-11)


@pytest.mark.parametrize("tunable", [False, True])
def test_layouts_agree(tunable: bool) -> None:
    net: nn.Module = trained() if tunable else small()
    lam = ([[0.2, 0.3, 0.5], [1, 0, 0]],) if tunable else ()
    x = torch.rand(2, 3, 8, 12, dtype=torch.float64)
    plain = net(x, *lam)
    last = net.to(memory_format=torch.channels_last)(x.contiguous(memory_format=torch.channels_last), *lam)
    torch.testing.assert_close(last, plain, rtol=0, atol=1e-11)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"width": 0}, ValueError, "StyleNet: width must be at least 1; got 0"),
        ({"img_channel": 3.0}, TypeError, "StyleNet: img_channel must be an int; got 3.0"),
        ({"num_blocks": 3}, TypeError, "StyleNet: num_blocks must be a list or tuple of ints; got 3"),
        ({"num_blocks": [2, 6]}, ValueError, r"StyleNet: num_blocks must have 3 entries; got \[2, 6\]"),
        ({"num_blocks": [2, -1, 2]}, ValueError, r"StyleNet: num_blocks\[1\] must be at least 0; got -1"),
    ],
)
def test_bad_arguments(arguments: dict, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        StyleNet(**arguments)


@pytest.mark.parametrize("shape", [(1, 1, 8, 8), (3, 8, 8)])
def test_bad_input_names_the_channels(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"StyleNet: x must be \[B, 3, H, W\]; got \[") as caught:
        small()(torch.zeros(shape, dtype=torch.float64))
    assert str(list(shape)) in str(caught.value)


def test_checkpoint_by_name(tmp_path: Path) -> None:
    net = convert(models.build("stylenet", **SMALL), num_params=3, names=["mosaic", "udnie", "rain"])
    save(net, tmp_path / "n.safetensors", architecture="stylenet", arguments=SMALL)
    loaded = load(tmp_path / "n.safetensors")
    assert type(loaded.network) is StyleNet
    x = torch.rand(1, 3, 8, 9)
    assert torch.equal(loaded(x, [0.2, 0.3, 0.5]), net(x, [0.2, 0.3, 0.5]))
