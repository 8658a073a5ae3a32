"""CUDA graphs over a network whose kernels move; without a GPU, with a stand-in for the capture and the streams."""

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
    with pytest.warns(UserWarning, match=r"no CUDA graph for \[2\], its calls are launched one by one: operation not"):
        assert graphs(torch.ones(2)).tolist() == [1, 1]
    assert graphs(torch.zeros(2)).tolist() == [0, 0]


def test_a_call_that_fails_takes_no_graphs_from_others():
    """A picture that is too small, or too much for the memory: it ended all graphs for good."""

    def layer(x):
        if x.shape[-1] < 4:
            raise RuntimeError("kernel size can't be greater than actual input size")
        return x + 1

    def record(function, x):
        if x.shape[-1] == 5:
            raise RuntimeError("not permitted when stream is capturing")
        return stand_in(captured)(function, x)

    captured = []
    graphs = Graphs(layer, record=record)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="kernel size"):
            graphs(torch.ones(1, 3))
    with pytest.warns(UserWarning, match=r"no CUDA graph for \[1, 5\]"):
        assert graphs(torch.ones(1, 5)).tolist() == [[2] * 5]
    assert graphs(torch.ones(1, 5)).tolist() == [[2] * 5]  # warns once: an error here
    assert graphs(torch.ones(1, 6)).tolist() == [[2] * 6] and captured[-1] == (1, 6)


def test_whoever_takes_a_network_waits_for_the_stream_of_the_call_before(monkeypatch):
    """Its kernels and buffers were blended anew while another stream still computed with them."""
    from tunable_ops.deploy.engines import _Place, _Places

    log = []

    class Stream:
        def __init__(self, name):
            self.name = name

        def record_event(self):
            log.append(f"{self.name} records")
            return f"end of {self.name}"

        def wait_event(self, event):
            log.append(f"{self.name} waits for the {event}")

    class Live:
        def set(self, row):
            log.append(f"blends {row[0]}")

    places = _Places(lambda: _Place(Live(), torch.neg), 1, torch.device("cuda"))
    for name, sigma in (("first", 5), ("second", 25)):
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device, name=name: Stream(name))
        with places.take((sigma,)):
            log.append("runs")
    assert log == [
        *("blends 5", "runs", "first records"),
        *("second waits for the end of first", "blends 25", "runs", "second records"),
    ]


@pytest.mark.gpu
def test_on_a_gpu(small):
    from tunable_ops.deploy import Runner

    runner = Runner(small, "livefold", device="cuda", precision="float32")
    for sigma in (5, 25, 40):
        x = torch.rand(1, 3, 32, 40)
        with torch.no_grad():
            torch.testing.assert_close(runner(x, sigma=sigma), small(x, {"sigma": sigma}), rtol=1e-3, atol=1e-3)
