"""Values and gradients of every operator on every CPU backend, against the loop oracles of `oracles.py`."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.comparison import assert_agrees
from tests.ops import oracles
from tunable_ops import backends, functional

B, P = 2, 3
ALPHAS = ("shared", "one", "sample", "map")
CPP = pytest.mark.skipif(
    backends.unavailable_reason("tunable_conv2d", "cpp") is not None, reason="needs the compiled operators"
)
# (backend, dtype); on a CPU the default in float64 is "torch"
WAYS = [
    pytest.param(backend, dtype, id=f"{backend}-{str(dtype)[6:]}", marks=[CPP] if backend == "cpp" else [])
    for backend, dtype in (
        ("reference", torch.float64),
        ("torch", torch.float64),
        ("torch", torch.float32),
        (None, torch.float32),
        ("cpp", torch.float32),
    )
]
HAVE_CPP = ("tunable_conv1d", "tunable_conv2d")


@dataclass(frozen=True)
class Case:
    """One call; sizes are as different as the operator allows."""

    op: str
    input: tuple[int, ...]
    weight: tuple[int, ...]  # without P
    options: dict[str, Any]
    activation: str | None = None
    bias: bool = True
    batched: bool = True

    def __str__(self) -> str:
        parts = [
            self.op.removeprefix("tunable_"),
            "x".join(map(str, self.input)),
            "k" + "x".join(map(str, self.weight)),
        ]
        for name, value in self.options.items():
            shown = "".join(map(str, value)) if isinstance(value, tuple) else str(value)
            parts.append("".join(word[0] for word in name.split("_")) + shown)
        return "-".join([*parts, self.activation or "none", *([] if self.bias else ["nobias"])])

    @property
    def outputs(self) -> int:
        """Number of output channels."""
        transposed = self.op == "tunable_conv_transpose2d"
        return self.weight[1] * self.options["groups"] if transposed else self.weight[0]

    @property
    def alphas(self) -> tuple[str, ...]:
        """Kinds of alpha that the call may take."""
        if not self.batched:
            return ("shared",)
        return ALPHAS[:3] if self.op == "tunable_linear" else ALPHAS


def conv(*shapes: Any, s: Any = None, p: Any = None, d: Any = None, g: int = 1, **more: Any) -> Case:
    """Return a convolution with as many dimensions as the kernel."""
    n = len(shapes[1]) - 2
    options = {"stride": s or (1,) * n, "padding": p or (0,) * n, "dilation": d or (1,) * n, "groups": g}
    return Case(f"tunable_conv{n}d", *shapes, options, **more, batched=len(shapes[0]) == n + 2)


def transposed(
    *shapes: Any, s: Any, p: Any = (0, 0), op: Any = (0, 0), g: int = 1, d: Any = (1, 1), **more: Any
) -> Case:
    options = {"stride": s, "padding": p, "output_padding": op, "groups": g, "dilation": d}
    return Case("tunable_conv_transpose2d", *shapes, options, **more, batched=len(shapes[0]) == 4)


def linear(*shapes: Any, **more: Any) -> Case:
    return Case("tunable_linear", *shapes, {}, **more, batched=len(shapes[0]) > 1)


# fmt: off
CASES = [
    conv((B, 4, 9), (6, 2, 3), s=(2,), p=(1,), d=(2,), g=2, activation="silu"),
    conv((B, 3, 8), (5, 3, 4), p="same", activation="gelu", bias=False),
    conv((B, 4, 7), (4, 1, 3), p=(2,), g=4),
    conv((4, 9), (6, 4, 3), s=(2,), p="valid", activation="relu"),
    conv((B, 3, 5, 6), (5, 3, 2, 3), s=(2, 1), p=(1, 2), d=(1, 2), activation="silu"),
    conv((B, 4, 3, 5), (6, 4, 3, 3), p=(1, 1), activation="leaky_relu"),
    conv((B, 4, 5, 6), (6, 2, 3, 2), p=(1, 0), g=2, activation="relu"),
    conv((B, 5, 4, 6), (5, 1, 3, 2), s=(1, 2), p=(1, 1), g=5, activation="gelu"),
    conv((B, 2, 4, 5), (6, 1, 2, 3), d=(2, 1), g=2, bias=False),
    conv((B, 4, 5, 3), (6, 4, 1, 1), activation="gelu"),
    conv((B, 3, 4, 5), (5, 3, 1, 1), s=(2, 1), p=(1, 0), bias=False, activation="relu"),
    conv((B, 4, 6, 7), (5, 4, 2, 3), s=(2, 3)),
    conv((B, 3, 4, 5), (4, 3, 2, 4), p="same", activation="silu"),
    conv((B, 4, 6, 5), (6, 2, 2, 3), p="same", d=(3, 1), g=2, bias=False, activation="leaky_relu"),
    conv((B, 3, 4, 5), (4, 3, 2, 3), p="valid"),
    conv((B, 3, 3, 2), (4, 3, 2, 2), p=(3, 2), activation="leaky_relu"),
    conv((4, 5, 6), (6, 2, 3, 2), s=(2, 1), p=(1, 0), g=2, activation="gelu"),
    conv((4, 5, 6), (6, 4, 2, 2), p="same", bias=False),
    conv((B, 4, 3, 4, 5), (6, 2, 2, 1, 3), s=(1, 2, 1), p=(1, 0, 1), d=(2, 1, 1), g=2, activation="silu"),
    conv((B, 2, 4, 3, 5), (3, 2, 2, 3, 1), s=(2, 1, 3), bias=False, activation="gelu"),
    conv((B, 3, 3, 4, 2), (3, 1, 2, 3, 2), p=(0, 1, 1), g=3, activation="relu"),
    conv((B, 2, 3, 2, 4), (3, 2, 2, 1, 4), p="same", activation="leaky_relu"),
    conv((2, 3, 4, 5), (3, 2, 2, 3, 1), p=(1, 1, 0)),
    transposed((B, 4, 3, 2), (4, 3, 3, 2), s=(2, 3), p=(1, 0), op=(1, 2), g=2, d=(1, 2), activation="silu"),
    transposed((B, 3, 4, 5), (3, 2, 2, 3), s=(2, 3), activation="gelu"),  # kernels that do not overlap
    transposed((B, 3, 2, 4), (3, 4, 2, 2), s=(2, 2), op=(0, 1), bias=False),
    transposed((B, 5, 3, 2), (5, 1, 3, 4), s=(1, 2), p=(1, 1), op=(0, 1), g=5, activation="relu"),
    transposed((B, 4, 3, 4), (4, 5, 3, 2), s=(1, 1), p=(1, 0), bias=False, activation="leaky_relu"),
    transposed((B, 2, 3, 2), (2, 3, 2, 3), s=(1, 2), p=(2, 0), op=(2, 0), d=(3, 1)),
    transposed((4, 3, 2), (4, 3, 3, 2), s=(2, 1), op=(1, 0), g=2, activation="gelu"),
    linear((B, 5, 4), (6, 4), activation="gelu"),
    linear((B, 4), (5, 4), activation="silu"),
    linear((B, 3, 5, 4), (6, 4), bias=False, activation="relu"),
    linear((4,), (6, 4), activation="leaky_relu"),
]
# fmt: on


def draw(*shape: int, seed: int) -> Tensor:
    """Draw normal numbers that float32 represents exactly, so that the same oracle serves both dtypes."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).double()


