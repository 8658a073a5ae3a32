"""Samples of different requests in one call: which go together, when, and that nothing is mixed up."""

import threading
import time
from concurrent.futures import CancelledError, ThreadPoolExecutor

import numpy as np
import pytest
import torch

from tests.serve.conftest import picture, serving, small_network
from tunable_ops.deploy.batching import Batcher
from tunable_ops.deploy.source import two_lambdas
from tunable_ops.images import open_picture
from tunable_ops.serve.limits import Admission, Gone, Life, PixelBudget
from tunable_ops.serve.models import Served
from tunable_ops.serve.problems import Problem

LONG = 30.0


class Counted(Served):
    """Notes what it is called with, and may be held up."""

    def __init__(self, net):
        super().__init__("small", net)
        self.calls = []
        self.held = threading.Event()
        self.held.set()

    def call(self, batch, lams):
        if hasattr(self, "calls"):  # not in the trial of the constructor
            self.held.wait(30)
            self.calls.append([tuple(lam) for lam in lams])
        return super().call(batch, lams)


@pytest.fixture
def model(net):
    return Counted(net)


@pytest.fixture
def batcher(request):
    options = {"wait": 5.0, "most": 4, "pixels": 1 << 20, **getattr(request, "param", {})}
    batcher = Batcher(**options)
    yield batcher
    batcher.close()


def part(seed, height=8, width=9, samples=1):
    return torch.rand(samples, 3, height, width, generator=torch.Generator().manual_seed(seed))


def test_different_lambdas_share_a_call_and_get_their_own_results(batcher, model, net):
    lams = [(5.0, 0.0), (20.0, 0.5), (50.0, 1.0), (0.0, 0.25)]
    for _ in lams:
        batcher.expect()
    futures = [batcher.submit(model, part(seed), lam, Life(LONG)) for seed, lam in enumerate(lams)]
    for seed, (future, lam) in enumerate(zip(futures, lams, strict=True)):
        with torch.no_grad():
            torch.testing.assert_close(future.result(LONG), net(part(seed), lam), rtol=0, atol=1e-6)
    assert model.calls == [lams]  # one call, of all four


def test_equal_lambdas_share_one_blend(batcher, model, net):
    for _ in range(3):
        batcher.expect()
    futures = [batcher.submit(model, part(seed), (5.0, 0.5), Life(LONG)) for seed in range(3)]
    with torch.no_grad():
        torch.testing.assert_close(futures[2].result(LONG), net(part(2), (5.0, 0.5)), rtol=0, atol=1e-6)
    assert [len(call) for call in model.calls] == [3]


def test_a_job_waits_only_while_others_are_expected(batcher, model):
    start = time.monotonic()
    batcher.submit(model, part(0), (5.0, 0.0), Life(LONG)).result(LONG)
    assert time.monotonic() - start < 2  # not 5 seconds: nobody is on the way
    no_more = batcher.expect()
    batcher.expect()
    future = batcher.submit(model, part(0), (5.0, 0.0), Life(LONG))
    time.sleep(0.2)
    assert not future.done()
    no_more()
    no_more()
    future.result(2)


@pytest.mark.parametrize("batcher", [{"wait": 0.1}], indirect=True)
def test_a_job_waits_no_longer_than_it_may(batcher, model):
    batcher.expect()
    batcher.expect()
    start = time.monotonic()
    batcher.submit(model, part(0), (5.0, 0.0), Life(LONG)).result(LONG)
    assert 0.1 <= time.monotonic() - start < 3


@pytest.mark.parametrize("batcher", [{"pixels": 3 * 72}, {"most": 3}], indirect=True)
def test_the_size_of_a_call_is_limited(batcher, model):
    model.held.clear()
    futures = [batcher.submit(model, part(0), (5.0, 0.0), Life(LONG))]  # held up, so that the others gather
    while batcher._jobs:
        time.sleep(0.01)
    futures += [batcher.submit(model, part(seed), (float(seed), 0.0), Life(LONG)) for seed in range(5)]
    model.held.set()
    for future in futures:
        future.result(LONG)
    assert [len(call) for call in model.calls] == [1, 3, 2]


