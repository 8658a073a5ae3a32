"""Knob files of bases that read tuning parameters themselves, as FFDNet does the noise level."""

import pytest
import torch

pytest.importorskip("safetensors", reason="safetensors is not installed (tunable-ops[train])")

from safetensors.torch import save_file

import tunable_ops
from tunable_ops import load_knob, models, save_knob
from tunable_ops.knob_files import load_base


def denoiser(**options):
    torch.manual_seed(0)
    return models.FFDNet(features=8, depth=4, **options).eval()


def turn_denoiser(plain, name, seed, rank=1, names=None, end=50):
    names = names or ["sigma", name]
    ranges = [(0, end) if each == "sigma" else (0, 1) for each in names]
    net = tunable_ops.convert(plain, 2, domain="box", names=names, ranges=ranges, rank=rank)
    tunable_ops.freeze_all_but_new(net)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return net


def test_knobs_share_what_the_base_reads_itself(tmp_path):
    plain, x = denoiser(knob=0), torch.rand(1, 3, 9, 8)
    nets = [turn_denoiser(plain, name, seed) for seed, name in enumerate(("texture", "deblur"))]
    files = [tmp_path / "texture", tmp_path / "deblur"]
    for net, file in zip(nets, files, strict=True):
        save_knob(net, file, architecture="ffdnet", arguments={"features": 8, "depth": 4, "knob": 0})
    one = load_knob(plain, files[0])
    assert one.spec.names == ("sigma", "texture") and one.conversion == nets[0].conversion
    assert torch.equal(one(x, [20, 0.7]), nets[0](x, [20, 0.7]))
    both = load_knob(plain, files)
    assert both.spec.names == ("sigma", "texture", "deblur")
    for sigma in (0, 25, 50):
        assert torch.equal(both(x, [sigma, 0.0, 0.0]), denoiser()(x, sigma / 255))
        torch.testing.assert_close(both(x, [sigma, 0.6, 0.0]), nets[0](x, [sigma, 0.6]))
        torch.testing.assert_close(both(x, [sigma, 0.0, 0.6]), nets[1](x, [sigma, 0.6]))
    assert not torch.allclose(both(x, [25, 0.6, 0.0]), both(x, [25, 0.0, 0.6]))
    torch.testing.assert_close(tunable_ops.fold(both, [25, 0.6, 0.3])(x), both(x, [25, 0.6, 0.3]))
    found = load_base(saved(denoiser().state_dict(), tmp_path / "bare"), files[0])
    assert torch.equal(load_knob(found, files)(x, [25, 0.6, 0.3]), both(x, [25, 0.6, 0.3]))


def saved(state, path):
    save_file(state, path)
    return path


def test_shared_parameters_of_several_ranges(tmp_path):
    """phi gets lambda divided by the end of its range; the second knob was given that of the first."""
    plain, x = denoiser(knob=0), torch.rand(1, 3, 8, 8)
    nets = []
    for seed, (name, end) in enumerate((("texture", 50), ("deblur", 75))):
        net = turn_denoiser(plain, name, seed, end=end)
        perturb_phi(net)
        save_knob(net, tmp_path / name)
        nets.append(net)
    both = load_knob(plain, [tmp_path / "texture", tmp_path / "deblur"])
    first, second, lam = (nets[0], [30, 0.6]), (nets[1], [30, 0.4]), [30, 0.6, 0.4]
    wanted = {
        name: tunable_ops.fold(*first).state_dict()[name] + tunable_ops.fold(*second).state_dict()[name] - value
        for name, value in plain.state_dict().items()
    }
    found = tunable_ops.fold(both, lam).state_dict()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value)
    torch.testing.assert_close(tunable_ops.fold(both, lam)(x), both(x, lam))


def perturb_phi(net):
    with torch.no_grad():
        for layer in net.layers:
            layer.tuning.weight.add_(torch.randn_like(layer.tuning.weight))


def test_a_base_with_a_spec_of_its_own(tmp_path):
    """A base that is tunable without new kernels gives its parameter's name, range and default."""
    plain, x = denoiser(knob=0), torch.rand(1, 3, 8, 8)
    own = tunable_ops.convert(plain, 1, domain="box", names=["noise"], ranges=[(0, 75)], defaults=[25])
    save_knob(turn_denoiser(plain, "texture", 1), tmp_path / "texture")
    save_knob(turn_denoiser(plain, "deblur", 2), tmp_path / "deblur")
    one = load_knob(own, tmp_path / "texture")
    assert one.spec.names == ("noise", "texture") and one.spec.ranges[0] == (0, 75) and one.conversion["rank"] == 1
    two = load_knob(one, tmp_path / "deblur")
    assert two.spec.names == ("noise", "texture", "deblur") and two.spec.defaults == (25, 0, 0)
    assert torch.equal(two(x, [20, 0.0, 0.0]), own(x, [20]))
    torch.testing.assert_close(two(x, [20, 0.7, 0.0]), one(x, [20, 0.7]))
    with pytest.raises(ValueError, match="net must have new kernels; got a network that only reads lambda itself"):
        save_knob(own, tmp_path / "own")


def test_the_place_of_what_the_base_reads(tmp_path):
    plain, x = denoiser(knob=1), torch.rand(1, 3, 8, 8)
    for seed, name in enumerate(("texture", "deblur")):
        save_knob(turn_denoiser(plain, name, seed, names=[name, "sigma"]), tmp_path / name)
    both = load_knob(plain, [tmp_path / "texture", tmp_path / "deblur"])
    assert both.spec.names == ("texture", "sigma", "deblur")
    assert torch.equal(both(x, [0.0, 25, 0.0]), denoiser()(x, 25 / 255))


def test_a_base_that_does_not_read_lambda(tmp_path):
    save_knob(turn_denoiser(denoiser(knob=0), "texture", 0), tmp_path / "texture")
    with pytest.raises(ValueError, match=r"must read the same entries .*\{0: 'sigma'\} .*; got one that reads \[\]"):
        load_knob(denoiser(), tmp_path / "texture")
    with pytest.raises(ValueError, match=r"got one that reads \[1\]"):
        load_knob(denoiser(knob=1), tmp_path / "texture")
