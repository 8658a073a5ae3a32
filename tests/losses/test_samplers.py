import math
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tunable_ops import losses

N = 20_000
RANGES = ((0.0, 1.0), (-2.0, 3.0), (10.0, 10.5))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def moment(p, k):
    """Return E[x**k] for one coordinate of Dirichlet(1, ..., 1), which is Beta(1, p - 1)."""
    return math.factorial(k) * math.gamma(p) / math.gamma(p + k)


def simplex_faults(lam):
    """Return which moments ("mean", "covariance") are more than five standard errors off Dirichlet(1, ..., 1)."""
    lam = lam.double()
    n, p = lam.shape
    mean, variance = 1 / p, (p - 1) / (p**2 * (p + 1))
    fourth = moment(p, 4) - 4 * mean * moment(p, 3) + 6 * mean**2 * moment(p, 2) - 3 * mean**4
    error = math.sqrt((fourth - variance**2) / n)  # of a variance; by Cauchy-Schwarz also a bound for covariances
    centred = lam - mean
    covariance = centred.T @ centred / n
    expected = torch.full((p, p), -variance / (p - 1), dtype=torch.float64).fill_diagonal_(variance)
    faults = []
    if (lam.mean(0) - mean).abs().max() > 5 * math.sqrt(variance / n):
        faults.append("mean")
    if (covariance - expected).abs().max() > 5 * max(error, math.sqrt(fourth / n)):
        faults.append("covariance")
    return faults


@pytest.mark.parametrize("p", [2, 3, 5])
def test_simplex_is_uniform(p):
    lam = losses.sampler("simplex", p)(N, generator=seeded())
    assert lam.shape == (N, p) and lam.dtype == torch.float32
    assert (lam >= 0).all() and torch.equal(lam.sum(1), torch.ones(N))
    assert simplex_faults(lam) == []


@pytest.mark.parametrize("p", [2, 3, 5])
def test_the_simplex_check_finds_faults(p):
    uniforms = torch.rand(N, p, generator=seeded())
    assert "covariance" in simplex_faults(uniforms / uniforms.sum(1, keepdim=True))
    lam = losses.sampler("simplex", p)(N, generator=seeded())
    assert "mean" in simplex_faults(lam.sort(1).values)
    assert simplex_faults(losses.sampler("simplex", p, corners=0.1)(N, generator=seeded())) == ["covariance"]


def is_uniform(values):
    """Run a Kolmogorov-Smirnov test for [0, 1] with a false alarm rate of 1e-6, about five standard errors."""
    values = values.sort().values
    n = len(values)
    steps = torch.arange(n + 1, dtype=torch.float64) / n
    distance = torch.maximum(steps[1:] - values, values - steps[:-1]).max()
    return distance < math.sqrt(math.log(2 / 1e-6) / 2 / n)


def test_uniform_fills_its_ranges():
    lam = losses.sampler("uniform", 3, ranges=RANGES)(N, generator=seeded()).double()
    for values, (low, high) in zip(lam.unbind(1), RANGES, strict=True):
        assert values.min() >= low and values.max() <= high
        unit = (values - low) / (high - low)
        assert is_uniform(unit)
        assert not is_uniform(unit**1.1) and not is_uniform(0.95 * unit) and not is_uniform(0.05 + 0.95 * unit)
    correlation = torch.corrcoef(lam.T) - torch.eye(3)
    assert correlation.abs().max() < 5 / math.sqrt(N)


def test_uniform_default_is_the_unit_box():
    draw = losses.sampler("uniform", 2)
    assert draw.ranges == ((0.0, 1.0), (0.0, 1.0))
    assert torch.equal(
        draw(7, generator=seeded()),
        losses.sampler("uniform", 2, ranges=[[0, 1], [0, 1]])(7, generator=seeded()),
    )


def corner_names(kind, lam):
    """Return for each sample its corner as a tuple, or None if it is not at one."""
    ends = RANGES if kind == "uniform" else ((0.0, 1.0),) * 3
    corners = set(product(*ends))
    if kind == "simplex":
        corners = {corner for corner in corners if sum(corner) == 1}
    return [tuple(sample) if tuple(sample) in corners else None for sample in lam.tolist()]


