"""The plans of bench/on_gpu.sh: order, limits, files and arguments, and that they cover what runs by default."""

import argparse
import re
from pathlib import Path

import pytest
import torch
from tunable_ops.bench import cli, providers, suites, targets
from tunable_ops.bench.gpu import plan, smoke, tune
from tunable_ops.bench.gpu.plan import TOTAL, Process, Stage, limit_of
from tunable_ops.triton_kernels.choose_algorithm import choose_algorithm

ROOT = Path(__file__).parents[2]
EVERY = [
    (name, cores, library, wgmma, stand_in)
    for name in plan.PLANS
    for cores in (1, 2, 16, 64)
    for library in (False, True)
    for wgmma in (False, True)
    for stand_in in (False, True)
]


def processes(stages: list[Stage]) -> list[Process]:
    return [process for stage in stages for step in stage.steps for process in step]


def test_the_stages_of_the_first_run() -> None:
    stages = plan.plan("first", 16, "/o", library=True, wgmma=True)
    assert [(s.name, s.seconds) for s in stages] == [
        ("environment", 30),
        ("smoke", 40),
        ("targets", 160),
        ("networks", 60),
        ("counters", 30),
        ("tests", 180),
        ("racecheck", 40),
    ]
    assert [s.name for s in stages if s.elastic] == ["tests"]
    assert [s.name for s in plan.plan("first", 16, "/o", library=False, wgmma=False)][:2] == ["build", "environment"]
    assert [s.name for s in plan.plan("second", 16, "/o", library=True, wgmma=True)] == [
        "environment",
        "tune",
        "targets",
    ]
    with pytest.raises(ValueError, match=r"^on_gpu: plan must be one of first, second; got 'third'$"):
        plan.plan("third", 16, "/o", library=True, wgmma=True)


@pytest.mark.parametrize("name", plan.PLANS)
def test_what_is_missing_is_built(name: str) -> None:
    """The library of the wgmma kernel first: it needs no nvcc, and must not wait for what does."""
    wgmma, cuda = ("csrc/build_cuda.py",), ("setup.py", "--quiet", "build_ext", "--inplace")
    for have, wanted in (
        ((False, False), [wgmma, cuda]),
        ((True, False), [wgmma]),
        ((False, True), [cuda]),
        ((True, True), None),
    ):
        first = plan.plan(name, 16, "/o", *have)[0]
        assert (first.name == "build") == (wanted is not None)
        if wanted is not None:
            assert [process.words for step in first.steps for process in step] == wanted
            assert all(len(step) == 1 for step in first.steps) and (ROOT / wanted[0][0]).exists()


@pytest.mark.parametrize("name, cores, library, wgmma, stand_in", EVERY)
def test_files_fit_what_may_come_back(name: str, cores: int, library: bool, wgmma: bool, stand_in: bool) -> None:
    stages = plan.plan(name, cores, "/folder/of/results", library, wgmma, stand_in)
    names = plan.files(stages)
    assert "summary.txt" in names and "targets.json" in names
    assert len(names) <= plan.MOST_FILES == 8
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+", file) for file in names)
    assert plan.MOST_BYTES == 16 << 20 and plan.DEEPEST == 2
    for stage in stages:
        assert len(stage.shares) == len(stage.steps) - 1, stage.name
        assert all(file in names for file in stage.results)


@pytest.mark.parametrize("name, cores, library, wgmma, stand_in", EVERY)
def test_limits_add_up_to_less_than_nine_minutes(
    name: str, cores: int, library: bool, wgmma: bool, stand_in: bool
) -> None:
    """Whatever each stage takes of its limit, all have ended at the total, and racecheck has its time."""
    assert TOTAL < 540
    stages = plan.plan(name, cores, "/o", library, wgmma, stand_in)
    for part in (0.0, 0.5, 1.0):
        elapsed = 0.0
        for index, stage in enumerate(stages):
            limit = limit_of(stage, stages[index + 1 :], elapsed)
            assert limit > 0, (stage.name, part)
            if not stage.elastic:
                assert limit <= stage.seconds
            if stage.name == "racecheck":
                assert limit >= 39
            if stage.name == "tests":
                assert limit >= (170 if (library and wgmma) or stand_in else 95)
            elapsed += part * limit
        assert elapsed <= TOTAL
    assert limit_of(stages[-1], [], TOTAL) <= 0


def test_every_stage_is_processes_of_its_own() -> None:
    stages = plan.plan("first", 16, "/o", library=True, wgmma=True)
    assert [p.label for p in stages[1].steps[0]] == list(smoke.FAMILIES)
    tests = [s for s in stages if s.name in ("tests", "racecheck")]
    for stage in tests:
        parts = [p.words[p.words.index("--part") + 1] for p in stage.steps[0]]
        assert parts == [f"{i}/12" for i in range(1, 13)]
    assert {p.tool[:3] for p in tests[1].steps[0]} == {("compute-sanitizer", "--tool", "racecheck")}
    (counters,) = next(s for s in stages if s.name == "counters").steps[0]
    assert counters.tool[:3] == ("ncu", "--clock-control", "none")
    assert all(not p.tool for p in processes(plan.plan("first", 16, "/o", True, True, stand_in=True)))


