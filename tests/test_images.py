"""Pictures: what is read from every kind of file, what is written, strips, bad files."""

import os
import struct
from pathlib import Path

import pytest
import torch

pytest.importorskip("PIL", reason="Pillow is not installed (tunable-ops[train])")
from PIL import Image

from tunable_ops import images


def gradient(height=9, width=13):
    values = torch.arange(3 * height * width, dtype=torch.float32).view(3, height, width)
    return (values * 5 % 256) / 255


# -- reading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("extension", [".png", ".bmp", ".tif", ".tiff", ".ppm", ".webp", ".PNG"])
def test_lossless_formats_round_trip_every_8_bit_value(tmp_path, extension):
    image = torch.arange(3 * 16 * 16).view(3, 16, 16).remainder(256).float() / 255
    path = images.write_image(image, tmp_path / f"a{extension}")
    back = images.read_image(path)
    assert back.dtype == torch.float32 and back.is_contiguous()
    assert torch.equal(back, image)


def test_jpeg_is_close_and_keeps_its_colours(tmp_path):
    image = torch.zeros(3, 16, 16)
    image[0, :, 8:] = 1.0  # a hard red edge: what chroma sub-sampling would smear
    back = images.read_image(images.write_image(image, tmp_path / "a.jpg"))
    assert (back - image).abs().max() < 0.05


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    upright = Image.new("RGB", (12, 8), "black")
    upright.paste("red", (0, 0, 4, 4))  # upper left corner of the upright picture
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Image.Transpose values that store it turned
    stored = upright.transpose(Image.Transpose(undo[orientation])) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "a.png", exif=exif)
    back = images.read_image(tmp_path / "a.png")
    assert back.shape == (3, 8, 12)
    assert back[0, 0, 0] == 1 and back[0, -1].max() == 0 and back[0, :, -1].max() == 0


def test_grey_and_black_and_white_become_rgb(tmp_path):
    Image.frombytes("L", (2, 1), bytes([0, 51])).save(tmp_path / "l.png")
    assert torch.equal(images.read_image(tmp_path / "l.png"), torch.tensor([[[0.0, 0.2]]]).expand(3, -1, -1))
    Image.new("1", (2, 1), 1).save(tmp_path / "1.png")
    assert torch.equal(images.read_image(tmp_path / "1.png"), torch.ones(3, 1, 2))


def test_palette_and_transparency(tmp_path):
    picture = Image.new("P", (2, 1))
    picture.putpalette([255, 0, 0, 0, 0, 255])
    picture.putpixel((1, 0), 1)
    picture.save(tmp_path / "p.png")
    expected = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]])[:, None]
    assert torch.equal(images.read_image(tmp_path / "p.png"), expected)
    picture.save(tmp_path / "t.png", transparency=1)  # the blue one is not there: white shows
    assert torch.equal(images.read_image(tmp_path / "t.png")[:, 0, 1], torch.ones(3))
    Image.new("RGBA", (1, 1), (255, 0, 0, 51)).save(tmp_path / "a.png")  # a fifth of red on white
    torch.testing.assert_close(images.read_image(tmp_path / "a.png")[:, 0, 0], torch.tensor([1.0, 0.8, 0.8]))
    Image.new("LA", (1, 1), (0, 0)).save(tmp_path / "la.png")
    assert torch.equal(images.read_image(tmp_path / "la.png")[:, 0, 0], torch.ones(3))


@pytest.mark.parametrize("mode", ["I;16", "I;16B"])
def test_16_bit_grey_keeps_its_bits(tmp_path, mode):
    values = [0, 1, 257, 65535]
    raw = struct.pack("<4H" if mode == "I;16" else ">4H", *values)
    Image.frombytes(mode, (4, 1), raw).save(tmp_path / "a.tif")
    back = images.read_image(tmp_path / "a.tif")
    assert torch.equal(back, (torch.tensor(values) / 65535).float().expand(3, 1, 4))


def test_16_bit_grey_png(tmp_path):
    Image.frombytes("I;16", (2, 1), struct.pack("<2H", 1000, 65535)).save(tmp_path / "a.png")
    back = images.read_image(tmp_path / "a.png")
    assert torch.equal(back[0, 0], (torch.tensor([1000, 65535]) / 65535).float())


