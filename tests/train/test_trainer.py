"""The training loop: learning, stopping, resuming to the same bits, logs, errors."""

import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tunable_ops import losses
from tunable_ops.modules import TunableModel
from tunable_ops.modules.accelerate import FilteredConv2d
from tunable_ops.serialization import load, load_folded
from tunable_ops.train import MODEL, STATE, train
from tunable_ops.train.build import build_criterion, build_network, build_optimizer, learning_rate
from tunable_ops.train.distributed import Process
from tunable_ops.train.ema import Ema
from tunable_ops.train.log import LOG
from tunable_ops.train.restoration import Restoration


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / MODEL)


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_the_loss_goes_down_and_the_slider_works(make_config, tmp_path: Path) -> None:
    config = make_config(
        optim={"steps": 80, "lr": 5e-3, "warmup": 5},
        validation={"every": 80, "source": "replaced below"},
    )
    config = config.model_copy(
        update={"validation": config.validation.model_copy(update={"source": config.data.source})}
    )
    outcome = train(config, tmp_path / "run", progress=False)
    assert outcome.finished
    assert outcome.step == 80
    psnr = {s.lam: [] for s in outcome.scores}
    for score in outcome.scores:
        psnr[score.lam].append(score.psnr)
    mean = {lam: sum(values) / len(values) for lam, values in psnr.items()}
    assert mean[(1.0, 0.0)] > mean[None] + 2, mean
    assert mean[(1.0, 0.0)] > mean[(0.5, 0.5)] > mean[(0.0, 1.0)], mean
    assert abs(mean[(0.0, 1.0)] - mean[None]) < 1, mean
    net = load(tmp_path / "run" / MODEL)
    assert net.spec.names == ("denoise", "keep")
    assert net.notes["step"] == 80
    assert net.notes["validation_psnr"]["1,0"] == pytest.approx(mean[(1.0, 0.0)])


@pytest.mark.parametrize("kind", ["affine", "identity", "none"])
def test_stopped_and_resumed_gives_the_same_bits(make_config, tmp_path: Path, kind: str) -> None:
    config = make_config(tuning={"kind": kind}, optim={"steps": 7}, compute={"channels_last": kind != "identity"})
    train(config, tmp_path / "whole", progress=False)
    for stop in (1, 2, 5):
        outcome = train(config, tmp_path / "parts", resume=True, stop_at=stop, progress=False)
        assert (outcome.step, outcome.finished) == (stop, False)
        torch.manual_seed(stop)  # the global generator must not matter
    outcome = train(config, tmp_path / "parts", resume=True, progress=False)
    assert outcome.finished
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    assert same(load_file(tmp_path / "whole" / STATE), load_file(tmp_path / "parts" / STATE))


def test_validation_and_logs_do_not_touch_the_weights(make_config, tmp_path: Path) -> None:
    quiet = make_config()
    chatty = make_config(
        validation={"every": 2, "source": quiet.data.source},
        log={"every": 1, "tensorboard": True},
        checkpoints={"every": 1},
    )
    train(quiet, tmp_path / "a", progress=False)
    train(chatty, tmp_path / "b", progress=False)
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))


def test_killed_processes_resume_to_the_same_bits(make_config, tmp_path: Path) -> None:
    """SIGTERM and SIGINT at a random moment save and stop; SIGKILL falls back on the last checkpoint."""
    config = make_config(optim={"steps": 200}, checkpoints={"every": 5})
    (tmp_path / "c.json").write_text(config.model_dump_json())
    code = (
        "import sys, torch; from tunable_ops.train import Config, train\n"
        "torch.set_num_threads(1)\n"
        "config = Config.model_validate_json(open(sys.argv[1]).read())\n"
        "outcome = train(config, sys.argv[2], resume=True, progress=False)\n"
        "sys.exit(0 if outcome.finished else 128 + outcome.signal)"
    )
    out, done = tmp_path / "killed", 0
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT):
        running = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "c.json"), str(out)])
        deadline = time.monotonic() + 120
        while position(out) <= done and running.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(random.uniform(0, 0.1))
        running.send_signal(number)
        assert running.wait(60) == (-number if number == signal.SIGKILL else 128 + number)
        assert done < position(out) < 200
        done = position(out)
    assert train(config, out, resume=True, progress=False).finished
    train(config, tmp_path / "whole", progress=False)
    assert same(weights(tmp_path / "whole"), weights(out))
    assert not list(out.glob(".*")), "half-written files must not stay"


def position(out: Path) -> int:
    """Steps that the state on disk has seen; 0 without one."""
    from tunable_ops.serialization import read_file
    from tunable_ops.train.state import FORMAT, VERSION

    if not (out / STATE).exists():
        return 0
    return read_file(out / STATE, kind=FORMAT, version=VERSION)[1]["step"]


