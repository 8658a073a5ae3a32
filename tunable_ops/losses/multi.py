"""The parametric multi-loss: objectives weighted by lambda."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tunable_ops.losses.corrected import Corrected
from tunable_ops.nearest import hint

Objective = Callable[[Tensor, Any], Tensor]
Scales = Mapping[str, float] | Sequence[float]


class MultiLoss(nn.Module):
    """Several objectives weighted by lambda: ``L(lambda) = sum_i lambda_i * s_i * L_i``.

    Weights are applied per sample, before the mean over the batch:
    ``total = mean_b(sum_i lambda[b, i] * s[i] * L_i[b])``. The scales ``s_i`` are fixed and make objectives of
    different units comparable. If every step draws a new lambda (`sampler`), one network learns every trade-off.

    A trap: **use `mse` if two objectives pull the output towards different targets.** The minimum of a weighted sum of
    squares moves in proportion to lambda. That of a weighted sum of absolute values (`l1`, or `charbonnier` with a
    small eps) stays at one target until the weights cross and then jumps to the other: the slider becomes a switch. In
    a model of a denoiser between a clean and a noisy target, the noise left at a denoising weight of 0, 0.5, 0.6, 0.75
    is 1, 1, 0.24, 0.18 with `l1`, and one minus the weight with `mse`.

    If an objective's lambda is 0, its value and its gradient for the output count as 0 even if they are inf or NaN.
    With any other lambda, inf and NaN propagate.

    An expensive objective may be computed at every N-th step only (`every`), with N times its weight: over any N steps
    in a row its gradient has the same sum, were the outputs the same. A `Corrected` one is computed at every step, and
    corrected at every N-th. `Cropped` saves as much at every step.

    Args:
        objectives: Name -> ``f(output, target) -> [B]``, in lambda's order: a function, a module, or a pair of one of
            them and its scale. Modules become submodules (``objectives.<name>`` in the state dict), so ``.to()`` moves
            them.
        scales: Factors s_i of the objectives that are not given as a pair: name -> scale, or a sequence with one scale
            per objective. Finite and at least 0; default: 1.

    Attributes:
        names: Names of the objectives, in lambda's order.
        every: Name -> N for every objective.
        scales: [p] float32 buffer, part of the state dict; ``.half()`` and the like do not change its dtype.

    Raises:
        TypeError: `objectives` is not a mapping, an objective is not callable, a scale is not a number, or `every` is
            not a mapping to integers.
        ValueError: No objectives, an invalid name, an unknown name in `scales` or `every`, a scale that is negative,
            not finite or given twice, or an `every` below 1.

    Example:
        >>> from tunable_ops import losses
        >>> criterion = losses.MultiLoss({"clean": losses.mse, "noisy": (losses.mse, 0.5)})
        >>> output = torch.zeros(4, 3, 8, 8)
        >>> total, terms = criterion(output, {"clean": output + 1, "noisy": output + 2}, lam=[0.25, 0.75])
        >>> total, terms
        (tensor(1.7500), {'clean': tensor(1.), 'noisy': tensor(4.)})
    """

    scales: Tensor

    def __init__(
        self,
        objectives: Mapping[str, Objective | tuple[Objective, float]],
        scales: Scales | None = None,
        every: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(objectives, Mapping):
            raise TypeError(
                f"MultiLoss: objectives must be a mapping name -> callable; got {type(objectives).__name__}"
            )
        if not objectives:
            raise ValueError("MultiLoss: objectives must name at least one objective; got none")
        self.names = tuple(objectives)
        self.objectives = nn.ModuleDict()
        self._functions: dict[str, Objective] = {}
        paired: dict[str, float] = {}
        for name, objective in objectives.items():
            if isinstance(objective, tuple):
                if len(objective) != 2:
                    raise TypeError(
                        f"MultiLoss: objective {name!r} must be a callable or a pair (callable, scale); "
                        f"got {objective!r}"
                    )
                objective, paired[name] = objective
            _check_objective(name, objective)
            if isinstance(objective, nn.Module):
                self.objectives[name] = objective
            else:
                self._functions[name] = objective
        self.every = _resolve_every(self.names, every)
        values = _resolve_scales(self.names, paired, scales)
        self.register_buffer("scales", torch.tensor(values, dtype=torch.float32))

    def forward(
        self,
        outputs: Tensor | Mapping[str, Tensor],
        targets: Tensor | Mapping[str, Tensor | None] | None,
        lam: Tensor | Sequence[float],
        step: int | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Weight the objectives and add them up.

        Args:
            outputs: [B, ...] for all objectives, or name -> [B, ...] for exactly the objectives' names.
            targets: Tensor (or None) for all objectives, or name -> target for exactly the objectives' names, with None
                for an objective without a target (`tv`).
            lam: [p] or [1, p] for the batch, or [B, p] for the samples; floating point or a sequence of numbers. It is
                moved to the outputs' device. Its values are not checked: that would stall a GPU at every step.
            step: Of the training, from 0; needed where an objective is not computed at every step.

        Returns:
            The total, a scalar in float32 (float64 if an objective or lam is), differentiable in outputs and lam; and
            terms for logging: name -> mean of the objective over the batch without lambda and scale, detached; those
            that this step leaves out are missing.

        Raises:
            TypeError: `outputs`, `targets` or `lam` has the wrong type, or an objective does not return a Tensor.
            ValueError: Names are missing or unknown, batch sizes differ, the batch is empty, lam has the wrong shape,
                or an objective does not return [B]; or there is no step, and an objective needs one.
        """
        self._check_step(step)
        outputs = _by_name("outputs", outputs, self.names, Tensor)
        targets = _by_name("targets", targets, self.names, (Tensor, type(None)))
        batch = _batch_size(outputs)
        device = outputs[self.names[0]].device
        weights = self._check_lam(lam, batch).to(device) * self.scales.to(device)  # [1, p] or [B, p], at least float32
        used = weights != 0
        values, factors = {}, {}
        for i, name in enumerate(self.names):
            factors[name] = self._factor(name, step)
            if factors[name] or isinstance(self._objective(name), Corrected):
                output = _ZeroIfUnused.apply(outputs[name], used[:, i])
                values[name] = self._evaluate(name, output, targets[name], batch, factors[name])
        dtype = weights.dtype
        for value in values.values():
            dtype = torch.promote_types(dtype, value.dtype)
        if not values:  # this step leaves out all objectives
            unused = torch.zeros((), dtype=torch.bool, device=device)
            zeros = [torch.where(unused, output, 0).sum() for output in outputs.values()]
            return torch.stack(zeros).sum().to(dtype), {}
        losses = torch.stack([value.to(dtype) for value in values.values()], dim=1)  # [B, objectives of this step]
        means = losses.detach().mean(0)
        if len(values) < len(self.names):
            kept = torch.tensor([self.names.index(name) for name in values], device=device)
            weights, used = weights[:, kept], used[:, kept]
        losses = torch.where(used | losses.isfinite(), losses, 0)
        repeated = [1 if isinstance(self._objective(name), Corrected) else factors[name] for name in values]
        if any(factor != 1 for factor in repeated):
            weights = weights * weights.new_tensor(repeated)
        total = (weights * losses).sum(1).mean()
        return total, dict(zip(values, means.unbind(), strict=True))

    def extra_repr(self) -> str:
        """Return names and scales, in lambda's order."""
        if self.scales.is_meta:
            return ", ".join(self.names)
        return ", ".join(f"{name} * {scale:g}" for name, scale in zip(self.names, self.scales.tolist(), strict=True))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "MultiLoss":
        scales = self.scales
        super()._apply(fn, recurse)
        if self.scales.dtype != scales.dtype:  # style losses have scales from 1e5: inf in fp16
            self.scales = scales.to(self.scales.device)
        return self

    def _check_lam(self, lam: Tensor | Sequence[float], batch: int) -> Tensor:
        """Check lambda and return it as [1, p] or [B, p]."""
        count = len(self.names)
        if not isinstance(lam, Tensor):
            try:
                lam = torch.tensor(lam, dtype=torch.float32)
            except (TypeError, ValueError):
                raise TypeError(f"MultiLoss: lam must be a Tensor or a sequence of numbers; got {lam!r}") from None
        if not lam.is_floating_point():
            raise TypeError(f"MultiLoss: lam must be floating point; got {lam.dtype}; use lam.float()")
        if lam.ndim not in (1, 2) or lam.shape[-1] != count:
            raise ValueError(
                f"MultiLoss: lam must be [{count}] or [B, {count}], one number for each of {', '.join(self.names)}; "
                f"got {list(lam.shape)}"
            )
        if lam.ndim == 2 and lam.shape[0] not in (1, batch):
            raise ValueError(
                f"MultiLoss: lam must be [{count}] or [{batch}, {count}] for a batch of {batch}; got {list(lam.shape)}"
            )
        return lam.unsqueeze(0) if lam.ndim == 1 else lam

    def _objective(self, name: str) -> Objective:
        return self._functions[name] if name in self._functions else self.objectives[name]

    def _check_step(self, step: int | None) -> None:
        slow = [name for name, every in self.every.items() if every > 1]
        if step is None and slow:
            raise ValueError(
                f"MultiLoss: step must be given for {slow[0]!r}, with every {self.every[slow[0]]}; got None"
            )
        if step is not None and step < 0:
            raise ValueError(f"MultiLoss: step must be at least 0; got {step}")

    def _factor(self, name: str, step: int | None) -> int:
        """Return N at every N-th step, else 0: how much an objective, or its correction, counts now."""
        every = self.every[name]
        return every if every == 1 or (step is not None and step % every == 0) else 0

    def _evaluate(self, name: str, output: Tensor, target: Tensor | None, batch: int, factor: int) -> Tensor:
        """Compute an objective, check its result and return it as [B] in at least float32."""
        objective = self._objective(name)
        value = objective(output, target, factor) if isinstance(objective, Corrected) else objective(output, target)
        if not isinstance(value, Tensor):
            raise TypeError(f"MultiLoss: objective {name!r} must return a Tensor; got {type(value).__name__}")
        if value.shape != (batch,):
            raise ValueError(
                f"MultiLoss: objective {name!r} must return one value for each sample, [{batch}]; "
                f"got {list(value.shape)}; take its mean over everything but the batch"
            )
        if not value.is_floating_point():
            raise TypeError(f"MultiLoss: objective {name!r} must return floating point values; got {value.dtype}")
        return value.to(torch.promote_types(value.dtype, torch.float32))


