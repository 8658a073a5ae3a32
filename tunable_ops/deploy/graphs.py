"""A network replayed as a CUDA graph: one for each shape, whose kernels may be blended anew in place."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Graphs", "capture"]

_WARM_UP = 3  # calls before a capture: the libraries' workspaces and choices of algorithms


class _Captured(NamedTuple):
    replay: Callable[[], object]
    input: Tensor
    output: Tensor


class Graphs:
    """A function of a picture, captured at the first call with each shape and replayed at the later ones.

    The function must read its kernels at the same addresses in every call, as the network of a `LiveFold` does. Only
    one thread may call it at a time, on a stream that has waited for the calls before. A shape that cannot be captured
    goes without a graph from then on.

    Args:
        function: [B, C, H, W] -> [B, O, s H, s W].
        most: Graphs that are kept; the one that was used least recently goes first, since each holds its memory.
        record: Captures a call (`capture`).
    """

    def __init__(
        self,
        function: Callable[[Tensor], Tensor],
        most: int = 8,
        record: Callable[[Callable[[Tensor], Tensor], Tensor], tuple[Callable[[], object], Tensor]] | None = None,
    ) -> None:
        self._function, self._most, self._record = function, most, record or capture
        self._graphs: OrderedDict[tuple[object, ...], _Captured] = OrderedDict()
        self._refused: set[tuple[object, ...]] = set()

    def __call__(self, x: Tensor) -> Tensor:
        """Run it."""
        key = (tuple(x.shape), x.stride(), x.dtype)
        if key in self._refused:
            return self._function(x)
        found = self._graphs.get(key)
        if found is None:
            place = x.clone(memory_format=torch.preserve_format)
            try:
                replay, output = self._record(self._function, place)
            except RuntimeError as error:
                result = self._function(x)  # where this fails too, the picture or the memory is to blame
                self._refused.add(key)
                reason, shape = (str(error).splitlines() or ["no reason given"])[0], list(x.shape)
                text = f"Runner: no CUDA graph for {shape}, its calls are launched one by one: {reason}"
                warnings.warn(text, stacklevel=2)
                return result
            found = self._graphs[key] = _Captured(replay, place, output)
            while len(self._graphs) > self._most:
                if x.is_cuda:  # its memory may still be in use on this stream, and go to another one
                    torch.cuda.current_stream(x.device).synchronize()
                self._graphs.popitem(last=False)
        self._graphs.move_to_end(key)
        found.input.copy_(x)
        found.replay()
        return found.output.clone()  # the next replay writes into it


def capture(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Callable[[], object], Tensor]:
    """Capture ``function(x)``; return what replays it, and its output.

    Raises:
        RuntimeError: The function does what a graph cannot hold, such as waiting for the GPU.
    """
    side = torch.cuda.Stream(x.device)
    side.wait_stream(torch.cuda.current_stream(x.device))
    with torch.no_grad(), torch.cuda.stream(side):
        for _ in range(_WARM_UP):
            function(x)
    torch.cuda.current_stream(x.device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    # other threads may launch what they like meanwhile
    with torch.no_grad(), torch.cuda.graph(graph, capture_error_mode="thread_local"):
        output = function(x)
    return graph.replay, output
