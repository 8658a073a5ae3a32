"""Pictures without files: from bytes, to bytes, and what their headers claim."""

import io
import struct
import zlib

import numpy as np
import pytest

pytest.importorskip("PIL", reason="Pillow is not installed (tunable-ops[train])")

import tifffile
from PIL import Image

from tests.picture_files import exif, values
from tunable_ops import images
from tunable_ops.images import Frame, encode_picture, open_picture, read_header

FORMATS = ("PNG", "JPEG", "WEBP", "TIFF")


@pytest.mark.parametrize("kind", ["png", "tiff", "webp", "jpg"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_bytes_give_what_a_file_of_them_gives(tmp_path, kind, dtype, channels):
    frame = Frame(values(channels, dtype))
    content = encode_picture([frame], kind)
    path = images.write_picture([frame], tmp_path / f"a.{kind}", warn=False)
    assert path.read_bytes() == content
    first, second = open_picture(content), open_picture(path)
    assert first.path is None and second.path == path
    for name in ("format", "lossless", "size", "count", "bits", "alpha", "metadata", "notes"):
        assert getattr(first, name) == getattr(second, name), name
    assert np.array_equal(next(first.frames()).pixels, next(second.frames()).pixels)


def test_the_orientation_is_applied_to_bytes():
    stream = io.BytesIO()
    Image.fromarray(values(3, np.uint8)).save(stream, "PNG", exif=exif(6))
    assert open_picture(stream.getvalue()).size == (9, 7)
    assert read_header(stream.getvalue()).size == (7, 9)  # as stored


@pytest.mark.parametrize("kind, name", [("png", "PNG"), ("webp", "WEBP")])
def test_headers_of_animations(kind, name):
    frames = [Frame(values(3, np.uint8, seed=seed), duration=10) for seed in range(3)]
    content = encode_picture(frames, kind)
    assert read_header(content) == (name, (7, 9), 3, 3 * 63, 4 * 3 * 63)
    assert len(list(open_picture(content).frames())) == 3


@pytest.mark.parametrize("quality", [None, 80])
@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("size", [(1, 1), (7, 9), (300, 17)])
def test_headers_of_webp_pictures(quality, channels, size):
    content = encode_picture([Frame(values(channels, np.uint8, *size))], "webp", quality=quality)
    assert read_header(content).size == open_picture(content).size == size


def test_headers_of_tiff_count_pages_samples_and_tiles():
    content = encode_picture([Frame(values(3, np.uint16, 7, 9)), Frame(values(1, np.uint8, 20, 10))], "tiff")
    assert read_header(content) == ("TIFF", (7, 9), 2, 263, 4 * 263)
    stream = io.BytesIO()
    tifffile.imwrite(
        stream, np.zeros((30, 20, 7), np.uint8), tile=(64, 128), photometric="minisblack", planarconfig="contig"
    )
    assert read_header(stream.getvalue()).values == 64 * 128 * 7


def test_headers_refuse_other_formats_by_their_first_bytes():
    stream = io.BytesIO()
    Image.new("RGB", (4, 5)).save(stream, "GIF")
    assert read_header(stream.getvalue()).format == "GIF"
    with pytest.raises(images.PictureError, match="not a picture, or none of PNG, JPEG, WEBP, TIFF") as caught:
        read_header(stream.getvalue(), FORMATS)
    assert caught.value.why == "not a picture, or none of PNG, JPEG, WEBP, TIFF"


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"\x89PNG\r\n\x1a\n", b"RIFF\0\0\0\0WEBP", b"II*\0", b"\xff\xd8\xff"]
)
def test_broken_bytes(content):
    with pytest.raises(
        images.PictureError, match=f"images: content must be a readable image; got {len(content)} bytes"
    ):
        read_header(content, FORMATS)
    with pytest.raises(images.PictureError, match="images: content must be a readable image"):
        open_picture(content)


def bomb(width, height):
    """A PNG file of a few bytes that claims to be large."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")]
    parts = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_a_limit_refuses_before_anything_is_decoded(monkeypatch):
    content = bomb(30000, 30000)
    assert read_header(content).pixels == 900_000_000
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda *_: pytest.fail("it was decoded"))
    with pytest.raises(images.TooManyPixels, match="30000x30000 pixels are more than the limit of 1000"):
        open_picture(content, 1000)


def test_no_webp_decoder_is_made_for_a_header(monkeypatch):
    """A decoder takes memory for the whole canvas as soon as it is made."""
    content = encode_picture([Frame(values(4, np.uint8), duration=9), Frame(values(4, np.uint8, seed=1))], "webp")
    large = content[:24] + (9999).to_bytes(3, "little") + (9999).to_bytes(3, "little") + content[30:]
    monkeypatch.setattr("PIL._webp.WebPAnimDecoder", lambda *_: pytest.fail("a decoder was made"))
    assert read_header(large).pixels == 2 * 100_000_000
    with pytest.raises(images.TooManyPixels):
        open_picture(large, 1000)


def test_a_damaged_file_is_not_tried_as_another_format(monkeypatch):
    tried = []
    real = Image.open
    monkeypatch.setattr(Image, "open", lambda *args, **kwargs: tried.append(kwargs["formats"]) or real(*args, **kwargs))
    with pytest.raises(images.PictureError):
        open_picture(b"\x89PNG\r\n\x1a\n" + bytes(100))
    assert tried == [["PNG"]]


def circle():
    """A TIFF file of one page that names itself as the next."""
    content = bytearray(encode_picture([Frame(values(3, np.uint8))], "tiff"))
    (at,) = struct.unpack_from("<I", content, 4)
    (count,) = struct.unpack_from("<H", content, at)
    struct.pack_into("<I", content, at + 2 + 12 * count, at)
    return bytes(content)


def test_pages_that_form_a_circle_come_to_an_end():
    """tifffile goes round for ever where pages are asked for one by one."""
    for read in (read_header, open_picture):
        with pytest.raises(images.PictureError, match="its pages form a circle"):
            read(circle())


@pytest.mark.parametrize("kind", ["png", "webp", "tiff"])
def test_frames_have_a_limit(kind):
    content = encode_picture([Frame(values(3, np.uint8, seed=seed), duration=9) for seed in range(4)], kind)
    assert read_header(content, FORMATS, max_frames=4).frames == 4
    with pytest.raises(images.TooManyPixels, match="it has more than 3 frames or pages"):
        read_header(content, FORMATS, max_frames=3)
