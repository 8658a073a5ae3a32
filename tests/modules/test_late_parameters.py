"""Layers whose parameters are there only while the layer, or a module around it, runs: FSDP and wrappers like it."""

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import tunable_ops
from tests.modules.networks import DTYPE, Net, assert_equal, draw, perturb, plain_net, point

ROOT = Path(__file__).parents[2]


class Released:
    """Take the parameters of a module away; a pre-hook puts them back for the time of its call."""

    def __init__(self, module: nn.Module) -> None:
        self.kept = {p: p.data for p in module.parameters()}
        module.register_forward_pre_hook(self.fill)
        module.register_forward_hook(self.release)
        self.release()

    def fill(self, *_: object) -> None:
        for parameter, value in self.kept.items():
            parameter.data = value

    def release(self, *_: object) -> None:
        for parameter, value in self.kept.items():
            parameter.data = value.new_empty(0)


WHERE = {
    "every layer": lambda net: net.layers,
    "one layer": lambda net: [net.network.tail[0]],
    "blocks": lambda net: [net.network.head, *net.network.blocks],
    "a list": lambda net: [net.network.tail],
    "phi": lambda net: [net.network.head.tuning, net.network.classify.tuning],
    "the network": lambda net: [net.network],
}


@pytest.mark.parametrize("where", WHERE.values(), ids=WHERE)
@pytest.mark.parametrize("domain", ["simplex", "box"])
@pytest.mark.parametrize("batch", [(), (2,)], ids=["shared", "per-sample"])
def test_parameters_that_a_pre_hook_puts_in_place(where, domain: str, batch: tuple[int, ...]) -> None:
    net, x, lam = tunable_ops.convert(plain_net(), 2, domain=domain), draw(2, 3, 8, 8), point(domain, 2, *batch)
    perturb(net)
    wanted = net(x, lam)
    again = copy.deepcopy(net)
    for module in where(net):
        Released(module)
    with torch.no_grad():
        for _ in range(2):
            assert_equal(net(x, lam), wanted)
    for module in where(again):  # the plans of an earlier call are no obstacle
        again(x, lam)
        Released(module)
    with torch.no_grad():
        assert_equal(again(x, lam), wanted)


@pytest.mark.parametrize("batch", [(), (2,)], ids=["shared", "per-sample"])
def test_pre_hooks_that_do_nothing_change_nothing(batch: tuple[int, ...]) -> None:
    net, x, lam = tunable_ops.convert(plain_net(), 2, domain="box"), draw(2, 3, 8, 8), point("box", 2, *batch)
    perturb(net)
    outputs = []
    for module in (None, net.network.blocks[0], net.network.head.tuning, net.network):
        handle = module.register_forward_pre_hook(lambda *_: None) if module is not None else None
        y = net(x, lam)
        outputs.append([y, *torch.autograd.grad(y.square().sum(), list(net.parameters()))])
        if handle is not None:
            handle.remove()
    for others in outputs[1:]:
        for got, wanted in zip(others, outputs[0], strict=True):
            assert_equal(got, wanted)


SHARDED = """
import os, sys, torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
import tunable_ops
from tests.modules.networks import perturb
from tests.modules.test_late_parameters import STYLES, make, train_steps

torch.set_num_threads(1)
rank, style, place = int(sys.argv[1]), sys.argv[2], sys.argv[3]
dist.init_process_group("gloo", init_method=f"file://{place}/store", rank=rank, world_size=2)
mesh = init_device_mesh("cpu", (2,))
net = make()
for module in STYLES[style](net):
    fully_shard(module, mesh=mesh)
assert any(isinstance(p, DTensor) for p in net.parameters())
train_steps(net, slice(2 * rank, 2 * rank + 2))
state = {n: p.full_tensor() if isinstance(p, DTensor) else p for n, p in net.state_dict().items()}
if rank == 0:
    torch.save(state, f"{place}/state.pt")
dist.barrier()
os._exit(0)  # Gloo's threads may ask for the GIL of an interpreter that ends, and abort the process (Python < 3.14)
"""

STYLES = {
    "layers": lambda net: [*net.layers_of_their_own, net],
    "blocks": lambda net: [*net.network.blocks, net],
    "blocks-and-network": lambda net: [*net.network.blocks, net.network],
    "phi-apart": lambda net: [net.network.head.tuning, net.network.head, net],
    "root": lambda net: [net],
}


class Small(Net):
    """The network without batch norm, whose statistics would differ between processes."""

    def __init__(self) -> None:
        super().__init__()
        for block in self.blocks:
            block.norm = nn.Identity()


def make() -> tunable_ops.TunableModel:
    torch.manual_seed(0)
    net = tunable_ops.convert(Small().to(DTYPE), 2, domain="box")
    perturb(net)
    net.layers_of_their_own = [layer for layer in net.layers if hasattr(layer, "weight")]
    return net


def train_steps(net: nn.Module, rows: slice) -> None:
    """Train two steps with a lambda for each sample and two with one for all; the loss is the mean over samples."""
    optimiser = torch.optim.AdamW(net.parameters(), 1e-2)
    for step in range(4):
        x, lam = draw(4, 3, 8, 8, seed=step), point("box", 2, *((4,) if step < 2 else ()), seed=step)
        own: Tensor = lam[rows] if lam.dim() == 2 else lam
        net(x[rows], own).square().mean().backward()
        optimiser.step()
        optimiser.zero_grad()


@pytest.mark.parametrize("style", [pytest.param(s, marks=pytest.mark.slow) if s != "layers" else s for s in STYLES])
def test_fully_shard_trains_to_the_values_of_one_process(style: str, tmp_path: Path) -> None:
    """fully_shard per layer raised "mixed torch.Tensor and DTensor": phi was multiplied before it was gathered."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SHARDED, str(rank), style, str(tmp_path)],
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    errors = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    state = torch.load(tmp_path / "state.pt")
    alone = make()
    train_steps(alone, slice(None))
    wanted = alone.state_dict()
    assert state.keys() == wanted.keys()
    for name, value in state.items():
        assert_equal(value, wanted[name], 1e-8)
