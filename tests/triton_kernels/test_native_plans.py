"""When C++ has a plan, and when it must not: keys, changes meanwhile, threads, hooks, memory, and what is missing."""

import ctypes
import hashlib
import itertools
import subprocess
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from tunable_ops.bench import stand_in_driver
from tunable_ops.bench.stand_in_driver import Driver
from tunable_ops.triton_kernels.choose_algorithm import forget_tables

from tests.triton_kernels.native_cases import OP, Case, in_python, served
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


def test_a_library_for_another_torch_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Other:
        torch = "1.0"

    with pytest.raises(RuntimeError, match=r"built for torch 1\.0, and this is"):
        native.use(Other())


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(native, "_missing", None)
    monkeypatch.setattr(native, "_PACKAGE", tmp_path)
    monkeypatch.setattr(native.importlib.util, "find_spec", lambda name: None)
    native.load()
    assert native.missing() == "this build has none"
    (tmp_path / "_launcher_left_out.txt").write_text("there is no compiler\n")
    native.load()
    assert native.missing() == "there is no compiler"

    def damaged(name: str) -> Any:
        raise ImportError("undefined symbol")

    monkeypatch.setattr(native.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(native.importlib, "import_module", damaged)
    native.load()
    assert native.missing() == "it does not load here (ImportError: undefined symbol)"


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


def meanwhile(monkeypatch: pytest.MonkeyPatch, place: str, change: Any) -> None:
    """Let another thread do something after the recording has begun, or before it is handed over."""
    inner = getattr(native, place)

    def changed(*arguments: Any) -> Any:
        if place == "begin":
            recording = inner(*arguments)
            change()
            return recording
        change()
        return inner(*arguments)

    monkeypatch.setattr(native, place, changed)


@pytest.mark.parametrize("place", ["begin", "hand_over"])
def test_a_setting_that_changes_meanwhile_makes_no_plan(
    driver: Driver, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    case, conv = Case(dtype=torch.float32), torch.backends.cudnn.conv  # type: ignore[attr-defined]
    allowed = conv.fp32_precision
    conv.fp32_precision = "ieee"
    try:
        with monkeypatch.context() as patch:
            meanwhile(patch, place, lambda: setattr(conv, "fp32_precision", "tf32"))
            OP(*case.tensors(), *case.options())
        for precision in ("tf32", "ieee"):  # neither got the plan of the other
            conv.fp32_precision = precision
            before = native.counts()
            OP(*case.tensors(), *case.options())
            assert served(before) == (0, 1)
            OP(*case.tensors(), *case.options())
            assert served(before) == (1, 1)
    finally:
        conv.fp32_precision = allowed


@pytest.mark.parametrize("place", ["begin", "hand_over"])
def test_tables_that_change_meanwhile_make_no_plan(driver: Driver, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    case, before = Case(), native.counts()
    with monkeypatch.context() as patch:
        meanwhile(patch, place, forget_tables)
        OP(*case.tensors(), *case.options())
    OP(*case.tensors(), *case.options())
    assert served(before) == (0, 2)
    OP(*case.tensors(), *case.options())
    assert served(before) == (1, 2)


def test_nothing_is_kept_after_cpp_was_found_wanting(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    case, before, held = Case(), native.counts(), []

    def retire() -> None:
        if native.serves("cpu"):
            held.append(native._served.pop("cpu"))
            native._library.forget()

    meanwhile(monkeypatch, "hand_over", retire)
    for _ in range(3):
        OP(*case.tensors(), *case.options())
    assert held and served(before) == (0, 3)


def test_two_threads_find_cpp_wanting(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    held = []

    def differs(*results: Any) -> bool:
        held.append(native._served.pop("cpu"))  # the other thread
        native._checked.pop("cpu")
        return False

    monkeypatch.setattr(native, "_same", differs)
    native.serve_no_more("cpu")
    native.serve("cpu", checked=True)
    with pytest.warns(RuntimeWarning, match="go through Python now"):
        OP(*Case().tensors(), *Case().options())
    assert held and not native.serves("cpu")


@pytest.mark.parametrize("name", ["convolution_backward", "einsum", "bmm", "baddbmm", "addmm", "mv", "scatter_add_"])
def test_plans_whose_bits_may_vary_are_not_compared(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    operator = getattr(torch.ops.aten, name)
    call = plans.Call(getattr(operator, operator.overloads()[0]), (), {}, ())
    start = plans.Start(SimpleNamespace(kernel=operator), object(), (), (), ())  # type: ignore[arg-type]
    monkeypatch.setitem(native._checked, "cpu", set())
    made, one, device = [], torch.ones(2), torch.device("cpu")

    def again() -> Tensor:
        made.append(1)
        return one.clone()

    native.check(device, plans.Plan((start, call), ()), one, again)
    assert not made and not native._checked["cpu"]
    same = plans.Call(torch.ops.aten.sum.dim_IntList, (), {}, ())
    native.check(device, plans.Plan((start, same), ()), one, again)  # the same kernel, in another plan
    assert made and native._checked["cpu"] == {id(start.compiled)}


def test_other_strides_than_in_the_first_call_make_a_new_plan(driver: Driver) -> None:
    case, before = Case(kernels=17, dtype=torch.float32), native.counts()
    tensors = case.tensors()
    expected = OP(*tensors, *case.options())
    ((key, plan),) = plans._PLANS.items()
    assert isinstance(plan, plans.Plan) and len(plan.steps) > 1

    def with_other_strides(step: Any) -> Any:
        if not isinstance(step, plans.Call):
            return step
        return step._replace(kept=tuple((index, tuple(s + 1 for s in stride)) for index, stride in step.kept))

    recording = native.begin("tunable_conv2d_triton", (*tensors, *case.options()))
    wrong = plan._replace(steps=tuple(map(with_other_strides, plan.steps)))
    plans._PLANS[key] = wrong
    assert native.hand_over("tunable_conv2d_triton", recording, wrong)
    for count in ((0, 2), (1, 2)):
        assert torch.equal(OP(*tensors, *case.options()), expected)
        assert served(before) == count
    plans._PLANS[key] = wrong
    assert torch.equal(in_python(case)(*tensors), expected)
    assert plans._PLANS[key] != wrong


def test_a_plan_that_the_library_refuses_is_told_once(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> None:
        raise TypeError("no function")

    monkeypatch.setattr(native, "_told", set())
    monkeypatch.setattr(native, "_launch", refuse)
    case, before = Case(), native.counts()
    with pytest.warns(RuntimeWarning, match=r"tunable_conv2d_triton.*TypeError: no function") as said:
        for _ in range(3):
            assert OP(*case.tensors(), *case.options()).shape == (2, 16, 9, 8)
    assert len(said) == 1 and served(before) == (0, 3)
    recording = native.begin("tunable_conv2d_triton", (*case.tensors(), *case.options()))
    index = plans.Call(torch.ops.aten.index.Tensor, (plans.Place(0), (plans.Place(3),)), {}, ())
    with pytest.raises(native._Unfit):
        native._add(recording, index)


def test_a_chain_of_hooks_that_is_replaced_is_found_by_the_next_call_in_python(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    from triton import knobs

    case, heard = Case(), []
    OP(*case.tensors(), *case.options())
    monkeypatch.setattr(knobs.runtime, "launch_enter_hook", heard.append)
    OP(*case._replace(size=(9, 16)).tensors(), *case.options())
    before = native.counts()
    for _ in range(2):
        OP(*case.tensors(), *case.options())
    assert len(heard) == 3 and served(before) == (0, 2)


def test_a_torch_that_does_not_tell_its_stream_is_not_served(monkeypatch: pytest.MonkeyPatch) -> None:
    library = SimpleNamespace(torch=torch.__version__, finds_stream=lambda: False)
    monkeypatch.setattr(native, "_missing", None)
    monkeypatch.setattr(native.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(native.importlib, "import_module", lambda name: library)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(native, "unavailable_reason", lambda: None)
    native.load()
    assert "does not tell the current stream" in str(native.missing()) and not native.serves("cuda")
    del library.finds_stream  # built before there was such a function
    native.load()
    assert "AttributeError" in str(native.missing()) and not native.serves("cuda")
    assert stand_in_driver.launcher().finds_stream()
