"""`tunable-ops apply` on tars: names, what belongs to a picture, runs that were stopped, and several processes."""

import io
import json
import os
import subprocess
import sys
import tarfile
import threading

import pytest
import torch

from tunable_ops import images
from tunable_ops.cli import shards, tars
from tunable_ops.serialization import load


def picture(number, suffix="png", size=(24, 32)):
    rows, columns = torch.meshgrid(torch.linspace(0, 1, size[0]), torch.linspace(0, 1, size[1]), indexing="ij")
    values = torch.stack([rows, columns, (rows + columns + number / 10) % 1])
    frame = images.Frame(images.picture.quantise(values, 8))
    return images.encode_picture([frame], suffix)


def write_tar(path, samples=8, broken=(), suffix="png", mode="w"):
    """A WebDataset: picture, JSON and text of each sample."""
    with tarfile.open(path, mode) as tar:
        for number in range(samples):
            key = f"part/{number:04d}"
            content = b"no picture" if number in broken else picture(number, suffix)
            for end, data in ((suffix, content), ("json", json.dumps({"n": number}).encode()), ("txt", b"words")):
                header = tarfile.TarInfo(f"{key}.{end}")
                header.size, header.mtime = len(data), 1_700_000_000 + number
                tar.addfile(header, io.BytesIO(data))
    return path


def members(path):
    with tarfile.open(path) as tar:
        return {header.name: tar.extractfile(header).read() for header in tar}


@torch.no_grad()
def through(model, content, lam, tmp_path):
    file = tmp_path / "member.png"
    file.write_bytes(content)
    return load(model)(images.read_image(file)[None], lam)[0].clamp(0, 1)


def test_members_keep_their_names_and_what_belongs_to_them(run, model, tmp_path):
    source = write_tar(tmp_path / "data-000.tar")
    code, out, err = run("apply", source, "--model", model, "--lam", "0.3,0.7", "--out", tmp_path / "out")
    assert code == 0, err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["data-000.tar", "data-000.tar.json"]
    assert out == f"{tmp_path / 'out' / 'data-000.tar'}  8 samples\n" and "8 of 8 samples done" in err
    old, new = members(source), members(tmp_path / "out" / "data-000.tar")
    assert list(new) == list(old)
    for name, content in old.items():
        if name.endswith(".png"):
            (tmp_path / "new.png").write_bytes(new[name])
            expected = through(model, content, (0.3, 0.7), tmp_path)
            assert (images.read_image(tmp_path / "new.png") - expected).abs().max() <= 1.01 / 255
        else:
            assert new[name] == content
    with tarfile.open(tmp_path / "out" / "data-000.tar") as tar:
        assert [header.mtime for header in tar][:4] == [1_700_000_000] * 3 + [1_700_000_001]


def test_formats_and_folders(run, model, tmp_path):
    source = write_tar(tmp_path / "data.tar.gz", samples=2, suffix="jpg", mode="w:gz")
    assert run("apply", source, "--model", model, "--format", "jpg", "--out", tmp_path / "a")[0] == 0
    assert list(members(tmp_path / "a" / "data.tar")) == list(members_of_gz(source))
    assert run("apply", source, "--model", model, "--out", tmp_path / "b", "--to", "folder")[0] == 0
    names = sorted(path.name for path in (tmp_path / "b" / "data" / "part").iterdir())
    assert names == ["0000.json", "0000.png", "0000.txt", "0001.json", "0001.png", "0001.txt"]
    code, out, _ = run("apply", source, "--model", model, "--out", tmp_path / "b", "--to", "folder")
    assert code == 0 and "done before" in out


def members_of_gz(path):
    with tarfile.open(path, "r:gz") as tar:
        return [header.name for header in tar]


def test_what_failed_is_named_and_left_out(run, model, tmp_path):
    source = write_tar(tmp_path / "data.tar", broken=(2, 5))
    code, _, err = run("apply", source, "--model", model, "--out", tmp_path / "out")
    assert code == 1 and "6 of 8 samples done" in err
    assert f"skipped {source}:part/0002.png: images: path must be a readable image" in err and "/proc/self" not in err
    lines = (tmp_path / "out" / "data.failed.tsv").read_text().splitlines()
    assert [line.split("\t")[0] for line in lines] == [f"{source}:part/{number:04d}.png" for number in (2, 5)]
    assert not {name for name in members(tmp_path / "out" / "data.tar") if "0002" in name or "0005" in name}
    assert len(members(tmp_path / "out" / "data.tar")) == 18
    assert run("apply", source, "--model", model, "--out", tmp_path / "out")[0] == 1  # as it was, without work


