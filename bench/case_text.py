"""Cases of one's own, from a line such as ``3x3 C48 O96 100x120 B2 P2 per_sample both``."""

import difflib
import re
from collections.abc import Callable
from typing import Any

from tunable_ops.bench.cases import ALPHAS, DTYPES, LAYOUTS, MODES, PASSES, Case, Own, kind_named

GRAMMAR = """LAYER Cn HxW [On] [Bn] [Pn] [Gn] [Sn] [Dn] [padn] [words], LAYER first, the rest in any order:
  LAYER  KxK, dwKxK (depthwise), downKxK (stride K, twice the channels), upKxK (transposed, stride K, half of them)
  Cn HxW input channels, height and width
  On Bn  output channels (default: the layer's), batch (1)
  Pn     kernels (2)
  Gn Sn  groups (1; depthwise: C), stride
  Dn     dilation (1)
  padn   padding on every side (default: D (K - 1) // 2, none for down and up)
  words  shared per_sample map; fp32 tf32 fp16 bf16; channels_last contiguous; forward backward both
         grad_input grad_weight; eager compile graph (the first of each is the default, but for channels_last)
Example: 3x3 C48 O96 100x120 B2 P2 per_sample both"""

_WORDS: dict[str, tuple[str, ...]] = {
    "alpha": ALPHAS,
    "dtype": tuple(DTYPES),
    "layout": tuple(LAYOUTS),
    "direction": PASSES,
    "mode": MODES,
}
_LETTERS = {
    "c": "channels",
    "o": "outputs",
    "b": "batch",
    "p": "kernels",
    "g": "groups",
    "s": "stride",
    "d": "dilation",
    "pad": "padding",
}


def read_case(text: str) -> Case:
    """Return the case that a line describes (`GRAMMAR`); parts are separated by spaces or, as in an id, by hyphens.

    Raises:
        ValueError: A part that is not understood, is there twice or missing, or numbers that do not fit together; the
            message holds the grammar.
    """

    def refuse(must: str, got: object) -> ValueError:
        return ValueError(f"bench: --case {must}; got {got} in {text!r}.\n{GRAMMAR}")

    parts = re.sub(r"\b(per|channels)-(sample|last)\b", r"\1_\2", text).replace("-", " ").split()
    if not parts:
        raise refuse("must begin with a layer", "nothing")
    first, *parts = parts
    kind = first.lower()
    try:
        layer = kind_named(kind)
    except ValueError:
        raise refuse("must begin with a layer such as 3x3 or dw3x3", repr(first)) from None
    found: dict[str, Any] = {}
    for part in parts:
        for name, value in _read(part, refuse).items():
            if name in found:
                raise refuse(f"must give {name} once", repr(part))
            found[name] = value
    for name, what in (("channels", "input channels, as in C64"), ("size", "a size, as in 64x64")):
        if name not in found:
            raise refuse(f"must give {what}", "none")
    channels = found["channels"]
    dilation, stride = found.pop("dilation", 1), found.pop("stride", layer.stride)
    usual = 0 if kind.startswith(("down", "up")) else dilation * (layer.taps - 1) // 2
    own = Own(
        width=found.pop("width"),
        outputs=found.pop("outputs", max(1, int(channels * layer.outputs))),
        groups=found.pop("groups", channels if layer.depthwise else 1),
        stride=stride,
        padding=found.pop("padding", usual),
        dilation=dilation,
    )
    case = Case(kind, own=own, **{"batch": 1, **found})
    _check(case, refuse)
    return case


def _read(part: str, refuse: Callable[[str, object], ValueError]) -> dict[str, Any]:
    """Return the fields that a part of the line gives."""
    word = part.lower()
    for name, known in _WORDS.items():
        if word in known:
            return {name: word}
    size = re.fullmatch(r"(\d+)x(\d+)", word)
    letter = re.fullmatch(r"(pad|[cobpgsd])(\d+)", word)
    if size is not None:
        found = {"size": int(size[1]), "width": int(size[2])}
    elif letter is not None:
        found = {_LETTERS[letter[1]]: int(letter[2])}
    else:
        near = difflib.get_close_matches(word, [w for known in _WORDS.values() for w in known], n=1)
        raise refuse(f"must have parts that it knows{f' (did you mean {near[0]}?)' if near else ''}", repr(part))
    letters = {"size": "H", "width": "W", **{name: letter.upper() for letter, name in _LETTERS.items()}}
    for name, value in found.items():
        if value < 1 and name != "padding":
            raise refuse(f"must have {letters[name]} at least 1", repr(part))
    return found


def _check(case: Case, refuse: Callable[[str, object], ValueError]) -> None:
    """Check that the numbers make a convolution."""
    assert case.own is not None
    if case.layer.depthwise and case.groups != case.channels:
        raise refuse("must leave groups out for a depthwise layer", f"G{case.groups}")
    for letter, count in (("C", case.channels), ("O", case.outputs)):
        if count % case.groups:
            raise refuse(f"must have {letter} a multiple of the groups, {case.groups}", f"{letter}{count}")
    height, width = case.output_grid
    if min(height, width) < 1:
        raise refuse("must have an output of at least 1x1", f"{height}x{width}")
