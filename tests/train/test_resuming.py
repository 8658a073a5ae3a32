"""What may change between a stop and a resumption, what is refused, and what is never overwritten."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tunable_ops.images import write_image
from tunable_ops.serialization import read_file, write_file
from tunable_ops.train import MODEL, STATE, Config, train
from tunable_ops.train.data import Photographs
from tunable_ops.train.fingerprint import fingerprint
from tunable_ops.train.restoration import Restoration
from tunable_ops.train.sections import flatten, unflatten
from tunable_ops.train.state import FORMAT, VERSION


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / MODEL)


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def rewrite(state: Path, change) -> None:
    """Change the metadata of a state on disk, as another version of the code would have written it."""
    tensors, metadata = read_file(state, kind=FORMAT, version=VERSION)
    metadata = {key: value for key, value in metadata.items() if key not in ("format", "version")}
    change(metadata)
    write_file(state, tensors, metadata, kind=FORMAT, version=VERSION)


def test_what_does_not_change_the_weights_may_change(make_config, tmp_path: Path) -> None:
    config = make_config()
    train(config, tmp_path / "whole", progress=False)
    train(config, tmp_path / "x", stop_at=2, progress=False)
    moved = tmp_path / "elsewhere" / "photographs"
    shutil.copytree(config.data.source, moved)
    other = make_config(
        data={"source": str(moved), "workers": 1, "cache_mb": 0},
        compute={"device": "auto" if not torch.cuda.is_available() else "cpu"},
        validation={"every": 3, "source": str(moved), "crop": 16, "strips": 0},
        log={"every": 1},
        checkpoints={"every": 1},
    )
    assert train(other, tmp_path / "x", resume=True, progress=False).finished
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "x"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optim": {"lr": 0.01}}, "optim.lr was 0.003, is 0.01"),
        ({"optim": {"warmup": 3}}, "optim.warmup was 2, is 3"),
        ({"data": {"crop": 24}}, "data.crop was 16, is 24"),
        ({"data": {"batch": 6}}, "data.batch was 4, is 6"),
        ({"sampler": {"corners": 0.5}}, "sampler.corners was 0.1, is 0.5"),
        ({"ema": {"decay": 0.5}}, "ema.decay was 0.9, is 0.5"),
        ({"degradation": {"noise": {"sigma": [1, 2]}}}, "degradation.noise.sigma was [10.0, 40.0], is [1.0, 2.0]"),
        ({"compute": {"precision": "bf16"}}, "compute.precision was 'fp32', is 'bf16'"),
        ({"compute": {"channels_last": False}}, "compute.channels_last was True, is False"),
        (
            {"objectives": [{"name": "clean", "loss": "l1"}, {"name": "noisy", "target": "input"}]},
            "objectives.0.loss was 'mse', is 'l1'",
        ),
        ({"seed": 1}, "seed was 0, is 1"),
        ({"model": {"arguments": {"features": 8, "depth": 4, "mean": 0.5}}}, "model.arguments.depth was 3, is 4"),
    ],
)
def test_what_changes_the_weights_is_refused(make_config, tmp_path: Path, change: dict, message: str) -> None:
    train(make_config(compute={"precision": "fp32"}), tmp_path / "x", stop_at=1, progress=False)
    before = (tmp_path / "x" / STATE).read_bytes()
    with pytest.raises(ValueError, match="a resumed run must keep its configuration") as caught:
        train(make_config(**change), tmp_path / "x", resume=True, progress=False)
    assert message in str(caught.value)
    assert (tmp_path / "x" / STATE).read_bytes() == before


@pytest.mark.filterwarnings("ignore:images")
@pytest.mark.parametrize("how", ["added", "removed", "renamed", "changed", "same size"])
def test_other_pictures_in_the_same_folder_are_refused(make_config, tmp_path: Path, how: str) -> None:
    config = make_config()
    folder = Path(config.data.source)
    train(config, tmp_path / "x", stop_at=2, progress=False)
    if how == "added":
        write_image(torch.rand(3, 20, 20), folder / "3.png")
    elif how == "removed":
        (folder / "2.png").unlink()
    elif how == "renamed":
        (folder / "0.png").rename(folder / "5.png")
    elif how == "changed":
        write_image(torch.rand(3, 40, 50), folder / "0.png")
    else:
        content = bytearray((folder / "0.png").read_bytes())
        content[-20] ^= 1  # before the end chunk: damaged data
        (folder / "0.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"data.source was '3 files, [0-9a-f]{16}', is '[234] files, [0-9a-f]{16}'"):
        train(config, tmp_path / "x", resume=True, progress=False)


def test_another_style_picture_under_the_same_name_is_told(make_config, pictures: Path) -> None:
    from tunable_ops.train.build import named_files
    from tunable_ops.train.fingerprint import fingerprints

    objectives = [{"name": str(k), "loss": "style", "picture": str(pictures / f"{k}.png")} for k in range(2)]
    named = named_files(make_config(objectives=objectives))
    before = fingerprints(named)
    assert set(before) == {"objectives.0.picture", "objectives.1.picture"}
    shutil.copy(pictures / "2.png", pictures / "1.png")
    after = fingerprints(named)
    assert [key for key in before if before[key] != after[key]] == ["objectives.1.picture"]


def test_a_fingerprint_sees_blocks_of_large_files(tmp_path: Path) -> None:
    files = [tmp_path / "a" / "x.bin", tmp_path / "b" / "x.bin"]
    for file in files:
        file.parent.mkdir()
        file.write_bytes(bytes(3 * 2**20))
    before = fingerprint(files)
    assert fingerprint(files[::-1]) != before
    for place in (0, 3 * 2**20 - 1):
        content = bytearray(3 * 2**20)
        content[place] = 1
        files[1].write_bytes(content)
        assert fingerprint(files) != before
    files[1].write_bytes(bytes(3 * 2**20))
    (tmp_path / "moved").mkdir()
    moved = [file.rename(tmp_path / "moved" / f"{file.parent.name}.bin") for file in files]
    assert fingerprint(moved) != before  # other names below the common folder
    with pytest.raises(ValueError, match=r"train: files must be readable; got .*none.bin"):
        fingerprint([tmp_path / "none.bin"])


def test_more_steps_at_a_constant_rate_are_those_of_a_longer_run(make_config, tmp_path: Path) -> None:
    def config(steps: int) -> Config:
        return make_config(optim={"steps": steps, "final": 1.0})

    train(config(9), tmp_path / "whole", progress=False)
    assert train(config(4), tmp_path / "x", progress=False).finished
    train(config(9), tmp_path / "x", resume=True, stop_at=6, progress=False)
    assert train(config(9), tmp_path / "x", resume=True, progress=False).finished
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "x"))


def test_more_steps_follow_the_new_schedule_from_there(make_config, tmp_path: Path, monkeypatch) -> None:
    """Up to the step reached the old cosine holds, afterwards the new one: the bits of a run that is told so."""
    short, long = make_config(optim={"steps": 5}), make_config(optim={"steps": 9})
    assert train(short, tmp_path / "x", progress=False).finished
    train(long, tmp_path / "x", resume=True, stop_at=6, progress=False)
    assert train(long, tmp_path / "x", resume=True, progress=False).finished
    from tunable_ops.train.build import learning_rate

    def rate(self, step: int) -> float:
        return learning_rate((short if step < 5 else long).optim, step)

    with monkeypatch.context() as patch:
        patch.setattr(Restoration, "rate", rate)
        train(long, tmp_path / "told", progress=False)
    assert same(weights(tmp_path / "told"), weights(tmp_path / "x"))
    with pytest.raises(ValueError, match=r"optim.steps must be at least 9, the steps that are done; got 5"):
        train(short, tmp_path / "x", resume=True, progress=False)


def test_phases_keep_their_steps(make_config, tmp_path: Path) -> None:
    kind = {"kind": "dni", "names": ["a", "b"]}
    train(make_config(tuning=kind), tmp_path / "x", stop_at=1, progress=False)
    with pytest.raises(ValueError, match=r"optim.steps was 6, is 8"):
        train(make_config(tuning=kind, optim={"steps": 8}), tmp_path / "x", resume=True, progress=False)


@pytest.mark.filterwarnings("ignore:images")
def test_the_weights_do_not_depend_on_the_cache(make_config, tmp_path: Path) -> None:
    """A damaged file used to shift the draws if it was found while the cache was filled, and not beyond it."""
    folder = Path(make_config().data.source)
    content = (folder / "1.png").read_bytes()
    (folder / "1.png").write_bytes(content[: len(content) // 2])
    (folder / "none.png").write_bytes(b"no picture")
    with pytest.warns(UserWarning, match="1.png"):
        for cache in (0, 1, 2048):
            train(make_config(data={"cache_mb": cache}), tmp_path / str(cache), progress=False)
    assert same(weights(tmp_path / "0"), weights(tmp_path / "1"))
    assert same(weights(tmp_path / "0"), weights(tmp_path / "2048"))


def test_the_index_of_a_damaged_file_leads_to_the_next_one(pictures: Path) -> None:
    content = (pictures / "1.png").read_bytes()
    (pictures / "1.png").write_bytes(content[: len(content) // 2])
    files = sorted(pictures.iterdir())
    with pytest.warns(UserWarning, match="1.png"):
        cached, lazy = Photographs(files), Photographs(files, cache_mb=0)
        assert len(cached) == len(lazy) == 3
        assert all(torch.equal(cached[index], lazy[index]) for index in range(3))
        assert torch.equal(lazy[1], lazy[2])


FP32 = {"precision": "fp32"}  # that of states that do not say it


def test_states_from_before_a_key_existed_resume(make_config, tmp_path: Path) -> None:
    train(make_config(compute=FP32), tmp_path / "whole", progress=False)
    train(make_config(compute=FP32), tmp_path / "x", stop_at=2, progress=False)

    def older(metadata: dict) -> None:
        for key in ("files", "precision"):
            del metadata[key]
        for key in ("optim.weight_decay", "objectives.1.follows", "tuning.lam", "validation.strips", "task"):
            del metadata["config"][key]
        for key in list(metadata["config"]):
            if key.startswith("style."):
                del metadata["config"][key]

    rewrite(tmp_path / "x" / STATE, older)
    with pytest.raises(ValueError, match=r"got optim.weight_decay was 0.0, is 0.1 "):
        train(make_config(compute=FP32, optim={"weight_decay": 0.1}), tmp_path / "x", resume=True, progress=False)
    assert train(make_config(compute=FP32), tmp_path / "x", resume=True, progress=False).finished
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "x"))


def test_a_key_that_is_gone_is_named(make_config, tmp_path: Path) -> None:
    train(make_config(), tmp_path / "x", stop_at=2, progress=False)
    rewrite(tmp_path / "x" / STATE, lambda metadata: metadata["config"].update({"optim.momentum": 0.5}))
    with pytest.raises(ValueError, match=r"got optim.momentum was 0.5, is no key "):
        train(make_config(), tmp_path / "x", resume=True, progress=False)


def test_unflatten_undoes_flatten(make_config) -> None:
    config = make_config(degradation={"noise": {"sigma": [1, 2]}, "blur": {}}, tuning={"lam": [0.5, 0.5]})
    assert unflatten(flatten(config)) == config.model_dump(mode="json")


def test_a_model_without_a_state_is_not_overwritten(make_config, tmp_path: Path) -> None:
    train(make_config(), tmp_path / "x", progress=False)
    (tmp_path / "x" / STATE).unlink()
    before = {file.name: file.read_bytes() for file in (tmp_path / "x").iterdir() if file.is_file()}
    for resume in (False, True):
        with pytest.raises(ValueError, match=r"holds model.safetensors without the state.safetensors .*--overwrite"):
            train(make_config(seed=1), tmp_path / "x", resume=resume, progress=False)
    assert {file.name: file.read_bytes() for file in (tmp_path / "x").iterdir() if file.is_file()} == before


def test_overwrite_starts_anew(make_config, tmp_path: Path) -> None:
    out, new = tmp_path / "x", make_config(seed=1, log={"tensorboard": True})
    train(make_config(log={"tensorboard": True}), out, progress=False)
    (out / "mine.txt").write_text("not the run's")
    old = {file.name for file in (out / "logs").iterdir()}
    with pytest.raises(ValueError, match="resume and overwrite must not both"):
        train(new, out, resume=True, overwrite=True, progress=False)
    # all is checked before anything is removed
    with pytest.raises(ValueError, match="images: path must be an existing"):
        train(make_config(data={"source": "/no/such/folder"}), out, overwrite=True, progress=False)
    assert (out / STATE).exists()
    train(new, out, overwrite=True, progress=False)
    train(new, tmp_path / "new", progress=False)
    assert same(weights(out), weights(tmp_path / "new"))
    assert (out / "log.jsonl").read_text().count('"step": 2,') == 1
    assert not old & {file.name for file in (out / "logs").iterdir()}
    assert (out / "mine.txt").exists()


def test_a_run_killed_between_the_state_and_the_model_resumes(make_config, tmp_path: Path, monkeypatch) -> None:
    def killed(self, average, path, step) -> None:
        raise KeyboardInterrupt

    config = make_config(checkpoints={"every": 2})
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Restoration, "save", killed)
        train(config, tmp_path / "x", progress=False)
    assert train(config, tmp_path / "x", resume=True, progress=False).finished
    train(config, tmp_path / "whole", progress=False)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "x"))


def test_the_command_line_overwrites_on_request_only(pictures: Path, tmp_path: Path, capsys) -> None:
    from tunable_ops.cli import main

    text = f"""
        [model]
        arguments = {{ features = 8, depth = 3 }}
        [[objectives]]
        name = "clean"
        [[objectives]]
        name = "noisy"
        target = "input"
        [data]
        source = "{pictures}"
        crop = 16
        batch = 2
        [optim]
        steps = 2
        [log]
        tensorboard = false
    """
    (tmp_path / "c.toml").write_text(text)
    arguments = ["train", str(tmp_path / "c.toml"), "--out", str(tmp_path / "x"), "--quiet"]
    assert main(arguments) == 0
    (tmp_path / "x" / STATE).unlink()
    assert main([*arguments, "--resume"]) == 2
    assert "which holds model.safetensors without the state.safetensors" in capsys.readouterr().err
    assert main([*arguments, "--overwrite"]) == 0
    assert main([*arguments, "--overwrite", "--resume"]) == 2
    assert main([*arguments, "--resume", "--set", "optim.steps=3"]) == 0
    assert "3 steps done" in capsys.readouterr().out


@pytest.mark.parametrize("end", [1.0, 50.0])
def test_states_from_before_lambda_had_units(make_config, tmp_path: Path, end: float) -> None:
    """phi got lambda as it was: with [0, 50] such a run went on in silence, at a fiftieth of its lambda."""
    config = make_config(tuning={"domain": "box", "ranges": [[0, end], [0, 1]]})
    train(config, tmp_path / "x", stop_at=2, progress=False)
    rewrite(tmp_path / "x" / STATE, lambda metadata: metadata["config"].pop("tuning.units"))
    if end == 1:
        assert train(config, tmp_path / "x", resume=True, progress=False).finished
        return
    before = (tmp_path / "x" / STATE).read_bytes()
    with pytest.raises(ValueError, match=r"^train: state must be of a run that divides lambda .*scales \[50.0, 1.0\]"):
        train(config, tmp_path / "x", resume=True, progress=False)
    assert (tmp_path / "x" / STATE).read_bytes() == before
