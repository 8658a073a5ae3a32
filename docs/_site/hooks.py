"""What mkdocs does beside rendering docs/: generated pages, and links that leave the folder."""

import posixpath
import re
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
# pages that lie elsewhere in the repository
OUTSIDE = {
    "CONTRIBUTING.md": "project/contributing.md",
    "CHANGELOG.md": "project/changelog.md",
    "examples/README.md": "project/examples.md",
    "examples/cpp/README.md": "project/examples_cpp.md",
}
INSIDE = {page: source for source, page in OUTSIDE.items()}
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(((?![a-z]+:|#)[^)\s]+)\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are made of the code, and those of the repository."""
    from tunable_ops.cli.reference import page

    files.append(File.generated(config, "reference/commands.md", content=page()))
    for source, target in OUTSIDE.items():
        if (ROOT / source).exists():
            files.append(File.generated(config, target, content=(ROOT / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, files: Files, **_: Any) -> str:
    """Lead links between pages to where the pages are; what is in the repository alone is named in place of a link."""
    uri = page.file.src_uri
    source = PurePosixPath(INSIDE.get(uri, f"docs/{uri}"))

    def lead(match: re.Match[str]) -> str:
        mark, text, target = match.groups()
        path, _, anchor = target.partition("#")
        if not path:
            return match[0]
        wanted = posixpath.normpath(str(source.parent / path))
        found = OUTSIDE.get(wanted, wanted.removeprefix("docs/") if wanted.startswith("docs/") else None)
        if found is None or files.get_file_from_path(found) is None:
            if (ROOT / wanted).exists() and not wanted.startswith("docs/"):
                return text if text.strip("`") == wanted or mark else f"{text} (`{wanted}`)"
            return match[0]  # mkdocs says that it is missing
        relative = posixpath.relpath(found, posixpath.dirname(uri) or ".")
        return f"{mark}[{text}]({relative}{'#' + anchor if anchor else ''})"

    return _outside_code(markdown, lead)


def _outside_code(markdown: str, lead: Any) -> str:
    """Apply to links, but not within fenced or indented blocks; code in the text of a link is no obstacle."""
    lines, fenced, found = markdown.split("\n"), False, []
    for line in lines:
        if line.lstrip().startswith("```"):
            fenced = not fenced
        found.append(line if fenced or line.startswith("    ") else _LINK.sub(lead, line))
    return "\n".join(found)
