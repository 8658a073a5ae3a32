"""Perceptual, Gram, LPIPS and DISTS against plain computations, and against the package lpips if it is installed."""

import os

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from tunable_ops import losses
from tunable_ops.losses.perceptual import gram
from tunable_ops.losses.pgn import PGN
from tunable_ops.losses.reduction import value_and_gradient

LAYERS = ["relu1_2", "relu2_1"]


def pair(batch: int = 2, height: int = 18, width: int = 23, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    source = torch.Generator().manual_seed(seed)
    return torch.rand(batch, 3, height, width, generator=source), torch.rand(batch, 3, height, width, generator=source)


@pytest.fixture(scope="module")
def small() -> losses.Perceptual:
    return losses.Perceptual("vgg16", LAYERS, weights="random")


@pytest.mark.parametrize("distance", ["l1", "l2"])
def test_perceptual_is_the_weighted_sum_of_means(distance) -> None:
    x, y = pair()
    loss = losses.Perceptual("vgg16", {"relu1_2": 0.5, "relu2_1": 3.0}, distance=distance, weights="random")
    a, b = loss.features(x), loss.features(y)
    power = {"l1": torch.abs, "l2": torch.square}[distance]
    wanted = sum(w * power(a[k] - b[k]).mean((1, 2, 3)) for k, w in (("relu1_2", 0.5), ("relu2_1", 3.0)))
    torch.testing.assert_close(loss(x, y), wanted)


@pytest.mark.parametrize(
    "build",
    [
        lambda: losses.Perceptual("vgg16", LAYERS, weights="random"),
        lambda: losses.Perceptual("vgg19", LAYERS, "max", "l2", weights="random"),
        lambda: losses.GramStyle(layers=LAYERS, weights="random"),
    ],
    ids=["l1", "l2", "gram"],
)
def test_gradients_samples_and_empty_batches(build) -> None:
    loss = build().double()
    x, y = (v.double().requires_grad_() for v in pair(2, 6, 5))
    assert torch.autograd.gradcheck(loss, (x, y), nondet_tol=1e-10, fast_mode=True)
    alone = torch.cat([loss(x[b : b + 1], y[b : b + 1]) for b in range(2)])
    torch.testing.assert_close(loss(x, y), alone)
    assert loss(x[:0], y[:0]).shape == (0,) and loss(x, x).tolist() == [0, 0]
    criterion = losses.MultiLoss({"l1": losses.l1, "features": loss})
    total, terms = criterion(x, y, [0.0, 2.0])
    torch.testing.assert_close(total, 2 * terms["features"])


def test_the_loss_knows_its_features_once_extracted(small) -> None:
    x, y = pair()
    assert torch.equal(small.between(small.features.extract(x), small.features.extract(y)), small(x, y))


def test_gram_of_a_layer_is_the_product_of_its_channels() -> None:
    f = torch.rand(2, 3, 4, 5)
    wanted = torch.einsum("bihw,bjhw->bij", f, f) / (3 * 4 * 5)
    torch.testing.assert_close(gram(f), wanted)


def test_gram_style_takes_any_size_and_keeps_a_style() -> None:
    x, _ = pair()
    style = torch.rand(1, 3, 30, 11)
    loss = losses.GramStyle(layers=LAYERS, weights="random")
    kept = losses.GramStyle(layers=LAYERS, weights="random", style=style)
    kept.load_state_dict(loss.state_dict())
    a, b = loss.features(x), loss.features(style)
    wanted = sum((gram(a[k]) - gram(b[k])).square().mean((1, 2)) for k in LAYERS)
    torch.testing.assert_close(loss(x, style), wanted)
    torch.testing.assert_close(loss(x, style.repeat(2, 1, 1, 1)), wanted)
    for layer in LAYERS:
        setattr(kept, f"gram_{layer}", gram(b[layer]))
    torch.testing.assert_close(kept(x), wanted)
    with pytest.raises(ValueError, match="GramStyle: target must be a picture if the constructor got no style"):
        loss(x)
    with pytest.raises(ValueError, match=r"GramStyle: target must be \[B, 3, h, w\].* B = 2 .*got \[3, 3, 30, 11\]"):
        loss(x, style.repeat(3, 1, 1, 1))
    with pytest.raises(ValueError, match=r"GramStyle: style must be one picture, \[1, 3, h, w\]"):
        losses.GramStyle(layers=LAYERS, weights="random", style=x)


@pytest.mark.parametrize(
    "arguments, text",
    [
        ({"network": "alexnet"}, "Perceptual: network must be one of vgg16, vgg19; got 'alexnet'"),
        ({"distance": "cosine"}, "Perceptual: distance must be 'l1' or 'l2'; got 'cosine'"),
    ],
)
def test_bad_arguments(arguments, text) -> None:
    with pytest.raises(ValueError, match=text):
        losses.Perceptual(weights="random", **arguments)


def test_bad_pictures_are_named(small) -> None:
    x, y = pair()
    for bad, name in (((x * 2, y), "output"), ((x, y - 0.5), "target")):
        with pytest.raises(ValueError, match=rf"^Perceptual: {name} must lie in \[0, 1\]; got values from"):
            small(*bad)
    with pytest.raises(ValueError, match=r"target must have output's shape \[2, 3, 18, 23\]; got \[2, 3, 18, 9\]"):
        small(x, y[..., :9])
    deep = losses.Perceptual("vgg16", ["relu3_1"], weights="random", bounded=False)
    with pytest.raises(ValueError, match=r"output must be at least 4x4 pixels, .* got 3x23"):
        deep(x[:, :, :3], y[:, :, :3])
    assert deep(2 * x, y).isfinite().all()
    with pytest.raises(ValueError, match=r"target must lie in"):
        deep(2 * x, 2 * y)


def random_heads() -> dict[str, torch.Tensor]:
    sizes = {
        "alex": (64, 192, 384, 256, 256),
        "vgg": (64, 128, 256, 512, 512),
        "squeeze": (64, 128, 256, 384, 384, 512, 512),
    }
    return {f"{n}.lin{k}.model.1.weight": torch.rand(1, c, 1, 1) for n, cs in sizes.items() for k, c in enumerate(cs)}


def squeezenet(tensors: dict[str, torch.Tensor], x: torch.Tensor) -> list[torch.Tensor]:
    """Return what the package compares of SqueezeNet 1.1, for normalised pictures, with all connections written out."""

    def conv(name: str, x: torch.Tensor, **more: int) -> torch.Tensor:
        weight, bias = (tensors[f"features.{name}.{key}"].double() for key in ("weight", "bias"))
        return F.conv2d(x, weight, bias, **more).relu()

    def fire(index: int, x: torch.Tensor) -> torch.Tensor:
        x = conv(f"{index}.squeeze", x)
        return torch.cat([conv(f"{index}.expand1x1", x), conv(f"{index}.expand3x3", x, padding=1)], 1)

    found = [conv("0", x, stride=2)]
    for pool, *fires in ((True, 3, 4), (True, 6, 7), (True, 9), (False, 10), (False, 11), (False, 12)):
        x = F.max_pool2d(found[-1], 3, 2, ceil_mode=True) if pool else found[-1]
        for index in fires:
            x = fire(index, x)
        found.append(x)
    return found


def squeezenet_lpips(a: list[torch.Tensor], b: list[torch.Tensor], heads) -> torch.Tensor:
    """Return LPIPS of the features of two pictures."""
    total = 0
    for k, both in enumerate(zip(a, b, strict=True)):
        u, v = (f / (f.square().sum(1, keepdim=True).sqrt() + 1e-10) for f in both)
        total = total + F.conv2d((u - v) ** 2, heads[f"squeeze.lin{k}.model.1.weight"].double()).mean((1, 2, 3))
    return total


def plain_lpips(loss: losses.LPIPS, x: torch.Tensor, y: torch.Tensor, heads, net: str) -> torch.Tensor:
    """Compute LPIPS again in float64, in the package's units ([-1, 1] and its own shift and scale)."""
    shift = torch.tensor([-0.030, -0.088, -0.188], dtype=torch.float64).view(3, 1, 1)
    scale = torch.tensor([0.458, 0.448, 0.450], dtype=torch.float64).view(3, 1, 1)
    total = 0
    a, b = (((2 * v.double() - 1) - shift) / scale for v in (x, y))
    if net == "squeeze":
        tensors = loss.features.state_dict()
        return squeezenet_lpips(squeezenet(tensors, a), squeezenet(tensors, b), heads)
    relu, last = 0, (0, 1, 2, 3, 4) if net == "alex" else (1, 3, 6, 9, 12)
    for module in loss.features.features:
        if isinstance(module, torch.nn.Conv2d):
            weight, bias = module.weight.double(), module.bias.double()
            a, b = (F.conv2d(v, weight, bias, module.stride, module.padding) for v in (a, b))
        elif isinstance(module, torch.nn.ReLU):
            a, b = a.relu(), b.relu()
            if relu in last:
                u, v = (f / (f.square().sum(1, keepdim=True).sqrt() + 1e-10) for f in (a, b))
                head = heads[f"{net}.lin{last.index(relu)}.model.1.weight"].double()
                total = total + F.conv2d((u - v) ** 2, head).mean((1, 2, 3))
            relu += 1
        else:
            a, b = module(a), module(b)
    return total


@pytest.mark.parametrize("net", ["alex", "vgg", "squeeze"])
def test_lpips_with_random_weights(net, tmp_path) -> None:
    heads = random_heads()
    save_file(heads, tmp_path / "heads.safetensors")
    loss = losses.LPIPS(net, weights="random", heads=tmp_path / "heads.safetensors")
    x, y = pair(2, 40, 33)
    torch.testing.assert_close(loss(x, y).double(), plain_lpips(loss, x, y, heads, net), rtol=1e-4, atol=1e-6)
    black = torch.zeros(1, 3, 40, 40, requires_grad=True)  # features may be all zero: sqrt has no derivative there
    loss(black, torch.ones_like(black)).sum().backward()
    assert black.grad.isfinite().all()


def plain_dists(loss: losses.DISTS, x, y, alpha, beta) -> torch.Tensor:
    """Compute DISTS again in float64, channel by channel, with covariances as differences of products."""
    features = loss.double().features
    maps = [(x.double(), y.double()), *zip(features(x).values(), features(y).values(), strict=True)]
    alpha, beta, channel, similarity = alpha.flatten().double(), beta.flatten().double(), 0, 0
    for a, b in maps:
        for u, v in zip(a.unbind(1), b.unbind(1), strict=True):
            mu, mv = u.mean((1, 2)), v.mean((1, 2))
            cov, uu, vv = (u * v).mean((1, 2)) - mu * mv, (u * u).mean((1, 2)) - mu**2, (v * v).mean((1, 2)) - mv**2
            similarity = similarity + alpha[channel] * (2 * mu * mv + 1e-6) / (mu**2 + mv**2 + 1e-6)
            similarity = similarity + beta[channel] * (2 * cov + 1e-6) / (uu + vv + 1e-6)
            channel += 1
    assert channel == alpha.numel()
    return 1 - similarity / (alpha.sum() + beta.sum())


def test_dists_with_random_weights(tmp_path) -> None:
    parts = {"alpha": torch.rand(1, 1475, 1, 1), "beta": torch.rand(1, 1475, 1, 1)}
    save_file(parts, tmp_path / "parts.safetensors")
    loss = losses.DISTS(weights="random", heads=tmp_path / "parts.safetensors")
    x, y = pair(2, 20, 17)
    found, same = loss(x, y), loss(x, x)
    torch.testing.assert_close(found.double(), plain_dists(loss, x, y, **parts), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(same, torch.zeros(2), rtol=0, atol=1e-5)


def test_published_lpips_and_dists(published_weights) -> None:
    """With the published weights all variants agree with the plain computation for a noisy picture."""
    x, y = pair(1, 64, 64)
    y = (x + 0.2 * (y - 0.5)).clamp(0, 1)
    folder = os.path.join(os.environ["TUNABLE_OPS_DATA"], "weights")
    heads = load_file(os.path.join(folder, "lpips_heads.safetensors"))
    for net in ("alex", "vgg", "squeeze"):
        loss = losses.LPIPS(net)
        torch.testing.assert_close(loss(x, y).double(), plain_lpips(loss, x, y, heads, net), rtol=1e-4, atol=1e-6)
    dists = losses.DISTS()
    parts = load_file(os.path.join(folder, "dists_alpha_beta.safetensors"))
    value = dists(x, y)
    torch.testing.assert_close(value.double(), plain_dists(dists, x, y, **parts), rtol=1e-3, atol=1e-5)


def test_lpips_with_the_weights_of_squeezenets_authors() -> None:
    """They were trained on BGR in 0..255 less a mean, and are used so here."""
    folder = os.path.join(os.environ.get("TUNABLE_OPS_DATA", ""), "weights")
    file = os.path.join(folder, "squeezenet11_caffe_fp16.safetensors")
    if not os.path.isfile(file):
        pytest.skip("needs squeezenet11_caffe_fp16.safetensors in $TUNABLE_OPS_DATA/weights")
    tensors, heads = load_file(file), load_file(os.path.join(folder, "lpips_heads.safetensors"))
    x, y = pair(2, 45, 61)
    y = (x + 0.2 * (y - 0.5)).clamp(0, 1)
    mean = torch.tensor([104.0, 117.0, 123.0], dtype=torch.float64).view(3, 1, 1)
    a, b = (squeezenet(tensors, 255 * v.double()[:, [2, 1, 0]] - mean) for v in (x, y))
    loss = losses.LPIPS("squeeze", weights=file)
    torch.testing.assert_close(loss(x, y).double(), squeezenet_lpips(a, b, heads), rtol=1e-4, atol=1e-6)
    near, far = loss(0.9 * x + 0.1 * y, x), loss(y, x)
    assert bool((far > 4 * near).all()) and loss(x, x).tolist() == [0, 0]


@pytest.mark.parametrize("net", ["alex", "vgg", "squeeze"])
def test_lpips_equals_the_package(net, published_weights) -> None:
    lpips = pytest.importorskip("lpips", reason="the package lpips does not import here", exc_type=ImportError)
    theirs = lpips.LPIPS(net=net, pretrained=True, pnet_rand=True, verbose=False)
    ours = losses.LPIPS(net)
    for own, module in zip(
        (m for m in ours.features.modules() if isinstance(m, torch.nn.Conv2d)),
        (m for m in theirs.net.modules() if isinstance(m, torch.nn.Conv2d)),
        strict=True,
    ):
        module.load_state_dict(own.state_dict())
    x, y = pair(2, 64, 70)
    torch.testing.assert_close(ours(x, y), theirs(x, y, normalize=True).flatten(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "build",
    [
        lambda: losses.Perceptual("vgg16", LAYERS, weights="random"),
        lambda: losses.GramStyle(layers=LAYERS, weights="random"),
        pytest.param(lambda: losses.PerceptualGradient(PGN("unet")), marks=pytest.mark.slow),
    ],
    ids=["perceptual", "gram", "field"],
)
def test_compile_without_a_graph_break(build) -> None:
    loss = build()
    x, y = pair(2, 16, 16)
    x.requires_grad_()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, y), loss(x, y))
    (found,) = torch.autograd.grad(compiled(x, y).sum(), x)
    (wanted,) = torch.autograd.grad(loss(x, y).sum(), x)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3 * float(wanted.abs().max()))


def test_vmap_over_pictures(small) -> None:
    x, y = pair()
    mapped = torch.func.vmap(lambda a, b: small(a[None], b[None])[0])(x, y)
    torch.testing.assert_close(mapped, small(x, y))


def test_value_and_gradient_are_those_of_the_loss(small) -> None:
    x, y = pair()
    values, gradient = value_and_gradient(small, x, y)
    torch.testing.assert_close(values, small(x, y))
    assert not values.requires_grad and not gradient.requires_grad and not x.requires_grad
    exact = losses.Perceptual("vgg16", LAYERS, weights="random", bounded=False).double()
    x, y = x.double(), y.double()
    step = 1e-8 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype)
    moved = (exact(x + step, y) - exact(x - step, y)) / 2
    torch.testing.assert_close((value_and_gradient(exact, x, y)[1] * step).flatten(1).sum(1), moved, rtol=1e-3, atol=0)
