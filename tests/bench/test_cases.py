"""tunable_ops.bench.cases and providers: what is measured, and how it is chosen."""

import pytest
import torch
from tunable_ops.bench import cases, networks, problem, providers, step, suites
from tunable_ops.bench.cases import Case

SMALL = {
    "3x3": Case("3x3", 3, 6, 2),
    "1x1": Case("1x1", 4, 5, 2),
    "5x5": Case("5x5", 2, 7, 2),
    "dw3x3": Case("dw3x3", 4, 6, 3),
    "down2x2": Case("down2x2", 3, 6, 2),
    "up2x2": Case("up2x2", 4, 5, 2),
}


def test_suites_have_distinct_ids_and_cover_what_they_promise() -> None:
    for name, suite in suites.SUITES.items():
        for device in ("cpu", "cuda"):
            ids = [case.id for case in suite.cases(device)]
            assert len(ids) == len(set(ids)), (name, device)
            on_cpus_alone = name in ("engines", "deploy") and device == "cuda"
            assert (not ids) is on_cpus_alone, (name, device)
    gpu = cases.gpu_suite()
    assert {case.kind for case in gpu} == set(cases.KINDS)
    assert {case.alpha for case in gpu} == set(cases.ALPHAS)
    assert {case.dtype for case in gpu} == set(cases.DTYPES)
    targets = suites.SUITES["targets"].cases("cuda")
    assert {case.direction for case in [*gpu, *targets]} == set(cases.PASSES)
    assert {case.mode for case in gpu} == set(cases.MODES)
    assert {2, 3, 4, 8} <= {case.kernels for case in gpu}
    assert {case.kind for case in cases.cpu_suite()} == set(cases.KINDS)


@pytest.mark.parametrize("kind", cases.KINDS)
def test_counts_match_the_convolution_that_runs(kind: str) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    case = SMALL[kind]
    made = problem.build(case, "cpu")
    function = providers.PROVIDERS["plain"].make(made)
    with FlopCounterMode(display=False) as counter:
        output = function(*providers.leaves(made, "plain"))
    assert tuple(output.shape) == (case.batch, case.outputs, *case.output_grid)
    assert counter.get_total_flops() == case.flops == 2 * case.macs
    tensors = (made.input, made.plain_weight, output)
    assert case.bytes == 4 * sum(t.numel() for t in tensors)


@pytest.mark.parametrize("direction", cases.PASSES)
@pytest.mark.parametrize("alpha", cases.ALPHAS)
@pytest.mark.parametrize("kind", cases.KINDS)
def test_every_provider_passes_the_gate(kind: str, alpha: str, direction: str) -> None:
    """Each serves or says why not; what serves computes the definition, values and gradients."""
    case = Case(**{**SMALL[kind].to_dict(), "alpha": alpha, "direction": direction})
    made = problem.build(case, "cpu")
    want = problem.expected(made)
    served = []
    for provider in providers.PROVIDERS.values():
        if provider.name in ("plain", "reference-compiled") or provider.refuses(made) is not None:
            continue
        got = step.make(provider.make(made), providers.leaves(made, provider.name), made.grad_output, direction)()
        problem.check(provider.name, got, want, made)
        served.append(provider.name)
    assert {"tunable", "p-convolutions", "reference"} <= set(served)
    if alpha == "per_sample":
        assert {"grouped-trick", "broadcast", "loop"} <= set(served)


def test_the_gate_finds_a_small_gain() -> None:
    made = problem.build(SMALL["3x3"], "cpu")
    want = problem.expected(made)
    problem.check("right", want, want, made)
    with pytest.raises(ArithmeticError, match=r"wrong: rms error of output must be at most 2e-05; got 0\.0001"):
        problem.check("wrong", [want[0] * 1.0001], want, made)
    with pytest.raises(ArithmeticError, match="wrong: output must have shape"):
        problem.check("wrong", [want[0][:1]], want, made)
    with pytest.raises(ArithmeticError, match="got nan"):
        problem.check("wrong", [want[0] * float("nan")], want, made)


