"""What the tests of pictures share: profiles, values, EXIF, and a copy from file to file."""

import numpy as np
from PIL import ExifTags, Image, ImageCms
from PIL.TiffImagePlugin import IFDRational

from tunable_ops import images

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
WIDE = SRGB.replace(b"\0s\0R\0G\0B", b"\0W\0i\0d\0e")
assert WIDE != SRGB  # a profile that is not the one that anything falls back to


def values(channels, dtype, height=7, width=9, seed=0):
    top = np.iinfo(dtype).max
    return np.random.default_rng(seed).integers(0, top, (height, width, channels), dtype, endpoint=True)


def copy(source, target, **options):
    """Write what was read, as `apply` does with a network that changes nothing."""
    picture = images.open_picture(source)
    options |= {"loop": picture.loop, "separate_first": picture.separate_first}
    return images.write_picture(picture.frames(), target, **options)


def exif(orientation=1):
    block = Image.Exif()
    block[ExifTags.Base.Orientation] = orientation
    block[ExifTags.Base.Make] = "A maker"
    block[ExifTags.Base.DateTime] = "2026:01:02 03:04:05"
    part = block.get_ifd(ExifTags.IFD.Exif)
    part[ExifTags.Base.ExposureTime] = IFDRational(1, 250)
    part[ExifTags.Base.DateTimeOriginal] = "2026:01:02 03:04:05"
    part[ExifTags.Base.MakerNote] = b"secret settings"
    block.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitudeRef] = "N"
    return block
