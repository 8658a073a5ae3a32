"""PhasedModel: a tunable network that is trained one objective after another."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from tunable_ops.modules import TunableModel
from tunable_ops.modules.layer import StackedLayer


class PhasedModel(TunableModel):
    """A TunableModel trained in p phases: phase k trains what belongs to objective k, at lambda = e_k.

    Phase 0 trains the main network; phase k freezes it and trains the k-th additions only. In an addition whose layers
    blend P = p kernels, phase k changes kernel k only: at e_k the gradient of the others is exactly 0.

    Args:
        network: Network with the additions, which are tunable layers; everything else is the main network.
        num_params: p, the number of objectives.
        additions: Modules that phases 1 to p - 1 train, each with its phase (None: all phases, for layers with a kernel
            per objective).
        conversion: Arguments of `attach`, for checkpoints.
        names: Names of the tuning parameters.
        defaults: Initial positions of the sliders.
    """

    def __init__(
        self,
        network: nn.Module,
        num_params: int,
        additions: Sequence[tuple[nn.Module, int | None]],
        conversion: Mapping[str, Any],
        names: Sequence[str] | None = None,
        defaults: Sequence[float] | None = None,
    ) -> None:
        super().__init__(network, num_params, names=names, defaults=defaults)
        self._additions = list(additions)
        self.conversion = {
            **conversion,
            "num_params": num_params,
            "names": list(self.spec.names),
            "defaults": list(self.spec.defaults),
        }

    @property
    def phases(self) -> int:
        """The number of phases, p."""
        return self.spec.num_params

    def enter_phase(self, phase: int) -> list[float]:
        """Freeze what the phase does not train, and return the lambda at which it trains.

        Args:
            phase: 0 (the main network) to p - 1.

        Returns:
            The unit vector e_phase.

        Raises:
            ValueError: There is no such phase.
        """
        if type(phase) is not int or not 0 <= phase < self.phases:
            raise ValueError(f"PhasedModel.enter_phase: phase must be in 0..{self.phases - 1}; got {phase!r}")
        self.network.requires_grad_(phase == 0)
        for module, own in self._additions:
            module.requires_grad_(phase > 0 and own in (None, phase))
        return [float(k == phase) for k in range(self.phases)]

    def start_phase(self, phase: int) -> list[float]:
        """Enter a phase for the first time: some methods initialise the phase's weights here."""
        return self.enter_phase(phase)


class InterpolatedModel(PhasedModel):
    """The model of DNI: phase k fine-tunes a copy of the main network, and lambda interpolates all weights."""

    def start_phase(self, phase: int) -> list[float]:
        """Enter a phase for the first time: its kernels start as copies of kernel 0."""
        lam = self.enter_phase(phase)
        if phase > 0:
            with torch.no_grad():
                for stack in self.stacks():
                    stack[phase].copy_(stack[0])
        return lam

    def enter_phase(self, phase: int) -> list[float]:
        """Do the same as `PhasedModel`; every phase trains all stacks [P, *], of which e_k selects one kernel."""
        lam = super().enter_phase(phase)
        for stack in self.stacks():
            stack.requires_grad_(True)
        return lam

    def stacks(self) -> list[nn.Parameter]:
        """Return all stacks of kernels."""
        stacked = [layer for layer in self.layers if isinstance(layer, StackedLayer)]
        found = [stack for layer in stacked for stack in (layer.weight, layer.bias) if stack is not None]
        found += [p for name, p in self.network.named_parameters() if ".parametrizations." in f".{name}"]
        return [stack for stack in found if stack.shape[0] == self.phases]
