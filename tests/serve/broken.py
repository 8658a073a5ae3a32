"""Pictures that are damaged at random, the same ones for the same seed."""

import io
import random

import numpy as np
import tifffile
from PIL import Image

from tests.picture_files import WIDE, exif
from tests.serve.conftest import picture
from tunable_ops.images import Frame, Metadata, encode_picture, open_picture


def whole():
    """One picture of every kind that is read, with all that it can hold."""
    pixels = np.random.default_rng(0).integers(0, 256, (24, 31, 4), np.uint8)
    metadata = Metadata(icc=WIDE, dpi=(72, 72), texts={"Title": "a"}, xmp=b"<x/>")
    frames = [Frame(pixels, 40, metadata), Frame(255 - pixels, 40, metadata)]
    found = [encode_picture([frames[0]], kind) for kind in ("png", "jpg", "webp", "tiff")]
    found += [encode_picture(frames, kind) for kind in ("png", "webp", "tiff")]
    found += [picture(24, 31, channels, np.uint16, kind=kind) for channels in (1, 4) for kind in ("png", "tiff")]
    found += [picture(24, 31, kind="webp", quality=80), picture(24, 31, 1, kind="jpg")]
    for kind, options in (
        ("JPEG", {"progressive": True, "exif": exif(6)}),
        ("PNG", {"exif": exif(5)}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"compression": "jpeg"}),
        ("TIFF", {"compression": "group4"}),
    ):
        stream = io.BytesIO()
        shown = Image.fromarray(pixels[..., :3]).convert("1" if options.get("compression") == "group4" else "RGB")
        shown.save(stream, kind, **options)
        found.append(stream.getvalue())
    for options in ({"tile": (16, 32)}, {"bigtiff": True, "planarconfig": "separate"}, {"compression": "zlib"}):
        stream = io.BytesIO()
        values = np.random.default_rng(1).integers(0, 65536, (24, 31, 3), np.uint16)
        values = values.transpose(2, 0, 1) if "planarconfig" in options else values
        tifffile.imwrite(stream, np.ascontiguousarray(values), photometric="rgb", **options)
        found.append(stream.getvalue())
    for content in found:
        open_picture(content)
    return found


def damaged(content, chance):
    """Damage the bytes of a picture in one of several ways."""
    made = bytearray(content)
    start = chance.choice((0, 0, len(made) // 2))  # mostly anywhere, often in the header
    reach = chance.choice((64, 512, len(made)))
    place = lambda: min(start + chance.randrange(reach), len(made) - 1)  # noqa: E731
    how = chance.randrange(7)
    if how == 0:
        return bytes(made[: place()])
    if how == 1:
        for _ in range(chance.choice((1, 3, 20))):
            made[place()] ^= 1 << chance.randrange(8)
    elif how == 2:
        for _ in range(chance.choice((1, 4))):
            at = place()
            made[at : at + 4] = chance.choice((b"\xff" * 4, bytes(4), b"\x7f\xff\xff\xff", b"\0\0\0\1", b"\1\0\0\0"))
    elif how == 3:
        at = place()
        made[at : at + chance.randrange(1, 64)] = chance.randbytes(chance.randrange(64))
    elif how == 4:
        at, to = sorted((place(), place()))
        made[at:at] = made[at:to]
    elif how == 5:
        at, to = sorted((place(), place()))
        del made[at:to]
    else:
        at = place()
        made[at:] = chance.randbytes(len(made) - at)
    return bytes(made)


def broken_pictures(count, seed=0):
    """Yield `count` damaged pictures."""
    chance, kinds = random.Random(seed), whole()
    for _ in range(count):
        yield damaged(chance.choice(kinds), chance)
