"""The Hopper kernel without a GPU: its source in the emulator, its tiles, and the calls that it refuses.

Registers and instructions: test_audit.py. On a GPU: tests/gpu/test_hopper_conv2d.py.
"""

import contextlib
import importlib.metadata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from tunable_ops.triton_kernels import hopper_conv2d as hopper

from tests.comparison import assert_agrees
from tests.triton_kernels import gluon_emulator
from tunable_ops.reference import tunable_conv2d as reference

SOURCE = Path(hopper.__file__).with_name("hopper_conv2d_kernel.py")


class EmulatedKernel:
    """Takes a launch's arguments as the kernel would, and gives them to the emulator."""

    def __init__(self, edit: Callable[[str], str]) -> None:
        self.emulator = gluon_emulator.Emulator(SOURCE, edit)

    def __getitem__(self, grid: tuple[int, int]) -> Callable[..., None]:
        def launch(*arguments: Any, num_warps: int, **constants: Any) -> None:
            assert num_warps == 4
            self.emulator.run("_tunable_conv2d_hopper_forward_kernel", grid, *map(pointer, arguments), **constants)

        return launch


def pointer(argument: Any) -> Any:
    """A tensor as the address of its first element: all of its storage from there on."""
    if not isinstance(argument, Tensor):
        return argument
    size = argument.untyped_storage().nbytes() // argument.element_size() - argument.storage_offset()
    return gluon_emulator.Pointer(argument.as_strided((size,), (1,)))


@pytest.fixture
def launch(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Tensor]:
    """The launcher on the CPU, with the kernel emulated, on a device of 3 multiprocessors."""

    def run(*arguments: Any, edit: Callable[[str], str] = lambda source: source, **named: Any) -> Tensor:
        tile = named.pop("tile", "wide")
        if isinstance(tile, hopper.Tile):
            choices, tile = {"wide": tile}, "wide"
            monkeypatch.setattr(hopper, "tiles", lambda *_: choices)
        monkeypatch.setattr(hopper, "_kernel", lambda: EmulatedKernel(edit))
        return hopper.launch_hopper_conv2d_forward(*arguments, tile=tile, **named)

    monkeypatch.setattr(hopper, "_multiprocessors", lambda device: 3)
    monkeypatch.setattr(
        hopper, "_descriptor", lambda pixels, tile, k: gluon_emulator.Descriptor(pixels, hopper._box(tile, k))
    )
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    return run


def integers(*shape: int, dtype: torch.dtype = torch.float16, low: int = -2, high: int = 3) -> Tensor:
    return torch.randint(low, high, shape).to(dtype)


def nhwc(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def each_nhwc(weight: Tensor) -> Tensor:
    """[P, O, C, k, k] with every kernel channels_last."""
    return weight.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)