@pytest.mark.parametrize(("kind", "count"), [("uniform", 8), ("simplex", 3)])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_share_of_corners(kind, count, share):
    draw = losses.sampler(kind, 3, corners=share, ranges=RANGES if kind == "uniform" else None)
    found = corner_names(kind, draw(N, generator=seeded()))
    hits = [corner for corner in found if corner is not None]
    assert abs(len(hits) - share * N) <= 5 * math.sqrt(N * share * (1 - share))
    if share:
        assert len(set(hits)) == count  # every corner occurs
        each = share / count
        for corner in set(hits):
            assert abs(hits.count(corner) - each * N) <= 5 * math.sqrt(N * each * (1 - each))


@pytest.mark.parametrize("kind", ["uniform", "simplex"])
def test_corners_leave_the_others_alone(kind):
    plain = losses.sampler(kind, 3)(1000, generator=seeded())
    mixed = losses.sampler(kind, 3, corners=0.3)(1000, generator=seeded())
    same = (plain == mixed).all(1)
    assert 600 < same.sum() < 800
    assert ((mixed[~same] == 0) | (mixed[~same] == 1)).all()


@pytest.mark.parametrize("kind", ["uniform", "simplex"])
def test_the_generator_alone_decides(kind):
    draw = losses.sampler(kind, 3, corners=0.2)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = draw(5, generator=seeded(7))
    assert torch.equal(torch.get_rng_state(), before)  # the global generator is not used
    torch.manual_seed(2)
    assert torch.equal(draw(5, generator=seeded(7)), first)
    assert torch.equal(losses.sampler(kind, 3, corners=0.2)(5, generator=seeded(7)), first)
    assert not torch.equal(draw(5, generator=seeded(8)), first)
    generator = seeded(7)
    draw(5, generator=generator)
    state = generator.get_state()
    second = draw(5, generator=generator)
    assert not torch.equal(second, first)
    resumed = torch.Generator()
    resumed.set_state(state)
    assert torch.equal(draw(5, generator=resumed), second)


@pytest.mark.parametrize("kind", ["uniform", "simplex"])
def test_without_a_generator_torchs_own_decides(kind):
    draw = losses.sampler(kind, 3, corners=0.2)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        first = draw(4)
        torch.manual_seed(3)
        assert torch.equal(draw(4), first)


@given(
    kind=st.sampled_from(["uniform", "simplex"]),
    p=st.integers(1, 6),
    batch=st.none() | st.integers(0, 9),
    corners=st.floats(0, 1),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    seed=st.integers(0, 99),
)
@settings(max_examples=80, deadline=None)
def test_shapes_types_and_domain(kind, p, batch, corners, dtype, seed):
    lam = losses.sampler(kind, p, corners)(batch, generator=seeded(seed), dtype=dtype)
    assert lam.shape == ((p,) if batch is None else (batch, p))
    assert lam.dtype == dtype
    assert ((lam >= 0) & (lam <= 1)).all()
    if kind == "simplex":
        sums = lam.double().sum(-1)
        torch.testing.assert_close(sums, torch.ones_like(sums), rtol=0, atol=p * torch.finfo(dtype).eps / 2)


def test_one_parameter_on_the_simplex_is_one():
    assert torch.equal(losses.sampler("simplex", 1)(4), torch.ones(4, 1))


def test_shared_is_the_first_of_a_batch_of_one():
    draw = losses.sampler("simplex", 3)
    assert torch.equal(draw(None, generator=seeded()), draw(1, generator=seeded())[0])