def test_float_grey(tmp_path):
    Image.frombytes("F", (2, 1), struct.pack("<2f", 0.25, 1.0)).save(tmp_path / "a.tif")
    assert torch.equal(images.read_image(tmp_path / "a.tif")[2, 0], torch.tensor([0.25, 1.0]))
    Image.frombytes("F", (2, 1), struct.pack("<2f", 0.25, 100.0)).save(tmp_path / "b.tif")
    with pytest.raises(ValueError, match=r"b\.tif' \(F values must lie in \[0, 1\]; got 0.25 to 100\)"):
        images.read_image(tmp_path / "b.tif")


def test_cmyk(tmp_path):
    Image.new("CMYK", (2, 2), (0, 0, 0, 0)).save(tmp_path / "a.jpg")
    assert images.read_image(tmp_path / "a.jpg").min() > 0.98


def test_the_content_counts_not_the_extension(tmp_path):
    path = images.write_image(gradient(), tmp_path / "a.png")
    path.rename(tmp_path / "a.dat")
    assert torch.equal(images.read_image(tmp_path / "a.dat"), gradient())


# -- bad files --------------------------------------------------------------------------------------------------------


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(
        ValueError, match=r"images: path must be a readable image; got .*no\.png', which does not exist"
    ):
        images.read_image(tmp_path / "no.png")
    with pytest.raises(ValueError, match=r"images: path must be a file; got the folder"):
        images.read_image(tmp_path)