CASES = [
    (2, 2, 16, 16, 5, 70, 3, (1, 1), 4, 16, 3),
    (3, 1, 32, 5, 4, 63, 3, (1, 1), 2, 16, 1),
    (1, 3, 8, 20, 9, 65, 3, (0, 2), 8, 16, 2),
    (2, 4, 72, 33, 3, 66, 3, (2, 0), 2, 32, 2),
    (5, 2, 16, 1, 2, 64, 3, (1, 1), 2, 16, 3),
    (2, 2, 24, 7, 7, 129, 1, (0, 0), 4, 16, 3),
    (2, 2, 128, 16, 3, 10, 1, (1, 1), 2, 16, 1),
    (2, 2, 16, 16, 12, 16, 1, (0, 0), 2, 16, 2),
]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
@pytest.mark.parametrize("samples, p, c, o, h, w, k, padding, rows, block_o, slots", CASES)
@pytest.mark.parametrize("shared", [False, True], ids=["per_sample", "shared"])
def test_exact_on_integers(
    launch: Callable[..., Tensor], shared: bool, dtype: torch.dtype,
    samples: int, p: int, c: int, o: int, h: int, w: int, k: int, padding: tuple[int, int],
    rows: int, block_o: int, slots: int,
) -> None:  # fmt: skip
    block_c = min(64, max(16, hopper._power_of_two(c)))
    tile = hopper.Tile(rows, block_o, block_c, -(-c // block_c), slots)
    x = nhwc(integers(samples, c, h, w, dtype=dtype, low=0, high=2))
    weight, bias = each_nhwc(integers(p, o, c, k, k, dtype=dtype, low=-1, high=2)), integers(p, o, dtype=dtype)
    alpha = integers(*([p] if shared else [samples, p]), dtype=torch.float32, low=-1, high=2)
    out = launch(x, weight, bias, alpha, padding, tile=tile)
    expected = reference(x.double(), weight.double(), bias.double(), alpha.double(), padding=padding)
    assert torch.equal(out.double(), expected.to(dtype).double())
    assert out.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("activation", hopper.ACTIVATIONS)
@pytest.mark.parametrize("tile", ["wide", "pair"])
def test_agrees_with_float64(launch: Callable[..., Tensor], activation: str, tile: str) -> None:
    x, weight, bias = (torch.randn(*s).half() for s in [(2, 32, 6, 67), (2, 24, 32, 3, 3), (2, 24)])
    x, weight, alpha = nhwc(x), each_nhwc(weight / 17), torch.rand(2, 2)
    chosen = None if activation == "none" else activation
    out = launch(x, weight, bias, alpha, (1, 1), activation, tile=tile)
    ref = reference(x.double(), weight.double(), bias.double(), alpha.double(), padding=1, activation=chosen)
    base = reference(x, weight, bias, alpha.half(), padding=1, activation=chosen)
    assert_agrees(out, ref, base, f"{activation} {tile}")


@pytest.mark.parametrize("alpha_shape", [(3,), (1, 3), (4, 3)])
def test_no_bias_slices_and_alphas(launch: Callable[..., Tensor], alpha_shape: tuple[int, ...]) -> None:
    """A slice of a picture, expanded alphas, and no bias."""
    x = nhwc(integers(4, 16, 9, 80))[1:, :, 2:7, 5:]
    weight = each_nhwc(integers(3, 17, 16, 3, 3, low=-1, high=2))[:, 1:]
    alpha = integers(*alpha_shape, dtype=torch.float16)
    alpha = alpha[:3].repeat(1, 2)[..., :3] if alpha_shape == (4, 3) else alpha
    out = launch(x, weight, None, alpha, (1, 1))
    expected = reference(x.double(), weight.double(), None, alpha.double(), padding=1)
    assert torch.equal(out.double(), expected.half().double())


def replacing(old: str, new: str) -> Callable[[str], str]:
    def edit(source: str) -> str:
        assert source.count(old) >= 1, f"{old!r} is not in the kernel any more"
        return source.replace(old, new)

    return edit


@pytest.mark.parametrize(
    "old, new, slots",
    [
        ("warpgroup_mma_wait(LAG * KS * TH, accs)", "warpgroup_mma_wait(2 * KS * TH, accs)", 2),
        ("warpgroup_mma_wait(0, accs)", "warpgroup_mma_wait(1, accs)", 2),
        ("(done + step) // SLOTS) & 1", "(done + step) // SLOTS + 1) & 1", 3),
        ("1 if SLOTS > 1 else 0", "1", 1),
        ("if blended != wanted", "if blended < 0", 3),
        ("done += STEPS", "done += STEPS - 1", 2),
        ("mask=mask & (h + t < OH)", "mask=mask", 3),
        ("(offs_w < OW)[:, None] &", "(offs_w >= 0)[:, None] &", 3),
        ("h - pad_h + i", "h + i", 3),
        ("wanted = tile < end", "wanted = tile <= end", 3),
        ("slot * ROWS + t + r", "slot * ROWS + t", 3),
        ("[SLOTS * COPIES]", "[SLOTS * COPIES - 1]", 3),
        ("ROWS: gl.constexpr = TH + KS - 1", "ROWS: gl.constexpr = TH + KS - 2", 3),
        ("(r * KS + step // CHUNKS) * CHUNKS", "(step // CHUNKS * KS + r) * CHUNKS", 3),
    ],
)
def test_the_emulator_finds_seeded_faults(launch: Callable[..., Tensor], old: str, new: str, slots: int) -> None:
    x, weight = nhwc(integers(4, 16, 5, 66)), each_nhwc(integers(2, 5, 16, 3, 3))
    bias, alpha = integers(2, 5), torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, -1.0], [1.0, 1.0]])
    tile = hopper.Tile(2, 16, 16, 1, slots)
    expected = reference(x.double(), weight.double(), bias.double(), alpha.double(), padding=1).half()
    assert torch.equal(launch(x, weight, bias, alpha, (1, 1), tile=tile), expected)
    try:
        out = launch(x, weight, bias, alpha, (1, 1), tile=tile, edit=replacing(old, new))
    except (AssertionError, AttributeError, RuntimeError):
        return
    same = torch.equal(out, expected)
    assert not same