def test_a_second_interrupt_is_let_through(make_config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tunable_ops.train import trainer

    original = trainer._Run.advance

    def interrupted(self, batch):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        return original(self, batch)

    monkeypatch.setattr(trainer._Run, "advance", interrupted)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(make_config(), tmp_path / "x", progress=False)
    assert signal.getsignal(signal.SIGINT) is before


def test_resuming_needs_the_same_configuration(make_config, tmp_path: Path) -> None:
    train(make_config(), tmp_path / "x", stop_at=2, progress=False)
    with pytest.raises(ValueError, match=r"got data.batch was 4, is 5; optim.lr was 0.003, is 0.01 \(saved in"):
        train(make_config(optim={"lr": 0.01}, data={"batch": 5}), tmp_path / "x", resume=True, progress=False)
    harmless = make_config(log={"every": 1}, checkpoints={"every": 3})
    assert train(harmless, tmp_path / "x", resume=True, progress=False).finished


def test_a_folder_with_a_run_is_not_overwritten(make_config, tmp_path: Path) -> None:
    train(make_config(), tmp_path / "x", progress=False)
    before = weights(tmp_path / "x")
    with pytest.raises(ValueError, match=r"out must be a new folder; got .*: resume it \(--resume\)"):
        train(make_config(seed=1), tmp_path / "x", progress=False)
    again = train(make_config(), tmp_path / "x", resume=True, progress=False)
    assert again.finished
    assert same(weights(tmp_path / "x"), before)


def test_a_damaged_state_is_named(make_config, tmp_path: Path) -> None:
    train(make_config(), tmp_path / "x", stop_at=2, progress=False)
    state = tmp_path / "x" / STATE
    state.write_bytes(state.read_bytes()[:-50])
    with pytest.raises(ValueError, match=r"must be a whole file; got .* cut short"):
        train(make_config(), tmp_path / "x", resume=True, progress=False)
    state.write_bytes((tmp_path / "x" / MODEL).read_bytes())
    with pytest.raises(ValueError, match=r"must hold 'tunable_ops.training_state'"):
        train(make_config(), tmp_path / "x", resume=True, progress=False)


def test_other_threads_are_warned_about(make_config, tmp_path: Path) -> None:
    train(make_config(), tmp_path / "x", stop_at=2, progress=False)
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        with pytest.warns(UserWarning, match=f"threads was {before}, is {before + 1}"):
            train(make_config(), tmp_path / "x", resume=True, progress=False)
    finally:
        torch.set_num_threads(before)


def test_a_diverging_run_stops_and_keeps_the_last_checkpoint(make_config, tmp_path: Path) -> None:
    config = make_config(optim={"lr": 1e18, "clip": 0, "warmup": 0, "steps": 50}, checkpoints={"every": 1})
    with pytest.raises(RuntimeError, match="must stay finite"):
        train(config, tmp_path / "x", progress=False)
    for value in load_file(tmp_path / "x" / STATE).values() if (tmp_path / "x" / STATE).exists() else ():
        assert torch.isfinite(value).all()


def test_tensorboard_holds_what_was_promised(make_config, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = make_config(log={"every": 2, "tensorboard": True})
    config = make_config(log={"every": 2, "tensorboard": True}, validation={"every": 3, "source": config.data.source})
    train(config, tmp_path / "x", stop_at=3, progress=False)
    train(config, tmp_path / "x", resume=True, progress=False)
    events = EventAccumulator(str(tmp_path / "x" / "logs"))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert {
        "loss/total",
        "loss/clean",
        "loss/noisy",
        "optim/lr",
        "optim/gradient_norm",
        "speed/samples_per_second",
        "validation/psnr 1,0",
        "validation/psnr 0,1",
    } <= tags
    assert [event.step for event in events.Scalars("loss/total")] == [2, 3, 4, 6]
    assert events.Scalars("optim/lr")[-1].value == pytest.approx(learning_rate(config.optim, 5))
    lines = [json.loads(line) for line in (tmp_path / "x" / LOG).read_text().splitlines()]
    assert [line["step"] for line in lines if "loss/total" in line] == [2, 3, 4, 6]
    assert {tag for line in lines for tag in line} - {"step"} == tags


def test_lines_of_lost_steps_leave_the_log(make_config, tmp_path: Path) -> None:
    """What a killed run wrote after its last checkpoint is repeated, not doubled; half a line goes."""
    config = make_config(log={"every": 1})
    train(config, tmp_path / "x", stop_at=2, progress=False)
    log = tmp_path / "x" / LOG
    before = log.read_text()
    log.write_text(before + '{"step": 3, "loss/total": 7.0}\n{"step": 4, "lo')
    train(config, tmp_path / "x", resume=True, progress=False)
    steps = [json.loads(line)["step"] for line in log.read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5, 6] and log.read_text().startswith(before)


def test_a_stop_writes_the_steps_since_the_last_line(make_config, tmp_path: Path) -> None:
    train(make_config(log={"every": 1}), tmp_path / "each", progress=False)
    train(make_config(log={"every": 4}), tmp_path / "x", stop_at=3, progress=False)
    train(make_config(log={"every": 4}), tmp_path / "x", resume=True, progress=False)
    each, found = (
        [json.loads(line) for line in (tmp_path / name / LOG).read_text().splitlines()] for name in ("each", "x")
    )
    assert [line["step"] for line in found] == [3, 4, 6]
    for line, steps in zip(found, (each[:3], each[3:4], each[4:]), strict=True):
        mean = sum(one["loss/total"] for one in steps) / len(steps)
        assert line["loss/total"] == pytest.approx(mean, rel=1e-5)


@pytest.mark.parametrize(
    "text", ['{"epoch": 1}\n', '{"step": 1}\nnotes\n', "no newline", "[1]\n", '{"step": 1, "loss": 2}\n']
)
def test_a_log_that_no_run_wrote_is_kept(make_config, tmp_path: Path, text: str) -> None:
    (tmp_path / LOG).write_text(text)
    with pytest.raises(
        ValueError, match=r"train: out must be a folder in which log.jsonl, if there is one, is the log"
    ):
        train(make_config(), tmp_path, progress=False)
    assert (tmp_path / LOG).read_text() == text and not list(tmp_path.glob(".*"))


def test_a_run_killed_before_its_first_checkpoint_starts_its_log_anew(make_config, tmp_path: Path) -> None:
    (tmp_path / LOG).write_text('{"step": 2, "loss/total": 7.0}\n{"ste')
    train(make_config(), tmp_path, progress=False)
    assert [json.loads(line)["step"] for line in (tmp_path / LOG).read_text().splitlines()] == [2, 4, 6]


def test_the_message_of_a_validation_has_its_unit(make_config, tmp_path: Path, caplog) -> None:
    caplog.set_level("INFO", "tunable_ops.train.trainer")
    config = make_config(optim={"steps": 1})
    train(make_config(optim={"steps": 1}, validation={"every": 1, "source": config.data.source}), tmp_path / "x")
    assert re.search(r"step 1: PSNR 1,0: \d+\.\d\d dB, ", caplog.text)


def test_the_plain_network_trains_on_one_objective(make_config, tmp_path: Path) -> None:
    config = make_config(tuning={"kind": "none"})
    outcome = train(config, tmp_path / "x", progress=False)
    assert not isinstance(outcome.net, TunableModel)
    net = load_folded(tmp_path / "x" / MODEL)
    assert same(net.state_dict(), outcome.net.state_dict())
    tunable = build_network(make_config())
    plain = build_network(config)
    x = torch.rand(1, 3, 8, 8)
    # the same start: the comparison of the two is fair
    torch.testing.assert_close(tunable(x, [0.3, 0.7]), plain(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["none", "film"])
def test_plain_layers_train_through_the_filtering(make_config, kind: str) -> None:
    model = {"arguments": {"features": 16, "depth": 4}}
    for device, filtered in (("cpu", 3), ("meta", 0)):
        task = Restoration(make_config(tuning={"kind": kind}, model=model), Process(0, 1, torch.device(device)))
        assert sum(isinstance(module, FilteredConv2d) for module in task.net.modules()) == filtered


def test_box_domain_with_separate_groups(make_config, tmp_path: Path) -> None:
    config = make_config(tuning={"domain": "box"}, optim={"base_lr": 0.1, "kernel_lr": 0.5, "phi_lr": 2.0, "steps": 4})
    optimizer = build_optimizer(build_network(config), config.optim)
    assert {g["name"]: g["scale"] for g in optimizer.param_groups} == {"base": 0.1, "new": 0.5, "phi": 2.0}
    train(config, tmp_path / "whole", progress=False)
    train(config, tmp_path / "parts", stop_at=2, progress=False)
    train(config, tmp_path / "parts", resume=True, progress=False)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    load(tmp_path / "whole" / MODEL)


def test_a_base_rate_of_zero_freezes_the_base(make_config, tmp_path: Path) -> None:
    config = make_config(tuning={"domain": "box"}, optim={"base_lr": 0, "steps": 3}, ema={"decay": 0})
    outcome = train(config, tmp_path / "x", progress=False)
    before, after = build_network(config).state_dict(), outcome.net.state_dict()
    weight = "network.model.0.weight"
    assert torch.equal(after[weight][0], before[weight][0])
    assert not torch.equal(after[weight][1], before[weight][1])


def test_criterion_follows_the_configuration(make_config) -> None:
    config = make_config(
        objectives=[
            {"name": "clean", "loss": "charbonnier", "scale": 3.0, "arguments": {"eps": 0.1}},
            {"name": "noisy", "loss": "l1", "target": "input"},
        ]
    )
    torch.manual_seed(0)
    output, clean, noisy = torch.rand(3, 2, 3, 12, 12).unbind(0)
    total, terms = build_criterion(config)(output, {"clean": clean, "noisy": noisy}, torch.tensor([0.25, 0.75]))
    expected = 0.25 * 3 * losses.charbonnier(output, clean, eps=0.1).mean() + 0.75 * losses.l1(output, noisy).mean()
    torch.testing.assert_close(total, expected)
    assert set(terms) == {"clean", "noisy"}
    wrong = make_config(objectives=[{"name": "a", "loss": "charbonnier", "arguments": {"epsilon": 0.1}}, {"name": "b"}])
    with pytest.raises(
        ValueError, match=r"arguments of charbonnier must be among \(eps\); got 'epsilon' in objective 'a'"
    ):
        build_criterion(wrong)


@pytest.mark.parametrize("loss", ["mse", "l1", "charbonnier", "ssim", "tv", "grid"])
def test_every_loss_trains(make_config, tmp_path: Path, loss: str) -> None:
    config = make_config(
        objectives=[{"name": "a", "loss": loss}, {"name": "b", "target": "noiseless"}], optim={"steps": 1}
    )
    assert train(config, tmp_path / "x", progress=False).finished


def test_learning_rate_warms_up_and_decays(make_config) -> None:
    optim = make_config(optim={"steps": 101, "warmup": 10, "lr": 1.0, "final": 0.1}).optim
    rates = [learning_rate(optim, step) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == 1.0
    assert rates[55] == pytest.approx(0.55)
    assert rates[100] == pytest.approx(0.1)
    assert all(a > b for a, b in itertools.pairwise(rates[10:]))


def test_ema_against_the_formula() -> None:
    net = nn.BatchNorm1d(3)
    ema = Ema(net, decay=0.5)
    expected = net.weight.detach().clone()
    for step in range(12):
        with torch.no_grad():
            net.weight.add_(1.0)
            net.running_mean.add_(2.0)
        ema.update(net, step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * net.weight.detach()
    torch.testing.assert_close(ema.module.weight, expected)
    assert torch.equal(ema.module.running_mean, net.running_mean)
    assert not ema.module.weight.requires_grad
    assert net.weight.requires_grad
    with pytest.raises(ValueError, match=r"decay must be in \[0, 1\); got 1"):
        Ema(net, 1.0)


def test_device_errors(make_config, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"compute.device must be auto, cpu or cuda; got 'gpu7'"):
        train(make_config(compute={"device": "gpu7"}), tmp_path, progress=False)
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match=r"compute.device must be usable here; got 'cuda' without a GPU"):
            train(make_config(compute={"device": "cuda"}), tmp_path, progress=False)


def test_bf16_runs(make_config, tmp_path: Path) -> None:
    outcome = train(make_config(compute={"precision": "bf16"}), tmp_path, progress=False)
    assert all(p.dtype == torch.float32 for p in outcome.net.parameters())


def test_config_is_written_along(make_config, tmp_path: Path) -> None:
    config = make_config()
    train(config, tmp_path, progress=False)
    assert type(config).model_validate(json.loads((tmp_path / "config.json").read_text())) == config


def test_groups_compute_what_per_sample_lambda_does(make_config, tmp_path: Path) -> None:
    """With a group per sample both paths draw the same lambdas and must take the same steps."""
    fp32 = {"precision": "fp32"}
    train(make_config(compute=fp32), tmp_path / "samples", progress=False)
    train(make_config(compute=fp32, sampler={"groups": 4}), tmp_path / "groups", progress=False)
    a, b = weights(tmp_path / "samples"), weights(tmp_path / "groups")
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=1e-5)
    assert train(make_config(sampler={"groups": 1}), tmp_path / "one", progress=False).finished


@pytest.mark.slow
def test_compiled_training_runs(make_config, tmp_path: Path) -> None:
    train(make_config(), tmp_path / "eager", progress=False)
    train(make_config(compute={"compile": True}), tmp_path / "compiled", progress=False)
    a, b = weights(tmp_path / "eager"), weights(tmp_path / "compiled")
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-2, atol=1e-3)


@pytest.mark.slow
def test_worker_processes_and_a_stop(make_config, tmp_path: Path) -> None:
    config = make_config(data={"workers": 2})
    train(config, tmp_path / "whole", progress=False)
    train(config, tmp_path / "parts", stop_at=3, progress=False)
    train(config, tmp_path / "parts", resume=True, progress=False)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
