"""convert: what is converted, what is left alone and named in a warning, and bad arguments."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

import tunable_ops
from tests.modules.networks import DTYPE, Net, assert_equal, draw, plain_net
from tunable_ops.modules import TunableLayer


def converted(net):
    return sorted(name for name, module in net.network.named_modules() if isinstance(module, TunableLayer))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True), 2, enable_nested_tensor=False
        )
        self.decoder = nn.TransformerDecoderLayer(8, 2, 16, 0.0, batch_first=True)
        self.out = nn.Linear(8, 3)

    def forward(self, x):
        x = self.embed(x)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.out(self.decoder(self.encoder(x), x))


@pytest.mark.parametrize("training", [False, True])
def test_attention_is_left_alone(training):
    """Attention and its fast path in evaluation read the weights of their children directly."""
    plain, x = Attention().to(DTYPE).train(training), draw(2, 5, 3)
    with pytest.warns(UserWarning, match=r"^convert: left alone: ") as caught:
        net = tunable_ops.convert(plain, 2)
    assert len(caught) == 1
    projections = ["attention", *[f"encoder.layers.{i}.self_attn" for i in range(2)]]
    projections += ["decoder.self_attn", "decoder.multihead_attn"]
    assert net.left_alone == {
        **{f"{name}.out_proj": "read by MultiheadAttention" for name in projections},
        **{f"encoder.layers.{i}.linear{k}": "read by TransformerEncoderLayer" for i in range(2) for k in (1, 2)},
    }
    assert str(caught[0].message).endswith(
        "; encoder.layers.0.linear1, encoder.layers.0.linear2, encoder.layers.1."
        "linear1, encoder.layers.1.linear2 (read by TransformerEncoderLayer)"
    )
    # A decoder layer does call its linear layers.
    layers = [name for name in converted(net) if "tuning" not in name]
    assert layers == ["decoder.linear1", "decoder.linear2", "embed", "out"]
    with torch.no_grad():
        assert_equal(net(x, [0.3, 0.7]), plain(x))
        assert_equal(tunable_ops.fold(net, [0.3, 0.7])(x), plain(x))


class Mine(nn.Conv2d):
    """Subclass that could use its weight in any way."""


class Odd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.plain = nn.Conv2d(3, 3, 1)
        self.mine = Mine(3, 3, 1)
        self.old_weight_norm = weight_norm(nn.Conv2d(3, 3, 1))
        self.old_spectral_norm = spectral_norm(nn.Conv2d(3, 3, 1))
        self.weight_norm = parametrizations.weight_norm(nn.Conv2d(3, 3, 1))
        self.spectral_norm = parametrizations.spectral_norm(nn.Conv2d(3, 3, 1))
        self.pruned = prune.l1_unstructured(nn.Conv2d(3, 3, 1), "weight", 0.3)
        self.masked = nn.Conv2d(3, 3, 1)
        self.masked.register_buffer("mask", torch.ones(3))
        self.patched = nn.Conv2d(3, 3, 1)
        self.patched.forward = lambda x: 2 * x
        self.transposed = nn.ConvTranspose1d(3, 3, 1)

    def forward(self, x):
        for name, child in self.named_children():
            if name != "transposed":
                x = child(x)
        return x


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_layers_that_are_not_exactly_torchs_are_left_alone_and_named():
    plain, x = Odd().to(DTYPE).eval(), draw(2, 3, 4, 4)
    added = "parameters, buffers or children of its own"
    reasons = {
        "mine": "a subclass of Conv2d",
        "old_weight_norm": added,
        "old_spectral_norm": added,
        "weight_norm": "parametrised",
        "spectral_norm": "parametrised",
        "pruned": added,
        "masked": added,
        "patched": "a forward of its own",
        "transposed": "no tunable form of ConvTranspose1d",
    }
    text = (
        f"^convert: left alone: mine \\(a subclass of Conv2d\\); old_weight_norm, .*masked \\({added}\\); weight_norm"
    )
    with pytest.warns(UserWarning, match=text):
        net = tunable_ops.convert(plain, 2)
    assert net.left_alone == reasons
    assert converted(net) == ["plain"]
    assert_equal(net(x, [0.3, 0.7]), plain(x))
    assert_equal(tunable_ops.fold(net, [0.3, 0.7])(x), plain(x))


class Language(nn.Module):
    """Model whose head shares its weight with the embedding, and its bias with a second layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.mid = nn.Linear(4, 4)
        self.head = nn.Linear(4, 7)
        self.head.weight = self.embed.weight
        self.extra = nn.Linear(4, 7)
        self.extra.bias = self.head.bias

    def forward(self, index):
        x = self.mid(self.embed(index))
        return self.head(x) + self.extra(x)


