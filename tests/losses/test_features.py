"""The feature networks and the files with their weights."""

import hashlib
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

import tunable_ops
from tunable_ops import losses
from tunable_ops.losses import features, weights


def walk(net: features.Features, x: torch.Tensor, pool) -> dict[str, torch.Tensor]:
    """Run the network again from its convolutions, with all connections written out."""
    state = net.state_dict()
    x = (x - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    found, index = {}, 0
    for block, count in enumerate(net.counts, 1):
        x = pool(x) if block > 1 else x
        index += block > 1
        for k in range(1, count + 1):
            if f"features.{index}.weight" not in state:
                return found
            x = F.conv2d(x, state[f"features.{index}.weight"], state[f"features.{index}.bias"], padding=1).relu()
            found[f"relu{block}_{k}"] = x
            index += 2
    return found


@pytest.mark.parametrize(
    "build, pool, layers, last",
    [
        (losses.VGG16Features, "max", "relus", "features.24.weight"),
        (losses.VGG19Features, "avg", "relus", "features.28.weight"),
        (losses.VGG16Features, "max", ["relu3_3", "relu1_1"], "features.14.weight"),
    ],
)
def test_values_and_names(build, pool, layers, last) -> None:
    net = build(layers, pool=pool, weights="random")
    assert list(net.state_dict())[-2] == last
    x = torch.rand(2, 3, 19, 33)
    found = net(x)
    wanted = walk(net, x, lambda x: F.max_pool2d(x, 2) if pool == "max" else F.avg_pool2d(x, 2))
    assert list(found) == (list(wanted) if layers == "relus" else ["relu1_1", "relu3_3"])
    assert tuple(value.shape[1] for value in found.values()) == net.channels
    for name, value in found.items():
        torch.testing.assert_close(value, wanted[name], rtol=1e-4, atol=1e-6)


def test_l2_pooling_is_the_blurred_square() -> None:
    x = torch.rand(1, 2, 5, 6)
    taps = torch.tensor([1.0, 2.0, 1.0]) / 4
    padded = F.pad(x * x, (1, 1, 1, 1))
    wanted = torch.stack(
        [
            torch.stack(
                [(padded[0, :, i : i + 3, j : j + 3] * taps[:, None] * taps).sum((1, 2)) for j in (0, 2, 4)], -1
            )
            for i in (0, 2, 4)
        ],
        -2,
    )
    torch.testing.assert_close(features.L2Pool2d()(x)[0], wanted.sqrt())


@pytest.mark.parametrize(
    "build, layers, least, field",
    [
        (losses.VGG16Features, ["relu5_1"], 16, 132),
        (losses.VGG19Features, ["relu5_1"], 16, 156),
        (losses.VGG16Features, ["relu1_2"], 1, 5),
        (losses.AlexNetFeatures, ["relu5"], 31, 163),
        (losses.SqueezeNetFeatures, ["fire9"], 17, 207),
        (losses.SqueezeNetFeatures, ["fire3"], 5, 23),
    ],
)
def test_least_size(build, layers, least, field) -> None:
    net = build(layers, weights="random")
    assert (net.min_size, net.receptive_field) == (least, field)
    assert net(torch.rand(1, 3, least, least + 9))[layers[0]].shape[2] == 1
    if least > 1:
        with pytest.raises(ValueError, match=rf"x must be at least {least}x{least} pixels.*got {least - 1}x40"):
            net(torch.rand(1, 3, least - 1, 40))


@pytest.mark.parametrize("build, layer", [(losses.AlexNetFeatures, "relu3"), (losses.SqueezeNetFeatures, "fire5")])
def test_the_field_is_what_one_value_sees(build, layer) -> None:
    net = build([layer], weights="random")
    x = torch.rand(1, 3, 227, 227, requires_grad=True)
    with tunable_ops.exact():  # else whole tiles get what rounding leaves
        net(x)[layer].sum(1)[0, 6, 6].backward()
    rows = x.grad.abs().sum((0, 1, 3)).nonzero()
    assert rows.max() - rows.min() + 1 == net.receptive_field


def test_frozen_and_in_evaluation_mode() -> None:
    net = losses.VGG16Features(["relu1_1"], weights="random").train()
    assert not net.training and not any(p.requires_grad for p in net.parameters())
    assert losses.MultiLoss({"gram": losses.GramStyle(weights="random")}).state_dict()


@pytest.mark.parametrize(
    "arguments, text",
    [
        ({"layers": ["relu6_1"]}, r"VGG16Features: layers must be among relu1_1, .*; got 'relu6_1'"),
        ({"layers": "relu1_1"}, r"VGG16Features: layers must be one or more names"),
        ({"layers": []}, r"VGG16Features: layers must be one or more names"),
        ({"pool": "mean"}, r"VGG16Features: pool must be one of max, avg, l2; got 'mean'"),
    ],
)
def test_bad_arguments(arguments, text) -> None:
    with pytest.raises(ValueError, match=text):
        losses.VGG16Features(weights="random", **arguments)


@pytest.mark.parametrize(
    "x, error, text",
    [
        (torch.zeros(1, 3, 9, 9, dtype=torch.uint8), TypeError, "x must be floating point; got torch.uint8; .*255"),
        (torch.zeros(1, 1, 9, 9), ValueError, r"x must be RGB pictures, \[B, 3, H, W\]; got \[1, 1, 9, 9\]"),
        (torch.full((1, 3, 9, 9), 255.0), ValueError, r"x must lie in \[0, 1\]; got values from 255 to 255"),
        (torch.full((1, 3, 9, 9), float("nan")), ValueError, r"x must lie in \[0, 1\]; got values from nan"),
    ],
    ids=["uint8", "grey", "255", "nan"],
)
def test_bad_pictures(x, error, text) -> None:
    with pytest.raises(error, match="^VGG16Features: " + text):
        losses.VGG16Features(["relu1_1"], weights="random")(x)


def test_the_range_costs_no_look_where_it_would_not_be_free() -> None:
    net = losses.VGG16Features(["relu1_1"], weights="random")
    wild = torch.full((2, 3, 4, 4), 9.0)
    assert net.to("meta")(wild.to("meta"))["relu1_1"].shape == (2, 64, 4, 4)


@pytest.fixture
def empty(monkeypatch, tmp_path: Path) -> Path:
    """Provide an empty data folder and an empty torch.hub folder."""
    monkeypatch.setenv(weights.DATA_VARIABLE, str(tmp_path / "data"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return tmp_path


def test_missing_weights_say_where_and_how(empty: Path, monkeypatch) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        losses.VGG19Features()
    text = str(caught.value)
    for part in (str(empty / "data" / "weights"), str(empty / "hub" / "checkpoints"), "vgg19-dcbb9e9d.pth", "download"):
        assert part in text
    monkeypatch.delenv(weights.DATA_VARIABLE)
    with pytest.raises(FileNotFoundError, match="TUNABLE_OPS_DATA is not set"):
        losses.VGG16Features()
    with pytest.raises(
        FileNotFoundError, match=r'weights must be a file, a folder, "download" or "random"; got .*nowhere'
    ):
        losses.VGG16Features(weights="nowhere.pth")


def test_a_file_is_found_and_its_checksum_checked(empty: Path, monkeypatch) -> None:
    net = losses.VGG16Features(["relu1_1"], weights="random")
    folder = empty / "data" / "weights"
    folder.mkdir(parents=True)
    file = folder / weights.FILES["vgg16"][0].name
    save_file({k: v.contiguous() for k, v in net.state_dict().items()}, file)
    with pytest.raises(ValueError, match=rf"weights must have the published SHA-256 4e82\w+; got \w+ in .*{file.name}"):
        losses.VGG16Features(["relu1_1"])
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    monkeypatch.setitem(weights.FILES, "vgg16", (weights.WeightFile(file.name, digest[:8]),))
    assert torch.equal(losses.VGG16Features(["relu1_1"]).features[0].weight, net.features[0].weight)
    with pytest.raises(ValueError, match=r"weights must hold features.2.weight, features.2.bias; got .* without"):
        losses.VGG16Features(["relu1_2"])


def test_a_file_of_another_network_is_refused(empty: Path) -> None:
    net = losses.VGG16Features(["relu1_1"], weights="random")
    save_file({k: v[..., :1].contiguous() for k, v in net.state_dict().items()}, empty / "other.safetensors")
    with pytest.raises(ValueError, match=r"weights must hold features.0.weight of shape \[64, 3, 3, 3\]; got \[64, 3"):
        losses.VGG16Features(["relu1_1"], weights=empty / "other.safetensors")


def test_a_state_dict_of_torch_is_read_and_code_is_not(empty: Path) -> None:
    net = losses.VGG16Features(["relu1_1"], weights="random")
    torch.save({**net.state_dict(), "classifier.0.weight": torch.zeros(2)}, empty / "mine.pth")
    loaded = losses.VGG16Features(["relu1_1"], weights=empty / "mine.pth")
    assert torch.equal(loaded.features[0].bias, net.features[0].bias)
    torch.save({"features.0.weight": Path}, empty / "evil.pth")
    with pytest.raises(ValueError, match=r"weights must be a safetensors file or a state dict; got .*evil\.pth"):
        losses.VGG16Features(["relu1_1"], weights=empty / "evil.pth")


def test_download_asks_torch_hub_and_checks_the_hash(empty: Path, monkeypatch) -> None:
    asked = []

    def refuse(url, **options):
        asked.append((url, options["check_hash"]))
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    with pytest.raises(
        RuntimeError, match=r"could not download the weights from https.*vgg16-397923af.pth: no network"
    ):
        losses.VGG16Features(weights="download")
    assert asked[0][0].endswith("/vgg16-397923af.pth") and asked[0][1]


def test_the_published_weights(published_weights) -> None:
    net = losses.VGG16Features(["relu1_1"])
    torch.testing.assert_close(
        net.features[0].bias[:4], torch.tensor([0.4034, 0.3778, 0.4644, -0.3228]), rtol=1e-3, atol=0
    )
