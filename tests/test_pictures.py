"""Pictures with all that a file holds: 16 bits, alpha, profiles, EXIF, resolution."""

import io
import itertools
import struct
import warnings
import zlib

import numpy as np
import pytest
import torch

pytest.importorskip("PIL", reason="Pillow is not installed (tunable-ops[train])")
pytest.importorskip("imagecodecs", reason="imagecodecs is not installed (tunable-ops[train])")
pytest.importorskip("tifffile", reason="tifffile is not installed (tunable-ops[train])")
import imagecodecs
import tifffile
from PIL import ExifTags, Image
from PIL.TiffImagePlugin import IFDRational

from tests.picture_files import WIDE, copy, exif, values
from tunable_ops import images

# -- 16 bits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_16_bits_in_are_16_bits_out(tmp_path, channels, kind):
    pixels = values(channels, np.uint16)
    flat = pixels[..., 0] if channels == 1 else pixels
    source = tmp_path / f"a.{kind}"
    if kind == "png":
        source.write_bytes(imagecodecs.png_encode(flat))
    else:
        tifffile.imwrite(source, flat, planarconfig="contig", photometric="rgb" if channels > 2 else "minisblack",
                         extrasamples=["unassalpha"] if channels in (2, 4) else None)  # fmt: skip
    picture = images.open_picture(source)
    assert (picture.bits, picture.count, picture.alpha, picture.lossless) == (16, 1, channels in (2, 4), True)
    (frame,) = picture.frames()
    assert frame.pixels.dtype == np.uint16 and np.array_equal(frame.pixels, pixels)
    expected = torch.from_numpy(pixels[..., : frame.colours].astype(np.float32)).permute(2, 0, 1) / 65535
    assert torch.equal(frame.colour, expected)
    for extension in ("png", "tif"):
        (again,) = images.open_picture(copy(source, tmp_path / f"b.{extension}")).frames()
        assert np.array_equal(again.pixels, pixels)
    if channels == 3:
        assert torch.equal(images.read_image(source), expected)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("compression", [None, "zlib", "lzw"])
def test_tiff_in_any_byte_order_and_layout(tmp_path, order, planar, compression):
    pixels = values(3, np.uint16)
    stored = pixels if planar == "contig" else pixels.transpose(2, 0, 1)
    options = {"byteorder": order, "photometric": "rgb", "planarconfig": planar, "compression": compression}
    tifffile.imwrite(tmp_path / "a.tif", stored, resolution=(300, 150), iccprofile=WIDE, **options)
    (frame,) = images.open_picture(tmp_path / "a.tif").frames()
    assert np.array_equal(frame.pixels, pixels)
    assert frame.metadata.dpi is None or frame.metadata.dpi == (300, 150)
    assert frame.metadata.icc == WIDE


def test_float_and_inverted_and_premultiplied_tiff(tmp_path):
    floats = np.random.default_rng(0).random((5, 6, 3), np.float32)
    tifffile.imwrite(tmp_path / "f.tif", floats, photometric="rgb")
    assert torch.equal(images.read_image(tmp_path / "f.tif"), torch.from_numpy(floats).permute(2, 0, 1))
    assert images.open_picture(copy(tmp_path / "f.tif", tmp_path / "g.tif")).bits == 16
    grey = values(1, np.uint16)[..., 0]
    tifffile.imwrite(tmp_path / "w.tif", grey, photometric="miniswhite")
    (frame,) = images.open_picture(tmp_path / "w.tif").frames()
    assert np.abs(frame.pixels[..., 0].astype(int) - (65535 - grey)).max() <= 1
    pixels = np.full((2, 2, 4), 10000, np.uint16)
    pixels[..., 3] = 20000
    tifffile.imwrite(tmp_path / "p.tif", pixels, photometric="rgb", extrasamples=["assocalpha"])
    (frame,) = images.open_picture(tmp_path / "p.tif").frames()
    assert np.abs(frame.pixels[..., 0].astype(int) - 32768).max() <= 1 and (frame.pixels[..., 3] == 20000).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_16_bit_ppm(tmp_path, channels):
    pixels = values(channels, np.uint16)
    (tmp_path / "a.ppm").write_bytes(
        b"P%d\n# a comment\n9 7\n65535\n" % (5, 6)[channels == 3] + pixels.astype(">u2").tobytes()
    )
    (frame,) = images.open_picture(tmp_path / "a.ppm").frames()
    assert np.array_equal(frame.pixels, pixels)
    (again,) = images.open_picture(copy(tmp_path / "a.ppm", tmp_path / "b.ppm")).frames()
    assert np.array_equal(again.pixels, pixels)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("bits", [12, 16])
