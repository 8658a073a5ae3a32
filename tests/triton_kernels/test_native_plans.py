"""When C++ has a plan: keys, tables, overlaps, hooks, streams, threads, traced calls, and the memory of a plan."""

import ctypes
import hashlib
import itertools
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from tunable_ops.bench.stand_in_driver import Driver
from tunable_ops.triton_kernels.choose_algorithm import forget_tables

from tests.triton_kernels.native_cases import OP, Case, served
from tunable_ops import tunable_conv2d
from tunable_ops.backends.torch import per_sample
from tunable_ops.backends.triton import native, plans
from tunable_ops.backends.triton import tunable_conv2d as tunable_conv2d_backend

ROOT = Path(__file__).parents[2]


def test_what_differs_misses(driver: Driver) -> None:
    case = Case(dtype=torch.float32)
    x, weight, bias, alpha = case.tensors()
    shifted = torch.empty(x.numel() + 1)[1:].as_strided(x.shape, x.stride()).copy_(x)
    calls = [
        ((x, weight, bias, alpha), case.options()),
        ((x.contiguous(), weight, bias, alpha), case.options()),
        ((shifted, weight, bias, alpha), case.options()),  # not aligned to 16 bytes
        ((x, weight, None, alpha), case.options()),
        ((x, weight, bias, alpha[0]), case.options()),
        ((x[:, :, 1:], weight, bias, alpha), case.options()),
        ((x, weight, bias, alpha), (2, *case.options()[1:])),
        ((x, weight, bias, alpha), (*case.options()[:-1], 1)),
    ]
    for tensors, options in calls:
        before = native.counts()
        OP(*tensors, *options)
        assert served(before) == (0, 1)
        OP(*tensors, *options)
        assert served(before) == (1, 1)
    before = native.counts()
    allowed = torch.backends.cudnn.conv.fp32_precision  # type: ignore[attr-defined]
    torch.backends.cudnn.conv.fp32_precision = "ieee" if allowed == "tf32" else "tf32"  # type: ignore[attr-defined]
    try:
        OP(*calls[0][0], *case.options())
    finally:
        torch.backends.cudnn.conv.fp32_precision = allowed  # type: ignore[attr-defined]
    with torch.backends.cudnn.flags(enabled=False, fp32_precision=None):
        OP(*calls[0][0], *case.options())
    assert served(before) == (0, 2)


def test_new_tables_make_new_plans(driver: Driver) -> None:
    case = Case()
    for _ in range(2):
        OP(*case.tensors(), *case.options())
    before = native.counts()
    forget_tables()
    OP(*case.tensors(), *case.options())
    assert served(before) == (0, 1)
    plans.forget()
    OP(*case.tensors(), *case.options())
    assert served(before) == (0, 2)


def test_inputs_that_overlap_make_no_plan(driver: Driver) -> None:
    case = Case(bias=False)
    x, weight, _, _ = case.tensors()
    alpha = x.view(-1)[:4].view(2, 2) if x.is_contiguous() else x.as_strided((2, 2), (2, 1))
    before = native.counts()
    for _ in range(4):
        OP(x, weight, None, alpha, *case.options())
    assert served(before) == (0, 4)


def test_a_profilers_hook_hears_of_every_launch(driver: Driver) -> None:
    from triton import knobs

    case, heard = Case(), []
    for _ in range(2):
        OP(*case.tensors(), *case.options())
    before = native.counts()
    knobs.runtime.launch_enter_hook.add(heard.append)
    try:
        OP(*case.tensors(), *case.options())
    finally:
        knobs.runtime.launch_enter_hook.remove(heard.append)
    assert served(before) == (0, 1) and len(heard) == 1
    OP(*case.tensors(), *case.options())
    assert served(before) == (1, 1) and len(heard) == 1


def test_the_current_stream_gets_the_launch(driver: Driver) -> None:
    """A stream that is captured too: nothing but launches is asked of the driver."""
    case = Case()
    for stream in (0, 0x70, 0x80):
        driver.use_stream(stream)
        OP(*case.tensors(), *case.options())
        assert [one.stream for one in driver.take()] == [stream]