class StopError(BaseException):
    """The end of a process, as a signal brings it."""


def stop_after(monkeypatch, count):
    restored = tars._Tar._restored
    calls = []

    def counted(self, sample):
        if len(calls) == count:
            raise StopError
        calls.append(sample)
        return restored(self, sample)

    monkeypatch.setattr(tars._Tar, "_restored", counted)
    return calls


@pytest.mark.parametrize("torn", [False, True], ids=["between", "within"])
def test_a_stopped_run_goes_on_and_gives_the_same_tar(run, model, tmp_path, monkeypatch, torn):
    source = write_tar(tmp_path / "data.tar", broken=(1,))
    assert run("apply", source, "--model", model, "--out", tmp_path / "whole")[0] == 1
    words = ("apply", source, "--model", model, "--out", tmp_path / "parts")
    for _ in range(2):
        with monkeypatch.context() as patch, pytest.raises(StopError):
            stop_after(patch, 3)
            run(*words)
        if torn:  # what was written after the journal
            with (tmp_path / "parts" / "data.tar.part").open("ab") as file:
                file.write(b"x" * 700)
    assert not (tmp_path / "parts" / "data.tar").exists()
    calls = stop_after(monkeypatch, 100)
    assert run(*words)[0] == 1
    assert len(calls) == 2
    for name in ("data.tar", "data.failed.tsv"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_another_run_is_not_continued(run, model, tmp_path):
    source = write_tar(tmp_path / "data.tar", samples=2)
    words = ("apply", source, "--model", model, "--out", tmp_path / "out")
    assert run(*words)[0] == 0
    code, _, err = run(*words, "--lam", "0.1,0.9")
    assert code == 2 and "must be of the same run; got another lambda: start anew (--restart)" in err
    assert run(*words, "--lam", "0.1,0.9", "--restart")[0] == 0


def test_bad_tars(run, model, tmp_path):
    whole = write_tar(tmp_path / "whole.tar").read_bytes()
    for name, content in (("none.tar", None), ("text.tar", b"no tar" * 200), ("cut.tar", whole[: 5 * 1024 + 700])):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        code, _, err = run("apply", tmp_path / name, "--model", model, "--out", tmp_path / "out")
        assert code == (1 if name == "cut.tar" else 2) and "tar must be" in err, name
    (tmp_path / "short.tar").write_bytes(whole[: 9 * 1024])  # between two members: three samples are whole
    code, _, err = run("apply", tmp_path / "short.tar", "--model", model, "--out", tmp_path / "out")
    assert code == 0 and "short.tar: it has no mark at its end, and may be cut off" in err
    assert len(members(tmp_path / "out" / "short.tar")) == 9
    assert (tmp_path / "out" / "cut.tar.part").exists() and not (tmp_path / "out" / "cut.tar").exists()
    code, _, err = run("apply", tmp_path / "text.tar", "--model", model, "--sweep", 3, "--out", tmp_path / "out")
    assert code == 2 and "--sweep must be left out for tars" in err


def test_members_outside_of_their_folder(run, model, tmp_path):
    with tarfile.open(tmp_path / "data.tar", "w") as tar:
        header = tarfile.TarInfo("../escape.txt")
        header.size = 4
        tar.addfile(header, io.BytesIO(b"text"))
    code, _, err = run("apply", tmp_path / "data.tar", "--model", model, "--out", tmp_path / "out", "--to", "folder")
    assert code == 2 and "names of members must stay in their folder" in err and not (tmp_path / "escape.txt").exists()


@pytest.mark.parametrize("name, key", [("a/b.c.jpg", "a/b"), ("b.jpg", "b"), ("a.d/b.jpg", "a.d/b"), ("a/b", "a/b")])
def test_keys_are_those_of_webdataset(name, key):
    assert tars.key_of(name) == key


def test_shards_cover_everything_once(monkeypatch):
    items = list(range(11))
    parts = [shards.Shard(rank, 3).own(items) for rank in range(3)]
    assert sorted(item for part in parts for item in part) == items and max(map(len, parts)) - min(map(len, parts)) <= 1
    assert str(shards.Shard(3, 12)) == "03-of-12" and str(shards.Shard()) == "00-of-01"
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"0 <= RANK < WORLD_SIZE; got RANK=2, WORLD_SIZE=2"):
        shards.Shard.here()