def test_deep_jpeg_2000(tmp_path, channels, bits):
    pixels = values(channels, np.uint16, 40, 50) >> (16 - bits)
    flat = pixels[..., 0] if channels == 1 else pixels
    content = imagecodecs.jpeg2k_encode(flat, level=0, reversible=True, bitspersample=bits)
    (tmp_path / "a.jp2").write_bytes(content)
    expected = torch.from_numpy(pixels.astype(np.float32) / ((1 << bits) - 1)).permute(2, 0, 1)
    torch.testing.assert_close(images.read_image(tmp_path / "a.jp2"), expected.expand(3, -1, -1), rtol=0, atol=1e-5)
    assert images.open_picture(tmp_path / "a.jp2").bits == 16


def test_deep_avif_is_said_to_be_read_with_8_bits(tmp_path):
    pixels = values(3, np.uint16, 16, 16) >> 6
    (tmp_path / "a.avif").write_bytes(imagecodecs.avif_encode(pixels, bitspersample=10))
    assert any("8 bits" in note for note in images.open_picture(tmp_path / "a.avif").notes)
    Image.fromarray(values(3, np.uint8, 16, 16)).save(tmp_path / "b.avif")
    assert images.open_picture(tmp_path / "b.avif").notes == ()


def test_write_image_with_16_bits_and_quality(tmp_path):
    image = torch.rand(3, 20, 30, generator=torch.Generator().manual_seed(0))
    for extension in ("png", "tif", "ppm"):
        path = images.write_image(image, tmp_path / f"a.{extension}", bits=16)
        assert torch.equal(images.read_image(path), (image * 65535).round() / 65535)
    sizes = [images.write_image(image, tmp_path / "a.jpg", quality=q).stat().st_size for q in (10, 95)]
    assert sizes[0] < sizes[1]
    for options, text in (
        ({"bits": 16, "path": "a.jpg"}, r"bits must be 8 for \.jpg; got 16"),
        ({"bits": 12, "path": "a.png"}, "bits must be 8 or 16; got 12"),
        ({"quality": 80, "path": "a.png"}, "quality must be 1 to 100, for .jpg or .webp; got 80 for 'a.png'"),
        ({"quality": 0, "path": "a.jpg"}, "quality must be 1 to 100"),
    ):
        with pytest.raises(ValueError, match=f"images: {text}"):
            images.write_image(image, tmp_path / options.pop("path"), **options)


# -- alpha ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("extension", ["png", "tiff", "webp"])
def test_alpha_goes_through_and_hidden_colours_too(tmp_path, extension):
    pixels = values(4, np.uint8)
    pixels[0, :, 3] = 0
    Image.fromarray(pixels).save(tmp_path / "a.png")
    path = copy(tmp_path / "a.png", tmp_path / f"b.{extension}")
    assert np.array_equal(np.asarray(Image.open(path).convert("RGBA")), pixels)


@pytest.mark.parametrize(("mode", "transparency"), [("L", 7), ("RGB", (1, 2, 3)), ("P", 1), ("1", 1)])
def test_a_transparent_colour_becomes_alpha(tmp_path, mode, transparency):
    picture = Image.new(mode, (3, 2))
    if mode == "P":
        picture.putpalette([255, 0, 0, 0, 0, 255])
    picture.putpixel((1, 0), transparency)
    picture.save(tmp_path / "a.png", transparency=transparency)
    (frame,) = images.open_picture(tmp_path / "a.png").frames()
    assert frame.has_alpha and frame.colours == (1 if mode in ("L", "1") else 3)
    hidden = np.zeros((2, 3), bool)
    hidden[0, 1] = True
    assert np.array_equal(frame.pixels[..., -1] == 0, hidden)


