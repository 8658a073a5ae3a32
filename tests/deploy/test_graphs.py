"""CUDA graphs over a network whose kernels move, with a stand-in for the capture: no GPU has run them."""

import pytest
import torch
from torch import nn

from tunable_ops import LiveFold
from tunable_ops.deploy.graphs import Graphs


def stand_in(captured):
    """Capture as a GPU does: it computes into one output, from one input, when it is replayed."""

    def record(function, x):
        captured.append(tuple(x.shape))
        with torch.no_grad():
            output = function(x)

        def replay():
            with torch.no_grad():
                output.copy_(function(x))

        return replay, output

    return record


def test_a_graph_for_each_shape_follows_the_kernels(small):
    captured = []
    live = LiveFold(small)
    graphs = Graphs(live.network, most=2, record=stand_in(captured))
    kept = []
    for sigma, width in ((5, 12), (25, 12), (25, 16), (40, 12), (5, 20), (5, 16)):
        live.set({"sigma": sigma})
        x = torch.rand(1, 3, 10, width)
        found = graphs(x)
        kept.append((found, found.clone()))
        with torch.no_grad():
            torch.testing.assert_close(found, small(x, {"sigma": sigma}), rtol=1e-4, atol=1e-5)
    assert captured == [(1, 3, 10, 12), (1, 3, 10, 16), (1, 3, 10, 20), (1, 3, 10, 16)]  # two are kept, the latest
    assert all(torch.equal(now, then) for now, then in kept)  # a replay does not write into what was returned


def test_a_network_that_cannot_be_captured_runs_without():
    def refuse(function, x):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    graphs = Graphs(nn.Identity(), record=refuse)
    with pytest.warns(UserWarning, match="no CUDA graphs, calls are launched one by one: operation not permitted"):
        assert graphs(torch.ones(2)).tolist() == [1, 1]
    assert graphs(torch.zeros(2)).tolist() == [0, 0]


@pytest.mark.gpu
def test_on_a_gpu(small):
    from tunable_ops.deploy import Runner

    runner = Runner(small, "livefold", device="cuda", precision="float32")
    for sigma in (5, 25, 40):
        x = torch.rand(1, 3, 32, 40)
        with torch.no_grad():
            torch.testing.assert_close(runner(x, sigma=sigma), small(x, {"sigma": sigma}), rtol=1e-3, atol=1e-3)
