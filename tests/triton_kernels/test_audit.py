"""The machine-code audit: it finds each kind of fault, and finds none in the kernels that can be chosen."""

import dataclasses
import importlib.util
import re
import subprocess
import sys
from typing import Any

import pytest
from tunable_ops.triton_kernels import audit, hopper_conv2d, unavailable_reason
from tunable_ops.triton_kernels.configuration import ARCHS, Configuration

if unavailable_reason() is not None:
    pytest.skip(f"the audit compiles: {unavailable_reason()}", allow_module_level=True)

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
    without = dataclasses.replace(kernels.PLAIN, tensor_cores=False)
    assert audit.audit(without, arch).faults == ()
    wanting = dataclasses.replace(without, expected={arch: ("UTMALDG",)})
    assert audit.audit(wanting, arch).faults == ("no UTMALDG",)


def test_too_much_shared_memory() -> None:
    finding = audit.audit(kernels.TOO_MUCH_SHARED, 80)
    assert [fault for fault in finding.faults if fault.endswith("bytes of shared memory > 166912")] != []


def test_a_kernel_that_does_not_compile() -> None:
    (fault,) = audit.audit(kernels.BROKEN, 90).faults
    assert fault.startswith("does not compile: ")


def test_a_configuration_names_the_kernels_arguments() -> None:
    wrong = dataclasses.replace(kernels.GOOD, name="wrong", signature={"x_ptr": "*fp16", "y_ptr": "*fp16"})
    message = "unknown ['y_ptr'], missing ['K', 'out_ptr', 'w_ptr']"
    with pytest.raises(ValueError, match="wrong: signature and constexprs must name") as raised:
        wrong.types()
    assert message in str(raised.value)
    assert kernels.GOOD.types() == {
        **kernels.MATRIX,
        "BLOCK_M": "constexpr",
        "BLOCK_N": "constexpr",
        "BLOCK_K": "constexpr",
    }
    assert list(kernels.PLAIN.attributes()) == [(0,), (1,)]  # every pointer, where nothing is said


def test_selection(monkeypatch: pytest.MonkeyPatch) -> None:
    def names(configurations: list[Configuration], **named: Any) -> list[str]:
        monkeypatch.setattr(kernels, "configurations", lambda: iter(configurations))
        return [c.name for c in audit.select(THIS, **named)]

    good, other = kernels.GOOD, dataclasses.replace(kernels.GOOD, name="other")
    marked = dataclasses.replace(other, name="marked", quick=True)
    assert names([good, other, kernels.PLAIN]) == ["good", "other", "plain"]
    assert names([good, other, kernels.PLAIN], quick=True) == ["good", "plain"]  # the first of each kernel
    assert names([good, marked, kernels.PLAIN], quick=True) == ["marked"]
    assert names([good, other], only="oth") == ["other"]
    with pytest.raises(ValueError, match=r"must differ; got \['good'\] more than once"):
        names([good, good])


def test_processes_agree_and_keep_the_order() -> None:
    alone = list(audit.audit_all([THIS], [90], jobs=1))
    assert [(f.name, f.arch, f.faults) for f in alone] == [("plain", 90, ("no HGMMA",)), ("good", 90, ())]
    assert list(audit.audit_all([THIS], [90], jobs=2)) == alone


def test_the_command_names_what_fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    findings = [audit.audit(configuration, 90) for configuration in kernels.configurations()]
    monkeypatch.setattr(audit, "audit_all", lambda **_: findings)
    assert audit.main(["--arch", "90"]) == 1
    printed = capsys.readouterr()
    assert "2 compiled, 1 with faults" in printed.out
    assert printed.out.splitlines()[0].split()[:3] == ["configuration", "sm", "registers"]
    assert printed.err == "plain on sm_90: no HGMMA\n"
    monkeypatch.setattr(audit, "unavailable_reason", lambda: "triton is not installed")
    assert audit.main([]) == 2


def test_modules_are_listed() -> None:
    assert all(importlib.util.find_spec(module) for module in audit.MODULES)
    for module in audit.MODULES:
        for configuration in audit.select(module):
            configuration.types()
            assert set(configuration.archs) <= set(ARCHS)


def test_representative_configurations() -> None:
    """As a user runs it, in a process of its own."""
    result = subprocess.run(
        [sys.executable, "-m", "tunable_ops.triton_kernels.audit", "--quick"], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_launcher_knows_its_shared_memory() -> None:
    """It counts bytes before anything is compiled; a tile that it takes must be one that fits."""
    configuration = audit.select("tunable_ops.triton_kernels.hopper_conv2d", quick=True)[0]
    names = ("TH", "BLOCK_O", "BLOCK_C", "CHUNKS", "SLOTS")
    tile = hopper_conv2d.Tile(*(configuration.constexprs[name] for name in names))
    counted = hopper_conv2d.shared_bytes(tile, configuration.constexprs["KS"])
    assert audit.audit(configuration, 90).shared == counted


def test_the_warps_meet_before_shared_memory_changes_hands() -> None:
    """The compiler places the Hopper kernel's barriers; the emulator, which has one thread, cannot miss them.

    A panel just written must be fenced for the tensor cores in every thread, then all warps must meet, before a
    product reads it; and all warps must have waited for their products before one of them starts a copy over them.
    """
    configuration = audit.select("tunable_ops.triton_kernels.hopper_conv2d", quick=True)[0]
    seen = set()
    for block in re.split(r"\n\$L__BB\d+_\d+:|\n// %bb", audit.compiled(configuration, 90).asm["ptx"]):
        apart = {"wgmma.mma_async", "cp.async.bulk.tensor"}  # what the warps must meet before
        for event in re.findall(
            r"\b(bar\.sync|wgmma\.mma_async|wgmma\.wait_group|cp\.async\.bulk\.tensor|fence\.proxy\.async)", block
        ):
            seen.add(event)
            assert event not in apart, f"no barrier before {event}"
            if event == "bar.sync":
                apart = set()
            elif event == "fence.proxy.async":
                apart.add("wgmma.mma_async")
            elif event == "wgmma.wait_group":
                apart.add("cp.async.bulk.tensor")
    assert {"fence.proxy.async", "wgmma.wait_group", "wgmma.mma_async", "cp.async.bulk.tensor"} <= seen


@pytest.mark.slow
def test_every_configuration() -> None:
    findings = audit.audit_all()
    assert [(f.name, f.arch, f.faults) for f in findings if f.faults] == []
