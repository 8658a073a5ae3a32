"""Which engine "auto" takes: what is timed, whose results count, and what is kept on disk."""

import json
import time

import pytest
import torch
from torch import nn

from tests.deploy.test_runner import HERE, expected, picture
from tunable_ops import LambdaSpec, convert, deploy
from tunable_ops.deploy import Runner, choice
from tunable_ops.deploy.engine import Engine, Options

BOX = LambdaSpec(("a", "b"), domain="box", ranges=((0, 50), (0, 1)), defaults=(25, 0))
SIMPLEX = LambdaSpec(("a", "b"), domain="simplex", ranges=((0, 1), (0, 1)), defaults=(0.5, 0.5))


class Blends(Engine):
    """Takes its time for kernels that it does not have yet, and keeps some."""

    def __init__(self, seconds, most):
        self.seconds, self.most, self.kept = seconds, most, []

    def __call__(self, x, rows):
        for row in dict.fromkeys(rows):
            if row not in self.kept:
                time.sleep(self.seconds)
            self.kept = ([each for each in self.kept if each != row] + [row])[-self.most :]
        return x


@pytest.mark.parametrize("spec", [BOX, SIMPLEX], ids=["box", "simplex"])
@pytest.mark.parametrize("per_sample, most", [(False, 1), (False, 9), (True, 9)])
def test_the_time_of_a_lambda_that_moves_holds_the_blend(per_sample, most, spec):
    """Two of three rounds "moved" to the lambda that the engine stood at, and the median was one of them."""
    x = torch.zeros(4 if per_sample else 1, 3, 8, 8)
    moving, resting = choice._lambdas(spec, len(x), per_sample)
    assert all(spec.contains(row) for rows in (*moving, resting) for row in rows)
    engine = Blends(0.02, most)
    engine(x, resting)  # as the comparison of outputs has
    seconds = choice.measure({"blends": engine}, x, moving, resting)
    assert seconds["blends"] >= 0.02 * len(set(resting))


def test_a_domain_of_one_lambda_does_not_move():
    one = LambdaSpec(("a",), domain="simplex", ranges=((0, 1),), defaults=(1,))
    assert choice._lambdas(one, 2, True) == ([], ((1.0,), (1.0,)))


def test_outputs_that_are_zero_are_compared():
    """0 / 0 is NaN: even the first engine differed from itself."""
    plain = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 3, padding=1))
    nn.init.zeros_(plain[2].weight)
    nn.init.zeros_(plain[2].bias)
    net = convert(plain, 1, domain="box", names=("a",)).eval()
    runner = Runner(net, candidates=HERE)
    assert not runner(picture(), a=0.5).any()
    assert set(runner.warm_up([(20, 31)])["1x3x20x31"]["seconds"]) == set(HERE)


def test_of_zero_everything_else_differs(small, monkeypatch):
    real = deploy.runner.build

    class Off(Engine):
        def __call__(self, x, rows):
            return torch.full_like(x, 1e-3)

    class Zero(Engine):
        def __call__(self, x, rows):
            return torch.zeros_like(x)

    made = {"eager": Zero(), "livefold": Off()}
    monkeypatch.setattr(deploy.runner, "build", lambda name, *rest: made.get(name) or real(name, *rest))
    with pytest.warns(UserWarning, match="'livefold' is left out, its result differs from that of 'eager'"):
        assert not Runner(small, candidates=HERE)(picture()).any()


@pytest.mark.parametrize(
    "entry",
    [
        {"engine": "program", "seconds": {"program": 0.1}},
        {"engine": ["eager"], "seconds": {}},
        {"seconds": {"eager": 0.1}},
        {"engine": "eager", "seconds": [0.1]},
        {"engine": "eager", "seconds": {"eager": "soon"}},
        "eager",
    ],
)
def test_broken_choices_are_measured_again(entry, small, tmp_path):
    cache, key = tmp_path / "choices.json", "1x3x20x31"
    known = Runner(small, candidates=HERE, cache=cache).warm_up([(20, 31)])
    content = json.loads(cache.read_text())
    (about,) = content["choices"]
    for broken in ({key: entry}, entry):
        content["choices"][about] = broken
        cache.write_text(json.dumps(content))
        found = Runner(small, candidates=HERE, cache=cache).warm_up([(20, 31)])
        assert set(found) == set(known) and set(found[key]["seconds"]) == set(HERE)
        assert json.loads(cache.read_text())["choices"][about][key] == found[key]


def test_choices_for_a_few_sizes_are_not_those_for_any():
    first, second = (choice.circumstances("a", Options(fixed_sizes=fixed), HERE) for fixed in (False, True))
    assert first != second


def test_submit_of_auto_without_eager_does_not_hang(small, monkeypatch):
    """Whether samples share a call was asked of the engine that fails to build, in the only thread of the calls."""
    real, tried = deploy.runner.build, []

    def build(name, *rest):
        tried.append(name)
        if name == "eager":
            raise TypeError("no such thing")
        return real(name, *rest)

    monkeypatch.setattr(deploy.runner, "build", build)
    x, lam = picture(8, 8), {"sigma": 5}
    with pytest.warns(UserWarning, match="'eager' is left out, it does not run: no such thing"):
        runner = Runner(small, candidates=HERE)
        runner(x, lam)
    with runner:
        for _ in range(2):
            torch.testing.assert_close(runner.submit(x, lam).result(10), expected(small, x, lam), rtol=1e-4, atol=1e-4)
    assert runner.per_sample is False and tried.count("eager") == 2  # for the choice, and for this question
