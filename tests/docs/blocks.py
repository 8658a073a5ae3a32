"""The code blocks of a page, and what is said about each.

In a comment right before a block:

    <!-- before: CODE -->           Python that runs first, and is not shown; the page's blocks share one namespace
    <!-- small: "A" -> "B" -->      what is replaced so that it takes seconds; several, separated by ;
    <!-- not run: REASON -->
    <!-- run by tests/FILE.py -->   a test of its own does it
    <!-- runs if installed: PACKAGE -->
    <!-- slow -->                   in `make test-all` only

A block of any other language than bash and python is shown, not run; so are the indented blocks of older pages.
"""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
RUN = ("python", "bash")
SHOWN = ("text", "output", "toml", "json", "cpp", "cmake", "yaml", "console")
_FENCE = re.compile(r"^( *)(`{3,})(\S*)[^\n]*\n(.*?)^\1\2 *$", re.DOTALL | re.MULTILINE)
_COMMENT = re.compile(r"<!--((?:(?!-->).)*)-->\s*\Z", re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, code, line, and the comments right before it by their first words."""

    page: str
    line: int
    language: str
    code: str
    said: dict[str, str]

    @property
    def is_run(self) -> bool:
        return self.language in RUN and not {"not run", "run by"} & set(self.said)

    def small(self) -> str:
        """Return the code in its small form."""
        code = self.code
        for old, new in re.findall(r'"([^"]*)" -> "([^"]*)"', self.said.get("small", "")):
            assert old in code, f"{self.page}:{self.line}: {old!r} is not in the block"
            code = code.replace(old, new)
        return code


def pages() -> list[str]:
    """Return the pages whose blocks count."""
    found = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))
    return [*found, "README.md", "examples/README.md", "examples/cpp/README.md"]


def blocks(page: str) -> list[Block]:
    """Return the fenced blocks of a page."""
    text, found = (ROOT / page).read_text(encoding="utf-8"), []
    for match in _FENCE.finditer(text):
        said, before = {}, text[: match.start()]
        while comment := _COMMENT.search(before):
            key, value = _split(comment[1])
            said[key] = value
            before = before[: comment.start()]
        line = text.count("\n", 0, match.start()) + 1
        found.append(Block(page, line, match[3], match[4], said))
    return found


def _split(comment: str) -> tuple[str, str]:
    for key in ("before", "small", "not run", "run by", "runs if installed", "slow"):
        if comment.strip().startswith(key):
            return key, comment.strip().removeprefix(key).lstrip(":").strip("\n ")
    return comment.strip(), ""


def indented(page: str) -> int:
    """Return how many indented blocks a page has outside fences and lists."""
    text = _FENCE.sub("\n", (ROOT / page).read_text(encoding="utf-8"))
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    count, in_list, last = 0, False, ""
    for line in text.split("\n"):
        if re.match(r"\s*([-*]|\d+\.) ", line):
            in_list = True
        elif line and not line.startswith(" ") and not line.startswith(":::"):
            in_list = False
        elif line.startswith("    ") and not last.strip() and not in_list:
            count += 1
        last = line
    return count
