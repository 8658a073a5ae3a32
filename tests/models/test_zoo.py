"""Networks that spandrel reads: what comes out, what is refused; with a stand-in for what is ours, then for real."""

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tunable_ops
from tests import spandrel_stand_in
from tests.models.published import DATA, NEEDS_WEIGHTS, weights
from tests.spandrel_stand_in import ImageModelDescriptor, MaskedImageModelDescriptor, enlarging
from tunable_ops import models
from tunable_ops.extras import install
from tunable_ops.models import zoo


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "published.pth"
    path.touch()
    return path


def test_what_is_found(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    spandrel_stand_in.install(monkeypatch, enlarging)
    found = zoo.load(file)
    assert found[1:] == ("Stand-in", "super-resolution", 2, 3, (0.0, 1.0))
    assert not found.network.training and (found.network.scale, found.network.channels) == (2, 3)
    x = torch.rand(2, 3, 8, 12)
    assert torch.equal(found.network(x), enlarging().model(x)[0])
    with pytest.raises(ValueError, match=r"zoo: x must be \[B, 3, H, W\]; got \[2, 1, 8, 12\]"):
        found.network(x[:, :1])


@pytest.mark.parametrize("size", [(8, 8), (9, 7), (2, 3), (1, 1), (4, 5)])
def test_sizes_that_the_network_does_not_take(
    monkeypatch: pytest.MonkeyPatch, file: Path, size: tuple[int, int]
) -> None:
    """Outputs have the enlarged size, and far from the padded border the values of the padless interior."""
    spandrel_stand_in.install(monkeypatch, enlarging)
    network, x = zoo.load(file).network, torch.rand(1, 3, *size)
    y = network(x)
    assert y.shape[-2:] == (2 * size[0], 2 * size[1])
    plain = nn.functional.pixel_shuffle(network.inner.body(x), 2)
    inside = y[..., : 2 * (size[0] - 1), : 2 * (size[1] - 1)]
    torch.testing.assert_close(inside, plain[..., : inside.shape[-2], : inside.shape[-1]])


def test_it_can_be_converted_and_trained(monkeypatch: pytest.MonkeyPatch, file: Path, tmp_path: Path) -> None:
    """At 0 the published network bit for bit; gradients reach the new kernels; its knob fits the same file again."""
    spandrel_stand_in.install(monkeypatch, enlarging)
    plain, x = zoo.load(file).network, torch.rand(1, 3, 6, 5)
    net = tunable_ops.convert(plain, 1, domain="box", names=["texture"], rank=2)
    tunable_ops.freeze_all_but_new(net)
    net(x, [1.0]).square().mean().backward()
    trained = [parameter for parameter in net.parameters() if parameter.requires_grad]
    assert trained and any(parameter.grad.abs().max() > 0 for parameter in trained)
    with torch.no_grad():
        for parameter in trained:
            parameter.add_(0.1)
    assert torch.equal(net(x, [0.0]), plain(x)) and not torch.allclose(net(x, [1.0]), plain(x))
    knob = tmp_path / "knob.safetensors"
    tunable_ops.save_knob(net, knob, architecture=zoo.ARCHITECTURE, arguments={})
    from tunable_ops import pretrained

    again = pretrained.load(file, [knob])
    assert torch.equal(again(x, [0.7]), net(x, [0.7]))


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (
            lambda: MaskedImageModelDescriptor(nn.Identity(), purpose="Inpainting"),
            "for super-resolution or restoration; got Stand-in in .*published.pth', whose purpose is Inpainting",
        ),
        (lambda: ImageModelDescriptor(nn.Identity(), purpose="FaceSR"), "for .*, whose purpose is FaceSR"),
        (lambda: enlarging(input_channels=12), "of 1 or 3 channels, .*; got Stand-in of 12 and 3 in"),
        (lambda: enlarging(output_channels=1), "of 1 or 3 channels, .*; got Stand-in of 3 and 1 in"),
    ],
)
def test_what_is_no_network_for_restoration(
    monkeypatch: pytest.MonkeyPatch, file: Path, found: Any, message: str
) -> None:
    spandrel_stand_in.install(monkeypatch, found)
    with pytest.raises(ValueError, match=f"zoo: path must hold a network {message}"):
        zoo.load(file)