def test_threads_launch_on_their_own_tensors(driver: Driver) -> None:
    cases = [Case(), Case(size=(10, 12)), Case(alpha="shared")]
    operands = [case.tensors() for case in cases]
    for case, tensors in zip(cases, operands, strict=True):
        OP(*tensors, *case.options())
    driver.take()
    before, made = native.counts(), [[] for _ in cases]

    def work(i: int) -> None:
        for _ in range(300):
            made[i].append(OP(*operands[i], *cases[i].options()))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(cases))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert served(before) == (900, 0)
    expected = {
        tuple(t.data_ptr() for t in (*tensors, output))
        for tensors, outputs in zip(operands, made, strict=True)
        for output in outputs
    }
    found = {one.parameters[:5] for one in driver.take()}
    assert len(found) == 900 and found == expected


def without_python() -> Any:
    """Load the operators that call others while a thread holds the interpreter's lock."""
    source = ROOT / "csrc" / "tests" / "without_python.cpp"
    content = source.read_bytes() + torch.__version__.encode()
    library = ROOT / "build" / f"without-python-{hashlib.sha256(content).hexdigest()[:16]}.so"
    if not library.exists():
        library.parent.mkdir(exist_ok=True)
        folder = Path(torch.__file__).parent
        flags = ["-std=c++17", "-O1", "-fPIC", "-shared", "-fvisibility=hidden", "-DTORCH_STABLE_ONLY"]
        flags += ["-DTORCH_TARGET_VERSION=0x020b000000000000", "-isystem", str(folder / "include")]
        link = [f"-L{folder / 'lib'}", "-ltorch", "-ltorch_cpu", "-lc10"]
        partial = library.with_suffix(".partial")
        subprocess.run(["g++", *flags, str(source), *link, "-o", str(partial)], check=True)
        partial.rename(library)
    torch.ops.load_library(library)
    return ctypes.PyDLL(str(library))  # its functions are called with the lock


def finishes_without_python(library: Any, call: Any, milliseconds: int) -> bool:
    """Return True if `call` finishes while this thread holds the lock all the time."""
    thread = threading.Thread(target=call)
    thread.start()
    finished = bool(library.hold(milliseconds))
    thread.join()
    return finished


def test_no_call_takes_the_interpreters_lock(driver: Driver) -> None:
    library, case, count = without_python(), Case(), 20
    ops = torch.ops.tunable_ops_without_python
    tensors = case.tensors()
    leaves = [t.requires_grad_() for t in case.tensors()]
    output = OP(*leaves, *case.options())
    grad = torch.randn_like(output)
    for _ in range(2):
        OP(*tensors, *case.options())
        torch.autograd.grad(output, leaves, grad, retain_graph=True)
    before = native.counts()
    assert finishes_without_python(library, lambda: ops.forward(*tensors, count), 60_000)
    assert served(before) == (count, 0)
    assert finishes_without_python(library, lambda: ops.forward(*leaves, count), 60_000)  # noted for its gradient
    assert served(before) == (2 * count, 0)
    assert finishes_without_python(library, lambda: ops.backward(output, grad, leaves, count), 60_000)
    assert served(before) == (3 * count, 0)
    plans.forget()  # and one that must go to Python waits for the lock
    assert not finishes_without_python(library, lambda: ops.forward(*tensors, 1), 300)


def test_second_order_is_that_of_the_definition(driver: Driver) -> None:
    case = Case(dtype=torch.float32, activation="silu")
    leaves = [t.requires_grad_() for t in case.tensors()]
    output = OP(*leaves, *case.options())
    definition = tunable_conv2d(*leaves, padding=1, activation="silu", backend="reference")
    grad = torch.randn_like(output)
    ours, theirs = (torch.autograd.grad(y, leaves, grad, create_graph=True) for y in (output, definition))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    second = [torch.autograd.grad(sum((g * g).sum() for g in grads), leaves) for grads in (ours, theirs)]
    torch.testing.assert_close(*second, rtol=1e-3, atol=1e-3)