class _ZeroIfUnused(torch.autograd.Function):
    """Identity whose gradient is 0 where it is not finite and the sample has weight 0."""

    generate_vmap_rule = True

    @staticmethod
    def forward(output: Tensor, used: Tensor) -> Tensor:
        return output.view_as(output)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx, grad_output: Tensor):  # type: ignore[no-untyped-def, override]
        (used,) = ctx.saved_tensors
        used = used.view(-1, *[1] * (grad_output.ndim - 1))
        return torch.where(used | grad_output.isfinite(), grad_output, 0), None


def _check_objective(name: str, objective: Any) -> None:
    if not isinstance(name, str):
        raise TypeError(f"MultiLoss: objectives must have names that are strings; got {name!r}")
    if not name or "." in name:
        raise ValueError(f"MultiLoss: objectives must have names that are not empty and contain no dot; got {name!r}")
    if not callable(objective):
        raise TypeError(f"MultiLoss: objective {name!r} must be callable; got {type(objective).__name__}")
    if isinstance(objective, type):
        raise TypeError(
            f"MultiLoss: objective {name!r} must be an instance; got the class {objective.__name__}; call it first"
        )
    if isinstance(objective, nn.Module) and hasattr(nn.ModuleDict, name):
        raise ValueError(
            f"MultiLoss: a Module's name must not be an attribute of nn.ModuleDict; got {name!r}; rename it"
        )