def raising(error: Exception) -> Any:
    def found() -> Any:
        raise error

    return found


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (spandrel_stand_in.UnsupportedModelError(), "UnsupportedModelError: its tensors fit no architecture"),
        (RuntimeError("size mismatch for conv.weight"), "RuntimeError: size mismatch for conv.weight"),
        (KeyError("conv"), "KeyError: 'conv'"),
    ],
)
def test_what_spandrel_does_not_know(
    monkeypatch: pytest.MonkeyPatch, file: Path, error: Exception, message: str
) -> None:
    spandrel_stand_in.install(monkeypatch, raising(error))
    with pytest.raises(ValueError, match=f"zoo: path must hold a network that spandrel knows; got .*: {message}"):
        zoo.load(file)


def test_a_file_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    spandrel_stand_in.install(monkeypatch, enlarging)
    for path in (tmp_path / "x.pth", tmp_path):
        with pytest.raises(FileNotFoundError, match="zoo: path must be an existing file; got"):
            zoo.load(path)


def test_without_spandrel_the_message_names_the_extra(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    monkeypatch.setitem(sys.modules, "spandrel", None)
    with pytest.raises(RuntimeError, match=r"zoo: spandrel must be installed, .*: " + re.escape(install("zoo"))):
        zoo.load(file)


def test_a_torchvision_of_another_torch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, file: Path) -> None:
    """It fails while it is imported, with a RuntimeError that does not say what is wrong."""
    (tmp_path / "spandrel.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.delitem(sys.modules, "spandrel", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        RuntimeError, match="the torchvision of this torch; got RuntimeError: operator torchvision::nms"
    ):
        zoo.load(file)


@pytest.fixture
def real() -> Any:
    """The real spandrel, which needs a torchvision that fits this torch."""
    try:
        return pytest.importorskip("spandrel", exc_type=ImportError)
    except RuntimeError as error:
        pytest.skip(f"spandrel cannot be imported: {error}")


@NEEDS_WEIGHTS
@pytest.mark.usefixtures("real")
def test_the_published_dncnn_of_spandrel_is_ours() -> None:
    found = zoo.load(Path(str(DATA)) / "weights" / "dncnn_gray_sigma25.safetensors")
    assert found[1:] == ("DnCNN", "restoration", 1, 1, (0.0, 1.0))
    ours, x = models.DnCNN(channels=1).eval(), torch.rand(1, 1, 24, 20)
    ours.load_state_dict(weights("dncnn_gray_sigma25"))
    net = tunable_ops.convert(found.network, 1, domain="box", rank=4)
    with torch.no_grad():
        assert torch.equal(found.network(x), ours(x))
        for name, parameter in net.named_parameters():
            if "original1" in name:
                parameter.add_(0.01)
        assert torch.equal(net(x, [0.0]), ours(x)) and not torch.equal(net(x, [1.0]), ours(x))


@NEEDS_WEIGHTS
@pytest.mark.usefixtures("real")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("imdn_x4", "that spandrel knows; got .*UnsupportedModelError: its tensors fit no architecture"),
        ("ffdnet_color", "of 1 or 3 channels, input and output alike; got DnCNN of"),  # its names are DnCNN's
    ],
)
def test_published_networks_that_spandrel_does_not_know(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        zoo.load(Path(str(DATA)) / "weights" / f"{name}.safetensors")


@pytest.mark.usefixtures("real")
def test_padding_and_calls_of_the_real_interface(tmp_path: Path) -> None:
    """NAFNet, drawn: sides must be multiples of 16; ours is the same network."""
    from safetensors.torch import save_file

    ours = models.NAFNet(3, 8, 1, (1, 1, 1, 1), (1, 1, 1, 1)).eval()
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            if name.endswith((".beta", ".gamma")):
                parameter.fill_(0.3)
    save_file(ours.state_dict(), tmp_path / "nafnet.safetensors")
    found = zoo.load(tmp_path / "nafnet.safetensors")
    assert found[1:] == ("NAFNet", "restoration", 1, 3, (0.0, 1.0))
    x = torch.rand(1, 3, 32, 16)
    with torch.no_grad():
        torch.testing.assert_close(found.network(x), ours(x))
        assert found.network(x[..., :19, :7]).shape == (1, 3, 19, 7)
