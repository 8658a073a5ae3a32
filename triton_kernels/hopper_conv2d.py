"""Launcher of the Hopper kernel: which calls it can serve, its tiles, its configurations. See hopper_conv2d_kernel.

It is chosen only by an entry of a measured table that names it: no call takes it by default. Importing this needs
torch alone.
"""

import importlib
import importlib.metadata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from tunable_ops.triton_kernels import unavailable_reason
from tunable_ops.triton_kernels.configuration import Configuration

OP = "tunable_conv2d"
TRITON_TESTED = ((3, 6), (3, 7))  # Gluon is experimental: no other version is trusted
ACTIVATIONS = ("none", "relu", "gelu", "silu", "leaky_relu")
TILE_W = 64
THREADS = 128  # one warpgroup
# Bytes of shared memory for one block on an SM of compute capability 9.0, and for each of two.
SHARED = {1: 227 * 1024, 2: 113 * 1024}
MAX_C = 128
MAX_P = 4


@dataclass(frozen=True)
class Tile:
    """The kernel's constants that a call leaves open.

    Attributes:
        rows: Output rows of a tile; each is 64 pixels wide.
        block_o: Output channels of a block.
        block_c: Input channels of a step.
        chunks: Steps per column shift: block_c * chunks >= C.
        slots: Steps of pixels that shared memory holds.
    """

    rows: int
    block_o: int
    block_c: int
    chunks: int
    slots: int


