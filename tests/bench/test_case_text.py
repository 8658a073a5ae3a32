"""Cases of one's own, and how figures that vary are marked."""

import json
from pathlib import Path
from typing import Any

import pytest
from tunable_ops.bench import cases, cli, machine, measure, problem, providers, report, results_file, step, suites
from tunable_ops.bench.case_text import GRAMMAR, read_case

from tunable_ops.cli import main as tunable_ops_command

FAST = measure.Settings(rounds=3, min_call=0, budget=0.1)
TEXTS = [
    "3x3 C4 O6 9x11 B2 P2",
    "3x3 C4 O6 G2 S2 D2 pad3 12x9 B2 P3 per_sample both",
    "dw5x5 C4 7x9 B2 per-sample",
    "dw3x3 C4 O8 7x9 B2",
    "up3x3 C4 O2 G2 5x6 B2 both",
    "up2x2 C4 5x6 S3 pad1 D2 B2 map",
    "down3x3 C3 9x12 B2 contiguous both",
    "4x4 C3 O5 8x9 S2 B2",
    "1x1-C3-O5-8x9-S2-B2-map",
]


def test_a_line_is_a_case() -> None:
    case = read_case("3x3 C48 O96 100x120 B2 P3 G4 S2 D2 pad5 per-sample bf16 contiguous both compile")
    assert (case.kind, case.channels, case.outputs, case.size, case.width) == ("3x3", 48, 96, 100, 120)
    assert (case.batch, case.kernels, case.groups) == (2, 3, 4)
    assert (case.alpha, case.dtype, case.layout, case.direction, case.mode) == (
        *("per_sample", "bf16", "contiguous", "both", "compile"),
    )
    assert (case.layer.stride, case.layer.dilation, case.layer.padding) == (2, 2, 5)
    plain = read_case("5x5 C16 8x8")
    assert (plain.outputs, plain.batch, plain.kernels, plain.groups, plain.layer.padding) == (16, 1, 2, 1, 2)
    assert (plain.alpha, plain.dtype, plain.layout, plain.direction, plain.mode) == (
        *("shared", "fp32", "channels_last", "forward", "eager"),
    )
    assert read_case("8x8 5x5 C16").kind == "8x8"  # the layer stands first


def test_kinds_of_suites_are_read_as_they_are() -> None:
    for name, kind in cases.KINDS.items():
        assert cases.kind_named(name) == kind
        own, suite = read_case(f"{name} C4 6x6 B2"), cases.Case(name, 4, 6, 2)
        assert (own.outputs, own.groups, own.output_grid, own.macs, own.bytes) == (
            *(suite.outputs, suite.groups, suite.output_grid, suite.macs, suite.bytes),
        )