def test_16_bit_transparent_colour(tmp_path):
    pixels = values(3, np.uint16)
    content = imagecodecs.png_encode(pixels)
    body = b"tRNS" + struct.pack(">3H", *pixels[0, 0])
    chunk = struct.pack(">I", 6) + body + struct.pack(">I", zlib.crc32(body))
    (tmp_path / "a.png").write_bytes(content[:33] + chunk + content[33:])
    (frame,) = images.open_picture(tmp_path / "a.png").frames()
    assert frame.pixels.dtype == np.uint16 and frame.pixels[0, 0, 3] == 0 and (frame.pixels[..., 3] > 0).sum() == 62


def test_what_a_format_cannot_hold_is_said(tmp_path):
    source = tmp_path / "a.png"
    source.write_bytes(imagecodecs.png_encode(values(4, np.uint16)))
    picture = images.open_picture(source)
    assert images.losses(picture, "png") == []
    assert [text.split(":")[0] for text in images.losses(picture, "jpg")] == [
        "jpg has no transparency",
        "jpg has 8 bits",
    ]
    assert images.losses(picture, "webp", bits=8) == []
    with (
        pytest.warns(UserWarning, match="8 bits"),
        pytest.warns(UserWarning, match=r"'b\.jpg': jpg has no transparency: laid on white; png"),
    ):
        copy(source, tmp_path / "b.jpg")


# -- metadata ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kinds", list(itertools.product(["png", "jpg", "tiff", "webp"], repeat=2)), ids="-".join)
@pytest.mark.parametrize("orientation", [1, 6])
def test_metadata_goes_from_every_format_to_every_other(tmp_path, kinds, orientation):
    source, target = tmp_path / f"a.{kinds[0]}", tmp_path / f"b.{kinds[1]}"
    smooth = Image.fromarray(np.linspace(0, 255, 8 * 12 * 3).reshape(8, 12, 3).astype(np.uint8))
    options = {"lossless": True} if kinds[0] == "webp" else {}
    smooth.save(source, exif=exif(orientation).tobytes(), icc_profile=WIDE, dpi=(300, 150), **options)
    with Image.open(copy(source, target)) as back:
        assert back.size == ((12, 8) if orientation == 1 else (8, 12))
        assert back.info["icc_profile"] == WIDE
        block = back.getexif()
        assert block.get(ExifTags.Base.Orientation, 1) == 1
        assert block[ExifTags.Base.Make] == "A maker" and block[ExifTags.Base.DateTime] == "2026:01:02 03:04:05"
        part = block.get_ifd(ExifTags.IFD.Exif)
        assert part[ExifTags.Base.ExposureTime] == IFDRational(1, 250)
        assert part[ExifTags.Base.MakerNote] == b"secret settings"
        assert block.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitudeRef] == "N"
        if "webp" not in kinds:  # whose only place for it is EXIF, and that of this picture has none
            expected = (300, 150) if orientation == 1 else (150, 300)
            assert tuple(map(float, back.info["dpi"])) == pytest.approx(expected, abs=0.5)


