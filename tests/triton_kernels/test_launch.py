"""Launches without a GPU: what is compiled for new picture sizes, and plans that repeat a call with other tensors."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from tunable_ops.triton_kernels import INTERPRETED, unavailable_reason
from tunable_ops.triton_kernels.specialise import specialise

if unavailable_reason() is not None or INTERPRETED:
    pytest.skip(unavailable_reason() or "launches are interpreted here", allow_module_level=True)

from tunable_ops.bench import launches as bench
from tunable_ops.triton_kernels import launch as launching
from tunable_ops.triton_kernels import stand_in
from tunable_ops.triton_kernels.choose_algorithm import Problem, choose_algorithm, default_config, premixed_config
from tunable_ops.triton_kernels.launch import Launch
from tunable_ops.triton_kernels.plan_problem import make_operands, plan_problem

from tunable_ops import tunable_conv2d
from tunable_ops.backends.triton import plans

# Even and odd, multiples of 16 and none, of one row and larger than a tile in every direction.
SIZES = [(24, 24), (32, 48), (33, 31), (40, 100), (56, 56), (64, 64), (65, 129), (100, 75), (128, 16), (17, 200)]
LAYER = Problem("forward", "dense", "sample", "bfloat16", "nhwc", 4, 2, 64, 64, 1, (3, 3), (1, 1), (1, 1))
ONE = {"kind": "pointwise", "taps": (1, 1)}


def compilations(problem: Problem, premixed: bool = False) -> set[Any]:
    """Return the keys of the machine code that a problem needs at ten picture sizes, by one algorithm."""
    found = set()
    for size in SIZES:
        sized = problem._replace(size=size)
        config = premixed_config(sized) if premixed else default_config(sized)
        launches, _ = plan_problem(sized, make_operands(sized, "meta"), config)
        for one in launches:
            made = specialise(one.kernel.arg_names, one.arguments, one.constants)
            found.add((one.kernel.__name__, one.num_warps, one.num_stages, made.key()))
    return found


KINDS = ("shared", "sample", "map")
LAUNCHES = [({}, direction, alpha) for direction in ("forward", "input", "weight") for alpha in KINDS]
LAUNCHES += [({}, "alpha", "map"), *((ONE, "forward", alpha) for alpha in KINDS)]
LAUNCHES += [(ONE, "input", "shared"), (ONE, "input", "sample")]


@pytest.mark.parametrize("channels", [3, 24, 32, 64, 100])
@pytest.mark.parametrize("kind, direction, alpha", LAUNCHES, ids=str)
def test_ten_sizes_need_one_compilation(kind: dict[str, Any], direction: str, alpha: str, channels: int) -> None:
    sizes = {"inputs": channels, "outputs": channels}
    problem = LAYER._replace(direction=direction, alpha=alpha, **sizes, **kind)
    assert len(compilations(problem)) == 1
    if alpha == "sample" and direction in ("forward", "input"):
        assert len(compilations(problem._replace(alpha="none"), premixed=True)) == 1


@pytest.mark.parametrize("direction", ["forward", "weight"])
def test_contiguous_pictures_need_three(direction: str) -> None:
    """One for sizes that are all multiples of 8, one for rows that are, which allow 16-byte accesses, and another."""
    layer = LAYER._replace(layout="nchw", direction=direction)
    assert len(compilations(layer)) == 3


def test_a_strided_gradient_needs_one_per_phase() -> None:
    assert len(compilations(LAYER._replace(direction="input", stride=(2, 2)))) == 4


def test_steps_between_pixels_keep_what_vectors_need() -> None:
    """In channels_last the hint depends on the number of channels, whatever the picture."""
    for channels, expected in ((64, 8), (24, 8), (20, 4), (18, None)):
        for size in SIZES:
            problem = LAYER._replace(inputs=channels, outputs=channels, size=size)
            (one,), _ = plan_problem(problem, make_operands(problem, "meta"), choose_algorithm(problem).config)
            made = specialise(one.kernel.arg_names, one.arguments, one.constants)
            index = one.kernel.arg_names.index("x_strides")
            assert made.constants[index, 1] == 1
            assert [made.divisibility.get((index, i)) for i in (0, 2, 3)] == [expected] * 3
            assert (one.kernel.arg_names.index("picture"), 0) not in made.divisibility


class Started(stand_in.StandIn):
    """A driver that keeps the values of every launch."""

    def __init__(self) -> None:
        super().__init__()
        self.values: list[tuple[Any, ...]] = []
        self.hooks: list[Any] = []

    def _launcher(self, source: Any, metadata: Any) -> Any:
        def launch(*arguments: Any) -> None:
            self.hooks.append(arguments[7])
            self.values.append(arguments[9:])

        return launch


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Started]:
    monkeypatch.setattr(stand_in, "StandIn", Started)
    monkeypatch.setattr(launching, "_COMPILED", {})
    plans.forget()
    with bench.pretended() as active:
        assert isinstance(active, Started)
        yield active
    plans.forget()


def tensors(size: tuple[int, int], batch: int = 2, dtype: torch.dtype = torch.float16) -> list[Tensor]:
    last = torch.channels_last
    weight = torch.randn(2 * 16, 16, 3, 3, dtype=dtype).to(memory_format=last).unflatten(0, (2, 16))
    x = torch.randn(batch, 16, *size, dtype=dtype).to(memory_format=last)
    return [x, weight, torch.randn(2, 16, dtype=dtype), torch.rand(batch, 2)]


def addresses(values: tuple[Any, ...]) -> list[int]:
    """Return the addresses among the values of a launch, given as tensors or as ints."""
    found = [v.data_ptr() if isinstance(v, Tensor) else v for v in values]
    return [v for v in found if type(v) is int and v > 1 << 32]


def without_addresses(values: tuple[Any, ...]) -> list[Any]:
    return [v for v in values if not isinstance(v, Tensor) and v not in addresses(values)]


def test_triton_compiles_once_for_ten_sizes(driver: Started) -> None:
    for size in SIZES:
        tunable_conv2d(*tensors(size), padding=1, backend="triton")
    assert len(launching._COMPILED) == 1
    assert len(driver.values) == len(SIZES)


def test_a_repeated_call_launches_the_same_on_its_own_tensors(driver: Started) -> None:
    operands = [tensors((20, 24)) for _ in range(3)]
    outputs = [tunable_conv2d(*one, padding=1, backend="triton") for one in operands]
    assert len(plans._PLANS) == 1 and all(isinstance(plan, plans.Plan) for plan in plans._PLANS.values())
    for one, output, values in zip(operands, outputs, driver.values, strict=True):
        assert addresses(values) == [t.data_ptr() for t in (*one, output, output)]
        assert output.stride() == outputs[0].stride() and output.shape == (2, 16, 20, 24)
    plain = list(map(without_addresses, driver.values))
    assert plain[0] == plain[1] == plain[2]


def test_a_repeated_step_launches_the_same(driver: Started, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[list[Any]] = []
    for _ in range(3):
        leaves = [t.requires_grad_() for t in tensors((20, 24))]
        output = tunable_conv2d(*leaves, padding=1, backend="triton")
        driver.values.clear()
        gradients = torch.autograd.grad(output, leaves, torch.randn_like(output))
        made.append(list(map(without_addresses, driver.values)))
        assert [g.shape for g in gradients] == [leaf.shape for leaf in leaves]
        assert [g.stride() for g in gradients] == [leaf.stride() for leaf in leaves]
    assert len(made[0]) == 4  # input gradient, weight and bias, contraction, sum
    assert made[0] == made[1] == made[2]
    assert sum(isinstance(plan, plans.Plan) for plan in plans._PLANS.values()) == 2


def test_what_differs_gets_a_plan_of_its_own(driver: Started) -> None:
    x, weight, bias, alpha = tensors((20, 24))
    shifted = torch.empty(x.numel() + 1, dtype=x.dtype)[1:].as_strided(x.shape, x.stride()).copy_(x)
    calls: list[tuple[list[Any], dict[str, Any]]] = [
        ([x, weight, bias, alpha], {}),
        ([x.contiguous(), weight, bias, alpha], {}),
        ([shifted, weight, bias, alpha], {}),  # not aligned to 16 bytes
        ([x, weight, bias, alpha[0]], {}),
        ([x, weight, None, alpha], {}),
        ([x, weight, bias, alpha], {"activation": "relu"}),
        ([x, weight, bias, alpha], {"dilation": 2}),
        ([x.bfloat16(), weight.bfloat16(), bias.bfloat16(), alpha], {}),
    ]
    for count, (operands, options) in enumerate(calls, start=1):
        for _ in range(2):
            tunable_conv2d(*operands, padding=1, backend="triton", **options)
        assert len(plans._PLANS) == count


def test_inputs_that_overlap_are_not_noted(driver: Started) -> None:
    x, weight, bias, alpha = tensors((20, 24))
    leaves = [t.requires_grad_() for t in (x, weight, bias, alpha)]
    for _ in range(3):
        output = tunable_conv2d(*leaves, padding=1, backend="triton")
        torch.autograd.grad(output, leaves, x.detach())  # the gradient is the input itself
    counts = [plan for plan in plans._PLANS.values() if isinstance(plan, int)]
    assert counts == [plans._ATTEMPTS]


def test_a_new_table_makes_new_plans(driver: Started) -> None:
    from tunable_ops.triton_kernels.choose_algorithm import forget_tables

    operands = tensors((20, 24))
    for count in (1, 2):
        tunable_conv2d(*operands, padding=1, backend="triton")
        assert len(plans._PLANS) == count
        forget_tables()


def test_a_profilers_hooks_reach_the_launcher(driver: Started) -> None:
    from triton import knobs

    operands, chain = tensors((20, 24)), knobs.runtime.launch_enter_hook
    tunable_conv2d(*operands, padding=1, backend="triton")
    chain.add(print)
    try:
        tunable_conv2d(*operands, padding=1, backend="triton")
    finally:
        chain.remove(print)
    assert driver.hooks == [None, chain]


def test_sources_are_what_is_compiled(driver: Started) -> None:
    """The audit and a cache that was filled beforehand meet the keys of real launches."""
    problem = LAYER._replace(inputs=16, outputs=16, size=(20, 24), batch=2)
    meta, real = ([plan_problem(problem, make_operands(problem, device), choose_algorithm(problem).config)[0][0]
                   for device in ("meta", "cpu")])  # fmt: skip
    assert isinstance(meta, Launch)
    assert meta.source().hash() == real.source().hash()