@pytest.mark.parametrize("text", TEXTS)
def test_an_id_is_read_back_and_figures_match_what_runs(text: str) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    case = read_case(text)
    assert read_case(case.id) == case
    made = problem.build(case, "cpu")
    with FlopCounterMode(display=False) as counter:
        output = providers.PROVIDERS["plain"].make(made)(*providers.leaves(made, "plain"))
    assert tuple(output.shape) == (case.batch, case.outputs, *case.output_grid)
    assert counter.get_total_flops() == 2 * case.macs
    assert made.grad_output.shape == output.shape
    want = problem.expected(made)
    for name in ("tunable", "p-convolutions", "grouped-trick", "one-convolution", "loop"):
        provider = providers.PROVIDERS[name]
        if provider.refuses(made) is None:
            got = step.make(provider.make(made), providers.leaves(made, name), made.grad_output, case.direction)()
            problem.check(name, got, want, made)


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "must begin with a layer; got nothing"),
        ("C4 3x3 8x8", "must begin with a layer such as 3x3 or dw3x3; got 'C4'"),
        ("3x5 C4 8x8", "must begin with a layer such as 3x3 or dw3x3; got '3x5'"),
        ("0x0 C4 8x8", "must begin with a layer"),
        ("3x3 8x8", "must give input channels, as in C64; got none"),
        ("3x3 C4", "must give a size, as in 64x64; got none"),
        ("3x3 C4 8x8 X9", "must have parts that it knows; got 'X9'"),
        ("3x3 C4 8x8 per_smple", r"must have parts that it knows \(did you mean per_sample\?\); got 'per_smple'"),
        ("3x3 C4 8x8 C5", "must give channels once; got 'C5'"),
        ("3x3 C4 8x8 map shared", "must give alpha once; got 'shared'"),
        ("3x3 C4 8x8 B0", "must have B at least 1; got 'B0'"),
        ("3x3 C4 8x8 P0", "must have P at least 1; got 'P0'"),
        ("3x3 C4 8x0", "must have W at least 1; got '8x0'"),
        ("3x3 C5 8x8 G2", "must have C a multiple of the groups, 2; got C5"),
        ("3x3 C4 O5 8x8 G2", "must have O a multiple of the groups, 2; got O5"),
        ("dw3x3 C4 8x8 G2", "must leave groups out for a depthwise layer; got G2"),
        ("dw3x3 C4 O6 8x8", "must have O a multiple of the groups, 4; got O6"),
        ("7x7 C4 9x6 pad0", "must have an output of at least 1x1; got 3x0"),
    ],
)
def test_errors_say_the_grammar(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^bench: --case {message}") as found:
        read_case(text)
    assert str(found.value).endswith(GRAMMAR) and repr(text) in str(found.value)


def test_the_grammars_example_and_words_are_read() -> None:
    assert read_case(GRAMMAR.splitlines()[-1].removeprefix("Example: ")).alpha == "per_sample"
    for word in (*cases.ALPHAS, *cases.DTYPES, *cases.LAYOUTS, *cases.PASSES, *cases.MODES):
        assert word in GRAMMAR
        assert word in read_case(f"3x3 C4 8x8 {word}").id


def test_letters_may_be_small_or_large() -> None:
    """Those of the layer were refused where they were large."""
    assert read_case("DW3X3 c4 8X9 PAD0") == read_case("dw3x3 C4 8x9 pad0")


def test_both_commands_print_the_grammar_line_by_line(capsys: Any) -> None:
    """`tunable-ops bench` pressed it into one line."""
    for command in (cli.main, lambda words: tunable_ops_command(["bench", *words])):
        assert command(["--case", "3x3 C4"]) == 2
        assert capsys.readouterr().err.endswith(GRAMMAR + "\n")


def test_the_command_measures_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(machine, "peaks", lambda device, dtypes: {"copy_gbps": 10.0, "matmul_tflops_fp32": 0.1})
    words = ["--case", "3x3 C4 O6 9x11 B2", "--case", "1x1 C4 8x8", "--device", "cpu"]
    assert cli.main([*words, "--list"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == read_case("3x3 C4 O6 9x11 B2").id
    assert cli.main([*words, "--providers", "tunable", "--quick", "--out", str(tmp_path / "r.json")]) == 0
    out = capsys.readouterr().out
    assert "time over that of the plain convolution, lower is better: median [quartiles]" in out.splitlines()[1]
    results = json.loads((tmp_path / "r.json").read_text())
    assert results["suite"] == "own" and [row["id"] for row in results["rows"]] == [
        read_case("3x3 C4 O6 9x11 B2").id,
        read_case("1x1 C4 8x8").id,
    ]
    assert results["rows"][0]["case"]["own"]["width"] == 11
    results_file.read(tmp_path / "r.json")
    assert cli.main(["--from", str(tmp_path / "r.json")]) == 0
    assert "lower is better" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words, message",
    [
        (["--case", "3x3 C4"], "--case must give a size"),
        (["--case", "3x3 C4 8x8", "--suite", "host"], "--suite must be left out beside --case; got host"),
        (["--case", "3x3 C4 8x8", "--cases", "kind=1x1"], "--cases must be left out beside --case; got kind=1x1"),
        (["--suite", "own"], "--suite must be one of"),
        (["--case", "3x3 C4 8x8", "--runs", "x"], "--runs must be left out"),
    ],
)
def test_what_does_not_go_together(words: list[str], message: str, capsys: Any) -> None:
    assert cli.main([*words, "--list"]) == 2
    assert message in capsys.readouterr().err


def test_an_unknown_id_lists_the_five_nearest() -> None:
    suite = suites.SUITES["operators"].cases("cpu")
    wanted = suite[3].id.replace("shared", "shred")
    with pytest.raises(ValueError, match="Nearest") as found:
        cases.select(suite, [wanted])
    listed = str(found.value).splitlines()[1:]
    assert len(listed) == 5 and listed[0].strip() == suite[3].id


def row(q1: float, q3: float) -> dict[str, Any]:
    figures = {"seconds": 1e-3, "ratio": 1.0, "ratio_q1": q1, "ratio_q3": q3, "status": "ok"}
    return {"id": "x", "network": {}, "providers": {"plain": dict(figures, ratio_q1=1, ratio_q3=1), "tunable": figures}}


@pytest.mark.parametrize("q1, q3, marked", [(0.9, 1.3, False), (0.9, 1.34, False), (0.9, 1.36, True), (0.5, 1.0, True)])
def test_wide_quartiles_are_marked(q1: float, q3: float, marked: bool) -> None:
    found = row(q1, q3)
    assert (report.UNSTEADY in report.line(found)) == marked
    assert len(report.unsteady_ratios({"rows": [found]})) == marked
    assert (report.UNSTEADY in "".join(report._table([found], ["tunable"]))) == marked