def test_sizes_do_not_mix_and_the_oldest_comes_first(batcher, model):
    model.held.clear()
    futures = [batcher.submit(model, part(0), (5.0, 0.0), Life(LONG))]
    while batcher._jobs:
        time.sleep(0.01)
    for seed, width in enumerate((9, 10, 9, 10)):
        futures.append(batcher.submit(model, part(seed, width=width), (float(seed), 0.0), Life(LONG)))
    model.held.set()
    shapes = [tuple(future.result(LONG).shape) for future in futures]
    assert shapes == [(1, 3, 8, 9), (1, 3, 8, 9), (1, 3, 8, 10), (1, 3, 8, 9), (1, 3, 8, 10)]
    assert model.calls[1:] == [[(0.0, 0.0), (2.0, 0.0)], [(1.0, 0.0), (3.0, 0.0)]]


def test_the_job_that_fails_does_not_take_others_along(batcher, model):
    real = model.call

    def call(batch, lams):
        if any(lam[0] == 13 for lam in lams):
            raise RuntimeError("thirteen")
        return real(batch, lams)

    model.call = call
    for _ in range(3):
        batcher.expect()
    futures = [batcher.submit(model, part(seed), (sigma, 0.0), Life(LONG)) for seed, sigma in enumerate((1, 13, 2))]
    assert futures[0].result(LONG).shape == futures[2].result(LONG).shape == (1, 3, 8, 9)
    with pytest.raises(RuntimeError, match="thirteen"):
        futures[1].result(LONG)


def broken_split(model, batcher):
    model.call = lambda batch, lams: torch.zeros(0, 3, 8, 9)  # not of the batch's size


def broken_measure(model, batcher):
    batcher._measured = lambda *_: 1 / 0


@pytest.mark.parametrize("fault, kind", [(broken_split, RuntimeError), (broken_measure, ZeroDivisionError)])
def test_an_error_beside_the_call_reaches_the_future(fault, kind, batcher, model):
    """It ended the only thread, and every future hung."""
    healthy, measured = model.call, batcher._measured
    fault(model, batcher)
    with pytest.raises(kind):
        batcher.submit(model, part(0), (5.0, 0.0), Life(LONG)).result(LONG)
    model.call, batcher._measured = healthy, measured
    assert batcher.submit(model, part(0), (5.0, 0.0), Life(LONG)).result(LONG).shape == (1, 3, 8, 9)


def test_a_model_is_asked_by_whoever_hands_in(batcher, model):
    """Its answer may take seconds or fail: in the thread of the calls, that held up or ended all."""

    class Asked:
        def __init__(self):
            self.call = model.call

        @property
        def per_sample(self):
            if threading.current_thread() is not threading.main_thread():
                raise MemoryError("asked in the thread of the calls")
            return True

    assert batcher.submit(Asked(), part(0), (5.0, 0.0), Life(LONG)).result(5).shape == (1, 3, 8, 9)


def test_jobs_of_requests_that_are_over_are_dropped(batcher, model):
    model.held.clear()
    first, life = batcher.submit(model, part(0), (5.0, 0.0), Life(LONG)), Life(LONG)
    while batcher._jobs:
        time.sleep(0.01)
    second = batcher.submit(model, part(1), (6.0, 0.0), life)
    life.leave()
    model.held.set()
    first.result(LONG)
    with pytest.raises(CancelledError):
        second.result(LONG)
    assert model.calls == [[(5.0, 0.0)]]


def test_closing_finishes_what_was_handed_in(net):
    model, batcher = Counted(net), Batcher(5.0, 2, 1 << 20)
    for _ in range(9):
        batcher.expect()
    futures = [batcher.submit(model, part(seed), (float(seed), 0.0), Life(LONG)) for seed in range(5)]
    batcher.close()
    assert all(future.done() for future in futures)
    with pytest.raises(RuntimeError, match="must be open"):
        batcher.submit(model, part(0), (5.0, 0.0), Life(LONG))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"defaults": (50, 1)},
        {"domain": "simplex", "ranges": ((0, 1),) * 2, "units": None, "defaults": (0.5, 0.5)},
        {"domain": "simplex", "ranges": ((0, 1),) * 2, "units": None, "defaults": (1, 0)},
    ],
)
def test_a_network_is_tried_with_two_lambdas_of_its_domain(options, recwarn):
    net = small_network(**options)
    seen = two_lambdas(net.spec)
    assert len(set(seen)) == 2 and all(net.spec.contains(lam) for lam in seen)
    assert Served("small", net).per_sample
    assert not recwarn.list