@pytest.mark.parametrize("deep", [False, True])
def test_orientation_in_tiff_is_applied_once(tmp_path, deep):
    pixels = values(3, np.uint16 if deep else np.uint8)
    for compression in (None, "zlib"):
        tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", compression=compression,
                         extratags=[(274, 3, 1, 6, True)])  # fmt: skip
        (frame,) = images.open_picture(tmp_path / "a.tif").frames()
        assert np.array_equal(frame.pixels, np.rot90(pixels, -1))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_16_bit_png_is_turned_as_pillow_turns_8_bits(tmp_path, orientation):
    pixels = values(3, np.uint8)
    block = exif(orientation).tobytes()
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=block)
    (frame,) = images.open_picture(tmp_path / "a.png").frames()
    images.write_picture([images.Frame(pixels.astype(np.uint16) * 257)], tmp_path / "plain.png")
    content, body = (tmp_path / "plain.png").read_bytes(), b"eXIf" + block.removeprefix(b"Exif\0\0")
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    (tmp_path / "b.png").write_bytes(content[:33] + chunk + content[33:])
    (deep,) = images.open_picture(tmp_path / "b.png").frames()
    assert np.array_equal(deep.pixels, frame.pixels.astype(np.uint16) * 257)


def test_sizes_thumbnails_and_xmp_in_metadata_follow_the_picture(tmp_path):
    block = exif(6)
    block.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.ExifImageWidth] = 12
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/" tiff:Orientation="6"/>'
    Image.new("RGB", (12, 8)).save(tmp_path / "a.jpg", exif=block, xmp=xmp)
    for extension in ("png", "jpg", "webp", "tif"):
        with Image.open(copy(tmp_path / "a.jpg", tmp_path / f"b.{extension}")) as back:
            assert back.size == (8, 12)
            assert back.getexif().get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.ExifImageWidth] == 8
            found = back.info.get("xmp") or back.info["XML:com.adobe.xmp"].encode()
            assert found.rstrip(b"\0") == xmp.replace(b"6", b"1")


def test_png_keeps_text_and_colour_chunks(tmp_path):
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("Author", "N. N.")
    info.add(b"gAMA", struct.pack(">I", 100000))
    for deep in (False, True):
        pixels = values(3, np.uint16 if deep else np.uint8)
        Image.fromarray(values(3, np.uint8)).save(tmp_path / "a.png", pnginfo=info)
        picture = images.open_picture(tmp_path / "a.png")
        frame = images.Frame(pixels, metadata=picture.metadata)
        with Image.open(images.write_picture([frame], tmp_path / "b.png")) as back:
            assert back.info["gamma"] == 1.0 and back.info["Author"] == "N. N."
    assert any("gAMA" in text for text in images.losses(picture, "tiff"))


def test_cmyk_becomes_srgb_and_loses_its_profile(tmp_path):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg", icc_profile=b"of other inks", quality=95)
    picture = images.open_picture(tmp_path / "a.jpg")
    assert picture.metadata.icc is None and any("CMYK" in note for note in picture.notes)
    red = images.read_image(tmp_path / "a.jpg")[:, 0, 0]
    assert red[0] > 0.9 and red[1:].max() < 0.1


@pytest.mark.parametrize("kind", ["png", "jpg", "tiff"])
def test_resolution_goes_through_webp(tmp_path, kind):
    Image.new("RGB", (8, 8)).save(tmp_path / f"a.{kind}", dpi=(300, 150))
    copy(tmp_path / f"a.{kind}", tmp_path / "b.webp")
    with Image.open(copy(tmp_path / "b.webp", tmp_path / f"c.{kind}")) as back:
        assert tuple(map(float, back.info["dpi"])) == pytest.approx((300, 150), abs=0.5)


