"""Check the machine code of every kernel specialisation that can be chosen; no GPU or driver needed.

    python -m tunable_ops.triton_kernels.audit [--quick] [--arch 80 90 100] [--jobs 2] [--only TEXT]
    python -m tunable_ops.triton_kernels.audit --model

Compiles each case of `audit_cases` for each architecture and checks that it uses the tensor cores' instructions (wgmma
on sm_90), that nothing spills, and that shared and tensor memory suffice. Prints a table; if a case fails, names it and
exits with 1. With --model it prints what `predictions` expects of the cases that have targets, and the counts of their
kernels on sm_90. Importing this module does not need triton; only --model runs without it, and then prints no counts.
"""

from __future__ import annotations

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
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunable_ops.triton_kernels import unavailable_reason
from tunable_ops.triton_kernels.audit_loop import Loop, main_loop

if TYPE_CHECKING:
    from tunable_ops.triton_kernels.audit_cases import AuditCase

CASES = "tunable_ops.triton_kernels.audit_cases"  # the module whose cases() are audited
ARCHS = (80, 90, 100)
# Shared memory that one block can have, by architecture, and the columns of tensor memory.
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
TENSOR_MEMORY_LIMIT = 512
REGISTER_LIMIT = 255
# Counted in the machine code: tensor cores of each generation, TMA and asynchronous copies, spills, barriers.
INSTRUCTIONS = ("HMMA", "HGMMA", "UTCHMMA", "UTCQMMA", "UTMALDG", "LDGSTS", "STL", "LDL", "BAR")


@dataclass(frozen=True)
class Finding:
    """What the machine code of one case shows on one architecture."""

    name: str
    arch: int
    registers: int = 0
    stack: int = 0
    shared: int = 0
    counts: tuple[tuple[str, int], ...] = ()
    faults: tuple[str, ...] = ()
    loop: Loop | None = None

    def count(self, instruction: str) -> int:
        """Return how often an instruction appears."""
        return dict(self.counts).get(instruction, 0)


def compiled(case: AuditCase, arch: int) -> Any:
    """Return Triton's compiled kernel (`.asm`, `.metadata`) for an architecture, whatever this machine has."""
    import triton
    from triton.backends.compiler import GPUTarget

    return triton.compile(
        case.launch.source(),
        target=GPUTarget("cuda", arch, 32),
        options={"num_warps": case.launch.num_warps, "num_stages": case.launch.num_stages},
    )


def audit(case: AuditCase, arch: int) -> Finding:
    """Compile one case and check its machine code; a failure to compile is a fault too."""
    try:
        kernel = compiled(case, arch)
    except Exception as error:  # any compiler error is the finding
        text = str(error).strip() or repr(error)
        return Finding(case.name, arch, faults=(f"does not compile: {text.splitlines()[-1]}",))
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        resources = _cuobjdump("--dump-resource-usage", file.name)
        sass = _cuobjdump("--dump-sass", file.name)
    counts = _count(sass)
    registers, stack = (int(_search(rf"{key}:(\d+)", resources)) for key in ("REG", "STACK"))
    faults = tuple(_faults(case, arch, registers, stack, kernel.metadata, counts))
    listed = tuple(sorted(counts.items()))
    return Finding(case.name, arch, registers, stack, kernel.metadata.shared, listed, faults, main_loop(sass))


def _faults(
    case: AuditCase, arch: int, registers: int, stack: int, metadata: object, counts: dict[str, int]
) -> Iterator[str]:
    expected = case.expected_on(arch)
    if expected is not None and not counts[expected]:
        yield f"no {expected}"
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
    """Count each of INSTRUCTIONS among operations, in lines such as `/*0010*/ @P0 HMMA.16816.F32 R4, ...`."""
    operations = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?\w+\s+)?([A-Z0-9_]+)", sass)
    if not operations:
        raise RuntimeError("audit: cuobjdump printed no instructions")
    return {name: operations.count(name) for name in INSTRUCTIONS}


def _cuobjdump(*arguments: str) -> str:
    result = subprocess.run([_tool("cuobjdump"), *arguments], capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"audit: cuobjdump failed: {result.stderr.strip()}")
    return result.stdout


def _tool(name: str) -> str:
    """Find a CUDA tool: Triton's own, which matches its assembler, or the one on PATH."""
    import triton

    bundled = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    found = str(bundled) if bundled.exists() else shutil.which(name)
    if found is None:
        raise RuntimeError(f"audit: {name} must be in Triton's package or on PATH; found in neither")
    return found


