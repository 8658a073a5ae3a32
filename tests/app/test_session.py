"""A session without the page: windows, whole pictures, masks, sweeps, files, and the commands that repeat them."""

import base64
import shlex
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from tests.app.conftest import ARGUMENTS, small_network, whole
from tunable_ops import convert, images
from tunable_ops.app import pictures
from tunable_ops.app import session as sessions
from tunable_ops.app.engine import Cancelled, Engine, Replaced
from tunable_ops.app.masks import FEATHER, feathered, ink, painted
from tunable_ops.app.networks import Choice
from tunable_ops.app.settings import Refused, Settings
from tunable_ops.app.sliders import moved
from tunable_ops.cli import main
from tunable_ops.knob_files import save_knob
from tunable_ops.modules import LambdaSpec
from tunable_ops.modules.fold import base_network


def disc(height, width, row, column, radius=6):
    """What the page sends of a canvas with a disc on it."""
    rows, columns = np.ogrid[:height, :width]
    layer = np.zeros((height, width, 4), np.uint8)
    layer[(rows - row) ** 2 + (columns - column) ** 2 <= radius**2] = (255, 0, 128, 255)
    content = images.encode_picture([images.Frame(layer)], "png")
    return "data:image/png;base64," + base64.b64encode(content).decode()


def test_the_window_is_the_middle_of_the_whole_picture(session, picture):
    session.open(picture)
    session.values = (10.0, 0.5)
    session.engine.window = 64
    window, output = session.preview(), whole(session.restore()).output
    assert window.before.shape[1:] == window.after.shape[1:]
    height, width = window.after.shape[1:]
    places = [
        (y, x)
        for y in range(output.shape[1] - height + 1)
        for x in range(output.shape[2] - width + 1)
        if torch.equal(session.given.image[:, y : y + height, x : x + width], window.before)
    ]
    ((y, x),) = places
    torch.testing.assert_close(output[:, y : y + height, x : x + width], window.after, atol=1e-5, rtol=0)


def test_the_window_moves(session, picture):
    session.open(picture)
    session.engine.window = 64
    session.centre = (0.0, 1.0)
    corner = session.preview()
    assert torch.equal(corner.before, session.given.image[:, : corner.before.shape[1], -corner.before.shape[2] :])


def test_another_position_is_another_picture_and_the_same_is_not_made_again(session, picture):
    session.open(picture)
    first = whole(session.restore())
    assert whole(session.restore()) is first
    session.values = (40.0, 0.0)
    assert not torch.equal(whole(session.restore()).output, first.output)


def test_a_picture_with_other_noise_is_another_one(session, picture, monkeypatch):
    """Also where it takes the place in memory of the one before, and so its `id`."""
    monkeypatch.setattr(sessions, "id", lambda _: 1, raising=False)
    session.open(picture)
    first = whole(session.restore())
    session.add_noise(50)
    assert session.whole is None
    assert not torch.equal(whole(session.restore()).output, first.output)


@pytest.mark.parametrize("kind", pictures.KINDS)
def test_a_download_is_what_the_command_writes(session, deep_picture, tmp_path, monkeypatch, kind):
    session.open(deep_picture)
    session.values = (12.5, 0.25)
    whole(session.restore())
    folder = tmp_path / "downloads"
    folder.mkdir()
    file, lost = session.download(folder, kind)
    monkeypatch.chdir(tmp_path)  # an upload is named without its folder
    assert main([*shlex.split(session.command(kind))[1:], "--quiet", "--threads", "1"]) == 0
    written = Path("restored") / file.name
    assert written.read_bytes() == file.read_bytes()
    again = images.open_picture(file)
    if kind in ("as the input", "png", "tiff"):
        assert (again.bits, again.alpha, again.metadata.icc) == (16, True, session.given.picture.metadata.icc)
        assert lost == []
    else:
        assert again.bits == 8 and lost


def test_noise_is_that_of_the_command(session, picture, tmp_path, monkeypatch):
    session.open(picture, 25.0)
    whole(session.restore())
    file, _ = session.download(tmp_path, "png")
    monkeypatch.chdir(tmp_path)
    command = shlex.split(session.command("png"))
    assert command[command.index("--noise") + 1] == "25"
    assert main([*command[1:], "--quiet", "--threads", "1"]) == 0
    assert (Path("restored") / file.name).read_bytes() == file.read_bytes()