@cache
def expect(index: int, kind: str, activation: str | None) -> tuple[list[Tensor | None], Tensor, dict[str, Tensor]]:
    """Return [input, weight, bias, alpha], a gradient of the output, and the oracle's output and gradients."""
    case = CASES[index]
    x = draw(*case.input, seed=1)
    weight = (draw(P, *case.weight, seed=2) / x.shape[-1] ** 0.5).float().double()
    bias = draw(P, case.outputs, seed=3) if case.bias else None
    flat = x if case.batched else x[None]
    if case.op == "tunable_linear":
        flat = flat.reshape(len(flat), -1, x.shape[-1]).mT  # [B, C, rows]
    function = {"tunable_linear": oracles.linear, "tunable_conv_transpose2d": oracles.transposed_convolution}
    build = function.get(case.op, oracles.convolution)

    def oracle(alpha: Tensor) -> oracles.Oracle:
        arrays = [None if t is None else t.numpy() for t in (flat, weight, bias, alpha)]
        return build(*arrays, **case.options, activation=activation)

    shape = {"shared": (P,), "one": (1, P), "sample": (B, P)}
    if kind == "map":
        shape["map"] = (B, P, *oracle(draw(P, seed=4)).output.shape[2:])
    alpha = draw(*shape[kind], seed=5)
    found = oracle(alpha)
    grad = draw(*found.output.shape, seed=6)
    results = {"output": found.output, **found.gradients(grad.numpy())}
    tensors = {name: torch.from_numpy(value) for name, value in results.items()}

    def outward(value: Tensor) -> Tensor:
        value = value.mT.reshape(*x.shape[:-1], -1) if case.op == "tunable_linear" else value
        return value if case.batched or value.dim() == x.dim() else value[0]

    tensors |= {name: outward(tensors[name]) for name in ("output", "input")}
    return [x, weight, bias, alpha], outward(grad), tensors


