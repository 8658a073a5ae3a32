import doctest
import importlib
import math

import pytest
import torch
from torchmetrics.functional.image import structural_similarity_index_measure

from tunable_ops import losses


def pictures(*shape, dtype=torch.float64, seed=0):
    """Return a picture in [0, 1] with flat, smooth and noisy parts, and a distorted copy."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.rand(shape, generator=generator, dtype=torch.float64)
    target[..., : shape[-1] // 3] = 0.25
    output = (target + 0.2 * torch.randn(shape, generator=generator, dtype=torch.float64)).clamp(0, 1)
    return output.to(dtype), target.to(dtype)


def similarity(output, target, data_range=1.0):
    return structural_similarity_index_measure(output, target, data_range=data_range, reduction="none")


def loop(output, target):
    """Compute the definition at every pixel and channel, with an explicit two-dimensional window."""
    offsets = range(-5, 6)
    window = {(i, j): math.exp(-(i * i + j * j) / (2 * 1.5**2)) for i in offsets for j in offsets}
    total = sum(window.values())
    result = []
    for x, y in zip(output, target, strict=True):
        values = []
        for a, b in zip(x.tolist(), y.tolist(), strict=True):
            height, width = len(a), len(a[0])

            def reflect(i, size):
                return size - 1 - abs(size - 1 - abs(i))

            for row in range(height):
                for col in range(width):
                    places = [
                        (weight / total, reflect(row + i, height), reflect(col + j, width))
                        for (i, j), weight in window.items()
                    ]
                    mx = sum(w * a[i][j] for w, i, j in places)
                    my = sum(w * b[i][j] for w, i, j in places)
                    sxx = sum(w * (a[i][j] - mx) ** 2 for w, i, j in places)
                    syy = sum(w * (b[i][j] - my) ** 2 for w, i, j in places)
                    sxy = sum(w * (a[i][j] - mx) * (b[i][j] - my) for w, i, j in places)
                    values.append(
                        (2 * mx * my + 1e-4) * (2 * sxy + 9e-4) / ((mx**2 + my**2 + 1e-4) * (sxx + syy + 9e-4))
                    )
        result.append(1 - sum(values) / len(values))
    return torch.tensor(result, dtype=torch.float64)


def test_values_against_loop():
    output, target = pictures(2, 2, 11, 13)
    torch.testing.assert_close(losses.ssim(output, target), loop(output, target), rtol=1e-10, atol=0)


@pytest.mark.parametrize("shape", [(1, 1, 11, 11), (2, 3, 12, 17), (3, 1, 40, 11), (2, 5, 33, 32)], ids=str)
@pytest.mark.parametrize("data_range", [1.0, 255.0])
def test_agrees_with_torchmetrics(shape, data_range):
    output, target = (data_range * picture for picture in pictures(*shape))
    expected = 1 - similarity(output, target, data_range)
    assert expected.min() > 0.01
    torch.testing.assert_close(losses.ssim(output, target, data_range), expected, rtol=1e-11, atol=0)
    # float32: both round variances at about 1e-7 of the squares, next to c2 = 9e-4
    actual = losses.ssim(output.float(), target.float(), data_range)
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=2e-6)


def test_range_of_values():
    output, target = pictures(2, 3, 24, 24, dtype=torch.float32)
    torch.testing.assert_close(losses.ssim(target, target), torch.zeros(2), rtol=0, atol=1e-6)
    noise = target[..., 8:]
    assert (losses.ssim(noise, 1 - noise) > 1.5).all()  # the same local means, opposite structure
    assert (losses.ssim(output, target) > 0.05).all()


def test_derivatives():
    output, target = (picture.requires_grad_() for picture in pictures(1, 1, 11, 12))
    assert torch.autograd.gradcheck(losses.ssim, (output, target))
    # random projections of the second derivatives: all 264 x 264 of them take ten seconds
    assert torch.autograd.gradgradcheck(losses.ssim, (output, target), fast_mode=True)


def test_gradient_agrees_with_torchmetrics():
    output, target = pictures(2, 3, 20, 17)
    output.requires_grad_()
    (actual,) = torch.autograd.grad(losses.ssim(output, target).sum(), output)  # the gradient of sum has stride 0
    (expected,) = torch.autograd.grad((1 - similarity(output, target)).sum(), output)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12)


def test_flat_pictures_have_finite_derivatives():
    output = torch.full((1, 1, 16, 16), 0.7, requires_grad=True)
    (grad,) = torch.autograd.grad(losses.ssim(output, torch.full((1, 1, 16, 16), 0.3)).sum(), output, create_graph=True)
    (second,) = torch.autograd.grad(grad.square().sum(), output)
    assert grad.isfinite().all() and second.isfinite().all() and (grad.sum() > 0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
def test_half_is_computed_in_float32(dtype):
    output, target = pictures(2, 3, 16, 16, dtype=dtype)
    value = losses.ssim(output, target)
    assert value.dtype == torch.float32
    assert torch.equal(value, losses.ssim(output.float(), target.float()))


def test_autocast_changes_nothing():
    output, target = pictures(2, 3, 16, 16, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = losses.ssim(output, target)
    assert value.dtype == torch.float32
    assert torch.equal(value, losses.ssim(output, target))


def test_layouts_and_samples():
    output, target = pictures(3, 2, 14, 15)
    expected = losses.ssim(output, target)
    last = torch.channels_last
    torch.testing.assert_close(losses.ssim(output.to(memory_format=last), target.to(memory_format=last)), expected)
    torch.testing.assert_close(losses.ssim(torch.cat((output, output), -1)[..., :15], target), expected)
    alone = torch.cat([losses.ssim(output[b : b + 1], target[b : b + 1]) for b in range(3)])
    assert torch.equal(expected, alone)


def test_empty_batch():
    output = torch.zeros(0, 3, 16, 16, requires_grad=True)
    value = losses.ssim(output, torch.zeros(0, 3, 16, 16))
    assert value.shape == (0,)
    value.sum().backward()
    assert output.grad.shape == output.shape


def test_compile_without_a_graph_break():
    output, target = pictures(2, 3, 16, 17)
    output.requires_grad_()
    compiled = torch.compile(losses.ssim, fullgraph=True, backend="aot_eager")
    for data_range in (1.0, 2.0, 3.0):  # the second value makes it a symbol of the graph
        torch.testing.assert_close(compiled(output, target, data_range), losses.ssim(output, target, data_range))
    (actual,) = torch.autograd.grad(compiled(output, target, 1.0).sum(), output)
    (expected,) = torch.autograd.grad(losses.ssim(output, target).sum(), output)
    torch.testing.assert_close(actual, expected)


def test_func_transforms():
    output, target = pictures(2, 3, 12, 13)
    mapped = torch.func.vmap(lambda a, b: losses.ssim(a[None], b[None])[0])(output, target)
    torch.testing.assert_close(mapped, losses.ssim(output, target))
    leaf = output.clone().requires_grad_()
    (expected,) = torch.autograd.grad(losses.ssim(leaf, target).sum(), leaf)
    torch.testing.assert_close(torch.func.grad(lambda a: losses.ssim(a, target).sum())(output), expected)


@pytest.mark.parametrize("data_range", [0.0, -1.0, math.nan, math.inf])
def test_wrong_data_range(data_range):
    picture = torch.zeros(1, 1, 16, 16)
    with pytest.raises(ValueError, match=r"^ssim: data_range must be finite and above 0; got"):
        losses.ssim(picture, picture, data_range)


@pytest.mark.parametrize("shape", [(1, 1, 10, 11), (1, 1, 11, 10), (0, 1, 10, 10)], ids=str)
def test_smaller_than_the_window(shape):
    with pytest.raises(
        ValueError, match=r"^ssim: output must be at least 11x11 pixels, the size of the window; got \["
    ):
        losses.ssim(torch.zeros(shape), torch.zeros(shape))


def test_wrong_rank():
    with pytest.raises(ValueError, match=r"^ssim: output must be \[B, C, H, W\]; got \[3, 16, 16\]"):
        losses.ssim(torch.zeros(3, 16, 16), torch.zeros(3, 16, 16))


@pytest.mark.parametrize("module", ["multi", "pixel", "samplers", "ssim"])
def test_examples_in_docstrings(module):
    namespace = {"torch": torch}
    result = doctest.testmod(importlib.import_module(f"tunable_ops.losses.{module}"), extraglobs=namespace)
    assert result.attempted > 0 and result.failed == 0
