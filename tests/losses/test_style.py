"""StyleTransfer: the formula, shared features, and errors."""

import pytest
import torch

from tunable_ops.losses import StyleTransfer, VGG16Features, tv

LAYERS = ["relu1_1", "relu1_2", "relu2_1"]


@pytest.fixture(scope="module")
def features() -> VGG16Features:
    torch.manual_seed(0)
    return VGG16Features(LAYERS, weights="random").double()


@pytest.fixture(scope="module")
def pictures() -> dict[str, torch.Tensor]:
    source = torch.Generator().manual_seed(1)
    sizes = {"dots": (9, 12), "lines": (8, 7), "faint": (10, 10)}
    return {name: torch.rand(1, 3, *size, generator=source, dtype=torch.float64) for name, size in sizes.items()}


def build(features: VGG16Features, pictures: dict, **options: float) -> StyleTransfer:
    return StyleTransfer(
        features, pictures, [1.0, 2.0, 0.5], style_layers=LAYERS[1:], content_layer=LAYERS[0], **options
    )


def explicit_style(features: VGG16Features, output: torch.Tensor, picture: torch.Tensor) -> torch.Tensor:
    """Compare one sample with one style: relative squared error of Gram matrices by einsum, mean over two layers."""
    found, wanted = features(output), features(picture)
    total = torch.zeros((), dtype=torch.float64)
    for layer in LAYERS[1:]:
        a, b = (torch.einsum("cij,dij->cd", f[layer][0], f[layer][0]) / f[layer][0].numel() for f in (found, wanted))
        total = total + ((a - b) ** 2).mean() / (b**2).mean() / 2
    return total


def test_against_the_formula(features, pictures) -> None:
    output, target = (torch.rand(2, 3, 8, 10, dtype=torch.float64) for _ in range(2))
    lam = torch.tensor([[0.2, 0.3, 0.5], [1.0, 0.0, 0.0]], dtype=torch.float64)
    loss = build(features, pictures, content=0.7, smooth=0.2)
    total, terms = loss(output, dict.fromkeys(pictures, target), lam)
    expected, content = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for b in range(2):
        f, g = (features(x[b : b + 1])[LAYERS[0]] for x in (output, target))
        content += ((f - g) ** 2).mean() / (g**2).mean() / 2
        for i, (scale, picture) in enumerate(zip((1.0, 2.0, 0.5), pictures.values(), strict=True)):
            expected += lam[b, i] * scale * explicit_style(features, output[b : b + 1], picture) / 2
    expected += 0.7 * content + 0.2 * tv(output).mean()
    torch.testing.assert_close(total, expected, rtol=1e-10, atol=0)
    torch.testing.assert_close(terms["content"], content, rtol=1e-10, atol=0)
    assert list(terms) == [*pictures, "content", "tv"]
    torch.testing.assert_close(loss(output, target, lam)[0], total, rtol=0, atol=0)


def test_a_style_picture_has_its_own_style_and_content(features, pictures) -> None:
    picture = pictures["lines"]
    total, terms = build(features, pictures)(picture, picture, [0.0, 1.0, 0.0])
    assert float(total) == pytest.approx(0, abs=1e-20)
    assert float(terms["dots"]) > 1e-3


def test_gradients_reach_the_output_alone(features, pictures) -> None:
    loss = build(features, pictures, smooth=0.1)
    output = torch.rand(1, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    target = torch.rand(1, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    loss(output, target, [1.0, 0.0, 0.0])[0].backward()
    assert output.grad is not None and output.grad.abs().min() > 0
    assert target.grad is None and not any(p.requires_grad for p in loss.parameters())


def test_outputs_beyond_white_are_allowed_in_training(features, pictures) -> None:
    total, _ = build(features, pictures)(
        torch.full((1, 3, 8, 8), 1.2).double(), torch.rand(1, 3, 8, 8).double(), [1, 0, 0]
    )
    assert torch.isfinite(total)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"style_layers": ["relu5_1"]}, "StyleTransfer: features must have the layer 'relu5_1'; got relu1_1, relu1_2"),
        ({"content_layer": "conv1"}, "StyleTransfer: features must have the layer 'conv1'"),
        (
            {"pictures": {"a": torch.rand(2, 3, 8, 8)}},
            r"StyleTransfer: pictures\['a'\] must be \[1, 3, h, w\]; got \[2",
        ),
        ({"pictures": {"a": torch.rand(1, 3, 8, 8) + 1}}, r"pictures\['a'\] must"),
        ({"scales": [1.0, 2.0]}, "scales must have one number for each of dots, lines, faint; got 2"),
    ],
)
def test_bad_arguments(features, pictures, changes: dict, text: str) -> None:
    options = {"pictures": pictures, "style_layers": LAYERS, "content_layer": LAYERS[0], **changes}
    with pytest.raises(ValueError, match=text):
        StyleTransfer(features, **options)


def test_content_of_another_size_is_refused(features, pictures) -> None:
    with pytest.raises(ValueError, match="StyleTransfer: target must have output's shape"):
        build(features, pictures)(torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 9), [1, 0, 0])
