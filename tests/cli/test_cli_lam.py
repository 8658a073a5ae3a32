"""Lambda on the command line: every way to write it, sweeps, names."""

from dataclasses import replace

import pytest

from tunable_ops import LambdaSpec, positions
from tunable_ops.cli import lam as lambdas
from tunable_ops.cli import main


def spec(names=("denoise", "keep"), domain="simplex", ranges=None, defaults=None):
    count = len(names)
    return LambdaSpec(
        names=tuple(names),
        ranges=tuple(ranges or [(0.0, 1.0)] * count),
        defaults=tuple(defaults or ([1 / count] * count if domain == "simplex" else [0.0] * count)),
        domain=domain,
    )


def silent(text):
    raise AssertionError(f"unexpected warning: {text}")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.3,0.7", (0.3, 0.7)),
        (" 0.3 , 7e-1", (0.3, 0.7)),
        ("1,0", (1.0, 0.0)),
        ("denoise=0.3,keep=0.7", (0.3, 0.7)),
        ("keep=0.7, denoise = 0.3", (0.3, 0.7)),
        ("keep=0.75", (0.25, 0.75)),
    ],
)
def test_parse_on_the_simplex(text, expected):
    assert lambdas.parse(text, spec(), silent) == pytest.approx(expected, abs=1e-12)


def test_left_out_names_share_the_rest_or_take_their_defaults():
    three = spec(("a", "b", "c"), defaults=(0.2, 0.2, 0.6))
    assert lambdas.parse("a=0.2", three, silent) == pytest.approx((0.2, 0.2, 0.6))
    assert lambdas.parse("c=0.5", three, silent) == pytest.approx((0.25, 0.25, 0.5))
    corner = spec(("a", "b", "c"), defaults=(1.0, 0.0, 0.0))
    assert lambdas.parse("a=0.5", corner, silent) == pytest.approx((0.5, 0.25, 0.25))
    box = spec(("a", "b"), domain="box", defaults=(0.1, 0.9))
    assert lambdas.parse("a=1", box, silent) == (1.0, 0.9)
    assert lambdas.parse("1,1", box, silent) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "0.3",
            r"--lam must have 2 values: denoise 0 to 1 \(default 0.5\), keep 0 to 1 \(default 0.5\); got '0.3': some "
            r"can be given by name, such as denoise=0.3$",
        ),
        ("0.3,0.3,0.4", r"--lam must have 2 values: .*; got '0.3,0.3,0.4'$"),
        ("0.3,nan", r"--lam must be finite numbers; got '0.3,nan'"),
        ("0.3,inf", r"--lam must be finite numbers"),
        ("denoise=nan", r"--lam must be finite numbers"),
        ("0.3,much", r"--lam must be numbers such as 0.3,0.7 or name=0.3; got '0.3,much'"),
        ("", r"--lam must have 2 values"),
        (",", r"--lam must be numbers such as"),
        ("denoise=", r"--lam must be numbers such as"),
        ("0.3,keep=0.7", r"--lam must be all numbers or all name=number"),
        (
            "denoice=1",
            r"must name parameters of the network \(denoise, keep\); got 'denoice'; did you mean 'denoise'\?",
        ),
        ("zzz=1", r"must name parameters of the network \(denoise, keep\); got 'zzz'$"),
        ("keep=1,keep=0", r"--lam must name each parameter once"),
        ("0,0", r"--lam must sum to 1 \(denoise, keep\); got '0,0'"),
        ("-1,0.5", r"--lam must sum to 1"),
    ],
)
def test_bad_lambdas(text, message):
    with pytest.raises(ValueError, match=message):
        lambdas.parse(text, spec(), silent)


def test_another_sum_is_divided_out_with_a_warning():
    warnings = []
    assert lambdas.parse("3,1", spec(), warnings.append) == (0.75, 0.25)
    assert warnings == ["--lam must sum to 1; got '3,1', which sums to 4: using denoise 0.75, keep 0.25"]


def test_outside_the_range_is_used_with_a_warning():
    warnings = []
    assert lambdas.parse("1.25,-0.25", spec(), warnings.append) == (1.25, -0.25)
    assert warnings == [
        "denoise = 1.25 is outside the range 0..1 of the training",
        "keep = -0.25 is outside the range 0..1 of the training",
    ]
    warnings.clear()
    wide = spec(("sigma",), domain="box", ranges=[(0.0, 50.0)])
    assert lambdas.parse("sigma=60", wide, warnings.append) == (60.0,)
    assert len(warnings) == 1


