"""Requests that are refused: each reason has its own answer, and none leaves a trace on the disk."""

import asyncio
import io
import os
import struct
import sys
import threading
import time
import zlib

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from tests.serve.conftest import picture, refused, serving, small_network
from tunable_ops.images import Frame, encode_picture
from tunable_ops.serve import limits

KEY = "correct-horse-battery"


def bomb(width, height):
    """A PNG file of a few bytes that claims to be large."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(bytes(1000)))]
    parts = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in [*chunks, (b"IEND", b"")]
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def of_pillow(kind):
    stream = io.BytesIO()
    Image.new("RGB", (8, 9)).save(stream, kind)
    return stream.getvalue()


def many_channels():
    stream = io.BytesIO()
    tifffile.imwrite(stream, np.zeros((100, 100, 400), np.uint8), photometric="minisblack", planarconfig="contig")
    return stream.getvalue()


BODIES = {
    "empty": (b"", 400, "empty"),
    "text": (b"hello", 415, "not_a_picture"),
    "gif": (of_pillow("GIF"), 415, "not_a_picture"),
    "eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", 415, "not_a_picture"),
    "truncated": (picture(64, 64)[:-3000], 422, "broken_picture"),
    "header": (picture()[:20], 422, "broken_picture"),
    "corrupt": (picture()[:60] + bytes(40) + picture()[100:], 422, "broken_picture"),
    "bomb": (bomb(10_000, 10_000), 413, "too_many_pixels"),
    "frames": (encode_picture([Frame(np.zeros((70, 70, 3), np.uint8), 9)] * 3, "tiff"), 413, "too_many_pixels"),
    "channels": (many_channels(), 413, "too_many_pixels"),
    "bytes": (bytes(100_001), 413, "too_many_bytes"),
}


@pytest.fixture(scope="module")
def limited():
    with serving({"small": small_network()}, max_bytes=100_000, max_pixels=10_000) as client:
        yield client


@pytest.mark.parametrize("name", BODIES)
def test_bodies(name):
    content, status, code = BODIES[name]
    most = 5_000_000 if name == "channels" else 100_000
    with serving({"small": small_network()}, max_bytes=most, max_pixels=10_000) as client:
        assert refused(client.post("/v1/restore?model=small", content=content)) == (status, code)
        assert client.post("/v1/restore?model=small", content=picture()).status_code == 200


def test_a_body_without_a_length_is_counted_as_it_comes(limited):
    sent = []

    def parts():
        for _ in range(20):
            sent.append(1)
            yield bytes(10_000)

    assert refused(limited.post("/v1/restore?model=small", content=parts())) == (413, "too_many_bytes")


def test_a_form_is_refused_with_a_hint(limited):
    response = limited.post("/v1/restore?model=small", files={"file": picture()})
    assert refused(response) == (415, "not_a_picture")
    assert "not as a form" in response.json()["detail"]


def test_what_comes_out_counts_too():
    from tunable_ops import convert, models

    net = convert(models.build("carn", scale=4, features=8, groups=1), num_params=1, domain="box", names=("look",))
    with serving({"large": net}, max_pixels=16 * 600 - 1) as client:
        response = client.post("/v1/restore?model=large", content=picture())
    assert refused(response) == (413, "too_many_pixels")
    assert "9600 pixels out of 30x20" in response.json()["detail"]


QUERIES = {
    "model=none": (404, "unknown_model", "the models are small; got 'none'"),
    "": (422, "bad_query", "'model': Field required"),
    "model=small&lamb=sigma=1": (422, "bad_query", "'lamb'"),
    "model=small&lam=sgma=1": (422, "unknown_parameter", "the parameters of small are sigma, keep; got 'sgma'"),
    "model=small&lam=3": (422, "bad_lambda", "name=number"),
    "model=small&lam=sigma=x": (422, "bad_lambda", "a number for sigma; got 'x'"),
    "model=small&lam=sigma=1,sigma=2": (422, "bad_lambda", "once"),
    "model=small&lam=keep=auto": (422, "bad_lambda", "auto"),
    "model=small&lam=sigma=50.1": (422, "outside_range", "sigma must lie in 0..50; got 50.1"),
    "model=small&lam=sigma=nan": (422, "outside_range", "got nan"),
    "model=small&lam=sigma=-1": (422, "outside_range", "got -1"),
    "model=small&lam=sigma=1e400": (422, "outside_range", "got inf"),
    "model=small&format=gif": (422, "bad_query", "'format'"),
    "model=small&quality=0&format=jpg": (422, "bad_query", "'quality'"),
    "model=small&quality=90": (422, "bad_query", "quality goes with format=jpg or webp"),
    "model=small&bits=12": (422, "bad_query", "'bits'"),
    "model=small&bits=16&format=jpg": (422, "bad_query", "jpg has 8 bits"),
}


@pytest.mark.parametrize("query", QUERIES)
def test_queries(limited, query):
    status, code, text = QUERIES[query]
    response = limited.post(f"/v1/restore?{query}", content=picture())
    assert refused(response) == (status, code)
    assert text in response.json()["detail"]


def test_a_format_that_cannot_hold_the_frames(limited):
    frames = [Frame(np.full((9, 9, 3), value, np.uint8), 9) for value in (0, 99)]
    content = encode_picture(frames, "png")
    response = limited.post("/v1/restore?model=small&format=jpg", content=content)
    assert refused(response) == (422, "bad_query") and "jpg holds one picture" in response.json()["detail"]


def test_a_picture_below_the_smallest_size_of_the_network():
    from tunable_ops import pretrained

    with serving({"x4": pretrained.load("super_resolution_x4")}) as client:
        response = client.post("/v1/restore?model=x4", content=picture(5, 40))
    assert refused(response) == (422, "unfit_picture")
    assert response.json()["detail"].startswith("x4 cannot restore 40x5 pixels: ")


def test_other_paths_and_methods(limited):
    assert refused(limited.get("/")) == (404, "not_found")
    assert refused(limited.get("/docs")) == (404, "not_found")
    response = limited.get("/v1/restore")
    assert refused(response) == (405, "method_not_allowed") and response.headers["allow"] == "POST"


@pytest.mark.parametrize("path", ["/v1/models", "/metrics", "/v1/restore", "/v1/restore?model=small&no=1"])
@pytest.mark.parametrize(
    "headers", [{}, {"X-API-Key": "wrong"}, {"X-API-Key": KEY + "x"}, {"Authorization": f"Basic {KEY}"}]
)
def test_a_wrong_key(path, headers):
    with serving({"small": small_network()}, api_key=KEY) as client:
        method = "POST" if "restore" in path else "GET"
        response = client.request(method, path, headers=headers)
        assert refused(response) == (401, "wrong_key") and response.headers["www-authenticate"] == "Bearer"
        assert KEY not in response.text
        assert client.get("/healthz").status_code == 200


@pytest.mark.parametrize("headers", [{"X-API-Key": KEY}, {"Authorization": f"Bearer {KEY}"}])
def test_the_right_key(headers):
    with serving({"small": small_network()}, api_key=KEY) as client:
        assert client.post("/v1/restore?model=small", content=picture(), headers=headers).status_code == 200


def test_keys_are_compared_in_constant_time(monkeypatch):
    compared = []
    real = __import__("hmac").compare_digest
    monkeypatch.setattr("hmac.compare_digest", lambda a, b: compared.append((len(a), len(b))) or real(a, b))
    with serving({"small": small_network()}, api_key=KEY) as client:
        client.get("/v1/models", headers={"X-API-Key": "short"})
    assert compared == [(32, 32)]  # digests: not even the length tells


def blocking(net):
    """Make a network wait in its forward pass: (set to go on, set once it waits)."""
    go, waits = threading.Event(), threading.Event()

    def hook(*_):
        waits.set()
        go.wait(30)

    net.register_forward_pre_hook(hook)
    return go, waits


def test_a_full_queue(net):
    with serving({"small": net}, queue=2, batch_wait_ms=0) as client:
        go, waits = blocking(net)
        answers = []
        send = lambda: answers.append(client.post("/v1/restore?model=small", content=picture()).status_code)  # noqa: E731
        threads = [threading.Thread(target=send) for _ in range(2)]
        for thread in threads:
            thread.start()
        assert waits.wait(30)
        while client.app.state.service.admission.count < 2:
            time.sleep(0.01)
        response = client.post("/v1/restore?model=small", content=picture())
        go.set()
        for thread in threads:
            thread.join()
        after = client.post("/v1/restore?model=small", content=picture()).status_code
    assert refused(response) == (429, "queue_full") and response.headers["retry-after"] == "1"
    assert answers == [200, 200] and after == 200


def test_the_time_of_a_request(net):
    with serving({"small": net}, timeout=0.3) as client:
        go, _ = blocking(net)
        response = client.post("/v1/restore?model=small", content=picture())
        held = client.app.state.service.admission.count
        go.set()
        while client.app.state.service.admission.count:
            time.sleep(0.01)
        after = client.post("/v1/restore?model=small", content=picture()).status_code
    assert refused(response) == (503, "timeout") and response.headers["retry-after"] == "5"
    assert held == 1  # its picture is in memory until the thread has noticed
    assert after == 200


def test_a_slow_upload():
    """The client in this process sends a body in one part, so that the reading is tested by itself."""

    class Slow:
        headers: dict[str, str] = {}  # noqa: RUF012

        async def stream(self):
            yield b"\x89PNG"
            await asyncio.sleep(10)

    with pytest.raises(limits.Problem, match=r"did not end within 0\.05 seconds") as caught:
        asyncio.run(limits.read_body(Slow(), 1000, 0.05))
    assert caught.value.code == "slow_upload" and caught.value.status == 408


def test_not_enough_memory(client, net, monkeypatch):
    def fail(*_):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory")

    hook = net.register_forward_pre_hook(fail)
    response = client.post("/v1/restore?model=small", content=picture())
    hook.remove()
    assert refused(response) == (503, "no_memory")
    assert client.post("/v1/restore?model=small", content=picture()).status_code == 200


def test_a_fault_of_the_service_is_logged_and_not_told(client, net, caplog):
    def fail(*_):
        raise RuntimeError("the secret of the house")

    net.register_forward_pre_hook(fail)
    response = client.post("/v1/restore?model=small", content=picture())
    assert refused(response) == (500, "internal") and "secret" not in response.text
    assert "the secret of the house" in caplog.text


def test_values_that_are_not_finite_are_no_picture(client, net):
    net.register_forward_hook(lambda *_: torch.full((1, 3, 20, 30), torch.nan))
    assert refused(client.post("/v1/restore?model=small", content=picture())) == (422, "unfit_picture")


_opened = None  # files opened for writing, while it is a list


def _watch(event, arguments):
    if _opened is not None and event == "open":
        path, mode, flags = arguments
        if (isinstance(mode, str) and set(mode) & set("wax+")) or (flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            _opened.append(path)


def test_no_upload_touches_the_disk(limited, tmp_path, monkeypatch):
    """Neither one that is refused nor one that is served is written anywhere."""
    global _opened
    sys.addaudithook(_watch)  # cannot be taken away again; it looks only while _opened is a list
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    limited.post("/v1/restore?model=small", content=picture())  # what is imported late is imported
    _opened = []
    try:
        with open(tmp_path / "probe", "w"):
            pass
        for content, status, _ in BODIES.values():
            assert limited.post("/v1/restore?model=small", content=content).status_code in (status, 413)
        assert limited.post("/v1/restore?model=small", content=picture(kind="tiff")).status_code == 200
        found = _opened
    finally:
        _opened = None
    assert found == [str(tmp_path / "probe")] or found == [tmp_path / "probe"]
    assert os.listdir(tmp_path) == ["probe"]
