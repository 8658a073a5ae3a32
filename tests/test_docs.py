"""Examples in docstrings and README run; the README names every operator and links to existing files."""

import doctest
import importlib
import inspect
import re
from pathlib import Path
from typing import Any

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


def readme_blocks() -> list[str]:
    text = (Path(__file__).parent.parent / "README.md").read_text()
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def test_the_readme_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run both examples as printed, the second with the network and the checkpoint that it assumes."""
    first, second = readme_blocks()
    scope: dict[str, Any] = {}
    exec(first, scope)
    assert type(scope["fixed"]) is torch.nn.Sequential
    assert scope["half"].shape == (4, 3, 32, 32)
    monkeypatch.chdir(tmp_path)
    scope = {"tunable_ops": tunable_ops, "torch": torch, "plain_net": Wrapped(), "x": torch.rand(1, 3, 4, 4)}
    torch.save(scope["plain_net"].state_dict(), "plain.pt")
    exec(second, scope)
    assert scope["y"].shape == (1, 3, 4, 4)


class Wrapped(torch.nn.Module):
    """A body and a head, as the README's second example expects."""

    def __init__(self) -> None:
        super().__init__()
        self.body = torch.nn.Conv2d(3, 3, 1)
        self.head = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))


def test_the_readme_names_every_operator_and_links_to_files_that_exist() -> None:
    root = Path(__file__).parent.parent
    text = (root / "README.md").read_text()
    for name in tunable_ops.__all__:
        if name.startswith("tunable_"):
            assert f"`{name}`" in text, name
    links = re.findall(r"\]\((?!http)([^)#]+)\)", text)
    assert len(links) >= 2
    assert [link for link in links if not (root / link).exists()] == []