def test_device():
    lam = losses.sampler("uniform", 2)(3, generator=seeded(), device="meta")
    assert lam.device.type == "meta"  # drawn where the generator is, then moved
    generator = seeded()
    with torch.device("meta"):
        lam = losses.sampler("uniform", 2)(3, generator=generator)
    assert torch.equal(lam, losses.sampler("uniform", 2)(3, generator=seeded(), device="cpu"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", ["uniform", "simplex"])
def test_the_same_generator_gives_the_same_lambda_on_a_gpu(kind):
    draw = losses.sampler(kind, 3, corners=0.2)
    lam = draw(9, generator=seeded(), device="cuda")
    assert lam.device.type == "cuda" and torch.equal(lam.cpu(), draw(9, generator=seeded()))


def test_uniform_does_not_round_past_the_end(monkeypatch):
    ends = torch.randn(2000, 2, generator=seeded()) * 10 ** torch.randn(2000, 2, generator=seeded(1))
    ranges = ends.sort(1).values.tolist()
    for end, choose in ((0.0, 0), (1 - 2.0**-24, 1)):
        monkeypatch.setattr(
            torch, "rand", lambda shape, end=end, **kwargs: torch.full(shape, end, dtype=kwargs["dtype"])
        )
        lam = losses.sampler("uniform", 2000, ranges=ranges)(1)[0].tolist()
        assert all(low <= value <= high for value, (low, high) in zip(lam, ranges, strict=True))
        near = torch.tensor(ranges)[:, choose]
        torch.testing.assert_close(torch.tensor(lam), near, rtol=0, atol=1e-6 * ends.abs().max().item())


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        (("triangle", 2), ValueError, r"sampler: kind must be one of simplex, uniform; got 'triangle'"),
        ((["simplex"], 2), ValueError, r"sampler: kind must be one of simplex, uniform; got \['simplex'\]"),
        (("simplex", 2.0), TypeError, r"sampler: num_params must be an integer; got 2.0"),
        (("simplex", True), TypeError, r"sampler: num_params must be an integer; got True"),
        (("simplex", 0), ValueError, r"sampler: num_params must be at least 1; got 0"),
        (("simplex", 2, -0.1), ValueError, r"sampler: corners must be a probability in \[0, 1\]; got -0.1"),
        (("simplex", 2, 1.1), ValueError, r"sampler: corners must be a probability in \[0, 1\]; got 1.1"),
        (("simplex", 2, math.nan), ValueError, r"sampler: corners must be a probability in \[0, 1\]; got nan"),
        (("simplex", 2, "some"), TypeError, r"sampler: corners must be a number; got 'some'"),
        (("uniform", 2, 0, 5), TypeError, r"sampler: ranges must be 2 pairs of numbers \(low, high\); got 5"),
        (
            ("uniform", 2, 0, (0, 1)),
            TypeError,
            r"sampler: ranges must be 2 pairs of numbers \(low, high\); got \(0, 1\)",
        ),
        (("uniform", 1, 0, [(0, "x")]), TypeError, r"sampler: ranges must be 1 pairs of numbers"),
        (("uniform", 1, 0, [(0, 1, 2)]), TypeError, r"sampler: ranges must be 1 pairs of numbers"),
        (
            ("uniform", 2, 0, [(0, 1)]),
            ValueError,
            r"sampler: ranges must have a pair for each of the 2 parameters; got 1",
        ),
        (("uniform", 1, 0, [(1, 0)]), ValueError, r"sampler: ranges must be finite with low < high; got \(1.0, 0.0\)"),
        (("uniform", 1, 0, [(1, 1)]), ValueError, r"sampler: ranges must be finite with low < high; got \(1.0, 1.0\)"),
        (("uniform", 1, 0, [(0, math.inf)]), ValueError, r"sampler: ranges must be finite with low < high"),
        (("uniform", 1, 0, [(math.nan, 1)]), ValueError, r"sampler: ranges must be finite with low < high"),
        (("simplex", 2, 0, [(0, 1), (0, 2)]), ValueError, r"sampler: ranges must be \(0, 1\) for the simplex; got"),
    ],
)
def test_wrong_arguments(arguments, error, text):
    with pytest.raises(error, match="^" + text):
        losses.sampler(*arguments)


def test_the_simplex_takes_its_own_range():
    assert losses.sampler("simplex", 2, ranges=[(0, 1), (0, 1)]) == losses.sampler("simplex", 2)


@pytest.mark.parametrize(
    ("batch", "dtype", "error", "text"),
    [
        (-1, torch.float32, ValueError, r"sampler: batch must be at least 0; got -1"),
        (2.0, torch.float32, TypeError, r"sampler: batch must be an integer or None; got 2.0"),
        (True, torch.float32, TypeError, r"sampler: batch must be an integer or None; got True"),
        (2, torch.int64, TypeError, r"sampler: dtype must be a floating point type; got torch.int64"),
        (2, torch.complex64, TypeError, r"sampler: dtype must be a floating point type; got torch.complex64"),
    ],
)
def test_wrong_draws(batch, dtype, error, text):
    with pytest.raises(error, match="^" + text):
        losses.sampler("simplex", 2)(batch, dtype=dtype)


def marginal(kind, values, p):
    """Return the probability that a coordinate is below each value."""
    return values if kind == "uniform" else 1 - (1 - values) ** (p - 1)


