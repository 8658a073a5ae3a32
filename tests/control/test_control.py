"""The other knobs: what they compute before, between and after their phases of training."""

import copy

import pytest
import torch
from torch import Tensor, nn

from tunable_ops import LambdaWarning, control, fold, models, serialization
from tunable_ops.control.dynamic_net import TuningBlock

METHODS: dict[str, dict[str, object]] = {
    "dni": {},
    "adafm": {"kernel_size": 3},
    "dynamic_net": {"after": ["body.0", "body.2"]},
    "cfsnet": {"after": ["body.*"]},
}


@pytest.fixture
def plain() -> nn.Module:
    torch.manual_seed(1)
    net = models.EDSR(scale=1, num_blocks=3, features=6)
    # children of body alone: the patterns above are those of whole blocks
    assert [name for name, _ in net.body.named_children()] == ["0", "1", "2"]
    return net


def attach(plain: nn.Module, method: str, **more: object) -> control.PhasedModel:
    arguments = dict(METHODS[method])
    if method == "cfsnet":
        arguments["after"] = ["body.0", "body.1", "body.2"]
    return control.attach(plain, method, **arguments, **more)


def step(net: control.PhasedModel, x: Tensor, lam: list[float]) -> None:
    """One step of Adam with a large rate, away from where the network is."""
    wanted = [p for p in net.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(wanted, lr=0.01, weight_decay=0.0)
    net(x, lam).square().mean().backward()
    optimizer.step()
    net.zero_grad(set_to_none=True)


@pytest.mark.parametrize("method", METHODS)
def test_starts_as_the_plain_network(plain: nn.Module, method: str) -> None:
    x = torch.rand(2, 3, 9, 8)
    net = attach(plain, method)
    lams = [[1.0, 0.0]] if method == "cfsnet" else [[1.0, 0.0], [0.25, 0.75], [0.0, 1.0]]
    for lam in lams:
        torch.testing.assert_close(net(x, lam), plain(x), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_phases(plain: nn.Module, method: str) -> None:
    """Phase 0 moves the main network; phase 1 leaves what (1, 0) computes, to the last bit, and moves (0, 1)."""
    x = torch.rand(2, 3, 9, 8)
    net = attach(plain, method)
    assert net.phases == 2
    before = net(x, [1.0, 0.0])
    assert net.start_phase(0) == [1.0, 0.0]
    step(net, x, [1.0, 0.0])
    main = net(x, [1.0, 0.0]).detach()
    assert (main - before).abs().max() > 1e-3
    assert net.start_phase(1) == [0.0, 1.0]
    if method != "cfsnet":  # whose branch is untrained
        torch.testing.assert_close(net(x, [0.0, 1.0]), main, atol=1e-6, rtol=1e-5)
    other = net(x, [0.0, 1.0]).detach()
    for _ in range(2):  # additions that start at 0 pass no gradient to what lies before them at first
        step(net, x, [0.0, 1.0])
    torch.testing.assert_close(net(x, [1.0, 0.0]), main, atol=0, rtol=0)
    assert (net(x, [0.0, 1.0]) - other).abs().max() > 1e-3
    with pytest.raises(ValueError, match=r"phase must be in 0\.\.1; got 2"):
        net.start_phase(2)


@pytest.mark.parametrize("method", METHODS)
def test_per_sample_equals_one_by_one(plain: nn.Module, method: str) -> None:
    x, lam = torch.rand(3, 3, 9, 8), torch.tensor([[1.0, 0.0], [0.4, 0.6], [0.0, 1.0]])
    net = trained(plain, method, x)
    one_by_one = torch.cat([net(x[b : b + 1], lam[b]) for b in range(3)])
    torch.testing.assert_close(net(x, lam), one_by_one, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_folds(plain: nn.Module, method: str) -> None:
    x, lam = torch.rand(2, 3, 9, 8), [0.4, 0.6]
    net = trained(plain, method, x)
    if method == "cfsnet":
        with pytest.raises(ValueError, match="net must have layers with a plain form alone; got Coupling"):
            fold(net, lam)
        return
    folded = fold(net, lam)
    torch.testing.assert_close(folded(x), net(x, lam), atol=1e-5, rtol=1e-4)
    if method == "dni":
        assert [type(m) for m in folded.modules()] == [type(m) for m in plain.modules()]


@pytest.mark.parametrize("method", METHODS)
def test_survives_a_checkpoint_and_a_copy(plain: nn.Module, method: str, tmp_path) -> None:
    x, lam = torch.rand(2, 3, 9, 8), [0.4, 0.6]
    net = trained(plain, method, x).eval()
    torch.testing.assert_close(copy.deepcopy(net)(x, lam), net(x, lam), atol=0, rtol=0)
    arguments = {"scale": 1, "num_blocks": 3, "features": 6}
    serialization.save(net, tmp_path / "a.safetensors", architecture="edsr", arguments=arguments)
    loaded = serialization.load(tmp_path / "a.safetensors")
    assert type(loaded) is type(net)
    torch.testing.assert_close(loaded(x, lam), net(x, lam), atol=0, rtol=0)


def trained(plain: nn.Module, method: str, x: Tensor) -> control.PhasedModel:
    """A network of which both corners differ."""
    net = attach(plain, method, names=["smooth", "sharp"])
    step(net, x, net.start_phase(0))
    for _ in range(2):
        step(net, x, net.start_phase(1) if _ == 0 else net.enter_phase(1))
    return net


def test_three_objectives(plain: nn.Module) -> None:
    """Dynamic-Net's dual range: the second set of blocks is trained by phase 2 alone."""
    x = torch.rand(2, 3, 9, 8)
    net = control.attach(plain, "dynamic_net", 3, after=["body.1"])
    blocks = [module for module in net.modules() if isinstance(module, TuningBlock)]
    for phase in (1, 2):
        net.start_phase(phase)
        assert [all(p.requires_grad for p in block.parameters()) for block in blocks] == [phase == 1, phase == 2]
        for _ in range(2):
            step(net, x, [float(k == phase) for k in range(3)])
    outputs = [net(x, lam) for lam in ([1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0])]
    assert all((outputs[i] - outputs[j]).abs().max() > 1e-3 for i, j in ((0, 1), (0, 2), (1, 2)))


def test_a_tuning_block_is_its_formula() -> None:
    block = TuningBlock(4, 1, 2, torch.zeros(1))
    nn.init.normal_(block.last.weight[1])
    nn.init.normal_(block.last.bias[1])
    x, pad = torch.rand(2, 4, 5, 6), nn.ReflectionPad2d(1)
    psi = x
    for layer in (block.first, block.second):
        psi = torch.relu(nn.functional.conv2d(pad(psi), layer.weight, layer.bias))
    psi = nn.functional.conv2d(pad(psi), block.last.weight[1], block.last.bias[1])
    from tunable_ops import TunableModel

    torch.testing.assert_close(TunableModel(block, 2)(x, [0.7, 0.3]), x + 0.3 * psi, atol=1e-5, rtol=1e-5)


def dynamic(plain: nn.Module, num_params: int, **more: object) -> control.PhasedModel:
    """Dynamic-Net after two places, every block of it away from its start."""
    net = control.attach(plain, "dynamic_net", num_params, after=["body.0", "body.2"], **more)
    for block in (module for module in net.modules() if isinstance(module, TuningBlock)):
        nn.init.normal_(block.last.weight[block.index], std=0.2)
    return net.eval()


def test_a_coefficient_for_each_place(plain: nn.Module) -> None:
    """Equal ones are lambda; different ones reach their own place, per call and per sample."""
    net, x = dynamic(plain, 2), torch.rand(3, 3, 9, 8)
    assert net.places == ("body.0", "body.2")
    one = net(x, [0.6, 0.4])
    for alphas in (0.4, [0.4], [0.4, 0.4], torch.tensor([0.4, 0.4]), torch.full((3, 1), 0.4), torch.full((3, 2), 0.4)):
        torch.testing.assert_close(net(x, alphas=alphas), one, atol=1e-6, rtol=1e-5)

    features = {}
    for name in ("body.0", "body.2"):
        net.network.get_submodule(name).register_forward_hook(
            lambda m, i, o, name=name: features.update({name: (i[0], o)})
        )
    y = net(x, alphas=[0.7, 0.2])
    for name, a in (("body.0", 0.7), ("body.2", 0.2)):
        source, output = features[name]
        main = plain.get_submodule(name)(source)
        block = net.network.get_submodule(name).knob[0]
        hidden = torch.relu(block.second(torch.relu(block.first(main))))
        pad = nn.functional.pad(hidden, (1, 1, 1, 1), mode="reflect")
        psi = nn.functional.conv2d(pad, block.last.weight[1], block.last.bias[1])
        torch.testing.assert_close(output, main + a * psi, atol=1e-5, rtol=1e-4)
    mixed = torch.tensor([[0.7, 0.2], [0.0, 1.0], [0.3, 0.9]])
    torch.testing.assert_close(net(x, alphas=mixed)[:1], y[:1], atol=1e-5, rtol=1e-4)
    rows = torch.cat([net(x[b : b + 1], alphas=mixed[b]) for b in range(3)])
    torch.testing.assert_close(net(x, alphas=mixed), rows, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(copy.deepcopy(net)(x, alphas=mixed), rows, atol=1e-5, rtol=1e-4)


def test_alphas_of_both_signs(plain: nn.Module) -> None:
    """Dual: positive coefficients take the first set of blocks, negative ones the second."""
    net, x = dynamic(plain, 3), torch.rand(2, 3, 9, 8)
    torch.testing.assert_close(net(x, alphas=0.3), net(x, [0.7, 0.3, 0.0]), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(net(x, alphas=-1.0), net(x, [0.0, 0.0, 1.0]), atol=1e-5, rtol=1e-4)
    assert (net(x, alphas=[1.0, -1.0]) - net(x, alphas=[-1.0, 1.0])).abs().max() > 1e-3
    leaf = torch.tensor([0.5, -0.5], requires_grad=True)
    (gradient,) = torch.autograd.grad(net(x, alphas=leaf).square().sum(), leaf)
    assert (gradient != 0).all()


def test_bad_alphas(plain: nn.Module) -> None:
    net, x = dynamic(plain, 2), torch.rand(1, 3, 8, 8)
    text = r"alphas must be \[2\] or \[B, 2\], one per place \(body.0, body.2\), or one for all; got shape \[3\]"
    with pytest.raises(ValueError, match=text):
        net(x, alphas=[0.1, 0.2, 0.3])
    with pytest.raises(ValueError, match="lam must be left out where alphas are given"):
        net(x, [1.0, 0.0], alphas=0.5)
    with pytest.raises(ValueError, match="alphas must be finite"):
        net(x, alphas=[float("nan"), 0.0])
    with pytest.raises(TypeError, match=r"alphas must be floating point; got torch\.int64"):
        net(x, alphas=torch.tensor([1, 0]))
    with pytest.warns(LambdaWarning, match=r"outside the range 0\.\.1 of the training"):
        net(x, alphas=-0.5)
    with pytest.raises(ValueError, match="alphas must go with two or three objectives; got 4"):
        dynamic(plain, 4)(x, alphas=0.5)
    with pytest.raises(ValueError, match="init must be one of zero, published; got 'kaiming'"):
        dynamic(plain, 2, init="kaiming")


def test_the_published_initialisation(tmp_path) -> None:
    torch.manual_seed(0)
    wide = models.EDSR(scale=1, num_blocks=1, features=48)
    net = control.attach(wide, "dynamic_net", 3, after=["body.0"], init="published").eval()
    for block in (module for module in net.modules() if isinstance(module, TuningBlock)):
        for weight in (block.first.weight, block.second.weight, block.last.weight[block.index]):
            assert float(weight.std()) == pytest.approx(0.02, rel=0.05) and abs(float(weight.mean())) < 1e-3
        assert not block.first.bias.any() and not block.last.bias.any()
        assert not block.last.weight[[k for k in range(3) if k != block.index]].any()
    x = torch.rand(1, 3, 8, 8)
    torch.testing.assert_close(net(x, [1.0, 0.0, 0.0]), wide(x), atol=1e-6, rtol=1e-5)
    arguments = {"scale": 1, "num_blocks": 1, "features": 48}
    serialization.save(net, tmp_path / "a.safetensors", architecture="edsr", arguments=arguments)
    loaded = serialization.load(tmp_path / "a.safetensors")
    assert loaded.conversion["init"] == "published"
    torch.testing.assert_close(loaded(x, alphas=[-0.5]), net(x, alphas=[-0.5]), atol=0, rtol=0)


def test_cfsnets_branch_has_no_skip() -> None:
    """At lambda = (1/2, 1/2) an untrained coupling takes half of each branch (2 * 0.5 * sigmoid(0) = 0.5)."""
    torch.manual_seed(0)
    main = nn.Conv2d(4, 4, 3, padding=1)
    net = control.attach(nn.Sequential(main), "cfsnet", after=["0"])
    x, coupling = torch.rand(2, 4, 6, 5), net.network[0].knob
    tune = coupling.second(torch.relu(coupling.first(x)))
    torch.testing.assert_close(net(x, [0.5, 0.5]), 0.5 * main(x) + 0.5 * tune, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("method", "arguments", "text"),
    [
        ("knob", {}, "method must be one of dni, adafm, .*, cresmd, low_rank; got 'knob'"),
        ("adafm", {"after": ["body.9"]}, "after must match a module; got 'body.9'"),
        ("adafm", {"kernel_size": 2}, "kernel_size must be an odd int; got 2"),
        ("adafm", {"after": ["body.0"]}, "after must name convolutions; got 'body.0'"),
        ("dni", {"after": ["body.0"]}, "arguments of dni must be among .*; got 'after'"),
        ("cfsnet", {"after": ["body.0"], "num_params": 3}, "num_params of cfsnet must be 2; got 3"),
        ("cfsnet", {"after": ["body.0", "conv_last"]}, "after must name blocks of one width; got .*conv_last"),
        ("dynamic_net", {"after": ["upsample"]}, "after must name modules with a convolution; got 'upsample'"),
    ],
)
def test_bad_input(plain: nn.Module, method: str, arguments: dict, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        control.attach(plain, method, **arguments)


def test_a_block_that_changes_the_shape() -> None:
    net = control.attach(nn.Sequential(nn.Conv2d(3, 3, 3)), "cfsnet", after=["0"])
    with pytest.raises(ValueError, match=r"after must name blocks that keep their input's shape; got \[1, 3, 8, 8\]"):
        net(torch.zeros(1, 3, 8, 8), [0.5, 0.5])
