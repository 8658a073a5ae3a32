"""What a kernel module says of each configuration that can be chosen, so that `audit` can compile and judge it.

A kernel module has `configurations() -> Iterable[Configuration]`; `audit.MODULES` lists the modules. Neither needs a
GPU: a configuration names types and constants, not tensors.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

ARCHS = (80, 90, 100)
# What a tensor-core kernel must contain: mma.sync, wgmma, tcgen05.mma, as machine code names them.
TENSOR_CORES: Mapping[int, tuple[str, ...]] = {80: ("HMMA",), 90: ("HGMMA",), 100: ("UTCHMMA",)}


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """One specialisation of one kernel.

    Attributes:
        name: Unique in its module, such as `C64-O64-TH4-fp16`.
        fn: The kernel, decorated with `triton.jit` or `gluon.jit`.
        signature: Argument -> type (`*fp16`, `i32`, `i64`, `tensordesc<...>`); constants may be left out.
        constexprs: Argument -> value: the kernel's constants, and the arguments that Triton specialises because they
            are 1.
        divisible: Arguments that are multiples of 16, as Triton finds out at a launch; None: every pointer.
        num_warps: Warps of a block (of the default partition where warps are specialised).
        num_stages: Depth of Triton's own pipelining; Gluon kernels ignore it.
        tensor_cores: Whether the kernel is expected to use them.
        expected: Architecture -> instructions that must be there, where `TENSOR_CORES` does not say it: a small tile
            that takes mma.sync on every architecture, for example, or TMA copies.
        archs: The architectures it can be chosen on.
        quick: Whether it is one of those that `audit --quick` compiles.
    """

    name: str
    fn: Any
    signature: Mapping[str, str]
    constexprs: Mapping[str, Any] = field(default_factory=dict)
    divisible: tuple[str, ...] | None = None
    num_warps: int = 4
    num_stages: int = 3
    tensor_cores: bool = True
    expected: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    archs: tuple[int, ...] = ARCHS
    quick: bool = False

    @property
    def is_gluon(self) -> bool:
        """Whether the kernel is written in Gluon."""
        return type(self.fn).__name__ == "GluonJITFunction"

    def expected_on(self, arch: int) -> tuple[str, ...]:
        """The instructions that the machine code for `arch` must contain."""
        return self.expected.get(arch, TENSOR_CORES[arch] if self.tensor_cores else ())

    def types(self) -> dict[str, str]:
        """The whole signature, in the kernel's order."""
        unknown = (set(self.signature) | set(self.constexprs)) - set(self.fn.arg_names)
        missing = set(self.fn.arg_names) - set(self.signature) - set(self.constexprs)
        if unknown or missing:
            raise ValueError(
                f"{self.name}: signature and constexprs must name the arguments of {self.fn.__name__}; "
                f"unknown {sorted(unknown)}, missing {sorted(missing)}"
            )
        return {n: "constexpr" if n in self.constexprs else self.signature[n] for n in self.fn.arg_names}

    def attributes(self) -> dict[tuple[int, ...], list[list[Any]]]:
        """The divisibility by 16 in the form that Triton's sources take."""
        types = self.types()
        names = [n for n, t in types.items() if t.startswith("*")] if self.divisible is None else self.divisible
        order = list(types)
        return {(order.index(n),): [["tt.divisibility", 16]] for n in names if types[n] != "constexpr"}
