"""Measures of pictures: luma, borders, rounding, the field's SSIM; networks for grey pictures."""

import math

import pytest
import torch
from torch import Tensor, nn
from torchmetrics.functional.image import structural_similarity_index_measure

from tunable_ops import convert
from tunable_ops.models import DnCNN
from tunable_ops.train.evaluate import Score, evaluate, restore
from tunable_ops.train.measure import Measure, Measured, luma


@pytest.fixture
def pair() -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(0)
    clean = torch.rand(3, 17, 23, generator=source)
    return clean + 0.1 * torch.randn(3, 17, 23, generator=source), clean


def test_psnr_of_a_constant_error_inside_the_border() -> None:
    clean = torch.full((3, 20, 21), 0.5)
    output = clean + 0.01
    output[:, :2] = output[..., -2:] = 9.0
    assert Measure(border=2)(output, clean).psnr == pytest.approx(40, abs=1e-4)
    assert Measure(border=1)(output, clean).psnr < 20
    assert Measure()(clean, clean) == Measured(math.inf, pytest.approx(1), None)


def test_outputs_are_clamped_and_rounded_like_a_file() -> None:
    clean = torch.ones(3, 11, 11)
    assert Measure()(clean + 7, clean).psnr == math.inf
    output = clean - 0.4 / 255
    assert Measure(rounded=True)(output, clean).psnr == math.inf
    assert Measure()(output, clean).psnr == pytest.approx(20 * math.log10(255 / 0.4), abs=1e-2)


def test_luma_is_matlabs() -> None:
    colours = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1], [0, 0, 0]]).double()
    expected = torch.tensor([81.481, 144.553, 40.966, 235.0, 16.0]).double() / 255
    torch.testing.assert_close(luma(colours.view(5, 3, 1, 1)).flatten(), expected, rtol=0, atol=1e-6)


def test_luma_ignores_colour_errors_that_it_does_not_see(pair: tuple[Tensor, Tensor]) -> None:
    _, clean = pair
    clean = 0.25 + clean / 2
    shift = torch.tensor([0.05, 0.0, -0.05 * 65.481 / 24.966]).view(3, 1, 1)
    assert Measure(y=True)(clean + shift, clean).psnr > 100
    assert Measure()(clean + shift, clean).psnr < 30


def test_ssim_is_over_the_windows_inside(pair: tuple[Tensor, Tensor]) -> None:
    output, clean = (picture.clamp(0, 1).double()[None] for picture in pair)
    _, full = structural_similarity_index_measure(output, clean, data_range=1.0, return_full_image=True)
    assert Measure()(*pair).ssim == pytest.approx(float(full[..., 5:-5, 5:-5].mean()), abs=1e-6)
    assert Measure(ssim=False)(*pair).ssim is None


@pytest.mark.parametrize(
    ("shape", "border", "text"),
    [
        ((3, 12, 11), 0, r"must have the clean picture's shape \[3, 12, 12\]; got \[3, 12, 11\]"),
        ((3, 12, 12), 1, r"must be at least 13 x 13 pixels for a border of 1; got 12 x 12"),
    ],
)
def test_what_cannot_be_measured_is_named(shape: tuple[int, ...], border: int, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Measure(border=border)(torch.rand(shape), torch.rand(3, 12, 12))


def test_lpips_is_of_the_whole_picture_in_colour(pair: tuple[Tensor, Tensor]) -> None:
    class Mean(nn.Module):
        def forward(self, output: Tensor, target: Tensor) -> Tensor:
            assert output.shape == (1, 3, 17, 23) and output.dtype == torch.float32
            return (output - target).abs().mean((1, 2, 3))

    value = Measure(y=True, border=2, lpips=Mean())(*pair).lpips
    assert value == pytest.approx(float((pair[0].clamp(0, 1) - pair[1]).abs().mean()), rel=1e-5)


def test_a_grey_network_sees_every_channel(pair: tuple[Tensor, Tensor]) -> None:
    plain = DnCNN(channels=1, features=3, depth=2)
    net = convert(plain, num_params=2)
    for network, lam in ((plain, None), (net, [0.3, 0.7])):
        out = restore(network, pair[0], lam)
        expected = torch.cat([plain(pair[0][None, c : c + 1])[0] for c in range(3)]).clamp(0, 1)
        torch.testing.assert_close(out, expected)


def test_evaluate_measures_as_told(pair: tuple[Tensor, Tensor]) -> None:
    net = convert(DnCNN(features=3, depth=2), num_params=2)
    scores = evaluate(net, [("a", pair[1], pair[0])], [[1.0, 0.0]], measure=Measure(ssim=False, border=3))
    expected = Measure(ssim=False, border=3)(pair[0], pair[1]).psnr
    assert scores[0] == Score("a", None, expected)
    assert scores[1].lam == (1.0, 0.0) and scores[1].ssim is None
