"""The site: everything is in its navigation, it builds without a warning, and it loads nothing from other hosts."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.blocks import ROOT
from tunable_ops import cli
from tunable_ops.cli.reference import page


def check():
    spec = importlib.util.spec_from_file_location("check", ROOT / "docs" / "_site" / "check.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_page_is_in_the_navigation() -> None:
    nav = (ROOT / "mkdocs.yml").read_text().partition("\nnav:\n")[2]
    named = set(re.findall(r"[\w/]+\.md", nav))
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert pages - named == set(), "name the page in mkdocs.yml"
    assert nav.lstrip().startswith("- Home: index.md")  # else the first tab has the name of the package
    assert {name for name in named - pages if not name.startswith("project/")} == {"reference/commands.md"}


def test_the_page_of_the_command_line_has_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    text = page()
    for name in cli.COMMANDS:
        section = text.partition(f"\n## {name}\n")[2].partition("\n## ")[0]
        assert cli.main([name, "--help"]) == 0
        options = set(re.findall(r"^  (?:-\w, )?(--[a-z-]+)", capsys.readouterr().out, re.M)) - {"--help"}
        assert options <= set(re.findall(r"--[a-z-]+", section)), name
    assert "%(" not in text and "%%" not in text, "a format of argparse is left"


def test_what_is_loaded_from_other_hosts_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(
        '<link rel="stylesheet" href="//cdn.example/x.css"><script src="https://cdn.example/x.js"></script>'
        '<a href="https://example.org">a link</a><link rel="canonical" href="https://example.org/a">'
        '<img src="local.png"><p style="background: url(https://cdn.example/x.png)">'
    )
    (tmp_path / "a.css").write_text('@import "https://fonts.example/x"; a { background: url(local.png) }')
    assert check().external(tmp_path) == [
        "a.css: https://fonts.example/x",
        "a.html: <link> //cdn.example/x.css",
        "a.html: <script> https://cdn.example/x.js",
        "a.html: <p> https://cdn.example/x.png",
    ]


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_loads_nothing_from_other_hosts(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="mkdocs is not installed (tunable-ops[docs])")
    pytest.importorskip("mkdocstrings", reason="mkdocstrings is not installed (tunable-ops[docs])")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    result = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=600, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    )
    assert result.returncode == 0, result.stderr
    assert check().external(tmp_path / "site") == []
    layers = (tmp_path / "site/reference/layers.html").read_text()
    assert "save_pretrained" in layers and "LiveFold" in layers
    # a link out of docs/ leads to the page that the site has, or is text
    assert 'href="project/contributing.html"' in (tmp_path / "site/architecture.html").read_text()
    assert "LICENSES.txt" in (tmp_path / "site/pretrained.html").read_text()
