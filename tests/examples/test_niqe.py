"""examples/pretrained/niqe.py: its fits against known distributions, and what damage does to the measure."""

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from tunable_ops.images import write_image
from tunable_ops.train.data import held_out
from tunable_ops.train.degradations import add_noise, gaussian_blur

FOLDER = Path(__file__).parents[2] / "examples" / "pretrained"
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="needs the examples")


@pytest.fixture
def niqe(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("niqe")


def test_fits_of_known_distributions(niqe: ModuleType) -> None:
    """Densities exp(-(|x| / width)^shape), with another width on each side of 0."""
    normal = torch.randn(1, 400, 400, dtype=torch.float64)
    laplace = torch.distributions.Laplace(0.0, 1.0).sample((1, 400, 400)).double()
    shape, left, right = (float(value) for value in niqe._fit(normal))
    assert (shape, left, right) == pytest.approx((2.0, 2**0.5, 2**0.5), rel=0.02)
    shape, left, right = (float(value) for value in niqe._fit(laplace))
    assert (shape, left, right) == pytest.approx((1.0, 1.0, 1.0), rel=0.03)
    # a side is as likely as it is wide
    right_side = torch.rand(laplace.shape) < 0.75
    skew = torch.where(right_side, 3 * laplace.abs(), -laplace.abs())
    shape, left, right = (float(value) for value in niqe._fit(skew))
    assert (shape, left, right) == pytest.approx((1.0, 1.0, 3.0), rel=0.04)


def test_local_means_keep_constants_and_edges(niqe: ModuleType) -> None:
    x = torch.arange(20, dtype=torch.float64).expand(12, 20)
    mean = niqe._local_mean(x)
    torch.testing.assert_close(mean[:, 3:-3], x[:, 3:-3])
    assert (mean[:, 0] > 0).all() and (mean[:, -1] < 19).all()


def test_a_model_of_photographs(niqe: ModuleType, tmp_path: Path) -> None:
    """Fitted on scikit-image's photographs, the measure rises with their noise and blur."""
    photographs = [picture for _, picture in held_out("skimage")]
    blocks = []
    for picture in photographs:
        grey = niqe._grey(picture)
        grey = grey[: len(grey) // 96 * 96, : grey.shape[1] // 96 * 96]
        half = torch.nn.functional.interpolate(grey[None, None], scale_factor=0.5, mode="bicubic", antialias=True)[0, 0]
        blocks.append(torch.cat([niqe._features(grey, 96), niqe._features(half, 48)], dim=1))
    features = torch.cat(blocks)
    file = tmp_path / "model.npz"
    np.savez(file, mu_pris_param=features.mean(0, keepdim=True).numpy(), cov_pris_param=torch.cov(features.T).numpy())
    rises(niqe.NIQE(file), photographs)


def test_the_authors_model(niqe: ModuleType) -> None:
    try:
        measure = niqe.NIQE()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    photographs = [picture for _, picture in held_out("skimage")]
    rises(measure, photographs)
    assert sum(measure(picture) for picture in photographs) / len(photographs) < 5


def rises(measure, photographs) -> None:
    for picture in photographs:
        x = picture[None]
        noise = [add_noise(x, torch.tensor([sigma]), torch.Generator().manual_seed(0)) for sigma in (10.0, 25.0, 50.0)]
        blur = [gaussian_blur(x, torch.tensor([sigma])) for sigma in (1.0, 2.0)]
        for damaged in (noise, blur):
            values = [measure(y[0]) for y in (x, *damaged)]
            assert values == sorted(values)


def test_table(niqe: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The mean of the clean pictures, then four levels of noise and three of blur."""
    file = tmp_path / "model.npz"
    np.savez(file, mu_pris_param=np.zeros((1, 36)), cov_pris_param=np.eye(36))
    for index in range(2):
        write_image(torch.rand(3, 288, 290 + index), tmp_path / f"{index}.png")
    niqe.main([str(tmp_path), "--model", str(file), "--crop", "288"])
    lines = capsys.readouterr().out.splitlines()
    values = [niqe.NIQE(file)(picture) for _, picture in held_out(str(tmp_path), 288)]
    assert lines[0] == f"2 pictures: {sum(values) / 2:.2f}"
    heads = ["noise 5", "noise 15", "noise 25", "noise 50", "blur 0.5", "blur 1", "blur 2"]
    assert [line.split(":")[0] for line in lines[1:]] == heads


def test_refusals(niqe: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "model.npz"
    np.savez(file, mu_pris_param=np.zeros((1, 36)), cov_pris_param=np.eye(36))
    with pytest.raises(ValueError, match=r"niqe: picture must have 288 pixels on a side; got \[3, 287, 400\]"):
        niqe.NIQE(file)(torch.rand(3, 287, 400))
    with pytest.raises(ValueError, match="niqe: picture must have two blocks with contrast; got 0"):
        niqe.NIQE(file)(torch.full((1, 288, 288), 0.5))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="niqe: the model of natural pictures must be at hand"):
        niqe.NIQE()