def test_traced_calls_reach_the_operators(driver: Driver) -> None:
    case = Case()
    found: list[str] = []

    def look(graph: Any, inputs: Any) -> Any:
        found.extend(str(node.target) for node in graph.graph.nodes if "tunable_ops" in str(node.target))
        return graph.forward

    from functorch.compile import make_boxed_func
    from torch._dynamo.backends.common import aot_autograd

    backend = aot_autograd(fw_compiler=lambda g, i: make_boxed_func(look(g, i)))
    compiled = torch.compile(lambda *t: OP(*t, *case.options()[:-1], 2), backend=backend, fullgraph=True)
    leaves = [t.requires_grad_() for t in case.tensors()]
    output = compiled(*leaves)
    output.sum().backward()
    assert found == [f"tunable_ops.tunable_conv2d_triton_{name}.default" for name in ("saving", "backward")]
    assert all(t.grad is not None and t.grad.shape == t.shape for t in leaves)
    torch.library.opcheck(OP.default, (*case.tensors(), *case.options()), test_utils=("test_schema", "test_faketensor"))
    with pytest.raises(RuntimeError, match=r"functorch|functional"):
        torch.func.grad(lambda x: OP(x, *leaves[1:], *case.options()).sum())(leaves[0].detach())


def peak(call: Any) -> int:
    """The most bytes that a call holds at once beyond what was there before it."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        result = call()
    del result
    events = profile.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    return max(itertools.accumulate((size for _, size in changes), initial=0))


def test_memory_is_reused(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels' gradients of the samples come in chunks: a plan keeps no chunk longer than the call it repeats."""
    monkeypatch.setattr(per_sample, "CHUNK_BYTES", 2 * 4 * 64 * 64 * 9)
    plans.forget()  # C++ knows nothing of that constant
    case = Case(channels=64, outputs=64, batch=24)
    options = case.options()
    pairs = (options[:2], options[2:4], options[4:6], 1, "none")

    def call(run: Any) -> int:
        x, weight, bias, alpha = case.tensors()
        grad = torch.randn(24, 64, 9, 8, dtype=case.dtype).contiguous(memory_format=torch.channels_last)
        return peak(lambda: run(grad, None, x, weight, bias, alpha))

    mask = [True] * 4
    written = call(lambda *t: tunable_conv2d_backend._backward(*t, *pairs, mask, None))
    op = torch.ops.tunable_ops.tunable_conv2d_triton_backward
    call(lambda *t: op(*t, *options, mask))
    before = native.counts()
    in_cpp = call(lambda *t: op(*t, *options, mask))
    assert served(before) == (1, 0)
    planned = call(lambda *t: tunable_conv2d_backend.backward(*t, *pairs, mask))
    assert 4 * 64 * 64 * 9 < written < 12 * 4 * 64 * 64 * 9
    assert in_cpp <= written and planned <= written


def test_a_slot_is_released_after_its_last_use() -> None:
    empty = plans.Allocation((4,), (1,), torch.float32, torch.device("cpu"))
    place, neg = plans.Place, torch.ops.aten.neg.default
    steps = [
        empty,  # 1, never used
        plans.Call(neg, (place(0),), {}, ((0, (1,)),)),  # 2
        plans.Call(torch.ops.aten.cat.default, ((place(2), place(0)),), {}, ((0, (1,)),)),  # 3
        plans.Call(neg, (), {"self": place(2)}, ((0, (1,)),)),  # 4
        plans.Call(neg, (place(4),), {}, ((0, (1,)),)),  # 5
    ]
    results = (place(3, (2,), (1,), 1), place(5), None)
    plan = plans.Plan(plans._with_releases(steps, 1, results), results)
    release = plans.Release
    assert plan.steps == (steps[0], release((1,)), *steps[1:4], release((2,)), steps[4], release((4,)))
    x = torch.arange(4.0)
    found = plan.run([x])
    assert torch.equal(found[0], -x[1:3]) and torch.equal(found[1], -x) and found[2] is None
