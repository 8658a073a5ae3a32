"""Several processes: the same weights everywhere, and the gradient of the joint batch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tunable_ops.losses import PGN, VGG16Features
from tunable_ops.train import MODEL, STATE, train
from tunable_ops.train.build import build_criterion, build_network, build_optimizer, build_sampler, learning_rate
from tunable_ops.train.data import Batches, Photographs

CODE = """
import sys, torch
from tunable_ops.train import Config, train
from tunable_ops.serialization import save
torch.set_num_threads(1)
config = Config.model_validate_json(open(sys.argv[1]).read())
stop = int(sys.argv[3]) if len(sys.argv) > 3 else None
outcome = train(config, sys.argv[2], resume=True, stop_at=stop, progress=False)
import os
if outcome.finished:
    save(outcome.net, f"{sys.argv[2]}/rank{os.environ['RANK']}.safetensors", architecture="dncnn", arguments={})
"""


def torchrun(tmp_path: Path, out: Path, *extra: str) -> None:
    (tmp_path / "code.py").write_text(CODE)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(tmp_path / "code.py"), str(tmp_path / "c.json"), str(out), *extra],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


def assert_stopped_and_resumed_to_the_same_bits(tmp_path: Path, file: str) -> None:
    """Run c.json in one piece into "whole", and stopped after 3 steps into "parts"."""
    torchrun(tmp_path, tmp_path / "whole")
    torchrun(tmp_path, tmp_path / "parts", "3")
    torchrun(tmp_path, tmp_path / "parts")
    whole, parts = (load_file(tmp_path / run / file) for run in ("whole", "parts"))
    assert whole.keys() == parts.keys() and all(torch.equal(whole[name], parts[name]) for name in whole)


@pytest.mark.slow
def test_two_processes_step_as_one_with_both_batches(make_config, tmp_path: Path) -> None:
    config = make_config(optim={"steps": 4, "clip": 0}, ema={"decay": 0}, compute={"channels_last": False})
    (tmp_path / "c.json").write_text(config.model_dump_json())
    torchrun(tmp_path, tmp_path / "two")
    first, second = (load_file(tmp_path / "two" / f"rank{rank}.safetensors") for rank in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)

    net, criterion = build_network(config), build_criterion(config)
    optimizer = build_optimizer(net, config.optim)
    photographs = Photographs(sorted(Path(config.data.source).iterdir()), config.data.crop)
    sources = [Batches(photographs, config, build_sampler(config), rank) for rank in (0, 1)]
    for step in range(4):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config.optim, step)
        losses = []
        for batch in (source[step] for source in sources):
            targets = {"clean": batch.targets["clean"], "noisy": batch.targets["input"]}
            losses.append(criterion(net(batch.input, batch.lam), targets, batch.lam)[0])
        optimizer.zero_grad()
        (sum(losses) / 2).backward()
        optimizer.step()
    for name, value in net.network.state_dict().items():
        torch.testing.assert_close(first[name], value, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_two_processes_resume_to_the_same_bits(make_config, tmp_path: Path) -> None:
    config = make_config()
    (tmp_path / "c.json").write_text(config.model_dump_json())
    assert_stopped_and_resumed_to_the_same_bits(tmp_path, MODEL)
    (tmp_path / "whole" / MODEL).unlink()
    with pytest.raises(ValueError, match="must have as many processes as before, 2; got 1"):
        train(config, tmp_path / "whole", resume=True, progress=False)
    assert (tmp_path / "whole" / STATE).exists()


@pytest.mark.slow
def test_two_processes_share_one_discriminator(make_config, tmp_path: Path) -> None:
    """Were there two, those of a resumed run, which both read the first one's state, would go on otherwise."""
    objectives = [{"name": "clean"}, {"name": "real", "loss": "adversarial", "scale": 0.1}]
    config = make_config(objectives=objectives, adversarial={"features": 4, "depth": 2, "lr": 1e-2})
    (tmp_path / "c.json").write_text(config.model_dump_json())
    assert_stopped_and_resumed_to_the_same_bits(tmp_path, STATE)


@pytest.mark.slow
def test_two_processes_fit_one_coefficient(make_config, tmp_path: Path) -> None:
    """As with the discriminator: the state is the first one's, and the run goes on with it."""
    weights, pgn = tmp_path / "vgg.safetensors", tmp_path / "pgn.safetensors"
    features = VGG16Features(["relu1_1"], weights="random")
    save_file({k: v.contiguous() for k, v in features.state_dict().items()}, weights)
    PGN("unet").save(pgn)
    look = {"name": "look", "loss": "perceptual_gradient", "crop": 8, "arguments": {"path": str(pgn)}}
    exact = {"network": "vgg16", "layers": ["relu1_1"], "weights": str(weights)}
    look["correct_with"] = {"loss": "perceptual", "arguments": exact}
    config = make_config(objectives=[{"name": "clean"}, look])
    (tmp_path / "c.json").write_text(config.model_dump_json())
    assert_stopped_and_resumed_to_the_same_bits(tmp_path, STATE)
    first, second = (load_file(tmp_path / "whole" / f"rank{rank}.safetensors") for rank in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
