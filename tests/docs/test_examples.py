"""Examples in docstrings run, and so does the quickstart; the reference has every public name."""

import doctest
import importlib
import importlib.util
import inspect
from pathlib import Path

import pytest
import torch

import tunable_ops

MODULES = sorted(
    {
        inspect.getmodule(getattr(tunable_ops, name)).__name__
        for name in tunable_ops.__all__
        if not inspect.ismodule(getattr(tunable_ops, name))
    }
)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    module = importlib.import_module(name)
    result = doctest.testmod(module, extraglobs={"torch": torch, "nn": torch.nn})
    assert result.failed == 0


def test_there_are_examples() -> None:
    finder = doctest.DocTestFinder()
    names = {t.name for m in MODULES for t in finder.find(importlib.import_module(m)) if t.examples}
    assert any("tunable_conv2d" in n for n in names)
    assert any("convert" in n for n in names)


@pytest.mark.parametrize("name", tunable_ops.__all__)
def test_every_public_name_is_documented(name: str) -> None:
    assert len(inspect.getdoc(getattr(tunable_ops, name)) or "") > 40


def test_the_page_of_operators_names_every_one() -> None:
    text = (Path(__file__).parents[2] / "docs" / "operators.md").read_text()
    for name in tunable_ops.__all__:
        if name.startswith("tunable_"):
            assert f"`{name}`" in text and f"::: tunable_ops.{name}" in text, name


def test_every_public_name_is_in_the_reference() -> None:
    pages = (Path(__file__).parents[2] / "docs").rglob("*.md")
    named = {line.removeprefix("::: ").strip() for page in pages for line in page.read_text().splitlines()
             if line.startswith("::: ")}  # fmt: skip
    missing = [name for name in tunable_ops.__all__ if f"tunable_ops.{name}" not in named]
    assert missing == ["reference"]  # the definitions: operators.md describes them


def test_the_quickstart_runs(capsys: pytest.CaptureFixture[str]) -> None:
    file = Path(__file__).parents[2] / "examples" / "quickstart.py"
    spec = importlib.util.spec_from_file_location("quickstart", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main()
    started, *said = capsys.readouterr().out.splitlines()
    assert started.startswith("training")
    clean, noisy = ([float(line.split()[place]) for line in said[:3]] for place in (2, 7))
    assert clean[0] > clean[1] > clean[2] and noisy[0] < noisy[1] < noisy[2]
    assert said[3].startswith("folded: DnCNN")


def test_the_readme_is_short() -> None:
    assert len((Path(__file__).parents[2] / "README.md").read_text().splitlines()) <= 150
