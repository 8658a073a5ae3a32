"""`tunable-ops apply`: what is written, tiles, noise, and every kind of bad input."""

import subprocess
import sys

import pytest
import torch

from tunable_ops import images
from tunable_ops.cli.sources import output_base
from tunable_ops.serialization import load


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def quantised(image):
    return (image.clamp(0, 1) * 255).round() / 255


def close_to_file(path, expected):
    """One grey level: a value at the middle of two may round either way."""
    torch.testing.assert_close(images.read_image(path), quantised(expected), rtol=0, atol=1.01 / 255)
    same = (images.read_image(path) == quantised(expected)).float().mean()
    assert same > 0.99, f"only {same:.3f} of the values agree"


@torch.no_grad()
def through(model, path, lam):
    return load(model)(images.read_image(path)[None], lam)[0]


def test_one_position_writes_the_networks_output(run, model, photo, tmp_path):
    code, out, err = run("apply", photo, "--model", model, "--lam", "0.3,0.7", "--out", tmp_path / "out")
    assert code == 0, err
    assert names(tmp_path / "out") == ["photo_lam0.30-0.70.png"]
    close_to_file(tmp_path / "out" / "photo_lam0.30-0.70.png", through(model, photo, (0.3, 0.7)))
    other = quantised(through(model, photo, (0.7, 0.3)))
    assert (images.read_image(tmp_path / "out" / "photo_lam0.30-0.70.png") - other).abs().max() > 0.02
    assert out == f"{tmp_path / 'out' / 'photo_lam0.30-0.70.png'}  denoise 0.30, keep 0.70\n"
    assert "1 of 1 images done" in err


def test_names_and_defaults(run, model, photo, tmp_path):
    assert run("apply", photo, "--model", model, "--lam", "keep=0.75", "--out", tmp_path / "a")[0] == 0
    assert names(tmp_path / "a") == ["photo_lam0.25-0.75.png"]
    assert run("apply", photo, "--model", model, "--out", tmp_path / "b")[0] == 0
    default = load(model).spec.defaults
    assert names(tmp_path / "b") == [f"photo_lam{default[0]:.2f}-{default[1]:.2f}.png"]


