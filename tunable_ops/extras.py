"""Where packages are missing: what installs them."""

__all__ = ["command", "install"]


def command(extra: str) -> str:
    """Return the command that installs the packages of an extra of pyproject.toml, in a checkout of this project.

    Example:
        >>> command("hub,train")
        "pip install --no-build-isolation --editable '.[hub,train]'"
    """
    return f"pip install --no-build-isolation --editable '.[{extra}]'"


def install(extra: str) -> str:
    """Return the end of a message: the command, and where it is given."""
    return f"{command(extra)}, in a checkout of tunable_ops"