def test_a_mask_changes_the_picture_there_and_nowhere_else(session, picture):
    session.open(picture)
    before = whole(session.restore()).output
    session.inside = (0.0, 1.0)
    mask = painted(disc(70, 90, 30, 20), (70, 90))
    session.set_mask(mask)
    after = whole(session.restore()).output
    changed = (after - before).abs().amax(0)
    assert changed[28:32, 18:22].min() > 1e-4
    reach = 6 + FEATHER + 3  # three 3x3 convolutions
    assert changed[:, 20 + reach + 1 :].max() < 1e-5
    # and there it is the picture of the values inside
    session.set_mask(torch.ones_like(mask))
    inside = whole(session.restore()).output
    session.set_mask(None)
    session.values = (0.0, 1.0)
    torch.testing.assert_close(inside, whole(session.restore()).output, atol=1e-5, rtol=0)


def test_the_window_shows_the_mask(session, picture):
    session.open(picture)
    session.engine.window = 128
    plain = session.preview().after
    session.inside = (0.0, 1.0)
    session.set_mask(torch.ones(1, 70, 90))
    masked = session.preview()
    assert masked.after.shape == masked.before.shape
    assert masked.after.shape != plain.shape or not torch.equal(masked.after, plain)


def test_a_mask_that_was_saved_is_the_same_mask(session, picture, tmp_path):
    session.open(picture)
    with pytest.raises(Refused, match=r"^there must be a mask before it is saved: paint one"):
        session.save_mask(tmp_path)
    soft = painted(disc(70, 90, 30, 20), (70, 90))
    session.set_mask(soft)
    kept = session.mask
    assert (kept - soft).abs().max() <= 0.5 / 65535 and bool(((kept > 0) & (kept < 1)).any())
    file = session.save_mask(tmp_path)
    assert file.name == "picture_mask.png" and images.open_picture(file).size == (70, 90)
    session.set_mask(pictures.open_mask(file, (70, 90), session.settings))
    assert torch.equal(session.mask, kept)


def test_painted_layers():
    assert painted("", (8, 8)) is None and painted(disc(8, 8, 50, 50), (8, 8)) is None
    mask = painted(disc(40, 40, 20, 20, 12), (80, 80))
    assert mask.shape == (1, 80, 80) and mask[0, 40, 40] == 1 and mask[0, 2, 2] == 0
    edge = feathered(torch.cat([torch.zeros(1, 20, 20), torch.ones(1, 20, 20)], 2))[0, 10]
    assert edge[20 - FEATHER - 1] == 0 and edge[20 + FEATHER] == 1 and 0 < edge[20] < 1