def test_sweep_of_a_folder_writes_images_and_strips(run, model, photo, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a.png", "b.jpg"):
        images.write_image(images.read_image(photo), folder / name)
    code, _, err = run("apply", folder, "--model", model, "--sweep", 3, "--out", tmp_path / "out")
    assert code == 0, err
    positions = ["0.00-1.00", "0.50-0.50", "1.00-0.00"]
    assert names(tmp_path / "out") == sorted(
        [f"{base}_lam{text}.png" for base in ("a", "b.jpg") for text in positions] + ["a_sweep.png", "b.jpg_sweep.png"]
    )
    close_to_file(tmp_path / "out" / "a_lam1.00-0.00.png", through(model, folder / "a.png", (1.0, 0.0)))
    close_to_file(tmp_path / "out" / "a_lam0.00-1.00.png", through(model, folder / "a.png", (0.0, 1.0)))
    strip = images.read_image(tmp_path / "out" / "a_sweep.png")
    # the input comes first, then the positions in order, at the foot of the strip
    foot = strip[:, -40:]
    columns = [images.read_image(folder / "a.png")]
    columns += [images.read_image(tmp_path / "out" / f"a_lam{text}.png") for text in reversed(positions)]
    at = 0
    for column in columns:
        while not torch.equal(foot[..., at : at + 50], column):
            at += 1
            assert at + 50 <= foot.shape[-1], "a column is missing or out of order"
        at += 50


def test_sweep_over_a_box_moves_one_parameter_at_a_time(run, save_network, photo, tmp_path):
    path = tmp_path / "box.safetensors"
    save_network(path, domain="box", names=("noise", "blur/2"), ranges=((0.0, 1.0), (0.0, 2.0)), defaults=(0.5, 0.25))
    code, _, err = run("apply", photo, "--model", path, "--sweep", 2, "--out", tmp_path / "out")
    assert code == 0, err
    assert names(tmp_path / "out") == [
        "photo_lam0.00-0.25.png",
        "photo_lam0.50-0.00.png",
        "photo_lam0.50-2.00.png",
        "photo_lam1.00-0.25.png",
        "photo_sweep-blur_2.png",
        "photo_sweep-noise.png",
    ]
    close_to_file(tmp_path / "out" / "photo_lam0.50-2.00.png", through(path, photo, (0.5, 2.0)))


def test_sweep_of_one_parameter_beside_one_that_is_held(run, save_network, photo, tmp_path):
    path = tmp_path / "box.safetensors"
    save_network(path, domain="box", names=("noise", "blur/2"), ranges=((0.0, 1.0), (0.0, 2.0)), defaults=(0.5, 0.25))
    for words in (["--lam", "noise=0.125", "--sweep", 2], ["--lam", "noise=0.125", "--sweep", "blur/2=2"]):
        out = tmp_path / str(len(list(tmp_path.iterdir())))
        code, _, err = run("apply", photo, "--model", path, *words, "--out", out)
        assert code == 0, err
        # the strip is called after its parameter, as that of a sweep of all: they may lie in one folder
        assert names(out) == ["photo_lam0.12-0.00.png", "photo_lam0.12-2.00.png", "photo_sweep-blur_2.png"]
        close_to_file(out / "photo_lam0.12-2.00.png", through(path, photo, (0.125, 2.0)))
    assert run("apply", photo, "--model", path, "--sweep", "noise=2", "--out", tmp_path / "one")[0] == 0
    assert names(tmp_path / "one") == ["photo_lam0.00-0.25.png", "photo_lam1.00-0.25.png", "photo_sweep-noise.png"]


def test_tiles_do_not_show(run, model, tmp_path):
    torch.manual_seed(3)
    photo = images.write_image(torch.rand(3, 83, 117), tmp_path / "noise.png")
    for name, words in (("whole", ["--tile", 0]), ("tiled", ["--tile", 32, "--overlap", 16])):
        code, _, err = run("apply", photo, "--model", model, "--lam", "1,0", "--out", tmp_path / name, *words)
        assert code == 0, err
    whole = images.read_image(tmp_path / "whole" / "noise_lam1.00-0.00.png")
    close_to_file(tmp_path / "whole" / "noise_lam1.00-0.00.png", through(model, photo, (1.0, 0.0)))
    close_to_file(tmp_path / "tiled" / "noise_lam1.00-0.00.png", whole)


def test_grey_networks_take_each_colour_channel(run, save_network, photo, tmp_path):
    path = tmp_path / "grey.safetensors"
    net = save_network(path, channels=1)
    assert run("apply", photo, "--model", path, "--lam", "1,0", "--out", tmp_path / "out")[0] == 0
    with torch.no_grad():
        expected = net(images.read_image(photo)[:, None], (1.0, 0.0))[:, 0]
    close_to_file(tmp_path / "out" / "photo_lam1.00-0.00.png", expected)


def test_networks_of_other_channels_are_refused(run, save_network, photo, tmp_path):
    save_network(tmp_path / "four.safetensors", channels=4)
    code, _, err = run("apply", photo, "--model", tmp_path / "four.safetensors", "--out", tmp_path / "out")
    assert code == 2
    assert err == "tunable-ops apply: error: --model must be a network for images of 1 or 3 channels; got 4 channels\n"


def test_noise_is_repeatable_and_its_psnr_is_told(run, model, photo, tmp_path):
    words = ("apply", photo, "--model", model, "--sweep", 2, "--noise", 25)
    code, first, err = run(*words, "--out", tmp_path / "a")
    assert code == 0, err
    again, other = run(*words, "--out", tmp_path / "a"), run(*words, "--out", tmp_path / "b", "--seed", 1)
    assert again[1] == first
    assert all(line.endswith(" dB") for line in first.splitlines()[:2])
    psnr = [line.split("  ")[-1] for line in first.splitlines()[:2]]
    assert psnr != [line.split("  ")[-1] for line in other[1].splitlines()[:2]]
    clean = images.read_image(photo)
    noisy = clean + 25 / 255 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = load(model)(noisy[None], (1.0, 0.0))[0]
    close_to_file(tmp_path / "a" / "photo_lam1.00-0.00.png", expected)
    mse = (expected.clamp(0, 1) - clean).double().square().mean()
    assert float(psnr[0].split()[0]) == pytest.approx(float(-10 * mse.log10()), abs=0.006)


def test_a_bad_file_is_named_and_skipped_and_the_exit_code_is_1(run, model, photo, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a.png", "c.png"):
        images.write_image(images.read_image(photo), folder / name)
    (folder / "b.png").write_text("not a picture")
    code, out, err = run("apply", folder, "--model", model, "--lam", "1,0", "--out", tmp_path / "out")
    assert code == 1
    assert names(tmp_path / "out") == ["a_lam1.00-0.00.png", "c_lam1.00-0.00.png"]
    skipped = [line for line in err.splitlines() if "skipped" in line]
    assert len(skipped) == 1 and str(folder / "b.png") in skipped[0] and "readable image" in skipped[0]
    assert "2 of 3 images done" in err
    assert len(out.splitlines()) == 2


def test_only_bad_files_give_2(run, model, tmp_path):
    (tmp_path / "b.png").write_text("not a picture")
    code, _, err = run("apply", tmp_path / "b.png", "--model", model, "--out", tmp_path / "out")
    assert code == 2
    assert "skipped" in err and "error: images: paths must hold at least one readable image" in err


def test_an_image_that_the_network_cannot_take_is_named_and_skipped(run, model, photo, tmp_path, monkeypatch):
    small = images.write_image(torch.rand(3, 4, 4), tmp_path / "small.png")
    forward = type(load(model).network).forward

    def picky(self, x):
        if x.shape[-1] < 8:
            raise RuntimeError("padding size should be less\nthan the input")
        return forward(self, x)

    monkeypatch.setattr(type(load(model).network), "forward", picky)
    code, _, err = run("apply", small, photo, "--model", model, "--lam", "1,0", "--out", tmp_path / "out")
    assert code == 1
    assert f"skipped {small}: padding size should be less than the input\n" in err
    assert names(tmp_path / "out") == ["photo_lam1.00-0.00.png"]


@pytest.mark.filterwarnings("default::UserWarning")
def test_warnings_for_values_outside_the_range_and_another_sum(run, model, photo, tmp_path):
    code, _, err = run("apply", photo, "--model", model, "--lam", "1.5,-0.5", "--out", tmp_path / "a")
    assert code == 0
    assert "tunable-ops apply: warning: denoise = 1.5 is outside the range 0..1" in err
    code, _, err = run("apply", photo, "--model", model, "--lam", "1,1", "--out", tmp_path / "b")
    assert code == 0
    assert "warning: --lam must sum to 1; got '1,1', which sums to 2: using denoise 0.50, keep 0.50" in err
    assert names(tmp_path / "b") == ["photo_lam0.50-0.50.png"]


def test_inputs_of_one_name_do_not_overwrite_each_other(run, model, photo, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    images.write_image(1 - images.read_image(photo), other / "photo.png")
    words = (photo, other, photo)  # the same file twice counts once
    code, _, err = run("apply", *words, "--model", model, "--lam", "1,0", "--out", tmp_path / "out")
    assert code == 0 and "2 of 2 images done" in err
    assert names(tmp_path / "out") == ["photo-2_lam1.00-0.00.png", "photo_lam1.00-0.00.png"]
    close_to_file(tmp_path / "out" / "photo-2_lam1.00-0.00.png", through(model, other / "photo.png", (1.0, 0.0)))


def test_outputs_of_different_inputs_have_different_names():
    names = ["a.png", "a.jpg", "a.PNG", "a.jpg.png", "a.png.png", "a.b.png", "a.b", "b.png"]
    bases = [output_base(name, ".png") for name in names]
    assert bases == ["a", "a.jpg", "a.PNG", "a.jpg.png", "a.png.png", "a.b", "a.b", "b"][:5] + bases[5:]
    assert len(set(bases[:6])) == 6


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--lam", "0.3"], "--lam must have 2 values: denoise 0 to 1"),
        (["--lam", "nan,0"], "--lam must be finite numbers; got 'nan,0'"),
        (
            ["--lam", "denoice=1"],
            "--lam must name parameters of the network (denoise, keep); got 'denoice'; did you mean",
        ),
        (["--sweep", "1"], "--sweep must be at least 2 positions; got 1"),
        (["--sweep", "kep=3"], "--sweep must name parameters of the network (denoise, keep); got 'kep'; did you mean"),
        (["--sweep", "keep=3", "--lam", "keep=1"], "--lam must leave out 'keep', which --sweep moves; got 'keep=1'"),
        (["--tile", "100"], "--tile must be 0 or a positive multiple of 16; got 100"),
        (["--tile", "-16"], "--tile must be 0 or a positive multiple of 16; got -16"),
        (["--tile", "64", "--overlap", "64"], "--overlap must lie in 0..48 (--tile - 16); got 64"),
        (["--overlap", "-1"], "--overlap must lie in 0..496 (--tile - 16); got -1"),
        (["--noise", "-1"], "--noise must be at least 0; got -1.0"),
        (["--noise", "nan"], "--noise must be at least 0; got nan"),
        (["--threads", "0"], "--threads must be at least 1; got 0"),
        (["--seed", "99999999999999999999"], "--seed must lie in 0..2^63 - 1; got 99999999999999999999"),
        (["--device", "warp"], "--device must be one that works here; got 'warp'"),
        (["--device", "cuda:99"], "--device must be one that works here; got 'cuda:99'"),
    ],
)
def test_bad_options_give_one_line_and_2_before_any_work(run, model, photo, tmp_path, words, text):
    code, out, err = run("apply", photo, "--model", model, "--out", tmp_path / "out", *words)
    assert (code, out) == (2, "")
    assert err.startswith(f"tunable-ops apply: error: {text}") and err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_bad_paths_give_one_line_and_2_before_any_work(run, model, photo, tmp_path):
    (tmp_path / "empty").mkdir()
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(model.read_bytes()[:-100])
    (tmp_path / "file").write_text("in the way")
    out = tmp_path / "out"
    cases = [
        ([tmp_path / "no.png", "--model", model, "--out", out], "must be an existing file or folder; got"),
        ([tmp_path / "empty", "--model", model, "--out", out], "must be a folder with pictures"),
        ([photo, "--model", tmp_path / "no.safetensors", "--out", out], "no.safetensors"),
        ([photo, "--model", cut, "--out", out], "cut short"),
        ([photo, "--model", photo, "--out", out], "must be a safetensors file"),
        ([photo, "--model", model, "--out", tmp_path / "file"], "--out must be a folder to write in; got"),
        ([photo, "--model", model, "--out", tmp_path / "file" / "below"], "--out must be a folder to write in; got"),
    ]
    for words, text in cases:
        code, stdout, err = run("apply", *words)
        assert (code, stdout) == (2, ""), err
        assert err.startswith("tunable-ops apply: error: ") and text in err and err.count("\n") == 1
        assert not out.exists()


def test_threads_and_a_process_of_its_own(model, photo, tmp_path):
    words = [
        "apply",
        photo,
        "--model",
        model,
        "--sweep",
        2,
        "--threads",
        1,
        "--device",
        "cpu",
        "--out",
        tmp_path / "out",
    ]
    code = (
        "import sys, torch; from tunable_ops import cli\n"
        "code = cli.main(sys.argv[1:]); print(torch.get_num_threads()); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "1"
    assert done.stdout.count(".png") == 3
    assert "Traceback" not in done.stderr