def _resolve_scales(names: tuple[str, ...], paired: dict[str, float], scales: Scales | None) -> list[float]:
    if scales is None:
        given: dict[str, float] = {}
    elif isinstance(scales, Mapping):
        _check_names("scales", scales, names, missing=False)
        given = dict(scales)
    elif isinstance(scales, (str, bytes)) or not isinstance(scales, Iterable):
        raise TypeError(f"MultiLoss: scales must be a mapping or a sequence of numbers; got {scales!r}")
    else:
        listed = list(scales)
        if len(listed) != len(names):
            raise ValueError(
                f"MultiLoss: scales must have one number for each of {', '.join(names)}; got {len(listed)}"
            )
        given = dict(zip(names, listed, strict=True))
    twice = [name for name in names if name in paired and name in given]
    if twice:
        raise ValueError(f"MultiLoss: scales must be given once; got two for {twice[0]!r}; remove one of them")
    values = []
    for name in names:
        scale = {**given, **paired}.get(name, 1.0)
        try:
            value = float(scale)
        except (TypeError, ValueError):
            raise TypeError(f"MultiLoss: scale of {name!r} must be a number; got {scale!r}") from None
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"MultiLoss: scale of {name!r} must be finite and at least 0; got {value}")
        values.append(value)
    return values