def test_a_process_ends_when_all_have_finished():
    """Torchrun ends all processes when one returns an error: that one has to be the last."""
    store, ended, looked = torch.distributed.HashStore(), [], threading.Event()

    def finish(code):
        ended.append(shards.Others(store, 3, looked.set).finish(code))

    threads = [threading.Thread(target=finish, args=(code,)) for code in (1, 0)]
    for thread in threads:
        thread.start()
    assert looked.wait(10) and not ended
    finish(0)
    for thread in threads:
        thread.join(10)
    assert sorted(ended) == [0, 0, 1]
    assert shards.Others(store, 9).finish(2) == 2  # which stops the others, such as a full disk


def test_processes_of_other_launchers_do_not_wait(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert shards.Others.join(shards.Shard(0, 2)).finish(1) == 1


def torchrun(count, *words):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(count), "-m", "tunable_ops.cli"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    words = [str(word) for word in words]
    return subprocess.run([*command, *words], capture_output=True, text=True, timeout=1800, env=environment)


@pytest.mark.slow
def test_two_processes_share_a_tar(run, model, tmp_path):
    source = write_tar(tmp_path / "data.tar", broken=(3,))
    done = torchrun(2, "apply", source, "--model", model, "--out", tmp_path / "two")
    assert done.returncode == 1, done.stderr  # of the process that met the broken one, once both had finished
    assert run("apply", source, "--model", model, "--out", tmp_path / "one")[0] == 1
    parts = [members(tmp_path / "two" / f"data.0{rank}-of-02.tar") for rank in (0, 1)]
    assert not set(parts[0]) & set(parts[1]) and parts[0] | parts[1] == members(tmp_path / "one" / "data.tar")
    assert "part/0003.png" in (tmp_path / "two" / "data.01-of-02.failed.tsv").read_text()


@pytest.mark.slow
def test_two_processes_share_a_folder_and_skip_what_is_done(run, model, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(6):
        (folder / f"{number}.png").write_bytes(b"no picture" if number == 4 else picture(number))
    words = ("apply", folder, "--model", model, "--out", tmp_path / "two", "--resume")
    done = torchrun(2, *words)
    assert done.returncode == 1, done.stderr
    assert run("apply", folder, "--model", model, "--out", tmp_path / "one")[0] == 1
    one, two = ({path.name: path.read_bytes() for path in (tmp_path / name).glob("*.png")} for name in ("one", "two"))
    assert one == two and len(one) == 5
    assert "4.png" in (tmp_path / "two" / "failed-00-of-02.tsv").read_text()
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "two").glob("*.png")}
    next(iter(times)).unlink()
    (folder / "4.png").unlink()
    assert torchrun(2, *words).returncode == 0
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "two").glob("*.png")}
    assert after.keys() == times.keys() and sum(after[path] != times[path] for path in times) == 1


@pytest.mark.slow
def test_memory_is_constant_over_many_pictures(model, tmp_path):
    """10,000 pictures in a tar and 10,000 files, against 500 of each."""
    peaks = {}
    for count in (500, 10_000):
        write_tar(tmp_path / f"{count}.tar", count, suffix="png")
        folder = tmp_path / f"in{count}"
        folder.mkdir()
        for number in range(count):
            (folder / f"{number}.png").write_bytes(picture(number, size=(16, 16)))
        for name in (f"{count}.tar", f"in{count}"):
            words = ["apply", tmp_path / name, "--model", model, "--threads", "1", "--quiet", "--out", tmp_path / "out"]
            code = (
                "import resource\nfrom tunable_ops import cli\n"
                f"assert cli.main({[str(word) for word in words]!r}) == 0\n"
                "print('peak', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
            )
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
            peaks[name[-3:] == "tar", count] = int(done.stdout.split("peak")[-1]) / 1024
    assert peaks[True, 10_000] - peaks[True, 500] < 20, peaks
    assert peaks[False, 10_000] - peaks[False, 500] < 40, peaks  # the list of the names
