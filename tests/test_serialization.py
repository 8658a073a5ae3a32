"""Checkpoints: round trips, and every way in which a file can be wrong."""

import json
import os
import struct
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from tunable_ops import models
from tunable_ops.models import DnCNN
from tunable_ops.modules import LambdaSpec, TunableModel, convert, fold
from tunable_ops.serialization import VERSION, load, load_folded, read_metadata, save, write_file

ARGUMENTS = {"channels": 1, "features": 4, "depth": 3, "downscale": 2}


@pytest.fixture
def net() -> TunableModel:
    torch.manual_seed(0)
    made = convert(models.build("dncnn", **ARGUMENTS), num_params=2, names=["denoise", "keep"], defaults=[1, 0])
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return made


@pytest.fixture
def path(net: TunableModel, tmp_path: Path) -> Path:
    file = tmp_path / "model.safetensors"
    save(net, file, architecture="dncnn", arguments=ARGUMENTS, notes={"psnr": 30.5, "sets": ["a", "b"]})
    return file


def rewrite(path: Path, **changes: str | None) -> None:
    with safe_open(path, "pt") as file:
        metadata = dict(file.metadata())
    metadata.update({key: value for key, value in changes.items() if value is not None})
    for key, value in changes.items():
        if value is None:
            del metadata[key]
    save_file(load_file(path), path, metadata=metadata)


