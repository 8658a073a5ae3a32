"""Which integers of a launch its machine code depends on, by the names of the kernels' parameters.

Every integer that is compiled in costs a compilation for each value that a program meets. Those that follow the picture
or the batch are not: a new size runs the machine code that is there. What is needed for accesses of 16 bytes is kept,
that steps between pixels are multiples of 8 elements: in channels_last it depends on the number of channels alone.

picture, tiles, alpha_strides         sizes that follow the picture or the batch: values without a hint. Where columns
                                      are contiguous, `picture` tells if all of it is a multiple of 8
rows                                  likewise, but 1 is a constant: a shared alpha's only sum needs no loop
x_, y_, dy_, dx_strides               a channel (or column) step of 1 is a constant; if all other steps are multiples of
                                      8, or in channels_last of 4, each has that hint
outputs, channels, w_, g_strides      what follows the number of channels: 1 is a constant, multiples of 16, 8 and 4
                                      have the hint
others                                as Triton's own launches do: 1 is a constant, multiples of 16 have the hint
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

FREE = frozenset({"picture", "tiles", "alpha_strides"})
PIXEL_STEPS = frozenset({"x_strides", "y_strides", "dy_strides", "dx_strides", "part_strides"})
BY_CHANNELS = frozenset({"outputs", "channels", "w_strides", "g_strides"})
# Elements of the smallest dtype in 16 bytes, and in 8.
VECTOR, HALF = 8, 4

# The pointer's type in a signature, and the element's type in triton.language.
POINTERS = {
    torch.float32: ("*fp32", "float32"),
    torch.float16: ("*fp16", "float16"),
    torch.bfloat16: ("*bf16", "bfloat16"),
    torch.int32: ("*i32", "int32"),
    torch.int64: ("*i64", "int64"),
}

Path = tuple[int, ...]


class Specialisation(NamedTuple):
    """The arguments of `triton.compiler.ASTSource`: types by parameter, constants and divisibility by path."""

    signature: dict[str, Any]
    constants: dict[Path, Any]
    divisibility: dict[Path, int]

    def attributes(self) -> dict[Path, list[list[Any]]]:
        """Return the divisibility as Triton's attributes."""
        return {path: [["tt.divisibility", number]] for path, number in self.divisibility.items()}

    def key(self) -> tuple[Any, ...]:
        """Return what tells specialisations of a kernel apart."""
        return tuple(self.signature.values()), tuple(self.constants.items()), tuple(self.divisibility.items())


def specialise(names: Sequence[str], arguments: Sequence[Any], constants: dict[str, Any]) -> Specialisation:
    """Return the specialisation of a launch.

    Args:
        names: Names of the kernel's parameters.
        arguments: Values of the first of them: tensors, ints and tuples of ints.
        constants: Values of the others.
    """
    found = Specialisation({}, {(names.index(name),): value for name, value in constants.items()}, {})
    named = list(zip(names, arguments, strict=False))
    by_columns = any(name in PIXEL_STEPS and value[1] != 1 for name, value in named)
    for i, (name, value) in enumerate(named):
        if isinstance(value, Tensor):
            # Blends are read one value at a time, and those of a part of the batch start anywhere.
            if name != "alpha_ptr" and (value.device.type == "meta" or value.data_ptr() % 16 == 0):
                found.divisibility[i,] = 16
            found.signature[name] = POINTERS[value.dtype][0]
        elif name in PIXEL_STEPS:
            found.signature[name] = _pixel_steps(value, i, found)
        elif name in FREE:
            if name == "picture" and by_columns:
                _hint_all(value, i, found)
            found.signature[name] = tuple(_type(v) for v in value)
        elif name == "rows":
            found.constants.update({(i, j): 1 for j, v in enumerate(value) if v == 1})
            found.signature[name] = tuple("constexpr" if v == 1 else _type(v) for v in value)
        else:
            hints = (16, VECTOR, HALF) if name in BY_CHANNELS else (16,)
            if isinstance(value, tuple):
                found.signature[name] = tuple(_as_triton(v, (i, j), found, hints) for j, v in enumerate(value))
            else:
                found.signature[name] = _as_triton(value, (i,), found, hints)
    found.signature.update(dict.fromkeys(constants, "constexpr"))
    return found


def _pixel_steps(strides: tuple[int, ...], i: int, found: Specialisation) -> tuple[str, ...]:
    unit = next((j for j in (1, len(strides) - 1) if strides[j] == 1), None)
    steps = [j for j in range(len(strides)) if j != unit]
    hints = (VECTOR, HALF) if unit == 1 else (VECTOR,)
    hint = next((n for n in hints if all(strides[j] % n == 0 for j in steps)), None)
    if hint is not None:
        found.divisibility.update({(i, j): hint for j in steps})
    if unit is not None:
        found.constants[i, unit] = 1
    return tuple("constexpr" if j == unit else _type(value) for j, value in enumerate(strides))


def _hint_all(values: tuple[int, ...], i: int, found: Specialisation) -> None:
    if all(value % VECTOR == 0 for value in values):
        found.divisibility.update({(i, j): VECTOR for j in range(len(values))})


def _as_triton(value: int, path: Path, found: Specialisation, hints: Sequence[int]) -> str:
    if value == 1:
        found.constants[path] = 1
        return "constexpr"
    hint = next((n for n in hints if value % n == 0), None)
    if hint is not None:
        found.divisibility[path] = hint
    return _type(value)


def _type(value: int) -> str:
    return "i32" if -(1 << 31) <= value < 1 << 31 else "i64"
