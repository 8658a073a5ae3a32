"""The main loop of a kernel in its machine code: what every step costs besides its products."""

import re
from typing import NamedTuple

_LINE = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P[T0-9]+\s+)?([A-Z][A-Z0-9_.]*)([^;]*);")
_BRANCH = re.compile(r"0x([0-9a-f]+)\s*$")
PRODUCTS = ("HMMA", "HGMMA", "UTCHMMA", "UTCQMMA")


class Loop(NamedTuple):
    """Counts of one step, per warp.

    Attributes:
        instructions: All of them.
        products: Those of the tensor cores.
        barriers: Barriers of the block.
        waits: Waits for asynchronous copies or products.
    """

    instructions: int
    products: int
    barriers: int
    waits: int


def main_loop(sass: str) -> Loop | None:
    """Return the innermost loop with the most products, without products the longest; None if there is no loop.

    Args:
        sass: What `cuobjdump --dump-sass` prints of one kernel.
    """
    lines = [(int(address, 16), operation, rest) for address, operation, rest in _LINE.findall(sass)]
    spans = []
    for address, operation, rest in lines:
        target = _BRANCH.search(rest)
        # A kernel ends with a branch to itself.
        if operation.startswith("BRA") and target is not None and int(target[1], 16) < address:
            spans.append((int(target[1], 16), address))
    inner = [a for a in spans if not any(b != a and a[0] <= b[0] and b[1] <= a[1] for b in spans)]
    loops = [_count([operation for place, operation, _ in lines if a <= place <= b]) for a, b in inner]
    return max(loops, key=lambda loop: (loop.products, loop.instructions), default=None)


def _count(operations: list[str]) -> Loop:
    names = [operation.split(".")[0] for operation in operations]
    waits = sum("DEPBAR" in operation and not operation.startswith("LDGDEPBAR") for operation in operations)
    waits += sum(operation.startswith("SYNCS") and "TRYWAIT" in operation for operation in operations)
    return Loop(len(names), sum(name in PRODUCTS for name in names), names.count("BAR"), waits)