def lay_out(case: Case, tensors: list[Tensor | None]) -> list[Tensor | None]:
    """Move the channels of input and kernels to the end in memory."""
    x, weight, bias, alpha = tensors
    assert x is not None and weight is not None
    if case.op == "tunable_linear":  # its input already has them there
        return [x, weight.mT.contiguous().mT, bias, alpha]
    weight = weight.movedim(2, -1).contiguous().movedim(-1, 2)
    place = 1 if case.batched else 0
    return [x.movedim(place, -1).contiguous().movedim(-1, place), weight, bias, alpha]


def run(case: Case, tensors: list[Any], grad: Tensor, options: dict[str, Any], dtype: torch.dtype) -> dict[str, Tensor]:
    """Return output and gradients, and the output of the same call under no_grad."""
    names = ("input", "weight", "bias", "alpha")
    given = [None if t is None else t.detach().to(dtype) for t in tensors]
    function, options = getattr(functional, case.op), {**case.options, **options}
    with torch.no_grad():
        inference = function(*given, **options)
    leaves = {name: t.requires_grad_() for name, t in zip(names, given, strict=True) if t is not None}
    output = function(*given, **options)
    grads = torch.autograd.grad(output, list(leaves.values()), grad.to(dtype))
    return {"output": output, "inference": inference, **dict(zip(leaves, grads, strict=True))}


def agree(value: Tensor, expected: Tensor, base: Tensor | None, label: str) -> None:
    """Compare with the oracle: in float64 closely, in float32 relative to the error of plain PyTorch (`base`)."""
    size = expected.abs().max().item()

    def close(found: Tensor, tolerance: float, name: str) -> None:
        torch.testing.assert_close(
            found.double(), expected, rtol=0, atol=tolerance * size, msg=lambda text: f"{name} {label}: {text}"
        )

    if value.dtype is torch.float64:
        close(value, 1e-12, "float64")
    else:
        assert base is not None
        # A fault shared by value and base would widen the bounds. Sums of a few hundred terms are within 1e-5.
        close(base, 1e-5, "plain PyTorch's")
        assert_agrees(value, expected, base, label)


def check(case: Case, kind: str, activation: str | None, backend: str | None, dtype: torch.dtype) -> None:
    tensors, grad, expected = expect(CASES.index(case), kind, activation)
    expected = {**expected, "inference": expected["output"]}
    base: dict[str, Tensor] = {}
    if dtype is torch.float32:
        base = run(case, tensors, grad, {"activation": activation, "backend": "reference"}, dtype)
    for layout, given in (("contiguous", tensors), ("channels_last", lay_out(case, tensors))):
        found = run(case, given, grad, {"activation": activation, "backend": backend}, dtype)
        assert found.keys() == expected.keys()
        for name, value in found.items():
            agree(value, expected[name], base.get(name), f"{layout} {name}")


def served(case: Case, backend: str | None) -> bool:
    return backend != "cpp" or case.op in HAVE_CPP


