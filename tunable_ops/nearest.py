"""The end of an error about a name that there is not: the nearest that there is."""

import difflib
from collections.abc import Iterable

__all__ = ["hint"]


def hint(word: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """Return "; did you mean 'name'?" with the name that is most like a word; "" where none is.

    Args:
        word: What was given.
        known: The names.
        cutoff: How much of it must be the same, 0 to 1, as `difflib.get_close_matches`.

    Example:
        >>> hint("denois", ["denoise", "denoise_deblur"])
        "; did you mean 'denoise'?"
    """
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=cutoff)
    return f"; did you mean {close[0]!r}?" if close else ""