def test_layers_tied_to_what_stays_are_left_alone():
    plain, index = Language().to(DTYPE), torch.tensor([[0, 3, 6]])
    with pytest.warns(
        UserWarning,
        match=r"alone: head \(tied to embed, which stays plain\); extra \(tied to head, which stays plain\)$",
    ):
        net = tunable_ops.convert(plain, 2)
    assert converted(net) == ["mid"]
    assert net.network.head.weight is net.network.embed.weight
    assert net.network.extra.bias is net.network.head.bias
    assert_equal(net(index, [0.3, 0.7]), plain(index))


def test_layers_tied_to_an_excluded_one_are_left_alone():
    plain = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3))
    plain[1].weight = plain[0].weight
    with pytest.warns(UserWarning, match=r"left alone: 1 \(tied to 0, which stays plain\)$"):
        net = tunable_ops.convert(plain, 2, exclude=["0"])
    assert converted(net) == ["2"]


def test_no_warning_without_a_reason():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tunable_ops.convert(plain_net(), 2)
        tunable_ops.convert(plain_net(), 2, include=["head"], exclude=["tail.*"])


def test_the_warning_points_at_the_caller():
    plain = nn.Sequential(nn.Conv2d(3, 3, 1), Mine(3, 3, 1))
    with pytest.warns(UserWarning) as caught:
        tunable_ops.convert(plain, 2)
    assert caught[0].filename == __file__


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"include": ["head"]}, ["head"]),
        ({"include": ["blocks.*"]}, [f"blocks.{b}.{c}" for b in range(2) for c in ("conv1", "conv2")]),
        ({"include": ["blocks.?.conv1", "*fy"]}, ["blocks.0.conv1", "blocks.1.conv1", "classify"]),
        ({"exclude": ["*conv*", "up", "tail.0"]}, ["classify", "head"]),
        ({"include": ["*"], "exclude": ["[!h]*"]}, ["head"]),
    ],
    ids=str,
)
def test_include_and_exclude(options, names):
    plain, x = plain_net(), draw(2, 3, 8, 8)
    net = tunable_ops.convert(plain, 2, parameters=(), **options)
    assert converted(net) == names
    assert_equal(net(x, [0.3, 0.7]), plain(x))


def test_a_tied_module_goes_by_any_of_its_names():
    plain = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    plain.add_module("alias", plain[0])
    assert converted(tunable_ops.convert(plain, 2, include=["alias"])) == ["0"]
    assert converted(tunable_ops.convert(plain, 2, exclude=["alias"])) == ["1"]


def test_parameters_only():
    plain, x = plain_net(), draw(2, 3, 8, 8)
    net = tunable_ops.convert(plain, 2, include=[], parameters=("gamma",))
    assert [layer.name for layer in net.layers] == ["gamma"]
    assert_equal(net(x, [0.3, 0.7]), plain(x))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"include": ["haed"]}, "include must match a convertible module; got 'haed'; did you mean 'head'?"),
        ({"include": ["blocks"]}, "include must match a convertible module; got 'blocks'"),
        ({"include": ["head", "*norm"]}, "include must match a convertible module; got '*norm'"),
        ({"exclude": ["clasify"]}, "exclude must match a convertible module; got 'clasify'; did you mean 'classify'?"),
        ({"parameters": ["gama"]}, "parameters must match a parameter of the network's own; got 'gama'; did you mean"),
        ({"parameters": ["*.norm.weight"]}, "parameters must match a parameter of the network's own; got '*.norm"),
        ({"include": [], "parameters": []}, "network must have a convolution, a linear layer or a parameter to conv"),
        ({"domain": "ball"}, "domain must be one of"),
        ({"domain": "box", "tuning": "identity"}, "tuning must be 'affine' on the box"),
        ({"num_kernels": 0}, "num_kernels must be an int >= 1; got 0"),
        ({"tuning": "softmax"}, "tuning must be one of"),
        ({"names": ["one"]}, "names must hold one name per parameter, 2; got ('one',)"),
        ({"on_map": "median"}, "on_map must be one of"),
    ],
    ids=lambda v: str(v)[:50],
)
def test_bad_arguments(options, text):
    with pytest.raises(ValueError) as caught:
        tunable_ops.convert(Net(), 2, **options)
    assert f": {text}" in str(caught.value)
    assert "; got" in str(caught.value) or "on the box" in str(caught.value)


