"""The command line that repeats a picture: tiles, noise, grey pictures, masks."""

import shlex
from pathlib import Path

import pytest
import torch

from tests.app.conftest import small_network, whole, write_png
from tunable_ops.app.networks import Choice, Networks
from tunable_ops.app.session import Session
from tunable_ops.app.settings import Settings
from tunable_ops.cli import main, parser_of
from tunable_ops.serialization import save

SEAMS = Settings(tile=32, overlap=0)  # tiles edge to edge, which shows


def session_of(file, settings):
    made = Session(Networks("cpu", settings, [str(file)]), settings)
    made.choose(Choice(str(file)))
    return made


def command_makes_it(session, folder, monkeypatch):
    """Run the command line of a session with a mask where its files are, and compare the bytes with the download."""
    output = whole(session.restore()).output
    downloads = folder / "downloads"
    downloads.mkdir()
    file, _ = session.download(downloads, "png")
    inside = "-".join(f"{value:.2f}" for value in session.inside)
    assert file.name.endswith(f"_mask{inside}.png")
    session.save_mask(folder)
    monkeypatch.chdir(folder)
    command = shlex.split(session.command("png"))
    assert command[command.index("--mask") + 1] == "picture_mask.png"
    assert main([*command[1:], "--quiet", "--threads", "1"]) == 0
    assert (Path("restored") / file.name).read_bytes() == file.read_bytes()
    return output


def test_tiles_of_the_page_are_those_of_the_command():
    apply = parser_of("apply")
    assert (apply.get_default("tile"), apply.get_default("overlap")) == (Settings().tile, Settings().overlap)


@pytest.mark.parametrize(
    "settings, words",
    [
        (Settings(), []),
        (SEAMS, ["--tile", "32", "--overlap", "0"]),
        (Settings(tile=0), ["--tile", "0"]),
        (Settings(overlap=32), ["--overlap", "32"]),
    ],
)
def test_tiles_of_the_command(network_file, picture, tmp_path, monkeypatch, settings, words):
    session = session_of(network_file, settings)
    session.open(picture)
    whole(session.restore())
    command = shlex.split(session.command("png"))
    assert [word for word in command if word in ("--tile", "--overlap")] == words[::2]
    assert " ".join(words) in " ".join(command)
    folder = tmp_path / "downloads"
    folder.mkdir()
    file, _ = session.download(folder, "png")
    monkeypatch.chdir(tmp_path)
    assert main([*command[1:], "--quiet", "--threads", "1"]) == 0
    assert (Path("restored") / file.name).read_bytes() == file.read_bytes()


@pytest.mark.filterwarnings("ignore:sigma = .* is outside")  # the level for grey
@pytest.mark.parametrize("settings", [SEAMS, Settings(tile=0)], ids=["tiles", "whole"])
@pytest.mark.parametrize("channels, noise", [(3, 0.0), (1, 0.0), (3, 25.0), (1, 25.0)])
def test_a_mask_with_tiles_noise_and_grey(network_file, tmp_path, monkeypatch, settings, channels, noise):
    session = session_of(network_file, settings)
    session.open(write_png(tmp_path / "picture.png", channels=channels), noise)
    session.values, session.inside = (40.0, 0.0), (5.0, 1.0)
    torch.manual_seed(0)
    session.set_mask((torch.rand(1, 70, 90) > 0.5).float())
    masked = command_makes_it(session, tmp_path, monkeypatch)
    session.set_mask(None)
    assert not torch.equal(whole(session.restore()).output, masked)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_mask_of_a_network_for_grey(tmp_path, monkeypatch, channels):
    arguments = {"channels": 1, "features": 4, "depth": 3}
    save(small_network(arguments=arguments), tmp_path / "grey.safetensors", architecture="dncnn", arguments=arguments)
    session = session_of(tmp_path / "grey.safetensors", Settings())
    session.open(write_png(tmp_path / "picture.png", channels=channels))
    session.inside = (5.0, 1.0)
    session.set_mask((torch.rand(1, 70, 90) > 0.5).float())
    command_makes_it(session, tmp_path, monkeypatch)
