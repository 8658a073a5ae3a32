"""Animations and pages: every frame goes from file to file, with its time, depth, alpha and profile."""

import itertools
import warnings

import numpy as np
import pytest

pytest.importorskip("PIL", reason="Pillow is not installed (tunable-ops[train])")
pytest.importorskip("imagecodecs", reason="imagecodecs is not installed (tunable-ops[train])")
pytest.importorskip("tifffile", reason="tifffile is not installed (tunable-ops[train])")
import tifffile
from PIL import Image, ImageSequence

from tests.picture_files import WIDE, copy, values
from tunable_ops import images


def animation(path, count=4, alpha=False, **options):
    frames = [Image.fromarray(np.full((6, 8, 3), 60 * k, np.uint8)) for k in range(count)]
    for frame in frames:
        if alpha:
            mask = Image.new("L", (8, 6), 255)
            mask.paste(0, (0, 0, 4, 6))
            frame.putalpha(mask)
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=[40, 80, 120, 200][:count], **options)


@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("loop", [0, 3])
@pytest.mark.parametrize("kinds", list(itertools.product(["gif", "webp", "png"], repeat=2)), ids="-".join)
@pytest.mark.filterwarnings("ignore:.*gif has 256 colours")
def test_animations_keep_frames_durations_loops_and_alpha(tmp_path, kinds, loop, alpha):
    options = {"lossless": True} if kinds[0] == "webp" else {"disposal": 2} if kinds[0] == "gif" and alpha else {}
    animation(tmp_path / f"a.{kinds[0]}", loop=loop, alpha=alpha, **options)
    picture = images.open_picture(tmp_path / f"a.{kinds[0]}")
    assert (picture.count, picture.animated, picture.loop) == (4, True, loop)
    with Image.open(copy(tmp_path / f"a.{kinds[0]}", tmp_path / f"b.{kinds[1]}")) as back:
        assert back.n_frames == 4 and back.info["loop"] == loop
        for k, frame in enumerate(ImageSequence.Iterator(back)):
            frame.load()
            assert frame.info["duration"] == [40, 80, 120, 200][k]
            pixel = frame.convert("RGBA").getpixel((6, 2))
            assert pixel == (60 * k, 60 * k, 60 * k, 255)
            assert frame.convert("RGBA").getpixel((1, 2))[3] == (0 if alpha else 255)


def test_a_gif_that_plays_once_plays_once(tmp_path):
    animation(tmp_path / "a.gif")
    assert images.open_picture(tmp_path / "a.gif").loop is None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(copy(tmp_path / "a.gif", tmp_path / "b.gif")) as back:
            assert "loop" not in back.info


def test_apng_with_a_separate_first_picture(tmp_path):
    first = Image.new("RGB", (8, 6), "red")
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("green", "blue")]
    first.save(tmp_path / "a.png", save_all=True, default_image=True, append_images=frames, duration=[70, 90], loop=2)
    with Image.open(copy(tmp_path / "a.png", tmp_path / "b.png")) as back:
        assert back.info["default_image"] and back.n_frames == 3 and back.info["loop"] == 2
        assert back.convert("RGB").getpixel((0, 0)) == (255, 0, 0)
        back.seek(2)
        assert back.info["duration"] == 90 and back.convert("RGB").getpixel((0, 0)) == (0, 0, 255)


def test_pages_of_different_sizes_depths_and_profiles(tmp_path):
    pages = [values(3, np.uint8, 5, 6), values(1, np.uint16, 9, 4), values(4, np.uint16, 3, 3)]
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        for index, page in enumerate(pages):
            flat = page[..., 0] if page.shape[2] == 1 else page
            writer.write(flat, photometric="minisblack" if page.shape[2] == 1 else "rgb", metadata=None,
                         extrasamples=["unassalpha"] if page.shape[2] == 4 else None,
                         iccprofile=WIDE if index == 2 else None, contiguous=False)  # fmt: skip
    picture = images.open_picture(tmp_path / "a.tif")
    assert (picture.count, picture.animated) == (3, False)
    again = list(images.open_picture(copy(tmp_path / "a.tif", tmp_path / "b.tif")).frames())
    assert all(np.array_equal(frame.pixels, page) for frame, page in zip(again, pages, strict=True))
    assert [frame.metadata.icc for frame in again] == [None, None, WIDE]
    with pytest.raises(ValueError, match="images: jpg holds one picture; got 3 frames: use tiff, png or webp"):
        images.check_size("jpg", 5, 6, picture.count)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match="frames of an animation must have one size; got 3x3, 6x5, 4x9: use tiff"):
            copy(tmp_path / "a.tif", tmp_path / "b.png")


def test_channels_beside_alpha_are_said_and_kinds_of_pages_kept(tmp_path):
    pixels = values(6, np.uint8)
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        writer.write(pixels, photometric="rgb", planarconfig="contig", extrasamples=[2, 0, 0], metadata=None)
        writer.write(pixels[::2, ::2, :3], photometric="rgb", metadata=None, subfiletype=1)
    picture = images.open_picture(tmp_path / "a.tif")
    assert picture.notes == ("channels beside colour and alpha are left out",)
    first, second = images.open_picture(copy(tmp_path / "a.tif", tmp_path / "b.tif")).frames()
    assert np.array_equal(first.pixels, pixels[..., :4]) and np.array_equal(second.pixels, pixels[::2, ::2, :3])
    assert (first.metadata.subfile, second.metadata.subfile) == (0, 1)


def test_an_animation_as_jpg_is_refused(tmp_path):
    animation(tmp_path / "a.gif")
    with pytest.raises(ValueError, match="images: jpg holds one picture; got 4 frames"):
        copy(tmp_path / "a.gif", tmp_path / "b.jpg")
