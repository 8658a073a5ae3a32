"""What the page and the command refuse, and what they say."""

import socket
import subprocess
import sys

import numpy as np
import pytest

from tests.app.conftest import write_png
from tunable_ops.app import pictures
from tunable_ops.app.masks import painted
from tunable_ops.app.networks import Choice
from tunable_ops.app.settings import Refused, Settings
from tunable_ops.cli import main
from tunable_ops.ports import free_port


def test_there_is_no_picture(session):
    with pytest.raises(Refused, match=r"^there must be a picture first: drop one into the page"):
        session.preview()


@pytest.mark.parametrize(
    "content, message",
    [
        (b"no picture at all", r"^the picture must be PNG, JPEG, WebP or TIFF; got 'bad.png', which is none of these$"),
        (b"", r"^the picture must be PNG, JPEG, WebP or TIFF; got 'bad.png'"),
        (b"GIF89a" + bytes(40), r"^the picture must be PNG, JPEG, WebP or TIFF; got 'bad.png'"),
        (b"\x89PNG\r\n\x1a\n" + bytes(40), r"^the picture must be readable; got 'bad.png' \("),
    ],
    ids=["text", "empty", "gif", "damaged"],
)
def test_an_upload_that_is_no_picture(session, tmp_path, content, message):
    (tmp_path / "bad.png").write_bytes(content)
    with pytest.raises(Refused, match=message):
        session.open(tmp_path / "bad.png")
    assert session.given is None


def test_a_truncated_picture(session, picture):
    picture.write_bytes(picture.read_bytes()[:-5000])
    with pytest.raises(Refused, match=r"^the picture must be readable; got 'picture.png' \("):
        session.open(picture)


def test_too_many_pixels_or_bytes(session, tmp_path):
    large = write_png(tmp_path / "large.png", 200, 101)
    with pytest.raises(Refused, match=r"^the picture must have at most 20000 pixels; got 101x200 in 'large.png'$"):
        session.open(large)
    with pytest.raises(Refused, match=r"^the picture must have at most 1000 bytes; got \d+ in 'large.png'$"):
        pictures.open_given(large, Settings(max_bytes=1000))


def test_what_the_network_returns_is_too_large(picture):
    from tunable_ops.app.networks import Networks
    from tunable_ops.app.session import Session

    settings = Settings(max_pixels=20_000)
    enlarging = Session(Networks("cpu", settings), settings)
    enlarging.choose(Choice("super_resolution_x2"))
    enlarging.open(picture)
    with pytest.raises(Refused, match=r"^what the network returns must have at most 20000 pixels; got 180x140$"):
        enlarging.preview()


def test_a_mask_of_another_size(session, picture, tmp_path):
    session.open(picture)
    other = write_png(tmp_path / "mask.png", 70, 91, 1)
    with pytest.raises(Refused, match=r"the size of the picture, 90x70 pixels; got 91x70 in 'mask.png'$"):
        pictures.open_mask(other, session.given.size, session.settings)
    mask = pictures.open_mask(write_png(tmp_path / "fits.png", 70, 90, 2, np.uint16), session.given.size, Settings())
    assert mask.shape == (1, 70, 90) and mask.min() >= 0 and mask.max() <= 1


@pytest.mark.parametrize("url", ["nonsense", "data:image/png;base64,AAAA", "data:text/html;base64,AAAA"])
def test_strokes_that_are_no_canvas(url):
    with pytest.raises(Refused, match=r"^the strokes must be a PNG file of the page's canvas; got"):
        painted(url, (8, 8))


def test_no_network_of_that_name(session):
    with pytest.raises(
        Refused,
        match=r"must be an existing file or folder, or one of denoise, .*; got 'denoize'; did you mean 'denoise'\?$",
    ):
        session.choose(Choice("denoize"))


def test_a_knob_of_another_base(session, network_file, foreign_knob):
    choice = session.networks.sort([foreign_knob], str(network_file))
    assert choice == Choice(str(network_file), (str(foreign_knob),))
    with pytest.raises(Refused, match="load_"):
        session.choose(Choice("denoise", (str(foreign_knob),)))
    assert session.choice == Choice(str(network_file))  # that which was there stays


def test_files_that_are_no_networks(session, network_file, simplex_file, tmp_path):
    pickled = tmp_path / "weights.pth"
    pickled.write_bytes(b"pickle")
    with pytest.raises(Refused, match=r"^a network or knob must be a .safetensors file; got 'weights.pth'$"):
        session.networks.sort([pickled], "denoise")
    with pytest.raises(Refused, match=r"must be an existing file; got"):
        session.networks.sort([tmp_path / "gone.safetensors"], "denoise")
    with pytest.raises(Refused, match=r"^files must hold one network, with any number of knobs; got"):
        session.networks.sort([network_file, simplex_file], "denoise")
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"nothing of the kind")
    with pytest.raises(Refused):
        session.choose(session.networks.sort([broken], "denoise"))


def test_a_download_before_the_picture_is_ready(session, picture, tmp_path):
    session.open(picture)
    with pytest.raises(Refused, match=r"^the whole picture must be ready before it is saved"):
        session.download(tmp_path, "png")


def test_noise_of_a_network_without_a_level(session, simplex_file, picture):
    session.open(picture)
    session.choose(Choice(str(simplex_file)))
    with pytest.raises(Refused, match=r"^the network must have one parameter for noise \(of 255\); got 'corners'$"):
        session.estimate()


@pytest.mark.parametrize("values", [{"max_bytes": 0}, {"preview_ms": 0}, {"tile": 100}, {"overlap": 512}])
def test_settings(values):
    with pytest.raises(ValueError, match=rf"^app: {next(iter(values))} must .*; got {next(iter(values.values()))}"):
        Settings(**values)


def test_a_port_in_use(network_file, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["app", "--port", str(port), "--model", str(network_file)]) == 2
    error = capsys.readouterr().err
    hint = f"choose another, such as --port {port + 1}, or 0 for any that is free"
    assert error == f"tunable-ops app: error: --port must be free; got {port}, which is in use: {hint}\n"


def test_an_address_of_another_machine():
    with pytest.raises(OSError, match=r"^--host must be an address of this machine; got '192\.0\.2\.1' \("):
        free_port("192.0.2.1", 0)
    assert 0 < free_port("127.0.0.1", 0) < 1 << 16


@pytest.mark.parametrize(
    "words, message",
    [
        (["--port", "70000"], "--port must lie in 0..65535; got 70000"),
        (["--model", "nothing"], "pretrained: model must be an existing file or folder, or one of denoise"),
        (["--tile", "100"], "app: tile must be 0 or a multiple of 16; got 100"),
    ],
)
def test_bad_options(words, message, capsys):
    assert main(["app", "--port", "0", *words]) == 2
    assert f"tunable-ops app: error: {message}" in capsys.readouterr().err


def test_without_gradio():
    code = "import sys; sys.modules['gradio'] = None\nfrom tunable_ops.cli import main\nsys.exit(main(['app']))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert result.returncode == 2
    assert "pip install --no-build-isolation --editable '.[app]'" in result.stderr
