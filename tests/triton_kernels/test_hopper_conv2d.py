"""The Hopper kernel without a GPU: its source in the emulator, its tiles, and the calls that it refuses.

Registers and instructions: test_audit.py. On a GPU: tests/gpu/test_hopper_conv2d.py.
"""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from tunable_ops.triton_kernels import hopper_conv2d as hopper

from tunable_ops.reference import tunable_conv2d as reference

_spec = importlib.util.spec_from_file_location("gluon_emulator", Path(__file__).parent / "gluon_emulator.py")
assert _spec is not None and _spec.loader is not None
gluon_emulator = importlib.util.module_from_spec(_spec)
sys.modules["gluon_emulator"] = gluon_emulator
_spec.loader.exec_module(gluon_emulator)

SOURCE = Path(hopper.__file__).with_name("hopper_conv2d_kernel.py")


def emulate(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    alpha: Tensor,
    padding: tuple[int, int],
    tile: hopper.Tile,
    activation: str = "none",
    blocks: int = 3,
    edit: Callable[[str], str] = lambda source: source,
) -> Tensor:
    """The launcher's arguments, given to the emulator."""
    samples, c, h, w = x.shape
    p, o, _, k, _ = weight.shape
    out_h, out_w = h + 2 * padding[0] - k + 1, w + 2 * padding[1] - k + 1
    tiles_h, tiles_w = -(-out_h // tile.rows), -(-out_w // 64)
    count = samples * tiles_h * tiles_w
    out = torch.full((samples, out_h, out_w, o), torch.nan, dtype=x.dtype)
    pointer = gluon_emulator.Pointer
    per_sample = hopper.per_sample(alpha)
    gluon_emulator.Emulator(SOURCE, edit).run(
        "_tunable_conv2d_hopper_forward_kernel",
        (min(blocks, count), -(-o // tile.block_o)),
        gluon_emulator.Descriptor(x.permute(0, 2, 3, 1), hopper._box(tile, k)),
        pointer(weight.flatten()),
        pointer((weight if bias is None else bias).flatten()),
        pointer(alpha.flatten()),
        pointer(out.view(-1)),
        *(c, o, out_h, out_w, count, tiles_h, tiles_w, *padding),
        *weight.stride(),
        *((0, 0) if bias is None else bias.stride()),
        alpha.stride(0) if per_sample else 0,
        alpha.stride(-1),
        *(out_h * out_w * o, out_w * o, o),
        **hopper._constants(tile, p, k, bias is not None, per_sample, activation),
    )
    return out.permute(0, 3, 1, 2)


def integers(*shape: int, dtype: torch.dtype = torch.float16, low: int = -2, high: int = 3) -> Tensor:
    return torch.randint(low, high, shape).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
@pytest.mark.parametrize(
    "samples, p, c, o, h, w, k, padding, rows, block_o, slots",
    [
        (2, 2, 16, 16, 5, 70, 3, (1, 1), 4, 16, 3),
        (3, 1, 32, 5, 4, 63, 3, (1, 1), 2, 16, 1),
        (1, 3, 8, 20, 9, 65, 3, (0, 2), 8, 16, 2),
        (2, 4, 72, 33, 3, 66, 3, (2, 0), 2, 32, 2),
        (5, 2, 16, 16, 2, 64, 3, (1, 1), 2, 16, 3),
        (2, 2, 24, 7, 7, 129, 1, (0, 0), 4, 16, 3),
        (2, 2, 128, 16, 3, 10, 1, (1, 1), 2, 16, 1),
    ],
)
@pytest.mark.parametrize("shared", [False, True], ids=["per_sample", "shared"])
def test_exact_on_integers(
    samples: int, p: int, c: int, o: int, h: int, w: int, k: int, padding: tuple[int, int],
    rows: int, block_o: int, slots: int, shared: bool, dtype: torch.dtype,
) -> None:  # fmt: skip
    block_c = min(64, max(16, hopper._power_of_two(c)))
    tile = hopper.Tile(rows, block_o, block_c, -(-c // block_c), slots)
    x = integers(samples, c, h, w, dtype=dtype, low=0, high=2)
    weight, bias = integers(p, o, c, k, k, dtype=dtype, low=-1, high=2), integers(p, o, dtype=dtype)
    alpha = integers(*([p] if shared else [samples, p]), dtype=torch.float32, low=-1, high=2)
    out = emulate(x, weight, bias, alpha, padding, tile)
    expected = reference(x.double(), weight.double(), bias.double(), alpha.double(), padding=padding)
    assert torch.equal(out.double(), expected.to(dtype).double())