@pytest.mark.parametrize(("kind", "p"), [("uniform", 1), ("uniform", 3), ("simplex", 2), ("simplex", 4)])
@pytest.mark.parametrize("batch", [1, 2, 5, 8, 100])
def test_every_stratum_is_hit_exactly_once(kind, p, batch):
    draw = losses.sampler(kind, p, stratified=True)
    for seed in range(5):
        lam = draw(batch, generator=seeded(seed), dtype=torch.float64)
        columns = lam.T if kind == "uniform" else lam.T[:1]
        for column in columns:
            parts = (batch * marginal(kind, column, p)).floor().sort().values
            assert parts.tolist() == list(range(batch))
        if kind == "simplex":
            left = 1 - lam[:, 0]
            for k in range(1, p - 1):  # what each parameter takes of the rest of the stick
                parts = (batch * marginal("simplex", lam[:, k] / left, p - k)).floor().sort().values
                assert parts.tolist() == list(range(batch))
                left = left - lam[:, k]
    independent = losses.sampler(kind, p)(100, generator=seeded(), dtype=torch.float64)[:, 0]
    assert len(set((100 * marginal(kind, independent, p)).floor().tolist())) < 80  # the check finds gaps


def test_stratified_ranges():
    lam = losses.sampler("uniform", 3, ranges=RANGES, stratified=True)(10, generator=seeded()).double()
    for values, (low, high) in zip(lam.unbind(1), RANGES, strict=True):
        assert (10 * (values - low) / (high - low)).floor().sort().values.tolist() == list(range(10))


def test_one_stratified_sample_has_the_same_distribution():
    """Batches of 4, one sample of each: uniform on the domain, without a trace of the strata."""
    simplex, box = losses.sampler("simplex", 3, stratified=True), losses.sampler("uniform", 3, stratified=True)
    source, n = seeded(), 4000
    assert simplex_faults(torch.stack([simplex(4, generator=source)[1] for _ in range(n)])) == []
    lam = torch.stack([box(4, generator=source)[1] for _ in range(n)]).double()
    assert all(is_uniform(values) for values in lam.unbind(1))
    assert (torch.corrcoef(lam.T) - torch.eye(3)).abs().max() < 5 / math.sqrt(n)


@pytest.mark.parametrize("kind", ["uniform", "simplex"])
def test_stratified_samples_keep_to_the_rules_of_the_others(kind):
    """The generator alone decides, corners leave the rest alone, and the means of a batch vary less."""
    plain = losses.sampler(kind, 3, stratified=True)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = plain(1000, generator=seeded(7))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(plain(1000, generator=seeded(7)), first)
    mixed = losses.sampler(kind, 3, corners=0.3, stratified=True)(1000, generator=seeded(7))
    same = (first == mixed).all(1)
    assert 600 < same.sum() < 800 and ((mixed[~same] == 0) | (mixed[~same] == 1)).all()
    assert plain(0).shape == (0, 3) and plain(None).shape == (3,)
    spread = {
        flag: torch.stack(
            [losses.sampler(kind, 3, stratified=flag)(8, generator=seeded(s)).mean(0) for s in range(200)]
        ).std(0)
        for flag in (False, True)
    }
    assert (spread[True] < spread[False] / 2).all(), spread


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["uniform", "simplex"])
def test_stratified_types_and_domain(kind, dtype):
    for batch, p in ((1, 1), (3, 1), (7, 2), (64, 5)):
        lam = losses.sampler(kind, p, stratified=True)(batch, generator=seeded(), dtype=dtype)
        assert lam.shape == (batch, p) and lam.dtype == dtype and ((lam >= 0) & (lam <= 1)).all()
        if kind == "simplex":
            sums = lam.double().sum(-1)
            torch.testing.assert_close(sums, torch.ones_like(sums), rtol=0, atol=p * torch.finfo(dtype).eps)


def test_strata_do_not_round_past_the_range(monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda shape, **kw: torch.full(shape, 1 - 2.0**-24, dtype=kw["dtype"]))
    lam = losses.sampler("uniform", 2, ranges=[(0.1, 0.3), (-7.7, 0.1)], stratified=True)(50)
    assert (lam[:, 0] <= 0.3).all() and (lam[:, 1] <= 0.1).all()


def test_wrong_stratified():
    with pytest.raises(TypeError, match=r"^sampler: stratified must be a bool; got 1"):
        losses.sampler("uniform", 2, stratified=1)
