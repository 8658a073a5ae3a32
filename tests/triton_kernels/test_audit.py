"""The machine-code audit finds each kind of fault, and none in the kernels that can be chosen."""

import dataclasses
import re
import subprocess
import sys
from typing import Any

import pytest
from tunable_ops.triton_kernels import audit, unavailable_reason

if unavailable_reason() is not None:
    pytest.skip(f"the audit compiles: {unavailable_reason()}", allow_module_level=True)

from tunable_ops.triton_kernels.audit_cases import AuditCase

from tests.triton_kernels import audited_kernels as kernels

THIS = "tests.triton_kernels.audited_kernels"


@pytest.mark.parametrize("arch, tensor_cores", [(80, "HMMA"), (90, "HGMMA"), (100, "UTCHMMA")])
def test_a_good_kernel(arch: int, tensor_cores: str) -> None:
    finding = audit.audit(kernels.GOOD, arch)
    assert finding.faults == ()
    assert finding.count(tensor_cores) > 0 and finding.count("LDGSTS") > 0
    assert 32 <= finding.registers <= 255 and finding.shared > 16384 and finding.stack == 0
    other = {"HMMA", "HGMMA", "UTCHMMA"} - {tensor_cores}
    assert all(finding.count(instruction) == 0 for instruction in other)


def test_a_spilling_kernel() -> None:
    finding = audit.audit(kernels.SPILLING, 90)
    assert len(finding.faults) == 1 and finding.faults[0].startswith("spills (")
    assert finding.count("STL") > 0 and finding.count("LDL") > 0 and finding.stack > 0


@pytest.mark.parametrize("arch, instruction", [(80, "HMMA"), (90, "HGMMA"), (100, "UTCHMMA")])
def test_a_kernel_without_tensor_cores(arch: int, instruction: str) -> None:
    assert audit.audit(kernels.PLAIN, arch).faults == (f"no {instruction}",)
    assert audit.audit(dataclasses.replace(kernels.PLAIN, rows=None), arch).faults == ()


def test_small_tiles_use_the_instruction_of_all_architectures() -> None:
    expected = {
        rows: [dataclasses.replace(kernels.PLAIN, rows=rows).expected_on(a) for a in audit.ARCHS] for rows in (32, 64)
    }
    assert expected == {32: ["HMMA"] * 3, 64: ["HMMA", "HGMMA", "UTCHMMA"]}


def test_too_much_shared_memory() -> None:
    finding = audit.audit(kernels.TOO_MUCH_SHARED, 80)
    assert [fault for fault in finding.faults if fault.endswith("bytes of shared memory > 166912")] != []


def test_a_kernel_that_does_not_compile() -> None:
    (fault,) = audit.audit(kernels.BROKEN, 90).faults
    assert fault.startswith("does not compile: ")


def test_selection(monkeypatch: pytest.MonkeyPatch) -> None:
    def names(cases: list[AuditCase], **named: Any) -> list[str]:
        monkeypatch.setattr(kernels, "cases", lambda: iter(cases))
        return [case.name for case in audit.select(THIS, **named)]

    good, other = kernels.GOOD, dataclasses.replace(kernels.GOOD, name="other")
    marked = dataclasses.replace(other, name="marked", quick=True)
    assert names([good, other, kernels.PLAIN]) == ["good", "other", "plain"]
    assert names([good, marked, kernels.PLAIN], quick=True) == ["marked"]
    assert names([good, other], only="oth") == ["other"]
    with pytest.raises(ValueError, match=r"must differ; got \['good'\] more than once"):
        names([good, good])


def test_processes_agree_and_keep_the_order() -> None:
    alone = list(audit.audit_all([90], jobs=1, module=THIS))
    assert [(f.name, f.arch, f.faults) for f in alone] == [("plain", 90, ("no HGMMA",)), ("good", 90, ())]
    assert list(audit.audit_all([90], jobs=2, module=THIS)) == alone


def test_the_command_names_what_fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    findings = [audit.audit(case, 90) for case in kernels.cases()]
    monkeypatch.setattr(audit, "audit_all", lambda **_: findings)
    assert audit.main(["--arch", "90"]) == 1
    printed = capsys.readouterr()
    assert "2 compiled, 1 with faults" in printed.out
    assert printed.out.splitlines()[0].split()[:3] == ["case", "sm", "registers"]
    assert printed.err == "plain on sm_90: no HGMMA\n"
    monkeypatch.setattr(audit, "unavailable_reason", lambda: "triton is not installed")
    assert audit.main([]) == 2


def test_every_case_has_a_source() -> None:
    for case in audit.select():
        case.launch.source()


def test_representative_cases() -> None:
    """Run the audit as users do, in its own process."""
    import triton

    result = subprocess.run(
        [sys.executable, "-m", "tunable_ops.triton_kernels.audit", "--quick"], capture_output=True, text=True
    )
    faults = result.stderr.splitlines()
    if triton.__version__.startswith("3.6."):  # its ptxas spills up to three registers of contractions of 16 rows
        spills = re.compile(r"contract-\S+-R16\S* on sm_\d+: spills \((8|16) bytes")
        faults = [fault for fault in faults if not spills.match(fault)]
    assert faults == [] and (result.returncode == 0 or result.stderr), result.stdout + result.stderr


@pytest.mark.slow
def test_every_case() -> None:
    findings = audit.audit_all()
    assert [(f.name, f.arch, f.faults) for f in findings if f.faults] == []
