"""The page of the command line, in Markdown, from the parsers: `python -m tunable_ops.cli.reference`."""

from __future__ import annotations

import argparse

from tunable_ops.cli import COMMANDS, parser_of

__all__ = ["page"]


def page() -> str:
    """Return the page: every command with its arguments and options."""
    lines = [
        "# Command line",
        "",
        "`tunable-ops COMMAND`, or `python -m tunable_ops COMMAND`. Exit codes: 0 done; 1 partly done, what was "
        "skipped is named; 2 wrong input, nothing done; 130 stopped with Ctrl-C. `--debug`, anywhere, shows the "
        "traceback of an error. This page is made of the parsers.",
        "",
        "| command | does |",
        "| --- | --- |",
        *(f"| [`{name}`](#{name}) | {text} |" for name, text in COMMANDS.items()),
    ]
    for name in COMMANDS:
        lines += ["", f"## {name}", "", *_command(parser_of(name))]
    return "\n".join(lines) + "\n"


def _command(parser: argparse.ArgumentParser) -> list[str]:
    lines = [_text(parser.description or ""), ""]
    actions = [each for each in parser._actions if each.help != argparse.SUPPRESS]
    for title, positional in (("argument", True), ("option", False)):
        picked = [each for each in actions if (not each.option_strings) is positional and each.dest != "help"]
        if picked:
            lines += [f"| {title} | |", "| --- | --- |"]
            lines += [f"| {_names(each)} | {_help(each, parser)} |" for each in picked]
            lines.append("")
    if parser.epilog:
        lines += [_text(parser.epilog), ""]
    return lines[:-1]


def _names(action: argparse.Action) -> str:
    value = action.metavar or (action.dest.upper() if action.option_strings else action.dest)
    value = " ".join(value) if isinstance(value, tuple) else value
    if action.choices is not None and action.metavar is None:
        value = "{" + ",".join(map(str, action.choices)) + "}"
    if action.nargs == 0:
        value = ""
    elif action.nargs in ("*", "+", argparse.REMAINDER):
        value += " ..."
    elif action.nargs == "?":
        value = f"[{value}]"
    words = action.option_strings or [value]
    names = ", ".join(f"{word} {value}".strip() if action.option_strings else word for word in words)
    return f"`{names}`".replace("|", "\\|")


def _help(action: argparse.Action, parser: argparse.ArgumentParser) -> str:
    values = {**vars(action), "prog": parser.prog}
    return _text((action.help or "") % values) if "%" in (action.help or "") else _text(action.help or "")


def _text(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")


if __name__ == "__main__":
    print(page(), end="")
