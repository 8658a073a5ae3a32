"""The one comparison of a fast result with its reference; `test_comparison.py` tests it with seeded faults.

In low precision, allclose or a bound on a single number misses a gain of 1.003 or an offset of 0.002. Four measures of
the error, each relative to the error of plain PyTorch in the same dtype, catch both.

The bounds are 2 times the baseline's maximum, 1.25 times its rms, and 8 standard errors of gain and mean. In fp32 both
results sum in different orders, and over 480 comparisons per case (12 seeds, forward and all gradients, one CPU) these
bounds raised false alarms for up to 0.6 % of the input and weight gradients, by up to 1.4 times the bound. For fp32
they are therefore 3 times the maximum and 12 standard errors. Either way the seeded faults of `test_comparison.py` are
caught.

Winograd's filtering computes at points between the pixels: its rounding is a class of its own (docs/winograd.md). With
`winograd` the bound on the maximum is 3 times as wide, that on the rms 4 rms(e_base) + 4 eps rms(ref), where the second
term is the rounding of the transforms themselves, and those on gain and mean are 8 times as wide: the rounding of a
transformed kernel is the same at all pixels and does not average out. Over 240 comparisons of outputs and as many of
input gradients (10 seeds, 6 shapes, one alpha or one per sample, both layouts) no tile of 4x4 exceeded 0.75 of a bound;
the baseline of contiguous tensors is very close to the exact result. The seeded faults are caught all the same.
Gradients of kernels are sums over few pixels: they reached 1.1 of a bound with 3x3 kernels (144 comparisons), and 1.7
(gain; rms 0.7) with 5x5 kernels (120 comparisons), whose tests have bounds twice as wide.
"""

import math

import torch
from torch import Tensor


def assert_agrees(out: Tensor, ref: Tensor, base: Tensor, name: str = "result", winograd: float = False) -> None:
    """Raise AssertionError, with the measures that fail, unless `out` is about as close to `ref` as `base` is.

    Args:
        out: The result under test.
        ref: The float64 reference of the rounded inputs.
        base: Plain PyTorch in the tested dtype.
        name: Name of the result in the message.
        winograd: True for a result that Winograd's filtering may have computed; a number: with bounds as many times as
            wide.
    """
    assert out.shape == ref.shape == base.shape, f"{name}: shapes {out.shape}, {ref.shape}, {base.shape}"
    assert out.dtype == base.dtype, f"{name}: dtypes {out.dtype}, {base.dtype}"
    assert ref.dtype == torch.float64, f"{name}: reference in {ref.dtype}"
    if ref.numel() == 0:
        return
    assert bool(torch.isfinite(out).all()), f"{name}: not finite"
    failures = [text for text, value, bound in measures(out, ref, base, winograd) if not value <= bound]
    assert not failures, f"{name} ({out.dtype}, {list(out.shape)}): " + "; ".join(failures)


def measures(out: Tensor, ref: Tensor, base: Tensor, winograd: float = False) -> list[tuple[str, float, float]]:
    """Return (text, value, bound) of each measure."""
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
    if winograd:
        assert not low_precision, "the class of Winograd's filtering is for fp32"
        wider = {"max": 3 * biggest, "rms": 4 * base_rms + 4 * eps * ref_rms}
        rows = [(label, value, winograd * wider.get(label, 8 * bound)) for label, value, bound in rows]
    return [(f"{label} {value:.3g} > {bound:.3g}", value, bound) for label, value, bound in rows]


def _gain(error: Tensor, ref: Tensor) -> float:
    """Return <out, ref>/<ref, ref> - 1, computed from the error to avoid cancellation."""
    return ((error * ref).sum() / (ref * ref).sum()).item()


def _rms(values: Tensor) -> float:
    return values.square().mean().sqrt().item()
