"""Low-rank kernels: a kernel and, for each tuning parameter, a change of low rank (PaLoRA)."""

from collections.abc import Sequence

from torch import nn

from tunable_ops.control.modulated import as_model
from tunable_ops.modules import TunableModel, convert
from tunable_ops.modules.convert import USUAL_PARAMETERS
from tunable_ops.modules.spec import LambdaSpec


def low_rank(
    network: nn.Module,
    num_params: int = 2,
    *,
    rank: int = 4,
    parameters: Sequence[str] = USUAL_PARAMETERS,
    domain: str = "simplex",
    names: Sequence[str] | None = None,
    ranges: Sequence[Sequence[float]] | None = None,
    defaults: Sequence[float] | None = None,
    units: Sequence[str] | None = None,
) -> TunableModel:
    """Add kernels of low rank: ``W + sum_j lam_j U_j V_j``, U_j [O, r] from zero and V_j [r, C/groups * kh * kw].

    It is `tunable_ops.convert` with kernels as on the box and phi held at the identity; `convert` with ``rank`` also
    trains phi. Trained at all lambda, under the multi-loss with lambda drawn at every step: W is trained with the rest.
    Layers in which rank r saves nothing, biases and a network's own parameters keep changes of full rank. Foldable.

    Args:
        network: Plain network; it is copied.
        num_params: p.
        rank: r.
        parameters: Patterns of other parameters to change, as for `convert`.
        domain: "simplex" (lambda sums to 1, as published) or "box".
        names: Names of the tuning parameters.
        ranges: Their (low, high), in their units.
        defaults: Where sliders start.
        units: What each is counted in.

    Raises:
        TypeError, ValueError: As for `tunable_ops.convert`.

    Source: Dimitriadis et al., "Pareto Low-Rank Adapters: Efficient Multi-Task Learning with Preferences", ICLR 2025
    (arXiv 2407.08056). A schedule that covers the preferences evenly is `losses.sampler(stratified=True)`.
    """
    spec = LambdaSpec.create(num_params, domain, names, ranges, defaults, units)
    converted = convert(network, num_params, domain="box", parameters=parameters, rank=rank)
    for layer in converted.layers:
        layer.tuning.requires_grad_(False)
    conversion = {"control": "low_rank", "rank": rank, "parameters": list(parameters)}
    return as_model(converted.network, spec, conversion)
