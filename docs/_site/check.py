"""Find what pages of the built site would load from other hosts: `python docs/_site/check.py build/site`."""

import re
import sys
from html.parser import HTMLParser
from pathlib import Path

_LOADS = {"src", "srcset", "poster", "data", "action"}  # beside href of <link>
_FOLLOWED = {"canonical", "prev", "next", "alternate", "license"}  # links that a browser does not load
_CSS = re.compile(r"""(?:url\(\s*|@import\s+)["']?((?:https?:)?//[^"')\s]+)""")


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep addresses of other hosts that the element loads."""
        values = {name: value or "" for name, value in attrs}
        loads = [values[name] for name in _LOADS & set(values)]
        if tag == "link" and not _FOLLOWED & set(values.get("rel", "").split()):
            loads.append(values.get("href", ""))
        found = [value for value in loads if re.match(r"\s*(https?:)?//", value)]
        self.found += [f"<{tag}> {value}" for value in found + _CSS.findall(values.get("style", ""))]


def external(site: Path) -> list[str]:
    """Return "FILE: ELEMENT ADDRESS" for everything that is loaded from another host."""
    found = []
    for file in sorted(site.rglob("*")):
        if file.suffix == ".html":
            page = _Page()
            page.feed(file.read_text(encoding="utf-8"))
            found += [f"{file.relative_to(site)}: {each}" for each in page.found]
        elif file.suffix == ".css":
            found += [f"{file.relative_to(site)}: {each}" for each in _CSS.findall(file.read_text(encoding="utf-8"))]
    return found


if __name__ == "__main__":
    if not (Path(sys.argv[1]) / "index.html").is_file():
        sys.exit(f"check: {sys.argv[1]} must hold a site; got no index.html")
    if loaded := external(Path(sys.argv[1])):
        sys.exit("check: pages must load nothing from other hosts; got\n" + "\n".join(loaded))
