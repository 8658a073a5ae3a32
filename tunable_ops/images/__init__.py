"""Find, read and write pictures, and put them side by side.

`read_image` and `write_image` exchange one picture as a float32 tensor [3, H, W], RGB, in [0, 1]. `open_picture` and
`write_picture` carry everything else that a file holds: alpha, 16 bits, frames or pages, the ICC profile, EXIF, the
resolution. Values are those of the file: colour profiles and gamma curves are not applied. Needs Pillow; pictures of
more than 8 bits need imagecodecs and tifffile as well.
"""

from tunable_ops.images.encode import KINDS
from tunable_ops.images.files import EXTENSIONS, find_images, search
from tunable_ops.images.noise import estimate_noise
from tunable_ops.images.picture import Frame, Metadata, Picture
from tunable_ops.images.read import open_picture, read_image, read_images, read_size
from tunable_ops.images.strips import strip
from tunable_ops.images.write import SUFFIXES, check_size, encode_picture, kind_of, losses, write_image, write_picture

__all__ = [
    "EXTENSIONS",
    "KINDS",
    "SUFFIXES",
    "Frame",
    "Metadata",
    "Picture",
    "check_size",
    "encode_picture",
    "estimate_noise",
    "find_images",
    "kind_of",
    "losses",
    "open_picture",
    "read_image",
    "read_images",
    "read_size",
    "search",
    "strip",
    "write_image",
    "write_picture",
]
