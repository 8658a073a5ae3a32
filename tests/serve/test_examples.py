"""The examples of docs/serve.md and the load test run."""

import importlib.util
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.serve.conftest import picture, process
from tunable_ops.images import open_picture
from tunable_ops.serve.problems import CODES

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "serve.md").read_text()


def test_the_page_has_every_code_and_option(capsys):
    from tunable_ops import cli

    table = PAGE.partition("## Refusals")[2].partition("## Limits")[0]
    named = {(int(row.split("|")[1]), code) for row in table.splitlines() if row.startswith("| ") and row[2].isdigit()
             for code in re.findall(r"`([a-z_]+)`", row)}  # fmt: skip
    assert named == {(status, code) for code, (status, _) in CODES.items()}
    assert cli.main(["serve", "--help"]) == 0
    options = set(re.findall(r"--[a-z-]+", capsys.readouterr().out)) - {"--help", "--data-binary"}
    assert options - set(re.findall(r"--[a-z-]+", PAGE)) == {"--device", "--threads", "--quiet"}


@pytest.mark.slow
def test_the_examples_of_the_page_run(tmp_path, monkeypatch):
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "noisy.png").write_bytes(picture(40, 50))
    (shell,), (code,) = (re.findall(rf"```{kind}\n(.*?)```", PAGE, re.DOTALL) for kind in ("bash", "python"))
    with process(tmp_path, "--model", "denoise") as (_, port):
        shell, code = (text.replace("127.0.0.1:8000", f"127.0.0.1:{port}") for text in (shell, code))
        run = subprocess.run(["bash", "-ec", shell], capture_output=True, text=True, timeout=120)
        assert run.returncode == 0, run.stderr
        assert {model["name"] for model in json.loads(run.stdout)["models"]} == {"small", "denoise"}
        assert open_picture(tmp_path / "clean.png").size == (40, 50)
        assert open_picture(tmp_path / "clean.webp").format == "WEBP"
        (tmp_path / "clean.png").unlink()
        exec(code, {})
        assert open_picture(tmp_path / "clean.png").size == (40, 50)


@pytest.mark.slow
def test_the_load_test_runs(tmp_path, capsys):
    spec = importlib.util.spec_from_file_location("load", ROOT / "examples" / "serve" / "load.py")
    load = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(load)
    out = tmp_path / "load.json"
    words = ["--clients", "2", "--sizes", "32", "--seconds", "2", "--rounds", "1", "--out", str(out)]
    assert load.main(words) == 0
    (row,) = json.loads(out.read_text())["rows"]
    for name in ("batched", "unbatched"):
        assert row[name]["requests"] > 0 and row[name]["p50"] <= row[name]["p99"]
    assert "| 32x32 | 2 | batched |" in capsys.readouterr().out
