"""docs/configuration.md is made of the schema, and the schema says what every key means."""

import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from tunable_ops.train.config import Config, PGNConfig
from tunable_ops.train.keys import _section_in, descriptions, page
from tunable_ops.train.sections import Section, flatten

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"


def sections() -> list[type[BaseModel]]:
    """All tables of both tasks, and the two configurations themselves."""
    found: list[type[BaseModel]] = []

    def walk(section: type[BaseModel]) -> None:
        if section not in found:
            found.append(section)
            for field in section.model_fields.values():
                if (inner := _section_in(field.annotation)) is not None:
                    walk(inner)

    walk(Config)
    walk(PGNConfig)
    return found


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "make docs"


@pytest.mark.parametrize("section", sections(), ids=lambda section: section.__name__)
def test_every_key_is_described_and_nothing_else(section: type[BaseModel]) -> None:
    tables = {key for key, field in section.model_fields.items() if _section_in(field.annotation) is not None}
    described = descriptions(section)
    assert set(section.model_fields) - set(described) <= tables
    assert all(text.endswith(".") and len(text) > 5 for text in described.values())
    written = re.findall(r"^        (\w+): ", (section.__doc__ or "").partition("Attributes:\n")[2], re.MULTILINE)
    assert set(written) <= set(section.model_fields), "a key that is gone"


def rows() -> dict[str, list[str]]:
    """Dotted key to type, default and meaning, of the task "restoration"."""
    found, head = {}, ""
    for line in PAGE.read_text(encoding="utf-8").partition("## Task `perceptual_gradient`")[0].splitlines():
        if line.startswith("### "):
            head = line.strip("#` []") + "."
        elif line.startswith("| `"):
            key, *cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            found[head + key.strip("`")] = cells
    return found


def test_the_page_has_every_key_with_its_default() -> None:
    config = Config.model_validate({"objectives": [{"name": "clean"}, {"name": "b"}]})
    found = rows()
    for dotted in flatten(config):
        key = re.sub(r"\.\d+\.", ".", dotted)
        if key not in ("degradation.blur", "degradation.downsample"):  # tables that are left out
            assert key in found, key
    assert found["optim.lr"][:2] == ["number > 0", "`0.001`"]
    assert found["ema.decay"][:2] == ["number >= 0, < 1", "`0.999`"]
    assert found["objectives.name"][:2] == ["text", "required"]
    assert found["validation.lams"][:2] == ["list of lists of numbers", "left out"]
    assert found["optim.betas"][:2] == ["2 numbers", "`[0.9, 0.99]`"]
    assert found["degradation.downsample.factors"][:2] == ["list of `1`, `2` or `4`, at least 1", "`[2]`"]
    assert found["data.flips"] == ["`true` or `false`", "`true`", "Mirror half of the crops."]


def test_a_key_is_described_where_it_is_declared_first() -> None:
    class Below(Section):
        """One.

        Attributes:
            a: Of the one,
                in two lines.
            b: Of the other.
        """

        a: int = 1
        b: int = 2

    class Above(Below):
        """Two.

        Attributes:
            b: Another.
        """

        b: int = 3

    assert descriptions(Above) == {"a": "Of the one, in two lines.", "b": "Another."}
