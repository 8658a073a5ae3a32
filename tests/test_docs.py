"""Examples in docstrings run."""

import doctest
import importlib
import inspect

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
