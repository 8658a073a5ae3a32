"""Small networks and pictures for the commands."""

import pytest
import torch

from tunable_ops import cli, convert, models

pytest.importorskip("PIL", reason="Pillow is not installed (tunable-ops[train])")
pytest.importorskip("safetensors", reason="safetensors is not installed (tunable-ops[train])")

from tunable_ops import images
from tunable_ops.serialization import load, save


def _save_network(path, seed=0, channels=3, num_params=2, domain="simplex", **options):
    """Save a DnCNN of three layers whose kernels all differ, so that every lambda gives another picture."""
    torch.manual_seed(seed)
    arguments = {"channels": channels, "features": 4, "depth": 3}
    plain = models.build("dncnn", **arguments)
    net = convert(plain, num_params=num_params, domain=domain, **options)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if "tuning" not in name:
                parameter.add_(0.05 * torch.randn_like(parameter))
    save(net, path, architecture="dncnn", arguments=arguments, notes={"psnr": 28.5})
    return load(path)


@pytest.fixture
def save_network():
    """The function `_save_network`, for networks of other kinds."""
    return _save_network


@pytest.fixture
def model(tmp_path):
    """Path of a checkpoint with two weights that sum to one."""
    path = tmp_path / "net.safetensors"
    _save_network(path, names=("denoise", "keep"))
    return path


@pytest.fixture
def photo(tmp_path):
    """Path of a picture, 40x50."""
    ramp = torch.linspace(0, 1, 50).expand(3, 40, 50) * torch.tensor([1.0, 0.7, 0.4]).view(3, 1, 1)
    return images.write_image(ramp, tmp_path / "photo.png")


@pytest.fixture
def run(capsys):
    """Run a command in this process: exit code, stdout, stderr."""

    def call(*words):
        code = cli.main([str(word) for word in words])
        streams = capsys.readouterr()
        return code, streams.out, streams.err

    return call
