"""convert on networks of well-known packages that were not written for it."""

import importlib.util

import pytest
import torch
from torch import nn

import tunable_ops
from tests.modules.networks import DTYPE, assert_equal, draw, perturb, point

needs_monai = pytest.mark.skipif(importlib.util.find_spec("monai") is None, reason="monai is not installed")
needs_transformers = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None, reason="transformers is not installed"
)


def unet(dimensions):
    from monai.networks.nets import UNet

    net = UNet(dimensions, 1, 2, channels=(4, 8, 8), strides=(2, 2), num_res_units=1)
    return net, draw(2, 1, *[16] * dimensions)


def basic_unet():
    from monai.networks.nets import BasicUNet

    return BasicUNet(2, 1, 2, features=(4, 4, 8, 8, 8, 4)), draw(2, 1, 32, 32)


def segresnet():
    from monai.networks.nets import SegResNet

    net = SegResNet(2, init_filters=4, in_channels=1, out_channels=2, blocks_down=(1, 1), blocks_up=(1,), norm="batch")
    return net, draw(2, 1, 16, 16)


def attention_unet():
    from monai.networks.nets import AttentionUnet

    return AttentionUnet(2, 1, 2, channels=(4, 8, 8), strides=(2, 2)), draw(2, 1, 16, 16)


def swin2sr():
    from transformers import Swin2SRConfig, Swin2SRForImageSuperResolution

    config = Swin2SRConfig(
        image_size=16, embed_dim=8, depths=[2, 1], num_heads=[2, 2], window_size=4, mlp_ratio=2.0, upscale=2
    )
    return Swin2SRForImageSuperResolution(config), draw(2, 3, 16, 16)


def convnext():
    from transformers import ConvNextConfig, ConvNextForImageClassification

    config = ConvNextConfig(hidden_sizes=[4, 8], depths=[1, 2], num_stages=2, num_labels=3, layer_scale_init_value=0.5)
    return ConvNextForImageClassification(config), draw(2, 3, 32, 32)


def segformer():
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    config = SegformerConfig(
        num_encoder_blocks=2,
        depths=[1, 1],
        sr_ratios=[2, 1],
        hidden_sizes=[8, 8],
        patch_sizes=[7, 3],
        strides=[4, 2],
        num_attention_heads=[1, 2],
        mlp_ratios=[2, 2],
        decoder_hidden_size=8,
        num_labels=3,
    )
    return SegformerForSemanticSegmentation(config), draw(2, 3, 32, 32)


# Name: (constructor, True if a per-sample lambda works throughout, options of convert, required packages).
NETWORKS = {
    "monai-UNet-2d": (lambda: unet(2), True, {}, needs_monai),
    "monai-UNet-3d": (lambda: unet(3), True, {}, needs_monai),
    "monai-BasicUNet": (basic_unet, True, {}, needs_monai),
    "monai-SegResNet": (segresnet, True, {}, needs_monai),
    "monai-AttentionUnet": (attention_unet, True, {}, needs_monai),
    "hf-ConvNext": (convnext, True, {}, needs_transformers),
    "hf-Segformer": (segformer, True, {}, needs_transformers),
    # The MLP of the position bias sees a table, not samples.
    "hf-Swin2SR": (swin2sr, True, {"exclude": ["*position_bias_mlp*"]}, needs_transformers),
    "hf-Swin2SR-whole": (swin2sr, False, {}, needs_transformers),
}


def output(result):
    """Return the tensor in what a network returns."""
    if isinstance(result, torch.Tensor):
        return result
    return next(result[key] for key in ("logits", "reconstruction") if key in result)


def make_network(name):
    torch.manual_seed(0)
    plain, x = NETWORKS[name][0]()
    plain = plain.to(DTYPE).eval()
    with torch.no_grad():
        for module in plain.modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d | nn.Linear) and module.bias is not None:
                module.bias.normal_(0, 0.1)  # packages initialise them with zeros
    return plain, x


@pytest.mark.parametrize("domain", ["simplex", "box"])
@pytest.mark.parametrize("name", [pytest.param(name, marks=case[3]) for name, case in NETWORKS.items()])
@pytest.mark.filterwarnings("ignore:convert. left alone.*model.*conv:UserWarning")  # UNet-3d: test below
def test_network(name, domain):
    plain, x = make_network(name)
    _, per_sample, options, _ = NETWORKS[name]
    net = tunable_ops.convert(plain, 2, domain=domain, **options)
    assert len(net.layers) > 5
    lam, each = point(domain, 2), point(domain, 2, 2, seed=1)
    with torch.no_grad():
        expected = output(plain(x))
        assert_equal(output(net(x, lam)), expected, 1e-8)
        folded = tunable_ops.fold(net, lam)
        assert type(folded) is type(plain)
        assert list(folded.state_dict()) == list(plain.state_dict())
        assert_equal(output(folded(x)), expected, 1e-8)
        perturb(net)
        trained = output(net(x, lam))
        assert not torch.allclose(trained, expected)
        assert_equal(output(tunable_ops.fold(net, lam)(x)), trained, 1e-8)
        if per_sample:
            alone = [output(tunable_ops.fold(net, row)(x[b : b + 1])) for b, row in enumerate(each)]
            assert_equal(output(net(x, each)), torch.cat(alone), 1e-8)
        else:
            with pytest.raises(
                ValueError, match=r"^Tunable[A-Za-z0-9]* [\w.]+: lam must fit the input's leading size 1"
            ):
                net(x, each)


@needs_monai
def test_what_stays_in_a_network_of_somebody_elses_is_named():
    plain, x = make_network("monai-UNet-3d")  # ConvTranspose3d has no tunable form
    with pytest.warns(UserWarning, match=r"model.2.0.conv \(no tunable form of ConvTranspose3d\)$"):
        net = tunable_ops.convert(plain, 2)
    assert isinstance(net.network.model[2][0].conv, nn.ConvTranspose3d)
    assert_equal(net(x, [0.3, 0.7]), plain(x), 1e-8)


@needs_transformers
def test_gradients_reach_every_kernel_of_a_transformer():
    plain, x = make_network("hf-Segformer")
    net = tunable_ops.convert(plain, 2)
    output(net(x, point("simplex", 2, 2))).square().sum().backward()
    missing = [name for name, p in net.named_parameters() if p.grad is None]
    wanted = output(plain(x)).square().sum()
    wanted.backward()
    allowed = [name for name, p in plain.named_parameters() if p.grad is None]
    assert not [name for name in missing if name.removeprefix("network.") not in allowed]
