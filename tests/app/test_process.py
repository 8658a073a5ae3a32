"""The command in a process of its own: nothing stays behind, however it is ended."""

import os
import signal
import subprocess
import sys
import time
import urllib.request

import pytest


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_removes_the_folder(network_file, tmp_path, number):
    words = ["app", "--port", "0", "--model", str(network_file), "--threads", "1"]
    command = [sys.executable, "-c", "import sys; from tunable_ops.cli import main; sys.exit(main())", *words]
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONUNBUFFERED": "1"}
    log = tmp_path / "log"
    with log.open("w") as stream:
        run = subprocess.Popen(command, env=environment, stdout=stream, stderr=subprocess.STDOUT)
    try:
        end = time.monotonic() + 120
        while "Ctrl-C" not in log.read_text() and run.poll() is None and time.monotonic() < end:
            time.sleep(0.1)
        url = log.read_text().split("tunable-ops app: ")[1].split()[0]
        with urllib.request.urlopen(url) as page:
            assert b"tunable_ops" in page.read()
        assert list(tmp_path.glob("tunable-ops-app-*"))
        run.send_signal(number)
        assert run.wait(30) == 0
    finally:
        run.kill()
    assert "Traceback" not in log.read_text()
    assert not list(tmp_path.glob("tunable-ops-app-*"))
