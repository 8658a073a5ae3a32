"""The one comparison of a fast result with its reference; `test_comparison.py` checks it with seeded faults.

Allclose, or a bound on one number, lets a gain of 1.003 or an offset of 0.002 pass in low precision. Four measures of
the error, each against what plain PyTorch does in the same dtype, let none of them pass.

The factors: 2 times the baseline's maximum, 1.25 times its rms, 8 standard errors of gain and mean. In fp32 both sides
are sums in an order of their own, and over 480 comparisons a case (12 seeds, forward and all gradients, one CPU) those
factors raised a false alarm in up to 0.6 % of the input and weight gradients, by up to 1.4 times the bound; fp32 has
3 times the maximum and 12 standard errors. The seeded faults of `test_comparison.py` are caught either way.
"""

import math

import torch
from torch import Tensor


def assert_agrees(out: Tensor, ref: Tensor, base: Tensor, name: str = "result") -> None:
    """Raises AssertionError, with every measure, unless `out` is as close to `ref` as `base` is.

    Args:
        out: The result under test.
        ref: The float64 reference of the rounded inputs.
        base: Plain PyTorch in the tested dtype.
        name: What is compared, for the message.
    """
    assert out.shape == ref.shape == base.shape, f"{name}: shapes {out.shape}, {ref.shape}, {base.shape}"
    assert out.dtype == base.dtype, f"{name}: dtypes {out.dtype}, {base.dtype}"
    assert ref.dtype == torch.float64, f"{name}: reference in {ref.dtype}"
    if ref.numel() == 0:
        return
    assert bool(torch.isfinite(out).all()), f"{name}: not finite"
    failures = [text for text, value, bound in measures(out, ref, base) if not value <= bound]
    assert not failures, f"{name} ({out.dtype}, {list(out.shape)}): " + "; ".join(failures)


def measures(out: Tensor, ref: Tensor, base: Tensor) -> list[tuple[str, float, float]]:
    """(text, value, bound) of each measure."""
    eps = torch.finfo(out.dtype).eps
    count = ref.numel()
    error, base_error = out.double() - ref, base.double() - ref
    ref_rms, base_rms = _rms(ref), _rms(base_error)
    noise = max(base_rms, eps / 2 * ref_rms)
    low_precision = out.dtype in (torch.float16, torch.bfloat16)
    factor, errors = (2, 8) if low_precision else (3, 12)
    biggest = factor * base_error.abs().max().item() + (factor - 1) * eps * ref.abs().max().item()
    rows = [("max", error.abs().max().item(), biggest)]
    if count >= 64:
        rows.append(("rms", _rms(error), 1.25 * base_rms if low_precision else 2 * base_rms + eps / 2 * ref_rms))
    if ref_rms > 0:
        slack = errors * noise / (ref_rms * math.sqrt(count))
        rows.append(("gain", abs(_gain(error, ref)), 2 * abs(_gain(base_error, ref)) + slack))
    slack = errors * noise / math.sqrt(count)
    rows.append(("mean", abs(error.mean().item()), 2 * abs(base_error.mean().item()) + slack))
    return [(f"{label} {value:.3g} > {bound:.3g}", value, bound) for label, value, bound in rows]


def _gain(error: Tensor, ref: Tensor) -> float:
    """<out, ref>/<ref, ref> - 1, from the error: no cancellation."""
    return ((error * ref).sum() / (ref * ref).sum()).item()


def _rms(values: Tensor) -> float:
    return values.square().mean().sqrt().item()
