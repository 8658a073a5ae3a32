"""When C++ must not repeat a plan: what changes meanwhile, what it was found to get wrong, and what it cannot load."""

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
from tunable_ops.backends.triton import native, plans

ROOT = Path(__file__).parents[2]


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
    monkeypatch.setattr(native, "_served", {})
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
