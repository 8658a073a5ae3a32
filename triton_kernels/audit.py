"""Reads the machine code of every kernel configuration that can be chosen; needs neither GPU nor driver.

    python -m tunable_ops.triton_kernels.audit [--quick] [--arch 80 90 100] [--jobs 2] [--only TEXT]

Compiles each configuration for each architecture and asserts: the instructions that it is expected to use are there
(wgmma on sm_90), nothing spills, shared memory and tensor memory fit. Prints a table and exits with 1, naming the
configurations, if any fails. Importing it needs no triton; running does.
"""

import argparse
import importlib
import multiprocessing
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunable_ops.triton_kernels import unavailable_reason
from tunable_ops.triton_kernels.configuration import ARCHS, Configuration

# Every module with kernels that can be chosen; each has configurations().
MODULES = ("tunable_ops.triton_kernels.configurations", "tunable_ops.triton_kernels.hopper_conv2d")

# The most shared memory of one block, and the columns of tensor memory, by architecture.
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
TENSOR_MEMORY_LIMIT = 512
REGISTER_LIMIT = 255
# Counted in the machine code: tensor cores of each generation, TMA and asynchronous copies, spills.
INSTRUCTIONS = ("HMMA", "HGMMA", "UTCHMMA", "UTCQMMA", "UTMALDG", "LDGSTS", "STL", "LDL")


@dataclass(frozen=True)
class Finding:
    """What was read of one configuration on one architecture."""

    name: str
    arch: int
    registers: int = 0
    stack: int = 0
    shared: int = 0
    counts: tuple[tuple[str, int], ...] = ()
    faults: tuple[str, ...] = ()

    def count(self, instruction: str) -> int:
        """How often an instruction appears."""
        return dict(self.counts).get(instruction, 0)


def compiled(configuration: Configuration, arch: int) -> Any:
    """Triton's compiled kernel for an architecture that need not be here: `.asm`, `.metadata`."""
    import triton
    from triton.backends.compiler import GPUTarget

    if configuration.is_gluon:
        from triton.experimental.gluon._runtime import GluonASTSource as Source
    else:
        from triton.compiler import ASTSource as Source
    source = Source(configuration.fn, configuration.types(), dict(configuration.constexprs), configuration.attributes())
    return triton.compile(
        source,
        target=GPUTarget("cuda", arch, 32),
        options={"num_warps": configuration.num_warps, "num_stages": configuration.num_stages},
    )


def audit(configuration: Configuration, arch: int) -> Finding:
    """Compiles one configuration and judges its machine code; a failure to compile is a fault too."""
    try:
        kernel = compiled(configuration, arch)
    except Exception as error:  # any compiler error is the finding
        text = str(error).strip() or repr(error)
        return Finding(configuration.name, arch, faults=(f"does not compile: {text.splitlines()[-1]}",))
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        resources = _cuobjdump("--dump-resource-usage", file.name)
        counts = _count(_cuobjdump("--dump-sass", file.name))
    registers, stack = (int(_search(rf"{key}:(\d+)", resources)) for key in ("REG", "STACK"))
    faults = tuple(_faults(configuration, arch, registers, stack, kernel.metadata, counts))
    return Finding(
        configuration.name, arch, registers, stack, kernel.metadata.shared, tuple(sorted(counts.items())), faults
    )


def _faults(
    configuration: Configuration, arch: int, registers: int, stack: int, metadata: object, counts: dict[str, int]
) -> Iterator[str]:
    for instruction in configuration.expected_on(arch):
        if not counts.get(instruction):
            yield f"no {instruction}"
    if counts["STL"] or counts["LDL"] or stack:
        yield f"spills ({stack} bytes of stack, {counts['STL']} stores, {counts['LDL']} loads)"
    if registers > REGISTER_LIMIT:
        yield f"{registers} registers > {REGISTER_LIMIT}"
    shared = getattr(metadata, "shared", 0)
    if shared > SHARED_LIMIT[arch]:
        yield f"{shared} bytes of shared memory > {SHARED_LIMIT[arch]}"
    columns = getattr(metadata, "tmem_size", None) or 0
    if columns > TENSOR_MEMORY_LIMIT:
        yield f"{columns} columns of tensor memory > {TENSOR_MEMORY_LIMIT}"


