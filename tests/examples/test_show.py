"""examples/pretrained/show.py: the strips of what ships, and of networks with other knobs."""

import runpy
from pathlib import Path

import pytest
import torch

import tunable_ops
from tunable_ops import TunableModel, pretrained

FILE = Path(__file__).parents[2] / "examples" / "pretrained" / "show.py"
pytestmark = pytest.mark.skipif(not FILE.is_file(), reason="needs the examples")


def with_knobs(*names: str) -> TunableModel:
    """FFDNet with knobs that have small random kernels."""
    spec = {"names": ["sigma", *names], "ranges": [(0, 50), *[(0, 1)] * len(names)]}
    net = tunable_ops.convert(pretrained.load_base("ffdnet_color"), 1 + len(names), domain="box", **spec)
    with torch.no_grad():
        for layer in net.layers:
            layer.weight[1:].add_(0.002 * torch.randn_like(layer.weight[1:]))
    return net


def test_what_ships(tmp_path: Path) -> None:
    runpy.run_path(str(FILE))["main"](["--out", str(tmp_path)])
    assert len(list(tmp_path.glob("pretrained_*.png"))) == 4


@torch.no_grad()
def test_a_denoiser_with_a_knob() -> None:
    """Two strips, of noise 25 and 50; the last pictures but one, at 1, differ from those at 0."""
    denoise = runpy.run_path(str(FILE))["denoise"]
    net = with_knobs("texture")
    strip, shipped = denoise(net), denoise(pretrained.load("denoise"))
    assert strip.shape == shipped.shape and strip.shape[1] > 400
    net.layers[0].weight[1:].zero_()
    assert not torch.equal(denoise(net), strip)


@torch.no_grad()
def test_the_grid_of_keep_and_deblur() -> None:
    program = runpy.run_path(str(FILE))
    net = with_knobs("keep", "deblur")
    strip = program["denoise_deblur"](net)
    assert strip.shape == program["denoise_deblur"](pretrained.load("denoise_deblur")).shape
    rows = strip.chunk(3, dim=1)
    assert not torch.equal(rows[0], rows[1]) and not torch.equal(rows[1], rows[2])