def test_tiles_fit() -> None:
    for k in (1, 3):
        for c in range(8, 129, 8):
            for o in (1, 3, 16, 17, 32, 64, 65, 128, 129, 512):
                for activation in ("none", "gelu"):
                    choices = hopper.tiles(c, o, k, activation)
                    assert "wide" in choices
                    for name, tile in choices.items():
                        assert hopper.blocks_per_sm(tile, k) >= {"wide": 1, "pair": 2}[name]
                        assert tile.block_c * tile.chunks >= c
                        assert tile.rows * tile.block_o <= 256, "accumulators beyond the registers"
    assert hopper.tiles(136, 16, 1) == {}
    assert hopper.tiles(64, 64, 3) == {"wide": hopper.Tile(4, 64, 64, 1, 3), "pair": hopper.Tile(2, 64, 64, 1, 1)}


def test_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = nhwc(torch.zeros(2, 16, 9, 9).half()), each_nhwc(torch.zeros(2, 8, 16, 3, 3).half())
    arguments: dict[str, Any] = {
        "input": x, "weight": weight, "bias": None, "alpha": torch.zeros(2),
        "stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "groups": 1,
    }  # fmt: skip

    def reason(**changes: Any) -> str | None:
        return hopper.unsupported_reason(**{**arguments, **changes})

    monkeypatch.setattr(hopper, "unavailable_reason", lambda: "triton is not installed")
    assert reason() == "triton is not installed"
    monkeypatch.setattr(hopper, "unavailable_reason", lambda: None)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "3.9.0")
    assert reason() == "the Hopper kernel is written for triton 3.6 or 3.7; got 3.9.0"
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "3.7.1")
    assert reason() == "the Hopper kernel runs on CUDA devices; got cpu"
    assert not hopper.supports(**arguments)
    monkeypatch.setattr(hopper, "_environment_reason", lambda device: None)
    assert reason() is None and hopper.supports(**arguments)
    assert reason(input=x.float()) == "input must be fp16 or bf16; got torch.float32"
    assert reason(weight=torch.zeros(2, 8, 16, 5, 5).half()) == "the kernel must be 1x1 or 3x3"
    assert reason(stride=(2, 1)) == "stride, dilation and groups must be 1"
    assert reason(alpha=torch.zeros(2, 2, 9, 9)) == "alpha must not be a map"
    assert reason(weight=torch.zeros(5, 8, 16, 3, 3).half()) == "P must be at most 4; got 5"
    assert reason(input=x[:0]) == "input must be a batch that is not empty"
    assert reason(input=nhwc(torch.zeros(2, 12, 9, 9).half())) == "C must be a multiple of 8 up to 128"
    assert reason(input=x.contiguous()) == "input must be channels_last"
    assert reason(input=nhwc(torch.zeros(2, 20, 9, 9).half())[:, :16]) == "input's rows must be aligned to 16 bytes"
    assert reason(input=nhwc(torch.zeros(2, 24, 9, 9).half())[:, 4:20]) == "input must be aligned to 16 bytes"
    assert reason(weight=weight.contiguous()) == "every kernel of weight must be channels_last"
    assert reason(activation="tanh").startswith("activation must be one of")
    assert reason(input=x[:, :, :1, :1], padding=(0, 0)) == "the output must not be empty"
    huge = torch.zeros(16).half().as_strided((1, 16, 2**14, 2**14), (0, 1, 0, 0))
    assert reason(input=huge) == "one sample of the output must have fewer than 2^31 elements"
