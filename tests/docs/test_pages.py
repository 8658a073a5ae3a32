"""The code of the pages runs, on a small scale; every block says whether it does, and links lead somewhere."""

import contextlib
import importlib.util
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.docs.blocks import ROOT, RUN, SHOWN, Block, indented, pages
from tests.docs.blocks import blocks as read_blocks

# Pages from before the rule: their indented blocks are shown; new pages have fences.
INDENTED = {
    *("docs/benchmarks.md", "docs/comparison.md", "docs/pgn.md", "docs/pretrained.md", "docs/scale.md"),
    *("docs/serve.md", "docs/video.md", "docs/winograd.md"),
}
# What a page does not say itself: by page and language, as in a comment.
ELSEWHERE = {
    ("docs/deploy.md", "bash"): {"not run": "installs packages; tests/cli/test_cli_export.py runs such commands"},
    ("docs/deploy.md", "python"): {"not run": "compiles for minutes; tests/deploy/test_program.py makes these calls"},
    ("docs/serve.md", "bash"): {"run by": "tests/serve/test_examples.py"},
    ("docs/serve.md", "python"): {"run by": "tests/serve/test_examples.py"},
    ("docs/video.md", "python"): {"not run": "names a film; tests/video/test_restore.py makes these calls"},
    ("examples/cpp/README.md", "bash"): {"run by": "tests/examples/test_cpp_example.py"},
}
SLOW = {"docs/tutorials/train.md"}
NEEDS = {"docs/sharing.md": "huggingface_hub"}


def blocks(page: str) -> list[Block]:
    """Return the blocks of a page with what is said of them here."""
    found = read_blocks(page)
    return [replace(each, said={**ELSEWHERE.get((page, each.language), {}), **each.said}) for each in found]


def run_pages() -> list[str]:
    return [page for page in pages() if any(block.is_run for block in blocks(page))]


@pytest.mark.parametrize("page", [p for p in pages() if (ROOT / p).exists()])
def test_every_block_runs_or_says_why_not(page: str) -> None:
    for block in blocks(page):
        where = f"{page}:{block.line}"
        assert block.language in (*RUN, *SHOWN), f"{where}: name the language of the block, {', '.join(RUN + SHOWN)}"
        if test := block.said.get("run by"):
            assert (ROOT / test).is_file(), f"{where}: {test} does not exist"
        if "not run" in block.said:
            assert block.said["not run"], f"{where}: say why it is not run"
    if page not in INDENTED:
        assert indented(page) == 0, f"{page}: fence its indented blocks, with a language"


def test_what_is_run_elsewhere_is_there() -> None:
    for (page, language), said in ELSEWHERE.items():
        assert any(block.language == language for block in read_blocks(page)), page
        for file in re.findall(r"tests/[\w/]+\.py", " ".join(said.values())):
            assert (ROOT / file).is_file(), file


@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=pytest.mark.slow) if page in SLOW else page for page in run_pages()]
)
def test_the_code_of_a_page_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("safetensors", "PIL", "numpy"):
        pytest.importorskip(package, reason=f"{package} is not installed (tunable-ops[train])")
    if page in NEEDS:
        pytest.importorskip(NEEDS[page], reason=f"{NEEDS[page]} is not installed")
    monkeypatch.chdir(tmp_path)
    scope: dict[str, Any] = {}
    for block in blocks(page):
        if not block.is_run:
            continue
        if "before" in block.said:
            exec(compile(block.said["before"], f"{page}:{block.line} (before)", "exec"), scope)
        package = block.said.get("runs if installed")
        if package is None or importlib.util.find_spec(package) is not None:
            run(block, scope)


def run(block: Block, scope: dict[str, Any]) -> None:
    """Run a block; commands of this package in this process, which saves their start."""
    where = f"{block.page}:{block.line}"
    if block.language == "python":
        exec(compile(block.small(), where, "exec"), scope)
        return
    from tunable_ops import cli

    for line in block.small().replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["tunable-ops"]:
            with contextlib.redirect_stdout(sys.stderr):
                assert cli.main(words[1:]) == 0, f"{where}: {line}"
        elif words:
            subprocess.run(["bash", "-ec", line], check=True, timeout=60)


@pytest.mark.parametrize("page", [p for p in pages() if (ROOT / p).exists()])
def test_links_lead_to_files(page: str) -> None:
    text = re.sub(r"^```.*?^```|`[^`\n]*`", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.M | re.S)
    targets = re.findall(r"\]\((?![a-z]+:|#)([^)#\s]+)", text)
    found = [((ROOT / page).parent / target).resolve() for target in targets]
    missing = [each for each in found if not each.exists() and each != ROOT / "docs" / "reference" / "commands.md"]
    assert missing == []


@pytest.mark.parametrize("page", [p for p in [*pages(), "CONTRIBUTING.md"] if p != "README.md" and (ROOT / p).exists()])
def test_links_are_words(page: str) -> None:
    assert re.findall(r"\[`?[\w/.]+\.md`?\]\(", (ROOT / page).read_text(encoding="utf-8")) == []


def test_the_rule_finds_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "page.md").write_text(
        '<!-- small: "5" -> "2" -->\n<!-- before:\nx = 1\n-->\n```python\ny = x + 5\n```\n\n'
        "<!-- not run: why -->\n```bash\nfalse\n```\n\n```\nno language\n```\n\n    indented\n\n- a\n\n    of a list\n"
    )
    monkeypatch.setattr("tests.docs.blocks.ROOT", tmp_path)
    first, second, third = read_blocks("page.md")
    assert (first.small(), first.said["before"], first.is_run) == ("y = x + 2\n", "x = 1", True)
    assert not second.is_run and second.said["not run"] == "why"
    assert third.language == "" and not third.is_run
    assert indented("page.md") == 1