def _resolve_every(names: tuple[str, ...], every: Mapping[str, int] | None) -> dict[str, int]:
    if every is None:
        return dict.fromkeys(names, 1)
    if not isinstance(every, Mapping):
        raise TypeError(f"MultiLoss: every must be a mapping name -> steps; got {type(every).__name__}")
    _check_names("every", every, names, missing=False)
    for name, steps in every.items():
        if not isinstance(steps, int) or isinstance(steps, bool):
            raise TypeError(f"MultiLoss: every of {name!r} must be an integer; got {steps!r}")
        if steps < 1:
            raise ValueError(f"MultiLoss: every of {name!r} must be at least 1; got {steps}")
    return {name: every.get(name, 1) for name in names}


def _check_names(argument: str, given: Mapping[str, Any], names: tuple[str, ...], missing: bool = True) -> None:
    """Reject names that are not objectives and, if `missing`, objectives without an entry."""
    for name in given:
        if name not in names:
            near = hint(str(name), names)
            raise ValueError(
                f"MultiLoss: {argument} must have the objectives' names {', '.join(names)}; got {name!r}{near}"
            )
    for name in names:
        if missing and name not in given:
            raise ValueError(f"MultiLoss: {argument} must have an entry for every objective; got none for {name!r}")


def _by_name(argument: str, given: Any, names: tuple[str, ...], types: Any) -> dict[str, Any]:
    """Return one value per objective, from a mapping of exactly their names or from one value for all."""
    if not isinstance(given, Mapping):
        given = dict.fromkeys(names, given)
    _check_names(argument, given, names)
    for name in names:
        if not isinstance(given[name], types):
            raise TypeError(f"MultiLoss: {argument} must be Tensors; got {type(given[name]).__name__} for {name!r}")
    return {name: given[name] for name in names}


def _batch_size(outputs: dict[str, Tensor]) -> int:
    sizes = {name: output.shape[0] if output.ndim else None for name, output in outputs.items()}
    (first, batch), *others = sizes.items()
    for name, size in sizes.items():
        if size is None:
            raise ValueError(f"MultiLoss: outputs must have a batch dimension, [B, ...]; got a scalar for {name!r}")
    for name, size in others:
        if size != batch:
            raise ValueError(
                f"MultiLoss: outputs must share a batch size; got {batch} for {first!r}, {size} for {name!r}"
            )
    if not batch:
        raise ValueError("MultiLoss: outputs must hold at least one sample; got an empty batch")
    return batch