@pytest.mark.parametrize("content", [b"", b"this is text\n", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0"])
def test_not_an_image(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"images: path must be a readable image; got .*a\.png' \(.+\)"):
        images.read_image(tmp_path / "a.png")


@pytest.mark.parametrize("extension", [".png", ".jpg", ".bmp", ".tif", ".ppm", ".webp"])
@pytest.mark.parametrize("part", [0.02, 0.3, 0.6, 0.95])
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_cut_short(tmp_path, extension, part):
    whole = images.write_image(
        torch.rand(3, 40, 40, generator=torch.Generator().manual_seed(1)), tmp_path / f"a{extension}"
    )
    content = whole.read_bytes()
    cut = tmp_path / f"cut{extension}"
    cut.write_bytes(content[: int(part * len(content))])
    with pytest.raises(ValueError, match=r"images: path must be a readable image; got .*cut"):
        images.read_image(cut)


@pytest.mark.parametrize("seed", range(30))
def test_damaged_bytes_give_a_value_error_or_a_picture(tmp_path, seed):
    generator = torch.Generator().manual_seed(seed)
    content = bytearray(images.write_image(gradient(), tmp_path / "a.png").read_bytes())
    for index in torch.randint(8, len(content), (4,), generator=generator).tolist():
        content[index] ^= 1 << (seed % 8)
    (tmp_path / "b.png").write_bytes(content)
    try:
        image = images.read_image(tmp_path / "b.png")
    except ValueError as error:
        assert "images: path must be a readable image" in str(error)
    else:
        assert image.shape[0] == 3


# -- folders ----------------------------------------------------------------------------------------------------------


def test_find_images_sorted_without_subfolders_and_hidden_files(tmp_path):
    (tmp_path / "deeper").mkdir()
    (tmp_path / "folder.png").mkdir()
    for name in ("b.png", "a.JPG", "c.webp", ".hidden.png", "notes.txt", "deeper/d.png"):
        (tmp_path / name).write_bytes(b"")
    assert [path.name for path in images.find_images(tmp_path)] == ["a.JPG", "b.png", "c.webp"]
    assert images.find_images(str(tmp_path / "notes.txt")) == [tmp_path / "notes.txt"]


def test_find_images_errors(tmp_path):
    with pytest.raises(ValueError, match=r"images: path must be an existing file or folder; got .*nowhere"):
        images.find_images(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        ValueError, match=r"must be a folder with pictures \(\.apng .*\.xpm\); got .*empty' without one$"
    ):
        images.find_images(tmp_path / "empty")
    with pytest.raises(ValueError, match=r"without one; subfolders are not searched"):
        images.find_images(tmp_path)


def folder_with_one_bad(tmp_path):
    for name in ("a.png", "c.png"):
        images.write_image(gradient(), tmp_path / name)
    (tmp_path / "b.png").write_text("no picture")
    return images.find_images(tmp_path)


def test_one_bad_file_is_named_and_skipped(tmp_path):
    paths = folder_with_one_bad(tmp_path)
    with pytest.warns(UserWarning, match=r"images: path must be a readable image; got .*b\.png.*; skipped") as caught:
        read = list(images.read_images(paths))
    assert len(caught) == 1
    assert [path.name for path, _ in read] == ["a.png", "c.png"]
    assert all(torch.equal(image, gradient()) for _, image in read)


def test_on_bad_is_told_instead(tmp_path):
    told = []
    read = list(
        images.read_images(folder_with_one_bad(tmp_path), lambda path, error: told.append((path.name, str(error))))
    )
    assert len(read) == 2
    assert [name for name, _ in told] == ["b.png"] and "not a picture" in told[0][1]


def test_only_bad_files(tmp_path):
    (tmp_path / "b.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"images: paths must hold at least one readable image; got 1 files"):
        list(images.read_images([tmp_path / "b.png"], lambda path, error: None))


# -- writing ----------------------------------------------------------------------------------------------------------


def test_values_are_rounded_and_clamped(tmp_path):
    values = torch.tensor([0.6 / 255, 0.4 / 255, 254.6 / 255, -3.0, 7.0])
    back = images.read_image(images.write_image(values.expand(3, 1, 5), tmp_path / "a.png"))
    assert (back[0, 0] * 255).round().int().tolist() == [1, 0, 255, 0, 255]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_gradients_and_layouts(tmp_path, dtype):
    image = gradient().permute(1, 2, 0).contiguous().permute(2, 0, 1).to(dtype).requires_grad_()
    back = images.read_image(images.write_image(image, tmp_path / "a.png"))
    assert torch.equal(back, (image.detach().float() * 255).round() / 255)


def test_grey_is_written_as_grey_and_png_is_the_default(tmp_path):
    path = images.write_image(gradient()[:1], tmp_path / "grey")
    assert path == tmp_path / "grey.png"
    with Image.open(path) as picture:
        assert (picture.format, picture.mode) == ("PNG", "L")
    assert torch.equal(images.read_image(path), gradient()[:1].expand(3, -1, -1))


def test_a_crash_while_writing_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = images.write_image(gradient(), tmp_path / "a.png")

    def half(self, stream, **options):
        stream.write(b"half a file")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", half)
    with pytest.raises(OSError, match=r"images: path must be writable; got .*a\.png' \(No space left on device\)"):
        images.write_image(1 - gradient(), path)
    assert torch.equal(images.read_image(path), gradient())
    assert os.listdir(tmp_path) == ["a.png"]


def test_written_files_have_the_usual_permissions(tmp_path):
    (tmp_path / "plain").write_bytes(b"")
    path = images.write_image(gradient(), tmp_path / "a.png")
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize(
    ("image", "name", "error", "text"),
    [
        ("x", "a.png", TypeError, "image must be a tensor; got str"),
        (
            torch.zeros(3, 4, 4, dtype=torch.uint8),
            "a.png",
            TypeError,
            r"image must be floating point in \[0, 1\]; got torch.uint8",
        ),
        (torch.zeros(1, 3, 4, 4), "a.png", ValueError, r"image must be \[3, H, W\] or \[1, H, W\]; got \[1, 3, 4, 4\]"),
        (torch.zeros(4, 4, 4), "a.png", ValueError, r"image must be \[3, H, W\] or \[1, H, W\]; got \[4, 4, 4\]"),
        (torch.zeros(3, 0, 4), "a.png", ValueError, r"image must be .*; got \[3, 0, 4\]"),
        (torch.full((3, 4, 4), torch.nan), "a.png", ValueError, "image must be finite; got NaN or infinity"),
        (torch.zeros(3, 4, 4), "a.xyz", ValueError, r"path must end in one of \.png .*; got 'a\.xyz'"),
        (
            torch.zeros(3, 4, 4),
            "no/a.png",
            ValueError,
            r"path must lie in an existing folder; got .*a\.png': create the folder",
        ),
    ],
)
def test_bad_pictures(tmp_path, image, name, error, text):
    with pytest.raises(error, match=f"images: {text}"):
        images.write_image(image, tmp_path / name)
    assert not list(tmp_path.iterdir())


# -- strips -----------------------------------------------------------------------------------------------------------


def test_strip_has_one_height_and_a_label_over_each_picture():
    red, green = torch.zeros(3, 64, 120), torch.zeros(3, 32, 60)
    red[0], green[1] = 1, 1
    out = images.strip([red, green, torch.zeros(1, 64, 120)], ["red", "green", "black"])
    height, width = out.shape[1:]
    assert width == 3 * 120 + 2 * 6
    band = height - 64
    for index, colour in enumerate(([1, 0, 0], [0, 1, 0], [0, 0, 0])):
        left = index * 126
        picture = out[:, band:, left : left + 120]
        assert torch.equal(picture, torch.tensor(colour).view(3, 1, 1).expand(3, 64, 120).float())
        above = out[:, :band, left : left + 120]
        assert above.min() < 0.3 and above[:, 0].min() == 1  # ink, and a margin
    assert out[:, :, 120:126].min() == 1  # white between columns


def ink_columns(band):
    return (band.amin(0).amin(0) < 0.5).nonzero().flatten()


def test_label_is_centred_and_a_narrow_picture_gets_a_wider_column():
    out = images.strip([torch.zeros(3, 64, 200)], ["mid"])
    ink = ink_columns(out[:, : out.shape[1] - 64])
    assert abs((ink.min() + ink.max()).item() / 2 - 100) <= 2
    narrow = images.strip([torch.zeros(3, 20, 5)], ["a long label over a narrow picture"])
    ink = ink_columns(narrow[:, : narrow.shape[1] - 20])
    assert narrow.shape[2] > 100 and ink.min() > 0 and ink.max() < narrow.shape[2] - 1


def test_labels_grow_with_the_picture_and_shrink_to_its_width():
    small = images.strip([torch.zeros(3, 100, 400)], ["label"])
    large = images.strip([torch.zeros(3, 600, 400)], ["label"])
    assert large.shape[1] - 600 > 1.5 * (small.shape[1] - 100)
    tight = images.strip([torch.zeros(3, 600, 100)], ["a rather long label"])
    assert tight.shape[2] < 160
    two = images.strip([torch.zeros(3, 100, 400)], ["label\nof two lines"])
    assert two.shape[1] > small.shape[1] + 8


def test_strip_at_a_given_height_and_its_round_trip(tmp_path):
    out = images.strip([torch.rand(3, 40, 60), torch.rand(3, 10, 10)], ["a", "b"], height=20)
    assert out.shape[2] >= 30 + 20 + 6
    assert torch.equal(images.read_image(images.write_image(out, tmp_path / "s.png")), out)


@pytest.mark.parametrize(
    ("pictures", "labels", "options", "error", "text"),
    [
        ([], [], {}, ValueError, "images must hold at least one picture; got none"),
        ([gradient()], ["a", "b"], {}, ValueError, "labels must be one per picture; got 2 labels, 1 pictures"),
        ([gradient(), gradient()[0]], ["a", "b"], {}, ValueError, r"images\[1\] must be \[3, H, W\] .*; got \[9, 13\]"),
        ([gradient().int()], ["a"], {}, TypeError, r"images\[0\] must be floating point"),
        ([gradient()], ["a"], {"height": 0}, ValueError, "height must be at least 1 pixel; got 0"),
    ],
)
def test_bad_strips(pictures, labels, options, error, text):
    with pytest.raises(error, match=f"images: {text}"):
        images.strip(pictures, labels, **options)


@pytest.mark.parametrize("name", ["a.png", "a.tiff", "a.jpg", "deep.tiff"])
def test_the_size_is_read_from_the_header(tmp_path: Path, name: str) -> None:
    """Half a file is enough; what is no picture is named."""
    import numpy as np
    import tifffile

    from tunable_ops.images import read_size

    file = tmp_path / name
    if name == "deep.tiff":
        tifffile.imwrite(file, np.zeros((40, 70, 3), np.uint16), photometric="rgb")
    else:
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 70, 3), np.uint8)).save(file)
    assert read_size(file) == (70, 40)
    if not name.endswith("tiff"):  # its directory may stand at the end
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        assert read_size(file) == (70, 40)
    file.write_bytes(b"no picture")
    with pytest.raises(ValueError, match=rf"images: path must be a readable image; got .*{name}"):
        read_size(file)