@pytest.mark.parametrize("argument", ["include", "exclude", "parameters"])
def test_a_string_is_not_a_list_of_patterns(argument):
    with pytest.raises(TypeError, match=f"^convert: {argument} must be a sequence of patterns; got the string 'head'"):
        tunable_ops.convert(Net(), 2, **{argument: "head"})


def test_not_a_network():
    with pytest.raises(TypeError, match=r"^convert: network must be an nn.Module; got dict"):
        tunable_ops.convert({}, 2)
    with pytest.raises(ValueError, match=r"^LambdaSpec: num_params must be a positive int; got 0"):
        tunable_ops.convert(Net(), 0)


def test_a_network_without_a_convolution():
    text = "^convert: network must have a convolution, a linear layer or a parameter to convert; got "
    for network in (nn.ReLU(), nn.Sequential(nn.BatchNorm2d(3), nn.GELU()), nn.Identity(), nn.Embedding(3, 4)):
        with pytest.raises(ValueError, match=text + type(network).__name__ + "$"):
            tunable_ops.convert(network, 2)
    with pytest.raises(ValueError, match=text + r"MultiheadAttention, of which these stay: out_proj \(read by "):
        tunable_ops.convert(nn.MultiheadAttention(4, 2), 2)


def test_the_arguments_travel_with_the_model():
    arguments = {
        "num_params": 2,
        "num_kernels": 4,
        "tuning": "affine",
        "domain": "box",
        "include": ["head", "tail.*"],
        "exclude": ["tail.0"],
        "parameters": ["*.beta", "*.gamma"],
        "names": ["noise", "blur"],
        "ranges": [[0.0, 2.0], [0.0, 1.0]],
        "defaults": [0.5, 0.25],
        "units": ["", "pixels"],
        "on_map": "mean",
    }
    net = tunable_ops.convert(Net(), **arguments)
    assert net.conversion == arguments
    again = tunable_ops.convert(Net(), **net.conversion)
    again.load_state_dict(net.state_dict())
    assert again.spec == net.spec


def test_reasons_by_choice_and_by_kind_of_layer():
    plain = nn.ModuleDict(
        {
            "kept": nn.Linear(3, 3),
            "skipped": nn.Linear(3, 3),
            "other": nn.Linear(3, 3),
            "complex": nn.Linear(3, 3, dtype=torch.complex64),
            "lazy": nn.LazyConv2d(3, 3),
            "own": Mine(3, 3, 1),
        }
    )
    with pytest.warns(UserWarning) as caught:
        net = tunable_ops.convert(plain, 2, include=["[!o]*", "own"], exclude=["skipped"])
    assert net.left_alone == {
        "skipped": "in exclude",
        "other": "not in include",
        "complex": "weights in complex64",
        "lazy": "not initialised: call the network once before convert",
        "own": "a subclass of Conv2d",
    }
    assert str(caught[0].message) == (
        "convert: left alone: complex (weights in complex64); lazy (not initialised: call the network once before "
        "convert); own (a subclass of Conv2d)"
    )
    assert converted(net) == ["kept"]


def test_a_network_of_complex_layers_alone():
    plain = nn.Sequential(nn.Conv2d(3, 3, 1, dtype=torch.complex64), nn.Linear(3, 3, dtype=torch.complex64))
    with pytest.raises(ValueError, match=r"got Sequential, of which these stay: 0, 1 \(weights in complex64\)$"):
        tunable_ops.convert(plain, 2)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:torch.quantize:UserWarning")
def test_quantised_layers_are_named():
    linear = torch.ao.nn.quantized.Linear(3, 3)
    with pytest.warns(UserWarning, match=r"left alone: 0 \(quantised\)$"):
        net = tunable_ops.convert(nn.Sequential(linear, nn.Linear(3, 3)), 2)
    assert converted(net) == ["1"]
