"""The edges of pictures: in eager calls and in graphs for every size."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.export import Dim

from tunable_ops.models.whole_blocks import extend, whole_size


@pytest.mark.parametrize("mode", ["replicate", "constant"])
@pytest.mark.parametrize(("side", "least"), [(2, 0), (4, 8)])
@pytest.mark.parametrize("size", [(8, 12), (9, 11), (1, 6)])
def test_sizes_become_multiples(size, side, least, mode):
    x = torch.rand(2, 3, *size)
    out = extend(x, side, mode, least)
    wanted = [whole_size(n, side, least) for n in size]
    assert list(out.shape[2:]) == wanted and all(n % side == 0 and n >= least for n in wanted)
    pad = (0, wanted[1] - size[1], 0, wanted[0] - size[0])
    assert torch.equal(out, F.pad(x, pad, mode=mode))
    assert out is x or list(size) != wanted


@pytest.mark.parametrize("mode", ["replicate", "constant"])
def test_a_graph_holds_for_every_size(mode):
    class Blocks(nn.Module):
        def forward(self, x):
            return F.pixel_unshuffle(extend(x, 4, mode, 8), 4)

    net = Blocks()
    sizes = {2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
    program = torch.export.export(net, (torch.rand(1, 3, 37, 54),), dynamic_shapes=(sizes,))
    for size in ((8, 8), (9, 11), (3, 6), (64, 65)):
        x = torch.rand(1, 3, *size)
        assert torch.equal(program.module()(x), net(x))
