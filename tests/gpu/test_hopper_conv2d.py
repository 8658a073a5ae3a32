"""The Hopper kernel on the GPU: exact on integers over every tile, random shapes against float64, graphs, streams."""

import random
from typing import Any

import pytest
import torch
from torch import Tensor
from tunable_ops.triton_kernels import hopper_conv2d as hopper

from tests.comparison import assert_agrees
from tunable_ops.reference import tunable_conv2d as reference

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0),
        reason="the kernel is for compute capability 9.0",
    ),
]
DTYPES = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
SHAPES = [(k, c, o) for k in (3, 1) for c in (8, 16, 32, 64, 96, 128) for o in (3, 16, 32, 64, 128, 200)]


def call(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    alpha: Tensor,
    padding: tuple[int, int],
    activation: str = "none",
    tile: str = "wide",
) -> Tensor:
    """The launch, of arguments that the kernel says it can serve."""
    reason = hopper.unsupported_reason(x, weight, bias, alpha, (1, 1), padding, (1, 1), 1, activation)
    assert reason is None, reason
    return hopper.launch_hopper_conv2d_forward(x, weight, bias, alpha, padding, activation, tile)


def integers(*shape: int, dtype: torch.dtype, low: int = -1, high: int = 2) -> Tensor:
    return torch.randint(low, high, shape, device="cuda").to(dtype)