def _count(sass: str) -> dict[str, int]:
    """How often each of INSTRUCTIONS is the operation of a line such as `/*0010*/ @P0 HMMA.16816.F32 R4, ...`."""
    operations = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?\w+\s+)?([A-Z0-9_]+)", sass)
    if not operations:
        raise RuntimeError("cuobjdump gave no instructions")
    return {name: operations.count(name) for name in INSTRUCTIONS}


def _cuobjdump(*arguments: str) -> str:
    result = subprocess.run([_tool("cuobjdump"), *arguments], capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"cuobjdump failed: {result.stderr.strip()}")
    return result.stdout


def _tool(name: str) -> str:
    """The one in Triton's package, which reads what Triton's assembler writes; else the one on PATH."""
    import triton

    bundled = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    found = str(bundled) if bundled.exists() else shutil.which(name)
    if found is None:
        raise RuntimeError(f"audit: {name} must be in Triton's package or on PATH; it is in neither")
    return found


def _search(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    if match is None:
        raise RuntimeError(f"cuobjdump's output has no {pattern!r}: {text!r}")
    return match.group(1)


def select(module: str, quick: bool = False, only: str = "") -> list[Configuration]:
    """The configurations of a module: all, or those marked `quick` (the first of each kernel if none is)."""
    every = list(importlib.import_module(module).configurations())
    names = [configuration.name for configuration in every]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"{module}: names of configurations must differ; got {repeated} more than once")
    if quick:
        firsts = {configuration.fn: configuration for configuration in reversed(every)}
        marked = [c for c in every if c.quick]
        every = marked or [c for c in every if firsts[c.fn] is c]
    return [configuration for configuration in every if only in configuration.name]


def _audit_named(task: tuple[str, str, int]) -> Finding:
    module, name, arch = task
    return audit(next(c for c in select(module) if c.name == name), arch)


def audit_all(
    modules: Sequence[str] = MODULES,
    archs: Sequence[int] = ARCHS,
    quick: bool = False,
    jobs: int = 2,
    only: str = "",
) -> Iterator[Finding]:
    """Audits whole modules, `jobs` at a time; yields as they come, in an order that does not depend on the timing."""
    tasks = [
        (module, configuration.name, arch)
        for module in modules
        for configuration in select(module, quick, only)
        for arch in archs
        if arch in configuration.archs
    ]
    if jobs == 1 or len(tasks) < 2:
        yield from map(_audit_named, tasks)
        return
    # spawn: LLVM and torch both start threads, which a fork would lose
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(_audit_named, tasks)


HEAD = ("configuration", "sm", "registers", "stack", "shared", "tensor cores", "TMA", "cp.async", "spills", "verdict")
WIDTHS = (60, 3, 9, 5, 6, 14, 3, 8, 6, 0)


def row(finding: Finding) -> tuple[str, ...]:
    """The cells of the table's row of a finding, under HEAD."""
    tensor_cores = " ".join(f"{finding.count(i)} {i}" for i in INSTRUCTIONS[:4] if finding.count(i))
    numbers = (finding.arch, finding.registers, finding.stack, finding.shared)
    copies = (finding.count("UTMALDG"), finding.count("LDGSTS"), finding.count("STL") + finding.count("LDL"))
    verdict = "; ".join(finding.faults) or "ok"
    return (finding.name, *map(str, numbers), tensor_cores or "-", *map(str, copies), verdict)


def line(cells: Sequence[str]) -> str:
    """Cells in columns."""
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, WIDTHS, strict=True))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tunable_ops.triton_kernels.audit", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a representative subset")
    parser.add_argument("--arch", type=int, nargs="+", choices=ARCHS, default=list(ARCHS), help="architectures")
    parser.add_argument("--jobs", type=int, default=2, help="processes (default: 2)")
    parser.add_argument("--only", default="", help="configurations whose name contains this")
    options = parser.parse_args(arguments)
    reason = unavailable_reason()
    if reason is not None:
        print(f"audit: triton must be installed; {reason}", file=sys.stderr)
        return 2
    print(line(HEAD))
    findings = []
    for finding in audit_all(archs=options.arch, quick=options.quick, jobs=options.jobs, only=options.only):
        print(line(row(finding)), flush=True)
        findings.append(finding)
    failed = [finding for finding in findings if finding.faults]
    print(f"{len(findings)} compiled, {len(failed)} with faults")
    for finding in failed:
        print(f"{finding.name} on sm_{finding.arch}: {'; '.join(finding.faults)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