def tiles(c: int, o: int, kernel_size: int, activation: str = "none") -> dict[str, Tile]:
    """The tiles to choose from, by name; empty if nothing fits.

    `wide` has the most rows that fit an SM (the fewest pixels loaded twice), `pair` the most that fit it twice (one
    block's epilogue runs beside the other's products).
    """
    if c > MAX_C:
        return {}
    block_c = min(64, max(16, _power_of_two(c)))
    # gelu's registers: fewer accumulators beside it
    most_o, most_accumulators = (64, 128) if activation == "gelu" else (128, 256)
    candidates = [
        Tile(rows, block_o, block_c, -(-c // block_c), slots)
        for block_o in (128, 64, 32, 16)
        if block_o <= min(most_o, max(16, _power_of_two(o)))
        for rows in (8, 4, 2)
        if rows * block_o <= most_accumulators
        for slots in (3, 2, 1)
    ]
    found: dict[str, Tile] = {}
    for name, blocks in (("wide", 1), ("pair", 2)):
        fitting = [tile for tile in candidates if blocks_per_sm(tile, kernel_size) >= blocks]
        # All output channels at once if they fit, then a slot to load while another is used, then rows
        best = max(fitting, key=lambda t: (t.block_o, t.slots > 1, t.rows, t.slots), default=None)
        if best is not None and best not in found.values():
            found[name] = best
    return found


def shared_bytes(tile: Tile, kernel_size: int) -> int:
    """Shared memory of a block: the panel, the slots, the epilogue's exchange of a row, the barriers."""
    panel = kernel_size**2 * tile.chunks * tile.block_c * tile.block_o
    slot = (tile.rows + kernel_size - 1) * TILE_W * tile.block_c
    return 2 * (panel + tile.slots * slot + TILE_W * tile.block_o) + 8 * tile.slots


def blocks_per_sm(tile: Tile, kernel_size: int) -> int:
    """How many blocks fit an SM together: 0, 1 or 2 (registers allow no third)."""
    return sum(shared_bytes(tile, kernel_size) <= limit for limit in SHARED.values())


def unsupported_reason(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    alpha: Tensor,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
    activation: str = "none",
) -> str | None:
    """Says why this kernel cannot serve a call whose arguments are valid, or returns None if it can."""
    reason = unavailable_reason() or _environment_reason(input.device)
    if reason is not None:
        return reason
    rules = (
        (input.dtype in (torch.float16, torch.bfloat16), f"input must be fp16 or bf16; got {input.dtype}"),
        (weight.shape[-1] == weight.shape[-2] and weight.shape[-1] in (1, 3), "the kernel must be 1x1 or 3x3"),
        (stride == (1, 1) and dilation == (1, 1) and groups == 1, "stride, dilation and groups must be 1"),
        (alpha.dim() <= 2, "alpha must not be a map"),
        (weight.shape[0] <= MAX_P, f"P must be at most {MAX_P}; got {weight.shape[0]}"),
        (input.dim() == 4 and input.numel() > 0, "input must be a batch that is not empty"),
        (input.shape[1] % 8 == 0 and input.shape[1] <= MAX_C, f"C must be a multiple of 8 up to {MAX_C}"),
        (input.stride(1) == 1, "input must be channels_last"),
        (all(s % 8 == 0 for s in _nhwc(input).stride()[:3]), "input's rows must be aligned to 16 bytes"),
        (input.data_ptr() % 16 == 0, "input must be aligned to 16 bytes"),
        (weight.stride(2) == 1, "every kernel of weight must be channels_last"),
        (activation in ACTIVATIONS, f"activation must be one of {ACTIVATIONS}; got {activation!r}"),
    )
    for holds, text in rules:
        if not holds:
            return text
    samples, _, h, w = input.shape
    out_h, out_w = (n + 2 * p - weight.shape[-1] + 1 for n, p in zip((h, w), padding, strict=True))
    if out_h <= 0 or out_w <= 0:
        return "the output must not be empty"
    if out_h * out_w * weight.shape[1] >= 2**31 or samples * out_h * (out_w // TILE_W + 1) >= 2**31:
        return "one sample of the output must have fewer than 2^31 elements"
    if not tiles(input.shape[1], weight.shape[1], weight.shape[-1], activation):
        return "the blended kernels must fit in shared memory"
    return None


def supports(*arguments: Any, **named: Any) -> bool:
    """Whether this kernel can serve a call; takes the arguments of `unsupported_reason`."""
    return unsupported_reason(*arguments, **named) is None


def launch_hopper_conv2d_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    alpha: Tensor,
    padding: tuple[int, int],
    activation: str = "none",
    tile: str = "wide",
) -> Tensor:
    """out[b] = act(conv2d(input[b], sum_p alpha[b,p] weight[p]) + sum_p alpha[b,p] bias[p]), stride 1.

    Args:
        input: [B, C, H, W], channels_last, fp16 or bf16.
        weight: [P, O, C, k, k], every kernel channels_last, k 1 or 3.
        bias: [P, O] or None.
        alpha: [P], [1, P] or [B, P], any floating dtype.
        padding: Rows and columns of zeros at each side.
        activation: One of ACTIVATIONS.
        tile: A name of `tiles`; "wide" where there is no such one.

    Returns:
        [B, O, OH, OW], channels_last. The caller has checked `unsupported_reason`.
    """
    kernel_size = weight.shape[-1]
    choices = tiles(input.shape[1], weight.shape[1], kernel_size, activation)
    chosen = choices.get(tile, choices["wide"])
    samples, c, h, w = input.shape
    o = weight.shape[1]
    out_h, out_w = h + 2 * padding[0] - kernel_size + 1, w + 2 * padding[1] - kernel_size + 1
    out = torch.empty(
        (samples, o, out_h, out_w), dtype=input.dtype, device=input.device, memory_format=torch.channels_last
    )
    pixels = _nhwc(input)
    if kernel_size == 1 and padding == (0, 0) and h * w % TILE_W == 0 and pixels.stride(1) == w * pixels.stride(2):
        # A 1x1 kernel knows no rows: let every tile be full.
        pixels = pixels.as_strided(
            (samples, h * w // TILE_W, TILE_W, c), (pixels.stride(0), TILE_W * pixels.stride(2), pixels.stride(2), 1)
        )
        out_h, out_w = pixels.shape[1:3]
    tiles_h, tiles_w = -(-out_h // chosen.rows), -(-out_w // TILE_W)
    blocks_o = -(-o // chosen.block_o)
    count = samples * tiles_h * tiles_w
    blocks = max(1, min(count, _multiprocessors(input.device) * blocks_per_sm(chosen, kernel_size) // blocks_o))
    constants = _constants(chosen, weight.shape[0], kernel_size, bias is not None, per_sample(alpha), activation)
    with torch.cuda.device(input.device):
        _kernel()[(blocks, blocks_o)](
            _descriptor(pixels, chosen, kernel_size),
            weight,
            weight if bias is None else bias,
            alpha,
            out,
            *(c, o, out_h, out_w, count, tiles_h, tiles_w, *padding),
            *weight.stride(),
            *((0, 0) if bias is None else bias.stride()),
            alpha.stride(0) if per_sample(alpha) else 0,
            alpha.stride(-1),
            *(out.numel() // samples, out_w * o, o),
            **constants,
            num_warps=THREADS // 32,
        )
    return out


def per_sample(alpha: Tensor) -> bool:
    """Whether every sample may have a blend of its own."""
    return alpha.dim() == 2 and alpha.shape[0] > 1


def configurations() -> Iterator[Configuration]:
    """Every tile that can be chosen, plain and with gelu, and every P and activation where registers are tightest.

    fp16 and bf16 take turns: they differ in nothing but the type. P beyond 2 and the cheap activations are left out for
    the smaller tiles.
    """
    shapes = [(k, c, o) for k in (3, 1) for c in (16, 32, 64, 128) for o in (16, 32, 64, 128)]
    seen = set()
    for k, c, o in shapes:
        for activation in ("none", "gelu"):
            for tile_name, tile in tiles(c, o, k, activation).items():
                if (k, tile, activation) not in seen:
                    seen.add((k, tile, activation))
                    dtype = ("fp16", "bf16")[len(seen) % 2]
                    quick = activation == "none" and tile_name == "wide" and (k, c, o) in ((3, 64, 64), (1, 64, 64))
                    yield _configuration(tile_name, tile, 2, k, True, True, activation, dtype, quick)
    # What else decides the code, where registers and shared memory are tightest
    for o in (64, 128):
        tile = tiles(64, o, 3)["wide"]
        for p in (1, 3, 4):
            yield _configuration("wide", tile, p, 3, True, True, "none", "bf16", p == 4 and o == 64)
            for activation in ("relu", "silu", "leaky_relu"):
                yield _configuration("wide", tile, p, 3, True, True, activation, "bf16", False)
        yield _configuration("wide", tile, 4, 3, False, False, "none", "fp16", False)
    yield _configuration("wide", tiles(64, 64, 3, "gelu")["wide"], 4, 3, True, True, "gelu", "bf16", True)


def _configuration(
    tile_name: str,
    tile: Tile,
    p: int,
    kernel_size: int,
    has_bias: bool,
    per_sample: bool,
    activation: str,
    dtype: str,
    quick: bool,
) -> Configuration:
    kernel = _kernel()
    layout = repr(_layout(tile, kernel_size, dtype))
    box = ", ".join(map(str, _box(tile, kernel_size)))
    # What a launch finds to be 1, and multiples of 16
    constants: dict[str, Any] = {"stride_wc": 1, "stride_ap": 1, "stride_bo": 1}
    constants |= _constants(tile, p, kernel_size, has_bias, per_sample, activation)
    signature = {"x_desc": f"tensordesc<{dtype}[{box}],{layout}>", "alpha_ptr": "*fp32", "stride_ob": "i64"}
    for name in kernel.arg_names:
        if name not in constants and name not in signature:
            signature[name] = f"*{dtype}" if name.endswith("_ptr") else "i32"
    sizes = ("C", "O", "stride_wp", "stride_wo", "stride_wh", "stride_ww", "stride_bp", "stride_ob", "stride_oh")
    parts = [f"k{kernel_size}", f"C{tile.block_c * tile.chunks}", f"O{tile.block_o}", tile_name]
    parts += [f"rows{tile.rows}", f"slots{tile.slots}", f"P{p}", "per_sample" if per_sample else "shared"]
    parts += [*([] if has_bias else ["nobias"]), activation, dtype]
    return Configuration(
        name="-".join(parts),
        fn=kernel,
        signature=signature,
        constexprs=constants,
        divisible=("w_ptr", "bias_ptr", "alpha_ptr", "out_ptr", *sizes, "stride_ow"),
        num_warps=THREADS // 32,
        num_stages=1,
        expected={90: ("HGMMA", "UTMALDG")},
        archs=(90,),
        quick=quick,
    )


def _constants(
    tile: Tile, p: int, kernel_size: int, has_bias: bool, per_sample: bool, activation: str
) -> dict[str, Any]:
    return {
        "P": p,
        "KS": kernel_size,
        "TH": tile.rows,
        "CHUNKS": tile.chunks,
        "BLOCK_C": tile.block_c,
        "BLOCK_O": tile.block_o,
        "SLOTS": tile.slots,
        "HAS_BIAS": has_bias,
        "PER_SAMPLE": per_sample,
        "ACTIVATION": activation,
    }


def _descriptor(pixels: Tensor, tile: Tile, kernel_size: int) -> Any:
    """The TMA descriptor of NHWC pixels: a kernel argument, so that a captured graph holds it."""
    hopper = importlib.import_module("triton.experimental.gluon.nvidia.hopper")
    layout = _layout(tile, kernel_size, {torch.float16: "fp16", torch.bfloat16: "bf16"}[pixels.dtype])
    return hopper.TensorDescriptor(pixels, list(pixels.shape), list(pixels.stride()), _box(tile, kernel_size), layout)


@lru_cache
def _layout(tile: Tile, kernel_size: int, dtype: str) -> Any:
    gl = importlib.import_module("triton.experimental.gluon.language")
    return gl.NVMMASharedLayout.get_default_for(
        _box(tile, kernel_size), {"fp16": gl.float16, "bf16": gl.bfloat16}[dtype]
    )


def _box(tile: Tile, kernel_size: int) -> list[int]:
    """The block of one TMA copy: sizes must be powers of two, so the largest that divides the rows of a slot."""
    rows = tile.rows + kernel_size - 1
    return [1, rows & -rows, TILE_W, tile.block_c]


def _nhwc(input: Tensor) -> Tensor:
    return input.permute(0, 2, 3, 1)


def _power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()


def _kernel() -> Any:
    return importlib.import_module(
        "tunable_ops.triton_kernels.hopper_conv2d_kernel"
    )._tunable_conv2d_hopper_forward_kernel


def _environment_reason(device: torch.device) -> str | None:
    version = tuple(int(part) for part in importlib.metadata.version("triton").split(".")[:2])
    if version not in TRITON_TESTED:
        known = " or ".join(".".join(map(str, v)) for v in TRITON_TESTED)
        return f"the Hopper kernel is written for triton {known}; got {importlib.metadata.version('triton')}"
    if device.type != "cuda":
        return f"the Hopper kernel runs on CUDA devices; got {device}"
    if _capability(device) != (9, 0):
        return f"the Hopper kernel needs compute capability 9.0; got {_capability(device)}"
    return None


@lru_cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


@lru_cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count