def test_strokes_on_a_mask_from_a_file_leave_the_rest_of_it_as_it_is():
    """16 bits, hard edges, more pixels than the canvas has."""
    height, width, scale = 600, 2048, 2  # the canvas has 1024 pixels a side
    under = torch.zeros(1, height, width)
    under[:, :, :1024] = torch.rand(1, height, 1024, generator=torch.Generator().manual_seed(0)) * 0.2 + 0.31
    alpha = ink(under)
    assert alpha.shape == (1, height // scale, width // scale)
    rows, columns = np.ogrid[: height // scale, : width // scale]

    def strokes(*more):
        layer = np.full((height // scale, width // scale, 4), 255, np.uint8)
        layer[..., 3] = alpha[0].mul(255).round().numpy()
        for column, value in more:
            layer[(rows - 150) ** 2 + (columns - column) ** 2 <= 20**2, 3] = value
        content = images.encode_picture([images.Frame(layer)], "png")
        return "data:image/png;base64," + base64.b64encode(content).decode()

    assert torch.equal(painted(strokes(), (height, width), under), under)
    mask = painted(strokes((200, 255), (400, 0), (800, 255)), (height, width), under)
    assert [float(mask[0, 300, column]) for column in (400, 800, 1600)] == [1, 0, 1]
    far = torch.ones(height, width, dtype=torch.bool)
    for column in (400, 800, 1600):
        far[250:350, column - 50 : column + 50] = False
    assert torch.equal(mask[0][far], under[0][far])
    layer = np.zeros((height // scale, width // scale, 4), np.uint8)
    content = images.encode_picture([images.Frame(layer)], "png")
    assert painted("data:image/png;base64," + base64.b64encode(content).decode(), (height, width), under) is None


def test_a_sweep(session, picture):
    session.open(picture)
    steps = list(session.sweep("keep", 3))
    assert steps[-1].labels == ["input", "keep 0.00", "keep 0.50", "keep 1.00"]
    assert [tuple(image.shape) for image in steps[-1].pictures] == 4 * [(3, 70, 90)]
    assert torch.equal(steps[-1].pictures[0], session.given.image)
    assert all(0 <= step <= 1 for step in steps[:-1]) and steps[-2] == pytest.approx(1)


def test_a_sweep_leaves_the_masks_values_where_they_are(session, picture):
    session.open(picture)
    plain = whole(session.sweep("keep", 2)).pictures
    session.set_mask(torch.cat([torch.ones(1, 70, 45), torch.zeros(1, 70, 45)], 2))
    session.inside = (0.0, 1.0)
    first, last = whole(session.sweep("keep", 2)).pictures[1:]
    assert torch.equal(first[:, :, :30], last[:, :, :30]) and not torch.equal(first[:, :, 60:], last[:, :, 60:])
    torch.testing.assert_close(first[:, :, 60:], plain[1][:, :, 60:], atol=1e-5, rtol=0)
    assert (first[:, :, :30] - plain[1][:, :, :30]).abs().max() > 1e-3


@pytest.mark.parametrize("turned", [False, True])
def test_a_mask_lies_as_it_is_shown(session, tmp_path, turned):
    """A camera stores the picture on its side and says so; a mask may be a file of the same kind, or upright."""
    photo = Image.fromarray(np.arange(40 * 60 * 3, dtype=np.uint32).reshape(40, 60, 3).astype(np.uint8))
    exif = Image.Exif()
    exif[274] = 6  # shown turned by 90 degrees clockwise
    photo.save(tmp_path / "photo.jpg", exif=exif, quality=95)
    given = session.open(tmp_path / "photo.jpg")
    assert given.size == (60, 40)
    top = np.zeros((60, 40), np.uint8)
    top[:20] = 255  # as shown
    mask = Image.fromarray(top)
    if turned:  # as the camera would store it
        mask.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "mask.png", exif=exif)
    else:
        mask.save(tmp_path / "mask.png")
    found = pictures.open_mask(tmp_path / "mask.png", given.size, session.settings)
    assert torch.equal(found[0], torch.from_numpy(top).float() / 255)


def test_sliders_of_a_simplex_follow_each_other(session, simplex_file, picture):
    spec = LambdaSpec.create(3, names=("a", "b", "c"))
    assert moved(spec, (0.2, 0.2, 0.6), 0, 0.6) == pytest.approx((0.6, 0.1, 0.3))
    assert moved(spec, (1.0, 0.0, 0.0), 0, 0.5) == pytest.approx((0.5, 0.25, 0.25))
    session.open(picture)
    session.choose(Choice(str(simplex_file)))
    assert sum(session.values) == pytest.approx(1) and sum(session.inside) == pytest.approx(1)
    assert whole(session.sweep("b", 2)).labels == ["input", "b 0.00", "b 1.00"]


def test_a_whole_picture_stops_between_layers(session, picture):
    session.open(picture)
    live = session.engine._full.live.network
    entered, go_on = threading.Event(), threading.Event()

    def wait(*_):
        entered.set()
        go_on.wait(10)

    first = next(module for module in live.modules() if isinstance(module, torch.nn.Conv2d))
    handle = first.register_forward_hook(wait)
    failed = []

    def run():
        try:
            whole(session.restore())
        except Replaced as error:  # not "Stopped.": the next picture comes when the slider rests
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    assert entered.wait(10)
    session.values = (1.0, 0.0)
    session.preview()  # of another position: the picture at the former one is of no use
    go_on.set()
    thread.join(10)
    handle.remove()
    assert failed and session.whole is None


def test_a_picture_that_is_stopped_says_so(session, picture):
    session.open(picture)
    restoring = session.restore()
    first = next(each for each in session.engine._full.live.network.modules() if isinstance(each, torch.nn.Conv2d))
    first.register_forward_pre_hook(lambda *_: session.cancel())
    with pytest.raises(Cancelled) as caught:
        whole(restoring)
    assert not isinstance(caught.value, Replaced)


def test_a_thread_that_may_not_step_back_works_all_the_same(session, picture, monkeypatch):
    def refuse(*_):
        raise PermissionError

    monkeypatch.setattr(sessions.os, "setpriority", refuse, raising=False)
    session.open(picture)
    assert whole(session.restore()).output.shape == (3, 70, 90)


def test_a_mask_of_the_picture_before_is_left_out(session, picture):
    session.open(picture)
    session.set_mask(torch.ones(1, 8, 8))
    assert session.mask is None and session.preview()


def test_estimated_noise(session, picture):
    session.open(picture)
    sigma = session.estimate()
    assert session.values == (50.0, 0.0) and sigma > 50  # noise alone is stronger than the range


def test_estimated_noise_of_a_jpeg_with_subsampled_colour(session, tmp_path):
    noise = np.random.default_rng(0).normal(128, 25, (64, 64, 3)).clip(0, 255).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.jpg", quality=95, subsampling="4:2:0")
    session.open(tmp_path / "a.jpg")
    assert session.estimate() == pytest.approx(25, rel=0.1)


def test_a_plain_network_has_no_sliders(session, network_file, picture, tmp_path):
    file = tmp_path / "plain.safetensors"
    assert main(["fold", str(network_file), "--lam", "sigma=10,keep=0", "--out", str(file)]) == 0
    engine = session.choose(Choice(str(file)))
    assert engine.spec is None and session.values == ()
    session.open(picture)
    output = whole(session.restore()).output
    session.choose(Choice(str(network_file)))
    session.values = (10.0, 0.0)
    torch.testing.assert_close(output, whole(session.restore()).output, atol=1e-5, rtol=0)


def test_several_knobs_add_up(session, picture, tmp_path):
    plain = base_network(small_network())
    weights = tmp_path / "plain.safetensors"
    save_file(plain.state_dict(), weights)
    knobs = []
    for name in ("gloss", "grain"):
        net = convert(plain, num_params=1, names=(name,), domain="box")
        with torch.no_grad():
            for key, parameter in net.named_parameters():
                if "tuning" not in key:
                    parameter[1:] += 0.05 * torch.randn_like(parameter[1:])
        knobs.append(tmp_path / f"{name}.safetensors")
        save_knob(net, knobs[-1], architecture="dncnn", arguments=ARGUMENTS)
    engine = session.choose(session.networks.sort([*knobs, weights], "denoise"))
    assert engine.spec.names == ("gloss", "grain") and engine.title == "plain + gloss + grain"
    session.open(picture)
    outputs = []
    for values in ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0)):
        session.values = values
        outputs.append(whole(session.restore()).output)
    torch.testing.assert_close(outputs[0], plain(session.given.image[None])[0], atol=1e-5, rtol=0)
    assert not torch.equal(outputs[0], outputs[1]) and not torch.equal(outputs[1], outputs[2])
    assert session.command("png").count("--knob") == 2


def test_windows_follow_the_speed_of_the_machine(session):
    engine: Engine = session.engine
    engine.window = 160
    for _ in range(3):
        engine._observe(10 * engine.settings.preview_ms / 1000)
    assert engine.window == 128
    for _ in range(3):
        engine._observe(0.0)
    assert engine.window > 128
    assert engine.side(True) < engine.side(False)


def test_samples_are_small_and_licensed():
    folder = pictures.SAMPLES[0].file.parent
    assert sum(file.stat().st_size for file in folder.iterdir()) < 300_000
    licences = (folder / "LICENSES.txt").read_text()
    for sample in pictures.SAMPLES:
        assert sample.file.name in licences
        assert pictures.open_given(sample.file, Settings()).size[0] <= 512