def _search(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    if match is None:
        raise RuntimeError(f"audit: the output of cuobjdump has no {pattern!r}: {text!r}")
    return match.group(1)


def select(module: str = CASES, quick: bool = False, only: str = "") -> list[AuditCase]:
    """Return the cases of a module, or those marked `quick`, whose names contain `only`."""
    every = list(importlib.import_module(module).cases())
    names = [case.name for case in every]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"audit: names of cases must differ; got {repeated} more than once in {module}")
    return [case for case in every if (case.quick or not quick) and only in case.name]


@cache
def _by_name(module: str) -> dict[str, AuditCase]:
    return {case.name: case for case in select(module)}


def _audit_named(task: tuple[str, str, int]) -> Finding:
    module, name, arch = task
    return audit(_by_name(module)[name], arch)


def audit_all(
    archs: Sequence[int] = ARCHS, quick: bool = False, jobs: int = 2, only: str = "", module: str = CASES
) -> Iterator[Finding]:
    """Audit a module's cases in `jobs` processes; yield the findings in the order of the cases."""
    tasks = [(module, case.name, arch) for case in select(module, quick, only) for arch in archs]
    if jobs == 1 or len(tasks) < 2:
        yield from map(_audit_named, tasks)
        return
    # spawn: LLVM and torch both start threads, which a fork would lose
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(_audit_named, tasks)


HEAD = (
    "case",
    "sm",
    "registers",
    "stack",
    "shared",
    "tensor cores",
    "TMA",
    "cp.async",
    "spills",
    "main loop",
    "verdict",
)
WIDTHS = (60, 3, 9, 5, 6, 14, 3, 8, 6, 18, 0)


def row(finding: Finding) -> tuple[str, ...]:
    """Return the cells of a finding's row, under HEAD."""
    tensor_cores = " ".join(f"{finding.count(i)} {i}" for i in INSTRUCTIONS[:4] if finding.count(i))
    numbers = (finding.arch, finding.registers, finding.stack, finding.shared)
    copies = (finding.count("UTMALDG"), finding.count("LDGSTS"), finding.count("STL") + finding.count("LDL"))
    verdict = "; ".join(finding.faults) or "ok"
    return (finding.name, *map(str, numbers), tensor_cores or "-", *map(str, copies), described(finding.loop), verdict)


def described(loop: Loop | None) -> str:
    """Return the counts of a loop in the order of `Loop`: instructions, products, barriers, waits."""
    return "-" if loop is None else "/".join(map(str, loop))


def line(cells: Sequence[str]) -> str:
    """Align cells in columns."""
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, WIDTHS, strict=True))


def model(counted: bool) -> Iterator[str]:
    """Yield the lines of the predictions, with the counts of the kernels' main loops if triton can compile them."""
    from tunable_ops.triton_kernels import predictions

    if counted:
        from tunable_ops.triton_kernels.audit_cases import launches_of
    yield "Predicted, not measured: microseconds and ratios to the plain layer on an H100 SXM, at the faster and"
    yield "the slower rates of roofline.py. Loop: instructions/products/barriers/waits of a step, on sm_90."
    for case in predictions.CASES:
        found = predictions.predict(case)
        yield ""
        yield predictions.line(found)
        for work in found.launches if len(found.launches) <= predictions.LISTED else ():
            yield f"    {predictions.work_line(work)}"
        names = {work.kernel for work in found.launches}
        if counted and case.problem is not None:
            fused = launches_of(case.problem, case.directions)
            for audited in (one for one in fused if one.launch.kernel.__name__ in names):
                finding, name = audit(audited, 90), audited.launch.kernel.__name__
                yield f"    {name}: loop {described(finding.loop)}, {finding.registers} registers"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tunable_ops.triton_kernels.audit", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a representative subset")
    parser.add_argument("--arch", type=int, nargs="+", choices=ARCHS, default=list(ARCHS), help="default: all")
    parser.add_argument("--jobs", type=int, default=2, help="processes (default: 2)")
    parser.add_argument("--only", default="", help="only cases whose name contains this")
    parser.add_argument("--model", action="store_true", help="print predicted times of the cases that have targets")
    options = parser.parse_args(arguments)
    reason = unavailable_reason()
    if options.model:
        print("\n".join(model(counted=reason is None)))
        return 0
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
