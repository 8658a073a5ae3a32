"""Random calls of the C++ operators, forward and backward: `make sanitize` runs them under sanitizers.

    python tests/csrc/fuzz.py --seconds 120 --seed 0

Values are small integers, so that float32 results must equal the definition's in float64 (by Winograd's filtering in
tiles of 4x4 after rounding); a failure names the call and its seed. Sizes lie around those of the kernels' blocks;
strides, padding, dilation, groups, layouts, dtypes, masks, activations, algorithms and threads are drawn too.
"""

import argparse
import random
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

import tunable_ops
from tests.ops.strided_tensors import LAYOUTS, stack_layout
from tunable_ops import reference
from tunable_ops.functional import KeptKernel

CHANNELS = (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 24, 31, 32, 33, 48)
WIDE = (48, 129, 144, 200, 301, 440)  # above 128, blocks of tiles are larger; wide 1x1 layers are aten's
EXTENTS = (1, 2, 3, 5, 6, 7, 8, 9, 12, 13, 16, 17, 25)
DTYPES = (torch.float32, torch.float32, torch.float32, torch.bfloat16, torch.float16)


def integers(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Return -1, 0 or 1."""
    return torch.randint(-1, 2, tuple(shape)).to(dtype)


def run(function: Callable[..., Tensor], given: Sequence[Tensor | None], mask: Sequence[bool], **options: Any) -> Any:
    """Return the output and the gradients that `mask` asks for."""
    leaves = [t if t is None else t.detach().requires_grad_(m) for t, m in zip(given, mask, strict=True)]
    output = function(*leaves, **options)
    wanted = [t for t, m in zip(leaves, mask, strict=True) if m and t is not None]
    if not wanted:
        return [output]
    grad = (torch.arange(output.numel()).view(output.shape) % 3 - 1).to(output.dtype)
    if random.random() < 0.5:
        grad = LAYOUTS[random.choice(list(LAYOUTS))](grad) if 0 not in grad.shape else grad
    return [output.detach(), *torch.autograd.grad(output, wanted, grad)]


def compare(results: Sequence[Tensor], expected: Sequence[Tensor], exact: bool) -> None:
    """Raise AssertionError unless results agree: exactly, or in 16 bits or after a smooth activation closely."""
    for result, right in zip(results, expected, strict=True):
        assert result.shape == right.shape, f"shapes {list(result.shape)}, {list(right.shape)}"
        if exact:
            assert torch.equal(result.double(), right), "values"
        elif right.numel():
            bound = 0.1 * right.abs().max().item() + 0.05
            assert (result.double() - right).abs().max().item() <= bound, "values"


def convolution(rng: random.Random) -> str:
    """Call tunable_conv2d, or tunable_conv_transpose2d for inference; return a description."""
    transposed = rng.random() < 0.15
    groups = rng.choice((1, 1, 1, 2, 3, 16))
    depthwise = rng.random() < 0.2
    inputs, outputs = (rng.choice(CHANNELS), rng.choice(CHANNELS)) if groups < 16 and not depthwise else (1, 1)
    if depthwise:
        groups = rng.choice(CHANNELS)
    elif groups == 1 and rng.random() < 0.1:
        inputs, outputs = rng.choice(WIDE), rng.choice(WIDE)
    inputs, outputs = inputs * groups, outputs * groups
    taps = [rng.choice((1, 1, 2, 3, 3, 4, 5, 7)) for _ in range(2)]
    dilation = [1, 1] if transposed else [rng.choice((1, 1, 1, 2, 3)) for _ in range(2)]
    stride = [rng.randint(1, k) if transposed else rng.choice((1, 1, 2, 3)) for k in taps]
    padding = [rng.randint(0, 2) for _ in range(2)]
    kind = rng.random()
    if kind < 0.4:  # what has kernels of its own: square ones without stride, and blocks of stride x stride pixels
        taps = [rng.choice((2, 4) if transposed else (3, 5))] * 2
        stride, dilation = (taps if transposed else [1, 1]), [1, 1]
        padding = [0, 0] if transposed else padding
    elif kind < 0.5 and not transposed:  # the same blocks, down
        taps, dilation = [rng.choice((2, 3))] * 2, [1, 1]
        stride, padding = taps, [0, 0]
    size = [max(rng.choice(EXTENTS), d * (k - 1) + 1 - 2 * p) for d, k, p in zip(dilation, taps, padding, strict=True)]
    batch, kernels = rng.choice((0, 1, 1, 2, 3, 5)), rng.choice((1, 2, 3, 5))
    if transposed:
        batch, size = max(1, batch), [n + 2 * p for n, p in zip(size, padding, strict=True)]
    dtype = torch.float32 if transposed else rng.choice(DTYPES)
    grid = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, p, d, k, s in zip(size, padding, dilation, taps, stride, strict=True)
    ]
    forms: list[tuple[int, ...]] = [(kernels,), (batch, kernels)]
    if dtype == torch.float32 and not transposed:
        forms.append((batch, kernels, *grid))
    alpha = integers(rng.choice(forms), torch.float32)
    pair = (inputs, outputs // groups) if transposed else (outputs, inputs // groups)
    x, weight = integers((batch, inputs, *size), dtype), integers((kernels, *pair, *taps), dtype)
    bias = integers((kernels, outputs), dtype) if rng.random() < 0.7 else None
    activation = rng.choice((None, None, None, None, "relu", "leaky_relu", "gelu", "silu"))
    mask = [not transposed and rng.random() < 0.7 for _ in range(4)]
    mask[2] = mask[2] and bias is not None
    layout, kernel_layout = (
        ("channels_last",) * 2 if transposed else (rng.choice(list(LAYOUTS)), rng.choice(list(LAYOUTS)))
    )
    name = "tunable_conv_transpose2d" if transposed else "tunable_conv2d"
    text = (
        f"{name} x {list(x.shape)} {layout}, weight {list(weight.shape)} {kernel_layout}, alpha {list(alpha.shape)}, "
        f"bias {bias is not None}, {dtype}, s{stride} p{padding} d{dilation} g{groups} {activation}, mask {mask}, "
        f"{torch.get_num_threads()} threads"
    )
    options: dict[str, Any] = {"stride": stride, "padding": padding, "groups": groups, "activation": activation}
    if not transposed:
        options["dilation"] = dilation
    backend = None if transposed else "cpp"
    algorithm = "direct"
    plain = (
        taps in ([3, 3], [5, 5]) and stride == dilation == [1, 1] and not (groups > 1 and inputs == outputs == groups)
    )
    if plain and not transposed and dtype == torch.float32 and alpha.dim() < 3:
        # Not 4x4 with an activation: its gradient depends on the sign of what is 0 but for the rounding.
        # 5x5 kernels in tiles of 2x2 use the points of 4x4 tiles.
        four = not activation and taps == [3, 3]
        algorithm = rng.choice(("direct", "winograd2", *["winograd4" if four else "winograd2"] * 2))
        if taps == [5, 5] and activation:
            algorithm = "direct"
    text += f", {algorithm}"
    tunable_ops.set_algorithm(algorithm)
    try:
        laid = LAYOUTS[layout](x) if batch else x
        results = run(
            getattr(tunable_ops, name),
            (laid, stack_layout(kernel_layout, weight), bias, alpha),
            mask,
            backend=backend,
            **options,
        )
        doubles = [None if t is None else t.double() for t in (x, weight, bias, alpha)]
        expected = run(getattr(reference, name), doubles, mask, **options)
        if algorithm == "winograd4" or (algorithm == "winograd2" and taps == [5, 5]):
            results = [result.round() for result in results]
        compare(results, expected, dtype == torch.float32 and activation in (None, "relu"))
    except Exception as error:
        raise AssertionError(text) from error
    return text


def kept(rng: random.Random) -> str:
    """Call the convolution that keeps its transformed kernel, with changes between; return a description."""
    groups, taps = rng.choice((1, 1, 2, 3)), rng.choice((3, 5))
    inputs, outputs = (groups * rng.choice(CHANNELS[2:]) for _ in range(2))
    size = [max(rng.choice(EXTENTS), taps) for _ in range(2)]
    padding = (rng.randint(0, 2), rng.randint(0, 2))
    x = integers((rng.choice((1, 1, 2, 3)), inputs, *size), torch.float32).to(memory_format=torch.channels_last)
    bias = integers((1, outputs), torch.float32) if rng.random() < 0.7 else None
    layouts = [rng.choice(list(LAYOUTS)) for _ in range(4)]
    algorithms = [rng.choice(("default", "winograd2", "winograd4" if taps == 3 else "winograd2")) for _ in layouts]
    text = (
        f"kept x {list(x.shape)}, taps {taps}, {outputs} outputs in {layouts}, bias {bias is not None}, p{padding} "
        f"g{groups}, {algorithms}, {torch.get_num_threads()} threads"
    )
    weight, place = integers((1, outputs, inputs // groups, taps, taps), torch.float32), KeptKernel()
    try:
        for layout, algorithm in zip(layouts, algorithms, strict=True):
            tunable_ops.set_algorithm(algorithm)
            if rng.random() < 0.5:
                weight.view(-1)[rng.randrange(weight.numel())] += 1
            doubles = [None if t is None else t.double() for t in (x, weight, bias)]
            expected = reference.tunable_conv2d(*doubles, torch.ones(1).double(), 1, padding, 1, groups)  # type: ignore[arg-type]
            for _ in range(2):
                output = place.convolve(x, stack_layout(layout, weight), bias, padding, groups)
                compare([output.round()], [expected], True)
    except Exception as error:
        raise AssertionError(text) from error
    return text


def parameters(rng: random.Random) -> str:
    """Call tunable_parameters, and tunable_parameter on the first stack; return a description."""
    ranks = (0, 1, 2, 4, 5)
    stacks, starts, total = [], [], rng.randint(1, 7)
    for _ in range(rng.randint(1, 6)):
        shape = [rng.choice((1, 1, 2, 3, 5, 33)) for _ in range(rng.choice(ranks))]
        if rng.random() < 0.1:
            shape = [rng.choice((0, (1 << 14) - 1, 1 << 14, (1 << 14) + 1))]
        kernels = rng.randint(1, total)
        stack = integers((kernels, *shape), rng.choice((*DTYPES, torch.float64)))
        layout = rng.choice(list(LAYOUTS))
        stacks.append(stack_layout(layout, stack) if len(shape) > 1 else stack)
        starts.append(rng.randint(0, total - kernels))
    alpha = integers((total,), torch.float32)
    text = (
        f"tunable_parameters {[(list(s.shape), s.stride(), s.dtype) for s in stacks]}, alpha [{total}], starts {starts}"
    )
    mask = [rng.random() < 0.7 for _ in range(len(stacks) + 1)]
    try:
        leaves = [t.detach().requires_grad_(m) for t, m in zip([*stacks, alpha], mask, strict=True)]
        outputs = tunable_ops.functional.tunable_parameters(leaves[:-1], leaves[-1], starts, backend="cpp")
        for output, stack, start in zip(outputs, stacks, starts, strict=True):
            part = alpha[start : start + stack.shape[0]].double()
            right = torch.tensordot(part, stack.double(), 1)
            assert torch.equal(output.detach().double(), right), "values"
        wanted = [t for t in leaves if t.requires_grad]
        if wanted:
            torch.autograd.grad(sum(o.double().sum() for o in outputs), wanted, allow_unused=True)
        single = alpha[: stacks[0].shape[0]]
        if stacks[0].dtype != torch.float64:
            tunable_ops.tunable_parameter(stacks[0], single, backend="cpp")
    except Exception as error:
        raise AssertionError(text) from error
    return text


def main() -> None:
    """Draw calls until the time is over."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--verbose", action="store_true", help="print each call before it runs")
    options = parser.parse_args()
    if (reason := tunable_ops.backends.cpp.unavailable_reason("tunable_conv2d")) is not None:
        raise SystemExit(reason)
    print(f"fuzzing {tunable_ops.backends.cpp.build_information()['library']}", flush=True)  # type: ignore[index]
    end, seed = time.monotonic() + options.seconds, options.seed
    while time.monotonic() < end:
        rng = random.Random(seed)
        random.seed(seed)
        torch.manual_seed(seed)
        torch.set_num_threads(rng.choice((1, 1, 2, 3)))
        if options.verbose:
            print(f"seed {seed}", flush=True)
        try:
            rng.choices((convolution, kept, parameters), (7, 1, 2))[0](rng)
        except AssertionError as error:
            raise SystemExit(f"seed {seed}: {error}: {error.__cause__!r}") from error
        seed += 1
    print(f"{seed - options.seed} calls without a finding, seeds {options.seed} to {seed - 1}")


if __name__ == "__main__":
    main()
