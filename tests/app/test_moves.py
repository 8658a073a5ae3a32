"""Requests of the sliders: what is answered, what is refused, and what of a window is not sent again."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from starlette.applications import Starlette

from tests.app.conftest import write_png
from tunable_ops.app import pictures, shown
from tunable_ops.app.desk import Desk
from tunable_ops.app.moves import Moves, answer, move
from tunable_ops.app.networks import Choice, Networks
from tunable_ops.app.settings import Settings

pytest.importorskip("starlette.testclient", reason="httpx2 is not installed (tunable-ops[dev])")
from starlette.testclient import TestClient


def parts(content):
    """JSON, and the two files, of an answer."""
    start = 4 + int.from_bytes(content[:4], "big")
    said = json.loads(content[4:start])
    middle = start + said["sizes"][0]
    assert len(content) == middle + said["sizes"][1]
    return said, content[start:middle], content[middle:]


def pixels(file):
    return np.asarray(Image.open(io.BytesIO(file))).astype(int)


@pytest.fixture
def desk(network_file, tmp_path):
    settings = Settings()
    return Desk(Networks("cpu", settings, [str(network_file)]), settings, tmp_path)


@pytest.fixture
def client(desk):
    return TestClient(Starlette(routes=Moves(desk).routes()))


def opened(desk, picture):
    session, _ = desk.of("page")
    session.choose(Choice(desk.networks.names[0]))
    session.open(picture)
    return session


def test_an_answer_has_the_window_at_the_new_place(client, desk, picture):
    session = opened(desk, picture)
    reply = client.post("/moves", content=json.dumps({"key": "page", "moves": {"knob0": 5, "knob1": 1}, "tag": ""}))
    assert reply.status_code == 200 and reply.headers["cache-control"] == "no-store"
    said, before, after = parts(reply.content)
    assert session.values == (5.0, 1.0) and said["values"] == {}
    preview = session.preview()
    assert before == shown.window_file(preview.before, preview) and after == shown.window_file(preview.after, preview)
    assert pixels(after).shape == (*preview.after.shape[1:], 3) and before != after
    assert said["ms"]["restore"] > 0 and said["ms"]["encode"] > 0 and "pixels, in" in said["note"]


def test_the_window_before_is_sent_once(desk, picture):
    session = opened(desk, picture)
    said, before, _ = parts(answer(session, {"knob0": 5.0}, ""))
    again, nothing, after = parts(answer(session, {"knob0": 6.0}, said["tag"]))
    assert before and not nothing and after and again["tag"] == said["tag"]
    session.engine.window = 64
    moved, another, _ = parts(answer(session, {"across": 100.0}, said["tag"]))
    assert another and moved["tag"] != said["tag"]
    session.add_noise(20)
    noisy, another, _ = parts(answer(session, {}, moved["tag"]))
    assert another and noisy["tag"] != moved["tag"]


@pytest.mark.parametrize(
    "content, status, problem",
    [
        (b"", 413, "a move must have at most 4096 bytes"),
        (b" " * 4097, 413, "a move must have at most 4096 bytes"),
        (b"[]", 400, "a move must be JSON with key, moves and tag; got b'[]'"),
        (b"{", 400, "a move must be JSON"),
        (b"[" * 4000, 400, "a move must be JSON"),
        (b'{"key": "page", "moves": {"knob0": "x"}, "tag": ""}', 400, "a move must be JSON"),
        (b'{"key": "page", "moves": {"knob0": NaN}, "tag": ""}', 400, "a move must have a key and finite numbers"),
        (b'{"key": 3, "moves": {}, "tag": ""}', 400, "a move must have a key and finite numbers"),
        (b'{"key": "nobody", "moves": {}, "tag": ""}', 404, "the page must be open; got the key of none"),
    ],
)
def test_what_is_refused(client, desk, content, status, problem):
    headers = {} if content else {"transfer-encoding": "chunked"}
    reply = client.post("/moves", content=content or iter([b"{}"]), headers=headers)
    assert (reply.status_code, reply.json()["problem"][: len(problem)]) == (status, problem)
    assert desk.find("nobody") is None  # nor is a session made of it


def test_without_a_picture_the_sliders_move_all_the_same(desk):
    session, _ = desk.of("page")
    session.choose(Choice(desk.networks.names[0]))
    said, before, after = parts(answer(session, {"knob0": 7.0}, ""))
    assert session.values[0] == 7.0 and said["problem"].startswith("there must be a picture") and not before + after


def test_where_sliders_go(session, picture, simplex_file):
    session.open(picture)
    assert move(session, "knob0", 99.0) == {} and session.values[0] == 50.0  # the end of its range
    assert move(session, "inside1", 0.25) == {} and session.inside[1] == 0.25
    values = session.values
    for name in ("knob2", "knob", "knob-1", "shape0", "0", "", "knob²"):
        assert move(session, name, 1.0) == {}
    assert session.values == values
    move(session, "down", -5.0), move(session, "across", 30.0)
    assert session.centre == (0.0, 0.3)
    session.choose(Choice(str(simplex_file)))
    assert move(session, "knob1", 1.0) == {"knob0": 0.0, "knob2": 0.0} and session.values == (0.0, 1.0, 0.0)


def test_transparency_lies_on_squares(session, tmp_path):
    session.open(write_png(tmp_path / "clear.png", 48, 40, 4, np.uint16))
    alpha = session.given.frame.alpha
    seen = pictures.on_checks(session.given.image, alpha)
    x, y = 3, 12  # the second square of the first row is grey
    ground = 0.8 if (x // pictures.CHECK + y // pictures.CHECK) % 2 else 1.0
    expected = alpha[:, x, y] * session.given.image[:, x, y] + (1 - alpha[:, x, y]) * ground
    torch.testing.assert_close(seen[:, x, y], expected)
    enlarged = pictures.on_checks(torch.zeros(1, 96, 80), torch.zeros_like(alpha))
    assert enlarged.shape == (1, 96, 80) and sorted(enlarged.unique().tolist()) == pytest.approx([0.8, 1.0])
    _, before, _ = parts(answer(session, {}, ""))
    inner = session.preview().alpha
    opaque = pixels(pictures.as_jpeg(session.preview().before, 92))
    assert inner.min() < 0.5 and np.abs(pixels(before) - opaque).mean() > 10