def arguments(
    samples: int, p: int, c: int, o: int, h: int, w: int, k: int, dtype: torch.dtype, shared: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Integers whose every partial sum is exact: the products' sums stay below 2^24, outputs are compared rounded."""
    x = integers(samples, c, h, w, dtype=dtype, low=0).contiguous(memory_format=torch.channels_last)
    weight = integers(p, o, k, k, c, dtype=dtype).permute(0, 1, 4, 2, 3)
    alpha = integers(*((p,) if shared else (samples, p)), dtype=torch.float32)
    return x, weight, integers(p, o, dtype=dtype, low=-3, high=4), alpha


def expected(x: Tensor, weight: Tensor, bias: Tensor | None, alpha: Tensor, **named: Any) -> Tensor:
    """In float64 on the CPU."""
    wide = [None if t is None else t.double().cpu() for t in (x, weight, bias, alpha)]
    return reference(*wide, **named)  # type: ignore[arg-type]


def check_every_tile(k: int, c: int, o: int, p: int, shared: bool, dtype: torch.dtype) -> None:
    for tile, constants in hopper.tiles(c, o, k).items():
        # a tail of the rows, of the columns, of both, and a picture smaller than a tile
        for h, w in ((constants.rows + 1, 64), (constants.rows, 65), (2 * constants.rows + 1, 127), (1, 3)):
            x, weight, bias, alpha = arguments(3, p, c, o, h, w, k, dtype, shared)
            out = call(x, weight, bias, alpha, (k // 2, k // 2), tile=tile)
            ref = expected(x, weight, bias, alpha, padding=k // 2)
            assert torch.equal(out.cpu().double(), ref.to(dtype).double()), f"{tile} P{p} {h}x{w}"


@pytest.mark.parametrize("index, shape", list(enumerate(SHAPES)), ids=lambda v: str(v))
def test_exact_on_integers(index: int, shape: tuple[int, int, int]) -> None:
    """P, dtype and the kind of alpha take turns: every combination is a compilation."""
    dtype = (torch.float16, torch.bfloat16)[index // 8 % 2]
    check_every_tile(*shape, p=1 + index % 4, shared=index // 4 % 2 == 1, dtype=dtype)


@DTYPES
@pytest.mark.parametrize("shared", [False, True], ids=["per_sample", "shared"])
@pytest.mark.parametrize("p", [1, 2, 3, 4])
def test_every_blend_exact_on_integers(p: int, shared: bool, dtype: torch.dtype) -> None:
    check_every_tile(3, 64, 64, p, shared, dtype)


@DTYPES
def test_many_tiles_a_block(dtype: torch.dtype) -> None:
    """Blocks that pass from sample to sample, and slots that go round many times."""
    x, weight, bias, alpha = arguments(37, 2, 64, 64, 61, 130, 3, dtype, shared=False)
    out = call(x, weight, bias, alpha, (1, 1))
    assert torch.equal(out.cpu().double(), expected(x, weight, bias, alpha, padding=1).to(dtype).double())


@pytest.mark.parametrize("seed", range(40))
def test_random_shapes_against_float64(seed: int) -> None:
    draw = random.Random(seed)
    dtype = draw.choice((torch.float16, torch.bfloat16))
    k = draw.choice((1, 3))
    padding = (draw.randint(0, 2), draw.randint(0, 2))
    samples, p, c, o = draw.randint(1, 5), draw.randint(1, 4), 8 * draw.randint(1, 16), draw.randint(1, 140)
    h, w = draw.randint(3, 40), draw.randint(3, 200)
    activation = draw.choice(hopper.ACTIVATIONS)
    x, weight, bias, _ = arguments(samples, p, c, o, h, w, k, dtype, False)
    x, weight, bias = (torch.randn_like(t) for t in (x, weight, bias))
    weight /= (c * k * k) ** 0.5
    alpha = torch.rand(*draw.choice([(p,), (1, p), (samples, p)]), device="cuda")
    named = {"padding": padding, "activation": None if activation == "none" else activation}
    base = reference(x, weight, bias, alpha.to(dtype), **named)  # type: ignore[arg-type]
    tile = draw.choice(("wide", "pair"))
    out = call(x, weight, None if seed % 5 == 0 else bias, alpha, padding, activation, tile)
    if seed % 5 == 0:
        bias = None
        base = reference(x, weight, None, alpha.to(dtype), **named)  # type: ignore[arg-type]
    assert_agrees(out.cpu(), expected(x, weight, bias, alpha, **named), base.cpu(), f"seed {seed} {tile}")


def test_same_bits_twice() -> None:
    x, weight, bias, alpha = arguments(8, 2, 64, 64, 50, 90, 3, torch.bfloat16, shared=False)
    x, weight, alpha = torch.randn_like(x), torch.randn_like(weight), torch.rand_like(alpha)
    first = call(x, weight, bias, alpha, (1, 1))
    assert all(torch.equal(call(x, weight, bias, alpha, (1, 1)), first) for _ in range(20))


def test_a_captured_graph_follows_alpha_in_place() -> None:
    x, weight, bias, alpha = arguments(4, 2, 32, 32, 33, 70, 3, torch.float16, shared=False)
    call(x, weight, bias, alpha, (1, 1))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = call(x, weight, bias, alpha, (1, 1))
    for _ in range(3):
        alpha.copy_(integers(4, 2, dtype=torch.float32))
        x.copy_(integers(*x.shape, dtype=x.dtype, low=0))
        graph.replay()
        assert torch.equal(out.cpu().double(), expected(x, weight, bias, alpha, padding=1).half().double())


def test_a_stream_of_its_own() -> None:
    stream = torch.cuda.Stream()
    x, weight, bias, alpha = arguments(4, 2, 64, 64, 33, 70, 3, torch.float16, shared=True)
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(10_000_000)
        x.copy_(integers(*x.shape, dtype=x.dtype, low=0))
        out = call(x, weight, bias, alpha, (1, 1))
    stream.synchronize()
    assert torch.equal(out.cpu().double(), expected(x, weight, bias, alpha, padding=1).half().double())


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two devices")
def test_the_device_of_the_input() -> None:
    x, weight, bias, alpha = arguments(2, 2, 32, 32, 9, 70, 3, torch.float16, shared=True)
    x, weight, bias, alpha = (t.to("cuda:1") for t in (x, weight, bias, alpha))
    out = call(x, weight, bias, alpha, (1, 1))
    assert out.device == x.device
    assert torch.equal(out.cpu().double(), expected(x, weight, bias, alpha, padding=1).half().double())