def test_a_network_that_needs_one_kernel_for_all_is_called_one_by_one():
    class Reads(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x):
            return torch.nn.functional.conv2d(x, self.layer.weight, padding=1)

    from tunable_ops import convert

    net = convert(Reads(), num_params=1, domain="box", names=("a",))
    model = Counted(net)
    assert not model.per_sample and not model.describe()["batched"]
    batcher = Batcher(1.0, 4, 1 << 20)
    futures = [batcher.submit(model, part(seed), (0.25 * seed,), Life(LONG)) for seed in range(3)]
    for seed, future in enumerate(futures):
        with torch.no_grad():
            torch.testing.assert_close(future.result(LONG), net(part(seed), 0.25 * seed), rtol=0, atol=1e-6)
    batcher.close()
    assert [len(call) for call in model.calls] == [1, 1, 1]


def test_concurrent_requests_are_batched_and_answered_each_with_its_own(net):
    """Thirty requests at once, of two sizes and many lambdas, some grey: the answers are those of one at a time."""
    jobs = [
        (picture(16, 16 + 8 * (k % 2), channels=1 if k % 5 == 0 else 3, seed=k), f"sigma={k},keep={k / 30:.3f}")
        for k in range(30)
    ]
    alone = []
    with serving({"small": small_network()}, max_batch=1) as client:
        for content, lam in jobs:
            alone.append(client.post("/v1/restore", params={"model": "small", "lam": lam}, content=content).content)
    with serving({"small": net}, batch_wait_ms=50) as client, ThreadPoolExecutor(15) as pool:
        post = lambda job: client.post("/v1/restore", params={"model": "small", "lam": job[1]}, content=job[0])  # noqa: E731
        together = list(pool.map(post, jobs))
        text = client.get("/metrics").text
    calls = next(line for line in text.splitlines() if line.startswith("tunable_ops_batch_size_count")).split()[-1]
    assert float(calls) < 25
    for response, content in zip(together, alone, strict=True):
        found, want = (next(open_picture(c).frames()).pixels.astype(int) for c in (response.content, content))
        assert np.abs(found - want).max() <= 1  # sums in another order, then rounding to 8 bits
        assert (found != want).mean() < 0.01


def test_life():
    now = [0.0]
    life = Life(2.0, lambda: now[0])
    life.check()
    now[0] = 1.5
    assert life.left == 0.5 and not life.over
    now[0] = 2.0
    assert life.left == 0 and life.over
    with pytest.raises(Problem, match="no answer within 2 seconds"):
        life.check()
    life.leave()
    with pytest.raises(Gone):
        life.check()


def test_admission():
    seen = []
    admission = Admission(2, seen.append)
    admission.enter()
    admission.enter()
    with pytest.raises(Problem, match="2 requests are being served"):
        admission.enter()
    admission.leave()
    admission.enter()
    assert seen == [1, 2, 1, 2]


def test_the_budget_of_pixels_keeps_the_order():
    budget, order = PixelBudget(10), []

    def take(name, pixels):
        with budget.hold(pixels, Life(LONG)):
            order.append(name)

    with budget.hold(8, Life(LONG)):
        threads = []
        for name, pixels in (("large", 9), ("small", 1)):  # the small one would fit, but does not overtake
            threads.append(threading.Thread(target=take, args=(name, pixels)))
            threads[-1].start()
            while len(budget._line) < len(threads):
                time.sleep(0.01)
        time.sleep(0.1)
        assert order == []
    for thread in threads:
        thread.join()
    assert order == ["large", "small"]
    late = pytest.raises(Problem, match=r"no answer within 0\.05 seconds")
    with budget.hold(1000, Life(LONG)), late, budget.hold(1, Life(0.05)):  # more than there can be: alone
        pass
    with budget.hold(10, Life(LONG)):
        pass