def test_tests_are_all_that_are_marked_gpu() -> None:
    marked = {f for f in (ROOT / "tests").rglob("test_*.py") if re.search(r"mark\.gpu\b", f.read_text())}
    places = [ROOT / place for place in plan.TEST_FILES]
    named = {f for place in places for f in (place.rglob("test_*.py") if place.is_dir() else [place])}
    assert marked - {Path(__file__)} == named
    assert plan.TEST_FILES[0] == "tests/gpu/test_wgmma.py"  # what runs by default


@pytest.mark.parametrize("name", plan.PLANS)
def test_the_arguments_of_benchmarks_are_known(name: str) -> None:
    parser = argparse.ArgumentParser()
    cli.add_arguments(parser)
    found = [
        p for p in processes(plan.plan(name, 16, "/o", library=True, wgmma=True)) if p.words[0] == "tunable_ops.bench"
    ]
    assert found
    for process in found:
        assert parser.parse_args(process.words[1:]).suite in cli.SUITES


def test_targets_cover_what_has_a_target() -> None:
    cases = targets.target_cases("cuda")
    assert len({case.id for case in cases}) == len(cases)
    assert [case.mode for case in cases] == ["graph"] * (len(cases) - 5) + ["eager"] * 5
    assert cases[0].direction == "both" and cases[0].alpha == "per_sample"
    kinds = {(case.layer.depthwise, case.alpha, case.direction) for case in cases}
    assert {(True, "per_sample", "forward"), (False, "shared", "forward"), (False, "per_sample", "both")} <= kinds
    assert {"grad_input", "grad_weight"} <= {case.direction for case in cases}
    for case in cases:
        names = targets.target_providers(case)
        assert set(names) <= set(providers.PROVIDERS)
        assert ("grouped-trick" in names) == (case.direction == "both")
    for device in ("cpu", "cuda"):
        for name in ("targets", "target-networks"):
            assert suites.SUITES[name].cases(device)


def test_problems_to_tune_are_those_of_the_targets() -> None:
    problems = tune.problems()
    assert len(set(problems)) == len(problems)
    assert {p.direction for p in problems} == {"forward", "input", "weight"}
    assert problems[0] == tune.problem_of(targets.target_cases("cuda")[0], "forward")
    for problem in problems:
        choose_algorithm(problem)


@pytest.mark.parametrize("family", [f for f in smoke.FAMILIES.values() if f is not None])
def test_smoke_is_what_was_promised(family: smoke.Family) -> None:
    cases = smoke.cases_of(family, "cuda")
    assert {case.dtype for case in cases} == {"bf16", "fp16"}
    assert all(case.direction == "both" for case in cases)
    if family.provider == "wgmma":
        assert {case.alpha for case in cases} == {"shared", "per_sample"}
        assert {case.layer.taps for case in cases} == {1, 3}
    if family.cases[0].startswith("3x3") and family.provider in ("triton-fused", "tunable-cuda"):
        assert {16, 32, 64} <= {case.channels for case in cases}
        assert any(case.outputs == 1 for case in cases) and any(case.size == 1 for case in cases)
        assert any(case.layer.stride == 2 for case in cases)
    for case in smoke.cases_of(family, "cpu"):
        assert case.macs < 1e5 and case.dtype == "fp32"


def test_smoke_finds_wrong_values_and_moving_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    case = smoke.cases_of(smoke.Family("tunable", ("3x3 C4 5x5 B2 per_sample",)), "cpu")[0]
    assert smoke.check(case, "tunable", "cpu") == "values, same bits twice"
    right = providers.PROVIDERS["tunable"]
    calls = []

    def spoiled(made: object) -> object:
        function = right.make(made)  # type: ignore[arg-type]

        def run(*tensors: torch.Tensor) -> torch.Tensor:
            calls.append(1)
            return function(*tensors) * (1 + gain(len(calls)))

        return run

    changed = providers.Provider("tunable", "", spoiled, right.refuses)  # type: ignore[arg-type]
    monkeypatch.setitem(providers.PROVIDERS, "tunable", changed)
    gain = lambda call: 1e-3  # noqa: E731
    with pytest.raises(ArithmeticError, match="rms error of output"):
        smoke.check(case, "tunable", "cpu")
    calls.clear()
    gain = lambda call: 1e-6 * (call > 1)  # noqa: E731
    with pytest.raises(ArithmeticError, match=r"result 0 must have the same bits a second time; \d+ differ"):
        smoke.check(case, "tunable", "cpu")
