"""Settings, keys, and the command's own errors."""

import argparse
import socket

import pytest
import torch

from tests.serve.conftest import small_network
from tunable_ops import cli, convert, models, save_knob
from tunable_ops.cli import serve
from tunable_ops.serialization import save
from tunable_ops.serve import Served, Settings, create_app
from tunable_ops.serve.settings import read_key


@pytest.mark.parametrize("name, value, error, text", [
    ("max_bytes", 0, ValueError, "max_bytes must be at least 1; got 0"),
    ("queue", 1.5, TypeError, "queue must be an int; got 1.5"),
    ("queue", True, TypeError, "queue must be an int; got True"),
    ("timeout", float("nan"), ValueError, "timeout must be at least 0.001; got nan"),
    ("timeout", "5", TypeError, "timeout must be a number; got '5'"),
    ("batch_wait_ms", -1, ValueError, "batch_wait_ms must be at least 0; got -1"),
    ("tile", 100, ValueError, "tile must be 0 or a multiple of 16; got 100"),
    ("overlap", 500, ValueError, r"overlap must lie in 0..496 \(tile - 16\); got 500"),
    ("api_key", "short", ValueError, "api_key must be at least 16 printable ASCII characters"),
    ("api_key", 16, TypeError, "api_key must be a string; got int"),
])  # fmt: skip
def test_settings(name, value, error, text):
    with pytest.raises(error, match=f"^serve: {text}"):
        Settings(**{name: value})


def test_a_key_is_not_in_errors(tmp_path):
    file = tmp_path / "key"
    file.write_text("secret with spaces\n")
    with pytest.raises(ValueError) as caught:
        read_key(file)
    assert "secret" not in str(caught.value)
    file.write_text("a-long-and-good-key\n")
    assert read_key(file) == "a-long-and-good-key"


def test_no_models_and_channels_that_are_no_picture():
    with pytest.raises(ValueError, match="models must hold at least one network"):
        create_app({})
    with pytest.raises(ValueError, match="a model must be for pictures of 1 or 3 channels; got 5 in 'five'"):
        Served("five", small_network(channels=5))


@pytest.mark.parametrize("words, text", [
    (["--port", "70000"], "--port must lie in 0..65535; got 70000"),
    (["--model", "nothing"], "model must be an existing file or folder, or one of"),
    (["--model", "a b=denoise"], "--model must have a name of letters"),
    (["--model", "denoise", "--model", "denoise"], "--model must have a different name for each network"),
    (["--knob", "a.safetensors"], "--knob must come with one --model, which it belongs to; got"),
    (["--model", "denoise", "--network", "a:B"], "--network must be left out for a network that ships"),
    (["--queue", "0"], "queue must be at least 1; got 0"),
    (["--api-key-file", "/nonexistent/key"], "No such file or directory: '/nonexistent/key'"),
])  # fmt: skip
def test_the_command_refuses(capsys, words, text):
    assert cli.main(["serve", "--port", "0", *words]) == 2
    assert text in capsys.readouterr().err


def test_a_port_in_use_is_named_before_any_network_is_loaded(capsys, monkeypatch):
    monkeypatch.setattr(serve, "_models", lambda *_: pytest.fail("a network was loaded"))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert cli.main(["serve", "--port", str(port)]) == 2
    hint = f"choose another, such as --port {port + 1}, or 0 for any that is free"
    error = f"tunable-ops serve: error: --port must be free; got {port}, which is in use: {hint}\n"
    assert capsys.readouterr().err == error


def test_a_missing_package_names_the_extra(capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "uvicorn", None)
    assert cli.main(["serve"]) == 2
    assert "pip install --no-build-isolation --editable '.[serve]'" in capsys.readouterr().err


def models_of(*words):
    parser = argparse.ArgumentParser()
    serve.add_parser(parser.add_subparsers())
    return serve._models(parser.parse_args(["serve", *map(str, words)]), "cpu")


def test_a_knob_and_a_network_that_is_imported(tmp_path):
    """As in `apply`: a base with a knob file, and a class that the checkpoint alone cannot name."""
    plain = models.build("dncnn", features=4, depth=3)
    net = convert(plain, 1, domain="box", names=("texture",))
    with torch.no_grad():
        for layer in net.layers:
            layer.weight[1:].add_(0.1)
    save(plain, tmp_path / "base.safetensors", architecture="dncnn", arguments={"features": 4, "depth": 3})
    save_knob(net, tmp_path / "knob.safetensors", architecture="dncnn", arguments={"features": 4, "depth": 3})
    words = ("--model", f"mine={tmp_path / 'base.safetensors'}", "--knob", tmp_path / "knob.safetensors")
    served = models_of(*words, "--engine", "livefold")["mine"]
    assert served.spec.names == ("texture",) and not served.per_sample
    x = torch.rand(1, 3, 8, 9)
    with torch.no_grad():
        torch.testing.assert_close(served.call(x, [(0.5,)]), net.eval()(x, 0.5), rtol=1e-4, atol=1e-5)
    save(net, tmp_path / "own.safetensors", architecture="own", arguments={"features": 4, "depth": 3})
    words = ("--model", tmp_path / "own.safetensors", "--network", "tunable_ops.models:DnCNN")
    assert models_of(*words)["own"].per_sample
