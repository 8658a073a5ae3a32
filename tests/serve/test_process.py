"""The command in a process of its own: signals, hanging clients, files, addresses."""

import os
import signal
import socket
import threading
import time
import urllib.error
import urllib.request

import pytest

from tests.serve.conftest import picture, process
from tunable_ops.images import open_picture

LARGE = (1500, 1200)  # some seconds with the small network at tiles of 64


def post(port, content, query="model=small", timeout=120):
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/restore?{query}", content, method="POST")
    with urllib.request.urlopen(request, timeout=timeout) as response:
        return response.status, response.read()


def metrics(port):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as response:
        lines = [line.rpartition(" ") for line in response.read().decode().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in lines}


def wait_for_a_call(port):
    while not metrics(port).get('tunable_ops_batch_size_count{model="small"}'):
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_ends_the_service_when_what_it_took_is_done(tmp_path, number):
    answers = []
    words = ("--tile", "64", "--overlap", "16")
    with process(tmp_path, *words) as (run, port):
        sender = threading.Thread(target=lambda: answers.append(post(port, picture(*LARGE))))
        sender.start()
        wait_for_a_call(port)
        run.send_signal(number)
        time.sleep(0.3)
        with pytest.raises(OSError), socket.create_connection(("127.0.0.1", port), 5) as sock:
            sock.sendall(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
            if not sock.recv(100):  # taken by the system, not by the service
                raise OSError
        assert run.poll() is None  # the picture is not done
        sender.join()
        assert run.wait(60) == 0
    ((status, content),) = answers
    assert status == 200 and open_picture(content).size == LARGE
    log = (tmp_path / "log").read_text()
    assert "Traceback" not in log and "Finished server process" in log


@pytest.mark.slow
def test_a_client_that_hangs_up_stops_its_work(tmp_path):
    with process(tmp_path, "--tile", "64", "--overlap", "16") as (_, port):
        content = picture(*LARGE)
        with socket.create_connection(("127.0.0.1", port)) as sock:
            head = f"POST /v1/restore?model=small HTTP/1.1\r\nHost: a\r\nContent-Length: {len(content)}\r\n\r\n"
            sock.sendall(head.encode() + content)
            wait_for_a_call(port)
        start = time.monotonic()
        while metrics(port)["tunable_ops_running"]:
            assert time.monotonic() - start < 30
            time.sleep(0.02)
        found = metrics(port)
    assert found['tunable_ops_requests_total{path="/v1/restore",status="499"}'] == 1
    assert found['tunable_ops_batch_size_count{model="small"}'] < 400  # of 775 tiles


@pytest.mark.slow
def test_half_an_upload_costs_its_time_and_leaves_no_file(tmp_path):
    folder = tmp_path / "temporary"
    folder.mkdir()
    words = ("--upload-timeout", "0.5", "--max-bytes", "3000000")
    with process(tmp_path, *words, environment={"TMPDIR": str(folder)}) as (run, port):
        with socket.create_connection(("127.0.0.1", port), 30) as sock:
            sock.sendall(b"POST /v1/restore?model=small HTTP/1.1\r\nHost: a\r\nContent-Length: 2000000\r\n\r\n")
            sock.sendall(bytes(1_500_000))
            answer = sock.recv(100_000)
            open_files = [os.readlink(f"/proc/{run.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{run.pid}/fd")]
        with socket.create_connection(("127.0.0.1", port), 30) as sock:
            sock.sendall(b"POST /v1/restore?model=small HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999\r\n\r\n")
            refused = sock.recv(100_000)
        assert post(port, picture())[0] == 200
        left = os.listdir(folder)
    assert answer.startswith(b"HTTP/1.1 408") and b'"slow_upload"' in answer
    assert refused.startswith(b"HTTP/1.1 413") and b'"too_many_bytes"' in refused  # before a byte was sent
    assert left == [] and not [name for name in open_files if str(folder) in name or "(deleted)" in name]


@pytest.mark.slow
def test_it_listens_to_this_machine_alone(tmp_path):
    with process(tmp_path) as (run, port):
        with open(f"/proc/{run.pid}/net/tcp") as table:
            addresses = [line.split()[1] for line in table.readlines()[1:] if line.split()[3] == "0A"]
        warned = "may use this service" in (tmp_path / "log").read_text()
    assert [address for address in addresses if address.endswith(f":{port:04X}")] == [f"0100007F:{port:04X}"]
    assert not warned


@pytest.mark.slow
def test_a_key_from_the_environment_and_a_warning_without_one(tmp_path):
    key = "from-the-environment"
    with process(tmp_path, environment={"TUNABLE_OPS_API_KEY": key}) as (_, port):
        with pytest.raises(urllib.error.HTTPError, match="401"):
            post(port, picture())
        request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/models", headers={"X-API-Key": key})
        with urllib.request.urlopen(request) as response:
            assert response.status == 200
    assert key not in (tmp_path / "log").read_text()
    with process(tmp_path, "--host", "0.0.0.0"):
        pass
    assert "anyone who reaches 0.0.0.0 may use this service" in (tmp_path / "log").read_text()


@pytest.mark.slow
def test_a_port_that_is_taken(tmp_path):
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        taken = ("--port", str(sock.getsockname()[1]))
        with pytest.raises(RuntimeError, match="address already in use"), process(tmp_path, *taken):
            time.sleep(60)
