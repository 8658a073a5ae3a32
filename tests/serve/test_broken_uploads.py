"""Uploads that are damaged at random: each is answered, and the service goes on."""

import collections
import http.client
import json

import pytest

from tests.serve.broken import broken_pictures, whole
from tests.serve.conftest import picture, process, serving

ANSWERS = {200: None, 400: {"empty"}, 413: {"too_many_pixels"}, 415: {"not_a_picture"}, 422: {"broken_picture"}}
SMALL_GRAIN = {"bad_query", "unfit_picture"}  # of damage that leaves another picture: pages of a size, one pixel


def check(status, body):
    """Return the answer as a word; fail if it is none of those that a damaged picture may get."""
    assert status in ANSWERS, (status, body[:300])
    if status == 200:
        return "200"
    code = json.loads(body)["code"]
    assert code in ANSWERS[status] | (SMALL_GRAIN if status == 422 else set()), (status, body[:300])
    return code


def test_whole_pictures_of_all_kinds(client):
    for content in whole():
        assert client.post("/v1/restore?model=small", content=content).status_code == 200


def test_a_few_damaged_pictures(net):
    with serving({"small": net}, max_pixels=100_000) as client:
        found = collections.Counter()
        for content in broken_pictures(80):
            response = client.post("/v1/restore?model=small", content=content)
            found[check(response.status_code, response.content)] += 1
        assert client.post("/v1/restore?model=small", content=picture()).status_code == 200
    assert found["broken_picture"] > 20 and found["200"] > 5


@pytest.mark.slow
def test_a_thousand_damaged_pictures_in_a_process_of_its_own(tmp_path):
    """A decoder that crashes ends the process, and a leak shows in its memory."""
    with process(tmp_path, "--max-pixels", "1000000", "--quiet") as (run, port):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        found: collections.Counter[str] = collections.Counter()
        sizes = []
        for number, content in enumerate(broken_pictures(1000, seed=1)):
            connection.request("POST", "/v1/restore?model=small", content)
            response = connection.getresponse()
            found[check(response.status, response.read())] += 1
            if number % 100 == 99:
                with open(f"/proc/{run.pid}/statm") as file:
                    sizes.append(int(file.read().split()[1]) * 4096 / 1e6)
        connection.request("POST", "/v1/restore?model=small", picture())
        assert connection.getresponse().status == 200
        assert run.poll() is None
    assert sum(found.values()) == 1000 and found["broken_picture"] > 300
    assert sizes[-1] < sizes[0] + 300, sizes
    assert "Traceback" not in (tmp_path / "log").read_text()
