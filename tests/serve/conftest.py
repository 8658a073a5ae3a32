"""A small network, pictures, and the service in this process or in one of its own."""

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("PIL", reason="Pillow is not installed (tunable-ops[train])")
pytest.importorskip("fastapi", reason="FastAPI is not installed (tunable-ops[serve])")
pytest.importorskip("prometheus_client", reason="prometheus-client is not installed (tunable-ops[serve])")
pytest.importorskip("uvicorn", reason="uvicorn is not installed (tunable-ops[serve])")
pytest.importorskip("starlette.testclient", reason="httpx2 is not installed (tunable-ops[dev])")

from starlette.testclient import TestClient

from tunable_ops import convert, models
from tunable_ops.images import Frame, encode_picture
from tunable_ops.serialization import save
from tunable_ops.serve import Settings, create_app

ARGUMENTS = {"features": 4, "depth": 3}


def small_network(channels=3, **options):
    """A DnCNN of three layers whose kernels all differ, so that every lambda gives another picture."""
    torch.manual_seed(0)
    options = {"names": ("sigma", "keep"), "ranges": ((0, 50), (0, 1)), "units": ("of 255", ""), **options}
    options = {"domain": "box", "defaults": (25, 0), **options}
    net = convert(models.build("dncnn", channels=channels, **ARGUMENTS), num_params=len(options["names"]), **options)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if "tuning" not in name:
                parameter.add_(0.05 * torch.randn_like(parameter))
    return net.eval()


@pytest.fixture
def net():
    return small_network()


def picture(height=20, width=30, channels=3, dtype=np.uint8, seed=0, kind="png", **options):
    """The bytes of a picture of noise."""
    top = np.iinfo(dtype).max
    pixels = np.random.default_rng(seed).integers(0, top, (height, width, channels), dtype, endpoint=True)
    return encode_picture([Frame(pixels)], kind, **options)


@contextmanager
def serving(models, **settings):
    """A client of the service in this process."""
    with TestClient(create_app(models, Settings(**settings)), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def client(net):
    with serving({"small": net}) as client:
        yield client


def refused(response):
    """Status and code of a problem, after a look at its form."""
    problem = response.json()
    assert response.headers["content-type"] == "application/problem+json"
    assert set(problem) == {"type", "title", "status", "code", "detail"}
    assert problem["status"] == response.status_code
    assert problem["detail"] and problem["title"]
    return response.status_code, problem["code"]


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


@contextmanager
def process(folder, *words, environment=None):
    """The command `serve` in a process of its own: (process, port). Its standard error is in folder/log."""
    port = free_port()
    save(small_network(), folder / "small.safetensors", architecture="dncnn", arguments={"channels": 3, **ARGUMENTS})
    command = [sys.executable, "-m", "tunable_ops", "serve", "--port", str(port), "--threads", "1"]
    command += ["--model", f"small={folder / 'small.safetensors'}", *words]
    root = Path(__file__).parent.parent.parent
    env = {**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})}
    with open(folder / "log", "w") as log:
        run = subprocess.Popen(command, cwd=root, stdout=log, stderr=log, env=env)
    try:
        for _ in range(600):
            if run.poll() is not None:
                raise RuntimeError((folder / "log").read_text())
            with socket.socket() as sock:
                if sock.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield run, port
    finally:
        if run.poll() is None:
            run.send_signal(signal.SIGKILL)
        run.wait()
