"""Requests of the sliders: what is answered, what is refused, and what of a window is not sent again."""

import asyncio
import io
import json
import threading

import numpy as np
import pytest
import torch
from fastapi import FastAPI
from PIL import Image
from starlette.applications import Starlette
from starlette.requests import Request

from tests.app.conftest import write_png
from tunable_ops.app import create_app, mount, pictures, shown
from tunable_ops.app import moves as moves_module
from tunable_ops.app.desk import Desk
from tunable_ops.app.moves import Moves, answer, move
from tunable_ops.app.networks import Choice, Networks
from tunable_ops.app.settings import Settings

pytest.importorskip("starlette.testclient", reason="httpx2 is not installed (tunable-ops[dev])")
from starlette.testclient import TestClient

JSON = {"content-type": "application/json"}


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
    reply = client.post("/moves", json={"key": "page", "moves": {"knob0": 5, "knob1": 1}, "tag": ""})
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
        (b'{"key": "page", "moves": {"knob0": 1' + 400 * b"0" + b'}, "tag": ""}', 400, "a move must be JSON"),
        (b'{"key": "page", "moves": {}, "tag": "", "turn": "x"}', 400, "a move must have a whole number as its turn"),
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
    reply = client.post("/moves", content=content, headers=JSON)
    assert (reply.status_code, reply.json()["problem"][: len(problem)]) == (status, problem)
    assert desk.find("nobody") is None  # nor is a session made of it


def test_a_body_without_an_end_is_not_read(desk):
    """In chunks, without Content-Length."""
    read = []

    async def receive():
        read.append(1)
        return {"type": "http.request", "body": bytes(3000), "more_body": True}

    scope = {"type": "http", "method": "POST", "path": "/moves", "headers": [(b"content-type", b"application/json")]}
    reply = asyncio.run(Moves(desk)._answer(Request(scope, receive)))
    assert reply.status_code == 413 and len(read) == 2


@pytest.mark.parametrize("kind", ["text/plain", "", "application/x-www-form-urlencoded"])
def test_what_a_page_of_another_host_may_send_is_refused(client, kind):
    reply = client.post("/moves", content=b"{}", headers={"content-type": kind})
    assert reply.status_code == 415 and "must be of type application/json; got" in reply.json()["problem"]


def test_one_request_of_a_page_runs_and_the_newest_waits(desk, picture, monkeypatch):
    session = opened(desk, picture)
    entered, go_on, ran = threading.Event(), threading.Event(), []

    def slow(session, moves, tag, turn):
        entered.set()
        assert go_on.wait(10)
        ran.append(moves["knob0"])
        return answer(session, moves, tag, turn)

    monkeypatch.setattr(moves_module, "answer", slow)
    moves = Moves(desk)

    async def post(value, gone=False):
        body = json.dumps({"key": "page", "moves": {"knob0": value}, "tag": ""}).encode()
        messages = [{"type": "http.request", "body": body}]

        async def receive():
            if messages:
                return messages.pop()
            if not gone:
                await asyncio.sleep(10)
            return {"type": "http.disconnect"}

        scope = {"type": "http", "method": "POST", "headers": [(b"content-type", b"application/json")]}
        return (await moves._answer(Request(scope, receive))).status_code

    async def all_of_them():
        first = asyncio.create_task(post(1))
        await asyncio.to_thread(entered.wait, 10)
        others = [asyncio.create_task(post(value)) for value in (2, 3, 4)]
        done, _ = await asyncio.wait(others[:2], timeout=10)  # at once, while the first one runs
        go_on.set()
        assert [task.result() for task in others[:2]] == [409, 409] and len(done) == 2
        assert [await first, await others[2]] == [200, 200]
        assert await post(5, gone=True) == 499  # nobody waits for it
        return await post(6)

    assert asyncio.run(all_of_them()) == 200
    assert ran == [1, 4, 6] and session.values[0] == 6


def test_a_move_of_the_network_before_leaves_the_sliders_of_the_new_one(desk, picture, simplex_file):
    session = opened(desk, picture)
    old = session.turn
    session.choose(Choice(str(simplex_file)))
    values = session.values
    said, _, after = parts(answer(session, {"knob0": 0.9, "inside1": 0.1, "down": 0.0}, "", old))
    assert session.values == values and said["values"] == {} and session.centre == (0.0, 0.5) and after
    answer(session, {"knob0": 0.9}, "", session.turn)
    assert session.values[0] == 0.9


def test_a_picture_that_the_network_cannot_take(desk, tmp_path, client):
    session, _ = desk.of("page")
    session.choose(Choice("super_resolution_x4"))
    session.open(write_png(tmp_path / "tiny.png", 2, 3))
    reply = client.post("/moves", content=json.dumps({"key": "page", "moves": {}, "tag": ""}), headers=JSON)
    said, _, _ = parts(reply.content)
    assert said["problem"].startswith("the picture must suit the network 'super_resolution_x4'; got 3x2 pixels (")


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


def test_it_is_mounted_in_another_application(network_file, tmp_path):
    host = FastAPI()
    mount(host, create_app(tmp_path, models=[str(network_file)]), "/tune")
    visitor = TestClient(host)
    page = visitor.get("/tune/").text
    assert "movesRest" in page and ".offscreen" in visitor.get("/tune/theme.css").text + page
    reply = visitor.post("/tune/moves", json={"key": "nobody", "moves": {}, "tag": ""})
    assert (reply.status_code, reply.json()["problem"]) == (404, "the page must be open; got the key of none")
