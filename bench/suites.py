"""The registry of suites: what `python -m bench --suite NAME` measures.

To add one, write a module with its cases (hashable, with `id`, `dtype` and `to_dict()`) and a function that measures
one into a row as results/schema.json describes it; then add an entry to `SUITES`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tunable_ops.bench import cases, deploy, engines, host, networks, perceptual, providers, targets
from tunable_ops.bench.case_text import read_case
from tunable_ops.bench.measure import Settings, measure

Row = dict[str, Any]


@dataclass(frozen=True)
class Suite:
    """A list of cases for a device, and how one of them is measured.

    Attributes:
        cases: device -> what is measured.
        measure: (case, device, settings, names of providers, peaks of the machine) -> a row of the results.
        in_all: True if `--suite all` includes it.
    """

    cases: Callable[[str], Sequence[Any]]
    measure: Callable[[Any, str, Settings, Sequence[str], dict[str, float]], Row]
    in_all: bool = True


def _layer(case: Any, device: str, settings: Settings, names: Sequence[str], peaks: dict[str, float]) -> Row:
    return measure(case, providers.select(case, names), device, settings, peaks)


def _target(case: Any, device: str, settings: Settings, names: Sequence[str], peaks: dict[str, float]) -> Row:
    return _layer(case, device, settings, names or targets.target_providers(case), peaks)


def _network(case: Any, device: str, settings: Settings, names: Sequence[str], peaks: dict[str, float]) -> Row:
    return networks.measure(case, device, settings)


def _engines(case: Any, device: str, settings: Settings, names: Sequence[str], peaks: dict[str, float]) -> Row:
    return engines.measure(case, device, settings, names)


def _deploy(case: Any, device: str, settings: Settings, names: Sequence[str], peaks: dict[str, float]) -> Row:
    return deploy.measure(case, device, settings, names)


def _perceptual(case: Any, device: str, settings: Settings, names: Sequence[str], peaks: dict[str, float]) -> Row:
    return perceptual.measure(case, device, settings)


def _host(case: Any, device: str, settings: Settings, names: Sequence[str], peaks: dict[str, float]) -> Row:
    return host.measure(case, device, settings)


SUITES = {
    "operators": Suite(lambda device: cases.gpu_suite() if device == "cuda" else cases.cpu_suite(), _layer),
    "scaling": Suite(cases.scaling_suite, _layer),
    "per-sample": Suite(lambda device: cases.per_sample_suite(), _layer, in_all=False),
    "networks": Suite(networks.network_suite, _network),
    "engines": Suite(engines.engine_suite, _engines, in_all=False),
    "deploy": Suite(deploy.deploy_suite, _deploy, in_all=False),
    "targets": Suite(targets.target_cases, _target, in_all=False),
    "target-networks": Suite(targets.target_networks, _network, in_all=False),
    "perceptual": Suite(perceptual.perceptual_suite, _perceptual, in_all=False),
    "host": Suite(lambda device: host.CASES, _host, in_all=False),
}


def own(texts: Sequence[str]) -> list[tuple[Suite, Any]]:
    """Return cases of one's own, each once, as layers to measure.

    Raises:
        ValueError: As for `case_text.read_case`.
    """
    return [(SUITES["operators"], case) for case in dict.fromkeys(map(read_case, texts))]


def chosen(name: str, device: str, filters: Sequence[str], quick: bool) -> list[tuple[Suite, Any]]:
    """Return the cases to measure, each with its suite.

    Args:
        name: One of `SUITES`, or "all".
        device: "cpu" or "cuda".
        filters: As for `cases.select`.
        quick: Take a handful of the layers only; without layers, or with filters, it changes nothing.
    """
    named = [suite for suite in SUITES.values() if suite.in_all] if name == "all" else [SUITES[name]]
    owner: dict[Any, Suite] = {}
    for suite in named:
        for case in suite.cases(device):
            owner.setdefault(case, suite)
    layers = [case for case in owner if isinstance(case, cases.Case)]
    kept = cases.quick(layers) if quick and layers and not filters else cases.select(list(owner), filters)
    return [(owner[case], case) for case in kept]