@pytest.mark.parametrize("domain", ["simplex", "box"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_round_trip_is_exact(tmp_path: Path, domain: str, layout: torch.memory_format) -> None:
    torch.manual_seed(1)
    net = convert(models.build("dncnn", **ARGUMENTS), num_params=2, domain=domain, exclude=["model.2"])
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    net = net.to(memory_format=layout)
    save(net, tmp_path / "a" / "b.safetensors", architecture="dncnn", arguments=ARGUMENTS)
    back = load(tmp_path / "a" / "b.safetensors")
    assert not back.training
    assert back.spec == net.spec
    assert back.conversion == net.conversion
    for (name, value), (other, again) in zip(net.state_dict().items(), back.state_dict().items(), strict=True):
        assert name == other
        assert torch.equal(value, again)
    x, lam = torch.rand(2, 1, 8, 6), torch.tensor([0.3, 0.7])
    torch.testing.assert_close(back(x, lam), net(x, lam), rtol=1e-5, atol=1e-6)


def test_what_travels_along(net: TunableModel, path: Path) -> None:
    back = load(path)
    assert back.notes == {"psnr": 30.5, "sets": ["a", "b"]}
    assert back.spec.names == ("denoise", "keep")
    assert back.spec.defaults == (1.0, 0.0)
    metadata = read_metadata(path)
    assert metadata["architecture"] == "dncnn"
    assert metadata["arguments"] == ARGUMENTS
    assert metadata["conversion"] == json.loads(json.dumps(net.conversion))
    assert metadata["version"] == VERSION
    assert sorted(load_file(path)) == sorted(net.network.state_dict())


def test_tied_layers_and_odd_dtypes(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(2, 2, 3, padding=1)
            self.second = self.first
            self.register_buffer("count", torch.tensor(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(self.first(x))

    net = convert(Tied(), num_params=2).to(torch.bfloat16)
    save(net, tmp_path / "x.safetensors", architecture="mine", arguments={})
    back = load(tmp_path / "x.safetensors", network=Tied().to(torch.bfloat16))
    assert back.network.first is back.network.second
    assert torch.equal(back.network.first.weight, net.network.first.weight)
    assert back.network.count.item() == 3


def test_own_network_must_be_given(tmp_path: Path) -> None:
    plain = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 1, 3))
    file = tmp_path / "x.safetensors"
    save(convert(plain, num_params=3), file, architecture="my net", arguments={"width": 2})
    with pytest.raises(ValueError, match=r"architecture must be one of .*dncnn, edsr.*; got 'my net' .* pass network="):
        load(file)
    before = {name: value.clone() for name, value in plain.state_dict().items()}
    back = load(file, network=plain)
    assert back.spec.num_params == 3
    assert all(torch.equal(value, before[name]) for name, value in plain.state_dict().items())
    with pytest.raises(TypeError, match="network must be the plain network; got TunableModel"):
        load(file, network=back)


def test_plain_networks(net: TunableModel, path: Path, tmp_path: Path) -> None:
    plain = fold(net, [0.25, 0.75])
    save(plain, tmp_path / "plain.safetensors", architecture="dncnn", arguments=ARGUMENTS)
    x = torch.rand(1, 1, 8, 8)
    torch.testing.assert_close(load_folded(tmp_path / "plain.safetensors")(x), plain.eval()(x), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match=r"must hold a tunable network; got .* use serialization.load_folded"):
        load(tmp_path / "plain.safetensors")
    with pytest.raises(ValueError, match=r"must hold a plain network; got .* use serialization.load"):
        load_folded(path)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="checkpoint: path must exist"):
        load(tmp_path / "none.safetensors")
    with pytest.raises(ValueError, match="must be a file; got the folder"):
        load(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"x", b"Not a checkpoint, only words.\n" * 20, b"\x89PNG\r\n\x1a\n" + b"0" * 99]
)
def test_something_else(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "x.safetensors"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=f"must be a safetensors file; got .* {len(content)} bytes of something else"):
        load(file)


class Bomb:
    """Unpickling this makes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.target,))


def test_a_header_whose_length_looks_like_a_pickle(tmp_path: Path) -> None:
    """A header of 640 bytes begins the file with 80 02, as a pickle of protocol 2 does."""
    from tunable_ops.serialization import read_file, write_file

    file, tensors = tmp_path / "x.safetensors", {"a": torch.arange(3.0)}
    for pad in range(400, 700):
        write_file(file, tensors, {"pad": "x" * pad}, kind="k", version=1)
        if file.read_bytes()[:2] == b"\x80\x02":
            break
    else:
        pytest.fail("no padding gave the length")
    assert torch.equal(read_file(file, kind="k", version=1)[0]["a"], tensors["a"])


@pytest.mark.parametrize("protocol", ["zip", "legacy", "pickle"])
def test_pickles_are_refused_unopened(tmp_path: Path, protocol: str) -> None:
    import pickle

    file, trace = tmp_path / "x.pt", tmp_path / "executed"
    if protocol == "pickle":
        file.write_bytes(pickle.dumps(Bomb(trace)))
    else:
        torch.save({"bomb": Bomb(trace)}, file, _use_new_zipfile_serialization=protocol == "zip")
    with pytest.raises(ValueError, match=r"a pickle as written by torch.save: it is never opened"):
        load(file)
    assert not trace.exists()


@pytest.mark.parametrize("keep", [0.999, 0.6, 0.02])
def test_cut_short(path: Path, keep: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(ValueError, match=r"must be a whole file; got .* cut short"):
        load(path)


def test_header_that_lies(path: Path) -> None:
    path.write_bytes(struct.pack("<Q", 40) + b"{" + b" " * 100)
    with pytest.raises(ValueError, match="checkpoint: path must be a whole file"):
        load(path)


def test_bare_weights(tmp_path: Path) -> None:
    save_file({"model.0.weight": torch.zeros(2)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="bare weights without our metadata"):
        load(tmp_path / "x.safetensors")


def test_other_kind_of_file(tmp_path: Path) -> None:
    write_file(tmp_path / "x.safetensors", {}, {}, kind="tunable_ops.training_state", version=1)
    with pytest.raises(ValueError, match=r"must hold 'tunable_ops.model'; got .* format 'tunable_ops.training_state'"):
        load(tmp_path / "x.safetensors")


def test_other_version(path: Path) -> None:
    rewrite(path, version="99")
    with pytest.raises(ValueError, match=f"version must be {VERSION}; got '99' .* release of tunable_ops"):
        load(path)


@pytest.mark.parametrize("key", ["conversion", "arguments", "spec"])
def test_metadata_that_is_not_json(path: Path, key: str) -> None:
    rewrite(path, **{key: "{oops"})
    with pytest.raises(ValueError, match=f"metadata must be JSON; got {key}="):
        load(path)


def test_another_width(path: Path) -> None:
    rewrite(path, arguments=json.dumps({**ARGUMENTS, "features": 6}))
    with pytest.raises(
        ValueError, match=r"of another shape \(model.0.weight is \[2, 4, 4, 3, 3\] in the file, \[2, 6, 4, 3, 3\] in"
    ):
        load(path)


def test_another_depth(path: Path) -> None:
    rewrite(path, arguments=json.dumps({**ARGUMENTS, "depth": 4}))
    with pytest.raises(ValueError, match=r"4 missing \(model.6.weight; model.6.bias; model.6.tuning.weight; ...\)"):
        load(path)


def test_another_network(path: Path) -> None:
    with pytest.raises(ValueError, match=r"missing \(0.weight; .* unknown \(model.0"):
        load(path, network=nn.Sequential(nn.Conv2d(1, 1, 3)))


def test_arguments_that_the_architecture_does_not_take(path: Path) -> None:
    rewrite(path, arguments=json.dumps({"featurs": 4}))
    with pytest.raises(ValueError, match=r"got 'featurs'; did you mean 'features'\?"):
        load(path)


def test_a_failed_save_leaves_the_old_file(net: TunableModel, path: Path) -> None:
    before = path.read_bytes()
    with pytest.raises(TypeError, match="checkpoint: notes must be JSON values"):
        save(net, path, architecture="dncnn", arguments=ARGUMENTS, notes={"x": object()})
    with pytest.raises(TypeError, match="checkpoint: notes must be JSON values"):
        save(net, path, architecture="dncnn", arguments=ARGUMENTS, notes={"x": float("nan")})
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_save_that_breaks_off_leaves_the_old_file(
    net: TunableModel, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = path.read_bytes()

    def breaks(descriptor: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", breaks)
    with pytest.raises(OSError, match="disk full"):
        save(net, path, architecture="dncnn", arguments=ARGUMENTS)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_files_get_the_permissions_of_the_umask(net: TunableModel, tmp_path: Path) -> None:
    """safetensors' own save_file makes files that only their owner can read."""
    before = os.umask(0o022)
    try:
        save(net, tmp_path / "x.safetensors", architecture="dncnn", arguments=ARGUMENTS)
    finally:
        os.umask(before)
    assert (tmp_path / "x.safetensors").stat().st_mode & 0o777 == 0o644


def test_loading_does_not_hold_the_file(path: Path) -> None:
    """A mapped file that is replaced would change the tensors, or crash the process."""
    back = load(path)
    before = {name: value.clone() for name, value in back.state_dict().items()}
    path.write_bytes(b"\0" * path.stat().st_size)
    assert all(torch.equal(value, before[name]) for name, value in back.state_dict().items())


def test_net_must_be_a_module(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="net must be a module; got dict"):
        save({}, tmp_path / "x", architecture="dncnn", arguments={})  # type: ignore[arg-type]


def test_a_wrapped_network_cannot_be_rebuilt(net: TunableModel, tmp_path: Path) -> None:
    wrapped = TunableModel(net.network, num_params=2)
    with pytest.raises(ValueError, match="net must come from convert"):
        save(wrapped, tmp_path / "x", architecture="dncnn", arguments=ARGUMENTS)


def test_notes_spec_and_dtype_travel(tmp_path: Path) -> None:
    net = convert(DnCNN(features=4, depth=2), num_params=2).to(torch.bfloat16)
    net.notes = {"a": 1}
    net.spec = LambdaSpec.create(2, "simplex", ("x", "y"), defaults=(1.0, 0.0))
    save(net, tmp_path / "n.safetensors", architecture="dncnn", arguments={"features": 4, "depth": 2})
    loaded = load(tmp_path / "n.safetensors")
    assert loaded.notes == {"a": 1}
    assert loaded.spec == net.spec
    assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}


def test_a_network_that_is_given_is_copied(tmp_path: Path) -> None:
    plain = nn.Sequential(nn.Conv2d(1, 2, 1))
    save(plain, tmp_path / "p.safetensors", architecture="mine", arguments={})
    other = nn.Sequential(nn.Conv2d(1, 2, 1)).train()
    before = other[0].weight.clone()
    loaded = load_folded(tmp_path / "p.safetensors", network=other)
    assert torch.equal(loaded[0].weight, plain[0].weight)
    assert torch.equal(other[0].weight, before)
    assert other.training


def test_leftovers_of_killed_processes(tmp_path: Path) -> None:
    from tunable_ops.serialization import remove_leftovers

    for name in (".state.safetensors.12-34.tmp", ".model.safetensors.12-34.tmp", "state.safetensors"):
        (tmp_path / name).touch()
    remove_leftovers(tmp_path / "state.safetensors")
    assert sorted(file.name for file in tmp_path.iterdir()) == [".model.safetensors.12-34.tmp", "state.safetensors"]
