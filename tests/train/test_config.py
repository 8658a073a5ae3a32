"""Configurations: overrides, and errors that name the key and the nearest right one."""

from pathlib import Path

import pytest

from tunable_ops.train.config import Config, PGNConfig, load_config, packaged_configs
from tunable_ops.train.sections import flatten

MINIMAL = """
[[objectives]]
name = "clean"
[[objectives]]
name = "noisy"
target = "input"
"""


@pytest.fixture
def write(tmp_path: Path):
    def to_file(text: str) -> Path:
        file = tmp_path / "c.toml"
        file.write_text(MINIMAL + text)
        return file

    return to_file


def test_every_packaged_config_is_valid() -> None:
    assert "demo" in packaged_configs()
    for name in packaged_configs():
        assert isinstance(load_config(name), PGNConfig if name.startswith("pgn_") else Config)


def test_defaults_and_values(write) -> None:
    config = load_config(write("[optim]\nsteps = 7\n[degradation]\nblur = { sigma = [0.5, 1] }\n"))
    assert config.optim.steps == 7
    assert config.degradation.blur is not None
    assert config.degradation.blur.sigma == (0.5, 1.0)
    assert config.degradation.noise is None
    assert [objective.target for objective in config.objectives] == ["clean", "input"]
    assert config.fixed_lam == [1.0, 0.0]


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("optim.lr=1e-4", "optim.lr", 1e-4),
        ("optim.steps = 12", "optim.steps", 12),
        ("data.source=/a/folder", "data.source", "/a/folder"),
        ("tuning.kind=none", "tuning.kind", "none"),
        ("data.flips=false", "data.flips", False),
        ("objectives.1.scale=2.5", "objectives.1.scale", 2.5),
        ("degradation.noise.sigma=[3, 4]", "degradation.noise.sigma", [3.0, 4.0]),
        ("model.arguments.features=9", "model.arguments.features", 9),
        ("seed=4", "seed", 4),
    ],
)
def test_overrides(write, override: str, key: str, value: object) -> None:
    assert flatten(load_config(write(""), [override]))[key] == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[optim]\nlrr = 1\n", "config: optim.lrr must be a known key; got 'lrr': did you mean optim.lr?"),
        ("[optm]\nlr = 1\n", "config: optm must be a known key; got 'optm': did you mean optim?"),
        ("[degradation.noise]\nsigm = 1\n", "got 'sigm': did you mean degradation.noise.sigma?"),
        ("[validation.degradation.blurr]\n", "did you mean validation.degradation.blur?"),
        ("[data]\nzzzz = 1\n", "config: data.zzzz must be a known key; got 'zzzz': known here: source, crop,"),
        (
            '[[objectives]]\nname = "x"\nlos = "l1"\n',
            "config: objectives.2.los must be a known key; got 'los': did you mean",
        ),
        ('[[objectives]]\nname = "x"\nloss = "l3"\n', "config: objectives.2.loss must be valid; got 'l3'"),
        ("[[objectives]]\n", "config: objectives.2.name must be given"),
        (
            '[[objectives]]\nname = "clean"\n',
            "config: objectives must have different names; got ['clean', 'noisy', 'clean']",
        ),
        ("[optim]\nlr = -1\n", "config: optim.lr must be valid; got -1"),
        ('[optim]\nsteps = "many"\n', "config: optim.steps must be valid; got 'many'"),
        ("[degradation.noise]\nsigma = [5, 1]\n", "config: degradation.noise.sigma must be [low, high]"),
        ("[degradation.noise]\nsigma = 25\n", "config: degradation.noise.sigma must be valid; got 25"),
        ("[degradation.downsample]\nfactors = [3]\n", "config: degradation.downsample.factors.0 must be valid; got 3"),
        (
            "[degradation.downsample]\nfactors = [2, 4]\nenlarge = false\n",
            "config: degradation.downsample.factors must be a single one",
        ),
        (
            "[data]\ncrop = 30\n[degradation.downsample]\nfactors = [4]\nenlarge = false\n",
            "config: data.crop must be a",
        ),
        ("[sampler]\ngroups = 3\n", "config: sampler.groups must divide data.batch, 16; got 3"),
        ('[tuning]\nnames = ["one"]\n', "config: tuning.names must have one entry per objective, 2, or more"),
        ("[validation]\nlams = [[1, 0], [1]]\n", "config: validation.lams must have 2 numbers each"),
        ("[optim\n", "config: path must be TOML"),
    ],
)
def test_errors_name_the_key(write, text: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        load_config(write(text))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.lr", "an override must be key=value with a dotted key; got 'optim.lr'"),
        ("=3", "an override must be key=value"),
        ("optim..lr=3", "an override must be key=value"),
        ("optim.rl=3", "config: optim.rl must be a known key; got 'rl': did you mean optim.lr?"),
        ("objectives.7.scale=3", "must name a key or an index that exists; got 'objectives.7.scale=3' at '7'"),
        ("seed.x=3", "config: seed must be valid"),
    ],
)
def test_bad_overrides(write, override: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        load_config(write(""), [override])
    assert message in str(caught.value)


def test_several_mistakes_are_all_named(write) -> None:
    with pytest.raises(ValueError) as caught:
        load_config(write("[optim]\nlrr = 1\n[data]\nbatches = 3\n"))
    assert "optim.lrr" in str(caught.value)
    assert "did you mean data.batch?" in str(caught.value)


def test_missing_and_unreadable_files(tmp_path: Path) -> None:
    known = ", ".join(sorted(packaged_configs()))
    with pytest.raises(FileNotFoundError, match=rf"config: path must be a file or one of {known}; got 'nowhere.toml'"):
        load_config("nowhere.toml")
    with pytest.raises(ValueError, match="config: objectives must be given"):
        load_config(_write(tmp_path / "empty.toml", b""))
    with pytest.raises(ValueError, match="config: path must be TOML"):
        load_config(_write(tmp_path / "bytes.toml", b"\xff\xfe\x00"))


def test_flatten_covers_every_key() -> None:
    flat = flatten(Config.model_validate({"objectives": [{"name": "a"}], "tuning": {"names": ["x"]}}))
    assert flat["objectives.0.name"] == "a"
    assert flat["tuning.names"] == ["x"]
    assert flat["optim.betas"] == [0.9, 0.99]
    assert flat["model.arguments"] == {}


def _write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_rank_reaches_the_kernels_and_the_checkpoint():
    from tunable_ops.train.build import build_network

    words = ["tuning.domain=box", "tuning.rank=2", "model.arguments={features=8, depth=3}"]
    net = build_network(load_config("demo", words))
    assert net.conversion["rank"] == 2
    parts = dict(net.named_parameters())
    assert parts["network.model.2.parametrizations.weight.original1"].shape == (2, 8, 2)
    with pytest.raises(ValueError, match=r"tuning\.rank must be left out .*; got 2 .*domain \"simplex\""):
        load_config("demo", ["tuning.rank=2"])
    with pytest.raises(ValueError, match=r"tuning\.rank must be left out"):
        load_config("demo", ["tuning.rank=2", "tuning.domain=box", "tuning.kind=none"])
    with pytest.raises(ValueError, match=r"tuning\.rank.*greater than or equal to 1"):
        load_config("demo", ["tuning.rank=0", "tuning.domain=box"])
    with pytest.raises(ValueError, match="tuning must leave rank alone for kind 'dni'"):
        load_config("demo", ["tuning.rank=2", "tuning.kind=dni"])