def test_condconv_is_given_the_same_arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for timm's layer: its signature, parameter shapes and formula."""
    import sys
    import types

    class CondConv2d(torch.nn.Module):
        def __init__(self, in_channels, out_channels, kernel_size=3, stride=1, padding="", dilation=1, groups=1,
                     bias=False, num_experts=4):  # fmt: skip
            super().__init__()
            self.shape = (out_channels, in_channels // groups, kernel_size, kernel_size)
            self.options = (stride, padding, dilation)
            self.groups = groups
            self.weight = torch.nn.Parameter(torch.zeros(num_experts, torch.Size(self.shape).numel()))
            self.bias = torch.nn.Parameter(torch.zeros(num_experts, out_channels))

        def forward(self, x, routing_weights):
            batch = x.shape[0]
            weight = (routing_weights @ self.weight).view(batch * self.shape[0], *self.shape[1:])
            bias = (routing_weights @ self.bias).flatten()
            stride, padding, dilation = self.options
            x = x.reshape(1, -1, *x.shape[2:])
            y = torch.nn.functional.conv2d(x, weight, bias, stride, padding, dilation, self.groups * batch)
            return y.view(batch, -1, *y.shape[2:])

    layers = types.ModuleType("timm.layers")
    layers.CondConv2d = CondConv2d  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "timm", types.ModuleType("timm"))
    monkeypatch.setitem(sys.modules, "timm.layers", layers)
    case = Case("dw3x3", 4, 6, 3, alpha="per_sample", direction="both")
    made = problem.build(case, "cpu")
    provider = providers.PROVIDERS["condconv"]
    got = step.make(provider.make(made), providers.leaves(made, "condconv"), made.grad_output, "both")()
    problem.check("condconv", got, problem.expected(made), made)


def test_filters() -> None:
    suite = cases.cpu_suite()
    assert {c.kind for c in cases.select(suite, ["kind=1x1,5x5"])} == {"1x1", "5x5"}
    picked = cases.select(suite, ["3x3-C64-*", "alpha=per_sample", "direction=both"])
    assert picked and all(c.channels == 64 and c.direction == "both" and c.alpha == "per_sample" for c in picked)
    assert cases.select(suite, []) == suite
    assert cases.select(suite, ["3x3-C64", "per_sample"]) == cases.select(suite, ["*3x3-C64*", "*-per_sample-*"])
    assert cases.select(suite, [suite[0].id]) == [suite[0]]
    with pytest.raises(ValueError, match=r"--cases must name a field of kind, channels, size, .*; got 'shape'"):
        cases.select(suite, ["shape=3x3"])
    with pytest.raises(ValueError, match=r"kind must be one of 3x3, 1x1, 5x5, .*; got '7x7'"):
        cases.select(suite, ["kind=7x7"])
    with pytest.raises(ValueError, match=r"must match a case of the suite; got '7x7\*'. Nearest .*:(\n  \S+){5}$"):
        cases.select(suite, ["7x7*"])
    with pytest.raises(ValueError, match="must leave at least one case"):
        cases.select(suite, ["kind=1x1", "3x3-*"])


@pytest.mark.parametrize("name, count", [("operators", 6), ("networks", 7), ("perceptual", 3), ("all", 6)])
def test_quick_takes_a_handful_of_layers_and_whole_suites_of_networks(name: str, count: int) -> None:
    assert len(suites.chosen(name, "cpu", [], quick=True)) == count


def test_quick_keeps_one_case_of_each_sort() -> None:
    chosen = cases.quick(cases.cpu_suite())
    sorts = [(case.alpha, case.direction) for case in chosen]
    assert len(sorts) == len(set(sorts)) and ("per_sample", "both") in sorts


def test_all_is_every_suite_once_and_filters_know_networks() -> None:
    everything = [case for _, case in suites.chosen("all", "cpu", [], False)]
    assert len(set(everything)) == len(everything)
    assert set(everything) == {*cases.cpu_suite(), *cases.scaling_suite("cpu"), *networks.network_suite("cpu")}
    large = suites.chosen("all", "cpu", ["network=edsr", "size=64"], False)
    assert [(case.network, case.size) for _, case in large] == [("edsr", 64)]
    assert large[0][0] is suites.SUITES["networks"]