def test_sweeps():
    assert lambdas.sweep(spec(), 3) == [("denoise", [(1.0, 0.0), (0.5, 0.5), (0.0, 1.0)])]
    one = spec(("sigma",), domain="box", ranges=[(5.0, 25.0)], defaults=(5.0,))
    assert lambdas.sweep(one, 3) == [("sigma", [(5.0,), (15.0,), (25.0,)])]
    two = spec(("a", "b"), domain="box", ranges=[(0.0, 1.0), (-1.0, 1.0)], defaults=(0.5, 0.25))
    assert lambdas.sweep(two, 2) == [("a", [(0.0, 0.25), (1.0, 0.25)]), ("b", [(0.5, -1.0), (0.5, 1.0)])]
    rows = lambdas.sweep(spec(("a", "b", "c")), 3)
    assert [name for name, _ in rows] == ["a", "b", "c"]
    assert rows[1][1] == [(0.5, 0.0, 0.5), (0.25, 0.5, 0.25), (0.0, 1.0, 0.0)]


def test_bad_sweeps():
    for count in (1, 0, -3):
        with pytest.raises(ValueError, match=f"--sweep must be at least 2 positions; got {count}"):
            lambdas.sweep(spec(), count)
    with pytest.raises(ValueError, match="--sweep must have a parameter to move"):
        lambdas.sweep(spec(("only",)), 2)
    # where there is no command line, the argument
    with pytest.raises(ValueError, match=r"^sweep: count must be at least 2; got 1$"):
        positions.sweep(spec(), 1)
    with pytest.raises(ValueError, match=r"^sweep: spec must have a parameter that moves; got one parameter"):
        positions.sweep(spec(("only",)), 2)


BOX = spec(("a", "b"), domain="box", ranges=[(0.0, 1.0), (-1.0, 1.0)], defaults=(0.5, 0.25))
THREE = spec(("a", "b", "c"), defaults=(0.2, 0.2, 0.6))
GREY = spec(("sigma", "grey"), domain="box")
FIVE = spec(("a", "b", "c", "d", "e"))


def test_sweeps_of_one_parameter_with_others_held():
    row = ("b", [(0.125, -1.0), (0.125, 0.0), (0.125, 1.0)])
    assert lambdas.sweep(BOX, 3, lam="a=0.125") == lambdas.sweep(BOX, 3, "b", "a=0.125") == [row]
    assert lambdas.sweep(BOX, 2, "a") == [("a", [(0.0, 0.25), (1.0, 0.25)])]
    noisy = spec(("sigma", "texture"), domain="box", ranges=[(0.0, 50.0), (0.0, 1.0)], defaults=(25.0, 0.0))
    noisy = replace(noisy, units=("of 255", ""))
    for text in ("auto", "sigma=auto"):
        assert lambdas.sweep(noisy, 2, lam=text) == [("texture", [("auto", 0.0), ("auto", 1.0)])]
    # on the simplex the held ones take their part of 1, and the others share the rest
    assert lambdas.sweep(spec(), 2, "denoise") == [("denoise", [(0.0, 1.0), (1.0, 0.0)])]
    assert lambdas.sweep(THREE, 3, lam="c=0.5") == [("a", [(0.5, 0.0, 0.5), (0.25, 0.25, 0.5), (0.0, 0.5, 0.5)])]
    (name, lams), *others = lambdas.sweep(THREE, 2, "b", "a=0.2")
    assert name == "b" and not others
    assert lams == [pytest.approx((0.2, 0.0, 0.8)), pytest.approx((0.2, 0.8, 0.0))]


def test_a_parameter_for_grey_moves_only_by_its_name():
    assert [name for name, _ in lambdas.sweep(GREY, 2)] == ["sigma"]
    assert lambdas.sweep(GREY, 2, "grey") == [("grey", [(0.0, 0.0), (0.0, 1.0)])]
    assert lambdas.sweep(GREY, 2, "grey", "sigma=0.5") == [("grey", [(0.5, 0.0), (0.5, 1.0)])]