def pairs(cases: list[Case], kinds: tuple[str, ...]) -> list[Any]:
    """Return every case with every kind of alpha that it takes, on every backend that serves it."""
    return [
        pytest.param(case, kind, *way.values, id=f"{case}-{kind}-{way.id}", marks=way.marks)
        for case in cases
        for kind in case.alphas
        if kind in kinds
        for way in WAYS
        if served(case, way.values[0])
    ]


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("case, kind, backend, dtype", pairs(CASES, ALPHAS))
def test_values_and_gradients(case: Case, kind: str, backend: str | None, dtype: torch.dtype) -> None:
    check(case, kind, case.activation, backend, dtype)


FIRST = list({case.op: case for case in reversed(CASES)}.values())  # of each operator


@pytest.mark.parametrize("activation", oracles.ACTIVATIONS)
@pytest.mark.parametrize("case, kind, backend, dtype", pairs(FIRST, ("shared", "sample", "map")))
def test_activations(case: Case, kind: str, activation: str | None, backend: str | None, dtype: torch.dtype) -> None:
    check(case, kind, activation, backend, dtype)


def blends(
    function: Any, tensors: list[Tensor], grads: list[Tensor], backend: str | None, dtype: torch.dtype
) -> list[Tensor]:
    """Return the results of ``function(*tensors, backend)`` and the gradients of all tensors."""
    leaves = [t.detach().to(dtype).requires_grad_() for t in tensors]
    outputs = function(*leaves, backend)
    return [*outputs, *torch.autograd.grad(outputs, leaves, [t.to(dtype) for t in grads])]


@pytest.mark.parametrize("backend, dtype", [way for way in WAYS if way.values[0] != "cpp"])
@pytest.mark.parametrize("rows", [(), (1,), (B,)], ids=["shared", "one", "sample"])
@pytest.mark.parametrize("shape", [(), (5,), (4, 1, 2), (6, 5, 4, 2)], ids=str)
def test_parameter(shape: tuple[int, ...], rows: tuple[int, ...], backend: str | None, dtype: torch.dtype) -> None:
    def blend(stack: Tensor, alpha: Tensor, name: str | None) -> list[Tensor]:
        return [functional.tunable_parameter(stack, alpha, backend=name)]

    stack, alpha, grad = draw(P, *shape, seed=1), draw(*rows, P, seed=2), draw(*rows, *shape, seed=3)
    output, grads = oracles.parameter(stack.numpy(), alpha.numpy(), grad.numpy())
    expected = {"output": output, **grads}
    for given in [stack, stack.mT.contiguous().mT] if len(shape) > 1 else [stack]:
        found, base = (blends(blend, [given, alpha], [grad], name, dtype) for name in (backend, "reference"))
        for label, value, plain in zip(expected, found, base, strict=True):
            agree(value, torch.from_numpy(expected[label]), plain, label)


@pytest.mark.parametrize("backend, dtype", WAYS)
@pytest.mark.parametrize("starts", [None, (0, 3, 1, 4)], ids=["apart", "overlapping"])
def test_parameters(starts: tuple[int, ...] | None, backend: str | None, dtype: torch.dtype) -> None:
    def blend(*given: Any) -> list[Tensor]:
        *stacks, alpha, name = given
        return functional.tunable_parameters(stacks, alpha, starts, backend=name)

    shapes = [(2, 5), (3, 4, 2, 3), (1,), (4, 6, 2)]
    stacks, alpha = [draw(*shape, seed=i) for i, shape in enumerate(shapes)], draw(10, seed=20)
    grads = [draw(*shape[1:], seed=10 + i) for i, shape in enumerate(shapes)]
    outputs, grad_stacks, grad_alpha = oracles.parameters(
        [t.numpy() for t in stacks], alpha.numpy(), starts or (0, 2, 5, 6), [t.numpy() for t in grads]
    )
    found, base = (blends(blend, [*stacks, alpha], grads, name, dtype) for name in (backend, "reference"))
    labels = [*(f"output {i}" for i in range(4)), *(f"parameter {i}" for i in range(4)), "alpha"]
    for label, value, array, plain in zip(labels, found, [*outputs, *grad_stacks, grad_alpha], base, strict=True):
        agree(value, torch.from_numpy(array), plain, label)