def test_comments(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg", comment="a word")
    with Image.open(copy(tmp_path / "a.jpg", tmp_path / "b.png")) as back:
        assert back.info["Comment"] == "a word"
    with pytest.warns(UserWarning, match="tiff does not hold this picture's comment"):
        copy(tmp_path / "a.jpg", tmp_path / "b.tif")


def test_damaged_exif_does_not_matter(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Image.new("RGB", (4, 4)).save(tmp_path / "a.png", exif=b"Exif\0\0MM\0*\0\0\xff\xff\0")
        picture = images.open_picture(tmp_path / "a.png")
        assert picture.metadata.exif is None and picture.notes == ("its EXIF block is damaged and left out",)
        copy(tmp_path / "a.png", tmp_path / "b.png")


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.filterwarnings("ignore")
def test_damaged_tiff_gives_a_value_error_or_a_picture(tmp_path, seed, caplog):
    random = np.random.default_rng(seed)
    tifffile.imwrite(tmp_path / "a.tif", values(3, np.uint16), photometric="rgb", iccprofile=WIDE)
    content = bytearray((tmp_path / "a.tif").read_bytes())
    for _ in range(3):
        content[random.integers(8, 300)] = random.integers(256)
    (tmp_path / "b.tif").write_bytes(content)
    try:
        picture = images.open_picture(tmp_path / "b.tif", max_pixels=10**6)
        frames = list(picture.frames())
    except ValueError as error:
        assert "images: path must be a readable image" in str(error)
    else:
        images.write_picture(frames, tmp_path / "c.tif", warn=False)
    assert not caplog.records


# -- sizes and limits -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("extension", ["png", "jpg", "webp", "tif", "gif", "bmp", "ppm"])
def test_one_pixel(tmp_path, extension):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        path = images.write_image(torch.full((3, 1, 1), 0.5), tmp_path / f"a.{extension}")
        assert images.read_image(path).shape == (3, 1, 1)


def test_no_limit_of_pixels_but_the_one_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    Image.new("L", (20, 10)).save(tmp_path / "a.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert images.read_image(tmp_path / "a.png").shape == (3, 10, 20)
    assert Image.MAX_IMAGE_PIXELS == 10
    for read in (images.read_image, images.open_picture):
        with pytest.raises(ValueError, match="20x10 pixels are more than the limit of 199"):
            read(tmp_path / "a.png", max_pixels=199)
    tifffile.imwrite(tmp_path / "a.tif", values(3, np.uint16), photometric="rgb")
    with pytest.raises(ValueError, match="9x7 pixels are more than the limit of 62"):
        images.open_picture(tmp_path / "a.tif", max_pixels=62)


def test_16_bit_png_keeps_its_metadata(tmp_path):
    Image.new("RGB", (9, 7)).save(tmp_path / "a.png", exif=exif().tobytes(), icc_profile=WIDE, dpi=(300, 150))
    metadata = images.open_picture(tmp_path / "a.png").metadata
    pixels = values(3, np.uint16)
    images.write_picture([images.Frame(pixels, metadata=metadata)], tmp_path / "b.png")
    assert np.array_equal(imagecodecs.png_decode((tmp_path / "b.png").read_bytes()), pixels)
    with Image.open(tmp_path / "b.png") as back:
        assert back.info["icc_profile"] == WIDE and back.info["dpi"] == pytest.approx((300, 150), abs=0.5)
        assert back.getexif()[ExifTags.Base.Make] == "A maker"


def test_exif_that_is_too_long_for_jpeg(tmp_path):
    block = exif()
    block.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.MakerNote] = bytes(70000)
    Image.new("RGB", (9, 7)).save(tmp_path / "a.png", exif=block.tobytes())
    with pytest.warns(UserWarning, match="jpg does not hold this picture's EXIF; png does"):
        copy(tmp_path / "a.png", tmp_path / "b.jpg")


def test_sides_that_webp_cannot_hold(tmp_path):
    with pytest.raises(ValueError, match="images: a side must be at most 16383 pixels in webp; got 16384x1: use png"):
        images.write_image(torch.zeros(1, 1, 16384), tmp_path / "a.webp")


@pytest.mark.parametrize("kind", ["png", "tif"])
@pytest.mark.parametrize("part", [0.3, 0.6, 0.95])
def test_16_bits_cut_short(tmp_path, kind, part):
    pixels = values(3, np.uint16, 40, 40)
    stream = io.BytesIO()
    if kind == "png":
        stream.write(imagecodecs.png_encode(pixels))
    else:
        tifffile.imwrite(stream, pixels, photometric="rgb")
    content = stream.getvalue()
    (tmp_path / "a").write_bytes(content[: int(part * len(content))])
    with pytest.raises(ValueError, match="images: path must be a readable image; got"):
        images.open_picture(tmp_path / "a")