@pytest.mark.parametrize(
    ("which", "name", "lam", "message"),
    [
        (BOX, "b", "b=0", "--lam must leave out 'b', which --sweep moves; got 'b=0'"),
        (BOX, "b", "0.5,0", "--lam must leave out 'b', which --sweep moves; got '0.5,0'"),
        (BOX, None, "0.5,0", "--lam must leave --sweep a parameter to move, of a, b; got '0.5,0': name the others"),
        (BOX, "c", None, r"--sweep must name parameters of the network \(a, b\); got 'c'"),
        (BOX, "a", "c=1", r"--lam must name parameters of the network \(a, b\); got 'c'"),
        (spec(), None, "keep=0.3", r"--sweep a parameter to move, of denoise, keep \(they sum to 1\); got 'keep=0.3'"),
        (THREE, "a", "b=0.3,c=0.3", r"--sweep a parameter to move, of a, b, c \(they sum to 1\); got"),
        (THREE, None, "c=1", r"--sweep a parameter to move, of a, b, c \(they sum to 1\); got 'c=1'"),
        (GREY, None, "sigma=0.5", "a parameter to move, of sigma; got 'sigma=0.5': --sweep grey=N moves grey$"),
        (GREY, None, "0.5,0", "a parameter to move, of sigma; got '0.5,0': name the others alone$"),
        (spec(("sigma",), "box"), None, "0.5", "a parameter to move, of sigma; got '0.5'$"),
        (spec(("grey",), "box"), None, "grey=0.5", "a parameter to move, of grey; got 'grey=0.5'$"),
        # whose sum in floating point is 0.9999999999999999
        (FIVE, None, "a=0.7,b=0.2,c=0.1", r"to move, of a, b, c, d, e \(they sum to 1\); got 'a=0.7,b=0.2,c=0.1'"),
        (FIVE, "e", "a=0.7,b=0.2,c=0.1", r"to move, of a, b, c, d, e \(they sum to 1\); got 'a=0.7,b=0.2,c=0.1'"),
    ],
)
def test_a_sweep_and_what_is_held_must_fit(which, name, lam, message):
    with pytest.raises(ValueError, match=message):
        lambdas.sweep(which, 2, name, lam)


def test_a_sweep_by_a_name_of_before_is_told_the_new_one():
    with pytest.raises(ValueError, match=r"--sweep must name perceptual; got 'accurate', which is now 1 - perceptual"):
        lambdas.sweep(spec(("perceptual",), domain="box"), 3, "accurate", replaced={"accurate": "1 - perceptual"})
    with pytest.raises(
        ValueError, match=r"^sweep: held must leave a parameter that can move; got \{'a': 1\} and name 'a'"
    ):
        positions.sweep(BOX, 2, "a", {"a": 1})


@pytest.mark.parametrize(("text", "expected"), [("5", (5, None)), (" blur/2 = 3", (3, "blur/2")), ("-3", (-3, None))])
def test_the_argument_of_sweep(text, expected):
    assert lambdas.Sweep.read(text) == lambdas.Sweep(*expected)
    assert lambdas.Sweep.read(str(lambdas.Sweep(*expected))) == lambdas.Sweep(*expected)


def test_numbers_for_file_names_are_exact_alone_and_differ_together():
    assert lambdas.numbers([(0.3, 0.7)]) == ["0.30-0.70"]
    assert lambdas.numbers([(0.125, 0.875)]) == ["0.125-0.875"]
    assert lambdas.numbers([(1 / 3, 2 / 3)]) == ["0.333333-0.666667"]
    assert lambdas.numbers([(k / 3, 1 - k / 3) for k in range(4)]) == [
        "0.00-1.00",
        "0.33-0.67",
        "0.67-0.33",
        "1.00-0.00",
    ]
    fine = lambdas.numbers([(k / 1000,) for k in range(1001)])
    assert len(set(fine)) == 1001 and fine[1] == "0.001"
    assert lambdas.numbers([(-0.0, 1.0)]) == ["0.00-1.00"]


def test_describe():
    assert lambdas.describe(spec(), (0.3, 0.7)) == "denoise 0.30, keep 0.70"
    assert lambdas.describe(spec(), (-0.0, 1.0), "keep") == "keep 1.00"
    assert lambdas.describe(spec(), (-0.0, 1.0)) == "denoise 0.00, keep 1.00"


@pytest.mark.parametrize(
    ("words", "several"),
    [(("apply", "in.png"), "; several positions: --sweep"), (("fold", "x.safetensors"), "")],
)
def test_a_second_lam_is_refused(words, several, capsys):
    """The last one was taken, without a word."""
    command, file = words
    given = [command, file, *(("--model", "denoise") if command == "apply" else ())]
    assert main([*given, "--lam", "sigma=10", "--lam", "sigma=40"]) == 2
    wanted = f"tunable-ops {command}: error: --lam must be given once; got 'sigma=10' and 'sigma=40'{several} (see "
    assert wanted in capsys.readouterr().err
