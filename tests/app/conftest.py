"""A small network in a file, pictures, and a session."""

import numpy as np
import pytest
import torch

pytest.importorskip("gradio", reason="Gradio is not installed (tunable-ops[app])")

from tests.picture_files import WIDE
from tunable_ops import convert, models
from tunable_ops.app.networks import Choice, Networks
from tunable_ops.app.session import Session
from tunable_ops.app.settings import Settings
from tunable_ops.images import Frame, Metadata, encode_picture
from tunable_ops.knob_files import save_knob
from tunable_ops.serialization import save

ARGUMENTS = {"channels": 3, "features": 4, "depth": 3}


def small_network(seed=0, names=("sigma", "keep"), domain="box", arguments=ARGUMENTS, **options):
    """A DnCNN of three layers whose kernels all differ, so that every lambda gives another picture."""
    torch.manual_seed(0)
    if domain == "box" and names == ("sigma", "keep"):
        options = {"ranges": ((0, 50), (0, 1)), "units": ("of 255", ""), "defaults": (25, 0), **options}
    plain = models.build("dncnn", **arguments)
    net = convert(plain, num_params=len(names), names=names, domain=domain, **options)
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if "tuning" not in name:
                parameter.add_(0.05 * torch.randn_like(parameter))
    return net.eval()


@pytest.fixture(scope="session")
def network_file(tmp_path_factory):
    file = tmp_path_factory.mktemp("networks") / "small.safetensors"
    save(small_network(), file, architecture="dncnn", arguments=ARGUMENTS)
    return file


@pytest.fixture(scope="session")
def simplex_file(tmp_path_factory):
    file = tmp_path_factory.mktemp("networks") / "corners.safetensors"
    save(small_network(names=("a", "b", "c"), domain="simplex"), file, architecture="dncnn", arguments=ARGUMENTS)
    return file


@pytest.fixture(scope="session")
def foreign_knob(tmp_path_factory):
    """A knob of another base."""
    file = tmp_path_factory.mktemp("networks") / "foreign.safetensors"
    save_knob(small_network(1, names=("gloss",)), file, architecture="dncnn", arguments=ARGUMENTS)
    return file


def write_png(path, height=70, width=90, channels=3, dtype=np.uint8, **metadata):
    top = np.iinfo(dtype).max
    pixels = np.random.default_rng(0).integers(0, top, (height, width, channels), dtype, endpoint=True)
    path.write_bytes(encode_picture([Frame(pixels, None, Metadata(**metadata))], "png"))
    return path


@pytest.fixture
def picture(tmp_path):
    return write_png(tmp_path / "picture.png")


@pytest.fixture
def deep_picture(tmp_path):
    """16 bits, alpha, and a profile that is not the usual one."""
    return write_png(tmp_path / "deep.png", 50, 40, 4, np.uint16, icc=WIDE)


@pytest.fixture
def session(network_file):
    settings = Settings(max_pixels=20_000, max_bytes=1_000_000)
    made = Session(Networks("cpu", settings, [str(network_file)]), settings)
    made.choose(Choice(str(network_file)))
    return made


def whole(steps):
    """What a generator of steps ends with."""
    return list(steps)[-1]
