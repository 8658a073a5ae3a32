"""Pictures of the page: what was uploaded, how it is shown, and what is downloaded."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from tunable_ops import images
from tunable_ops.app.settings import Refused, Settings
from tunable_ops.images import Frame, Picture
from tunable_ops.restoration import mask_of, restored

__all__ = [
    "FORMATS",
    "SAMPLES",
    "Given",
    "Sample",
    "as_jpeg",
    "data_url",
    "encode",
    "kind_of",
    "on_checks",
    "open_given",
    "open_mask",
    "shrunk",
]

FORMATS = ("PNG", "JPEG", "WEBP", "TIFF")
"""What is read, as Pillow names it; no decoder of another format ever sees an upload."""
KINDS = ("as the input", "png", "jpg", "webp", "tiff")
"""What is written."""
VIEW = 1024
"""Pixels of the longer side of what is shown of a whole picture."""
CHECK = 8
"""Pixels of a side of a square of the ground that transparent pictures are shown on."""
_OWN = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp", "TIFF": "tiff"}
_VALUES = 8  # numbers that decoding may make for each pixel of the limit


@dataclass(frozen=True)
class Sample:
    """A picture that comes with the app.

    Args:
        title: What the page calls it.
        file: The file.
        noise: Noise that is added, of 255.
    """

    title: str
    file: Path
    noise: float = 0.0


_FOLDER = Path(__file__).parent / "samples"
SAMPLES = (
    Sample("Dog, with noise", _FOLDER / "dog.jpg", 25.0),
    Sample("Lighthouse, with noise", _FOLDER / "lighthouse.jpg", 25.0),
    Sample("Otters, small", _FOLDER / "otters.jpg"),
)
"""Pictures to begin with; samples/LICENSES.txt has where they come from."""


@dataclass(frozen=True)
class Given:
    """An opened picture.

    Args:
        path: The file.
        picture: What it holds.
        frame: Its first frame.
        grey: Whether all of it is grey.
        noise: Noise that was added, of 255, with seed 0.
        image: What the network is given: [3, H, W], or [1, H, W] in grey.
    """

    path: Path
    picture: Picture
    frame: Frame
    grey: bool
    noise: float
    image: Tensor

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.image.shape[1], self.image.shape[2]

    @property
    def shown(self) -> str:
        """How a command names the file: an upload by its name alone, as nobody knows where it was before."""
        return str(self.path) if self.path.parent == _FOLDER else self.path.name

    def with_noise(self, noise: float) -> Given:
        """Return the same picture with other noise: what `tunable-ops apply --noise` adds."""
        image = self.frame.colour[:1] if self.grey else self.frame.colour.expand(3, -1, -1)
        if noise:
            generator = torch.Generator().manual_seed(0)
            image = image + noise / 255 * torch.randn(image.shape, generator=generator)
        return Given(self.path, self.picture, self.frame, self.grey, noise, image)


def open_given(path: str | Path, settings: Settings, noise: float = 0.0) -> Given:
    """Read a picture, after a look at how large its header says that it is.

    Raises:
        Refused: It is none, damaged or too large.
    """
    file = Path(path)
    picture, frame = _open(file, settings, "the picture")
    try:
        grey = frame.is_grey and (picture.count == 1 or all(each.is_grey for each in picture.frames()))
    except ValueError as error:
        raise Refused(f"the picture must be readable to its end; got {file.name!r} ({_why(error)})") from error
    return Given(file, picture, frame, grey, 0.0, torch.empty(0)).with_noise(noise)


def open_mask(path: str | Path, size: tuple[int, int], settings: Settings) -> Tensor:
    """Read a mask [1, H, W] from a picture: white is 1, black and what is transparent 0.

    Raises:
        Refused: It is no picture, or has another size.
    """
    file = Path(path)
    _, frame = _open(file, settings, "the mask")
    if frame.size != tuple(size):
        got = f"{frame.size[1]}x{frame.size[0]} in {file.name!r}"
        raise Refused(f"the mask must have the size of the picture, {size[1]}x{size[0]} pixels; got {got}")
    return mask_of(frame)


def _open(file: Path, settings: Settings, what: str) -> tuple[Picture, Frame]:
    try:
        size = file.stat().st_size
        if size > settings.max_bytes:
            raise Refused(f"{what} must have at most {settings.max_bytes} bytes; got {size} in {file.name!r}")
        header = images.read_header(file, FORMATS)
        if header.pixels > settings.max_pixels or header.values > _VALUES * settings.max_pixels:
            got = f"{header.size[1]}x{header.size[0]}" + (f" in {header.frames} frames" if header.frames > 1 else "")
            raise Refused(f"{what} must have at most {settings.max_pixels} pixels; got {got} in {file.name!r}")
        picture = images.open_picture(file, settings.max_pixels)
        return picture, next(picture.frames())
    except images.UnknownFormat as error:
        raise Refused(f"{what} must be PNG, JPEG, WebP or TIFF; got {file.name!r}, which is none of these") from error
    except images.PictureError as error:
        raise Refused(f"{what} must be readable; got {file.name!r} ({_why(error)})") from error
    except OSError as error:
        raise Refused(f"{what} must be an existing file; got {file.name!r} ({error.strerror})") from error


def _why(error: ValueError) -> str:
    return getattr(error, "why", "") or " ".join(str(error).split())


def shrunk(image: Tensor, most: int = VIEW) -> Tensor:
    """Reduce a picture [C, H, W] to at most `most` pixels a side, where it has more."""
    height, width = image.shape[1:]
    if max(height, width) <= most:
        return image
    share = most / max(height, width)
    size = (max(1, round(height * share)), max(1, round(width * share)))
    return F.interpolate(image[None].float(), size, mode="bilinear", antialias=True)[0]


def on_checks(image: Tensor, alpha: Tensor | None) -> Tensor:
    """Place a picture [1 or 3, H, W], clamped to [0, 1], on a chequered ground where alpha [1, h, w] lets it through.

    Alpha is resized to the picture where it has another size.
    """
    image = image.clamp(0, 1)
    if alpha is None:
        return image
    height, width = image.shape[1:]
    if alpha.shape[1:] != image.shape[1:]:
        alpha = F.interpolate(alpha[None], (height, width), mode="bilinear", antialias=True)[0].clamp(0, 1)
    odd = (torch.arange(height)[:, None] // CHECK + torch.arange(width) // CHECK) % 2
    ground = torch.where(odd == 1, 0.8, 1.0)
    return ground + alpha * (image - ground)


def as_jpeg(image: Tensor, quality: int = 95) -> bytes:
    """Encode [1 or 3, H, W] for the screen, clamped to [0, 1]."""
    pixels = image.clamp(0, 1).mul(255).round().to(torch.uint8)
    array = pixels.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy()
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "JPEG", quality=quality, subsampling=0)
    return stream.getvalue()


def data_url(content: bytes, kind: str = "jpeg") -> str:
    """Return the file of a picture as a URL that holds it."""
    return f"data:image/{kind};base64," + base64.b64encode(content).decode()


def kind_of(given: Given, wanted: str, size: tuple[int, int]) -> str:
    """Return the kind of file to write: what is asked for, or the input's own."""
    own = _OWN.get(given.picture.format, "png")
    kind = own if wanted == KINDS[0] else wanted
    if wanted == KINDS[0] and kind != "jpg":
        kind = images.default_kind(given.picture, given.frame.bits, size)
    try:
        images.check_size(kind, *size)
    except ValueError as error:
        raise Refused(
            f"the format must hold the picture; got {kind} for {size[1]}x{size[0]} pixels: use png"
        ) from error
    return kind


def encode(given: Given, output: Tensor, wanted: str) -> tuple[bytes, str, list[str]]:
    """Return the file of a restored picture, its extension, and what it could not keep, a sentence each.

    Bits, transparency, ICC profile, EXIF and resolution are those of the input.

    Raises:
        Refused: The format cannot hold it.
    """
    kind = kind_of(given, wanted, (output.shape[1], output.shape[2]))
    frame = restored(given.frame, output)
    lost = images.losses(given.picture, kind, colours=None if given.grey else 3)
    return images.encode_picture([frame], kind), kind, lost
