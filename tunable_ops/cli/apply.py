"""`tunable-ops apply`: run a trained network on images, at one slider position or along a sweep."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunable_ops.cli import COMMANDS

if TYPE_CHECKING:
    from torch import Tensor

    from tunable_ops.modules import LambdaSpec

__all__ = ["add_parser", "run"]

_MULTIPLE = 16  # tiles start at multiples of this: suits networks of total stride 2, 4, 8 and 16
_STRIP_HEIGHT = 512


def add_parser(subparsers: Any) -> None:
    """Add the subcommand's arguments."""
    from tunable_ops.cli.lam import HELP

    parser = subparsers.add_parser(
        "apply",
        help=COMMANDS["apply"],
        description="Run a tunable network on images. Writes NAME_lam0.30-0.70.png for each image and position and, "
        "for a sweep, the labelled strip NAME_sweep.png. Files that are not readable images are reported and skipped. "
        "A network for grey images (one channel) is applied to each colour channel.",
        epilog="Exit code: 0 all done; 1 some inputs were skipped; 2 nothing done.",
    )
    parser.add_argument("input", nargs="+", type=Path, help="image or folder of images (subfolders are not searched)")
    parser.add_argument(
        "--model", required=True, metavar="MODEL", help="tunable network: a file, or the name of a shipped one"
    )
    position = parser.add_mutually_exclusive_group()
    position.add_argument("--lam", metavar="LAM", help=f"{HELP}. Default: the network's default")
    position.add_argument(
        "--sweep",
        type=int,
        metavar="N",
        help="N positions. Two weights that sum to one: from (1,0) to (0,1). Otherwise one strip per parameter, over "
        "its range, with the others at their defaults (or sharing the rest)",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("output"), metavar="DIR", help="output folder (default: output)"
    )
    parser.add_argument(
        "--tile",
        type=int,
        default=512,
        metavar="N",
        help="tile size in pixels, a multiple of 16; 0: whole image (default: 512)",
    )
    parser.add_argument("--overlap", type=int, default=64, metavar="N", help="overlap of tiles in pixels (default: 64)")
    parser.add_argument(
        "--noise", type=float, metavar="SIGMA", help="first add Gaussian noise, in units of 1/255, and report PSNR"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the noise, the same for every image (default: 0)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps, ... (default: cuda if available, else cpu)")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: PyTorch's)")


def run(args: argparse.Namespace) -> int:
    """Process all inputs; return 0, 1 if some were skipped, or 2 if all were."""
    import torch

    from tunable_ops.cli import lam as lambdas
    from tunable_ops.modules import LiveFold
    from tunable_ops.pretrained import load

    paths = _inputs(args.input)
    device = _check_numbers(args)
    net = load(args.model)
    channels = getattr(net.network, "channels", 3)
    if channels not in (1, 3):
        raise ValueError(f"--model must be a network for images of 1 or 3 channels; got {channels} channels")
    if args.sweep is None:
        lam = net.spec.defaults if args.lam is None else lambdas.parse(args.lam, net.spec)
        rows = [("", [tuple(lam)])]
    else:
        rows = lambdas.sweep(net.spec, args.sweep)
    _make_folder(args.out)
    live = LiveFold(net.to(device))
    # the faster layout with oneDNN and cuDNN (the argument is missing in torch's stubs)
    live.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    job = _Job(args, net.spec, rows, live, device, grey=channels == 1)
    return job.run(paths)


@dataclass
class _Job:
    args: argparse.Namespace
    spec: LambdaSpec
    rows: list[tuple[str, list[tuple[float, ...]]]]
    live: Any
    device: Any
    grey: bool

    def run(self, paths: Sequence[Path]) -> int:
        from tqdm import tqdm

        from tunable_ops import images
        from tunable_ops.cli import one_line

        stems = dict(zip(paths, _stems(paths), strict=True))
        skipped: list[Path] = []
        positions = sum(len(lams) for _, lams in self.rows)
        done = 0
        layout = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"
        with tqdm(total=len(paths) * positions, bar_format=layout, disable=None, leave=False) as bar:

            def settle() -> None:  # replace what tiles and failures added by whole images
                bar.n = (done + len(skipped)) * positions
                bar.refresh()

            def skip(path: Path, error: Exception) -> None:
                skipped.append(path)
                bar.write(f"tunable-ops apply: skipped {path}: {one_line(error)}", file=sys.stderr)
                settle()

            for path, image in images.read_images(paths, skip):
                bar.set_description(path.name)
                try:
                    lines = self.one(image, stems[path], bar.update)
                except (ValueError, RuntimeError) as error:  # too small for the network, too large for memory, ...
                    skip(path, error)
                    continue
                done += 1
                settle()
                for line in lines:
                    bar.write(line)
        print(f"{done} of {len(paths)} images done, in {self.args.out}", file=sys.stderr)
        if not done:
            return 2
        return 1 if skipped else 0

    def one(self, image: Tensor, stem: str, advance: Callable[[float], Any]) -> list[str]:
        """Process one image: write its outputs and strips, and return a line of text for each."""
        import torch

        from tunable_ops import images
        from tunable_ops.cli.lam import describe, numbers

        given, label = image, "input"
        if self.args.noise is not None:
            generator = torch.Generator().manual_seed(self.args.seed)
            given = image + self.args.noise / 255 * torch.randn(image.shape, generator=generator)
            label = f"noisy {_psnr(given, image):.2f} dB"
        lines = []
        for name, lams in self.rows:
            columns = [(_small(given), label)]
            for lam, number in zip(lams, numbers(lams), strict=True):
                output = self.forward(given, lam, advance)
                path = images.write_image(output, self.args.out / f"{stem}_lam{number}.png")
                text = describe(self.spec, lam, name if len(self.rows) > 1 else None)
                score = ""
                if self.args.noise is not None and output.shape == image.shape:
                    score = f"{_psnr(output, image):.2f} dB"
                lines.append("  ".join(filter(None, (str(path), describe(self.spec, lam), score))))
                columns.append((_small(output), "\n".join(filter(None, (text, score)))))
            if self.args.sweep is not None:
                if self.args.noise is not None:
                    columns.append((_small(image), "clean"))
                suffix = f"-{_safe(name)}" if len(self.rows) > 1 else ""
                strip = images.strip([picture for picture, _ in columns], [text for _, text in columns])
                lines.append(str(images.write_image(strip, self.args.out / f"{stem}_sweep{suffix}.png")))
        return lines

    def forward(self, image: Tensor, lam: tuple[float, ...], advance: Callable[[float], Any]) -> Tensor:
        """Run the network on [3, H, W] in tiles; return [3, s H, s W] on the CPU."""
        import torch

        from tunable_ops.tiles import apply_tiled, tile_windows

        args = self.args
        batch = image[:, None] if self.grey else image[None]
        tiles = 1
        for size in batch.shape[-2:]:
            tiles *= len(tile_windows(size, args.tile, args.overlap, _MULTIPLE)) if args.tile else 1

        def function(part: Tensor) -> Tensor:
            result = self.live(part.to(self.device))
            advance(1 / tiles)
            return result

        with torch.no_grad():
            self.live.set(lam)
            if args.tile:
                result = apply_tiled(function, batch, args.tile, args.overlap, _MULTIPLE)
            else:
                result = function(batch).cpu()
        output = result[:, 0] if self.grey else result[0]
        if output.shape[0] not in (1, 3):
            raise ValueError(f"--model must return images of 3 channels; got {list(result.shape)}")
        return output


def _inputs(inputs: Iterable[Path]) -> list[Path]:
    """List all images of the inputs, each once, in the given order."""
    from tunable_ops.images import find_images

    found: dict[Path, Path] = {}
    for item in inputs:
        for path in find_images(item):
            found.setdefault(path.resolve(), path)
    return list(found.values())


def _stems(paths: Sequence[Path]) -> list[str]:
    """Return the stem of each path for its outputs, followed by -2, -3, ... if several paths have the same stem."""
    taken = {path.stem for path in paths}
    used: set[str] = set()
    stems = []
    for path in paths:
        stem, number = path.stem, 2
        while stem in used or (stem != path.stem and stem in taken):
            stem, number = f"{path.stem}-{number}", number + 1
        used.add(stem)
        stems.append(stem)
    return stems


def _check_numbers(args: argparse.Namespace) -> Any:
    """Check what argparse cannot, set the number of threads, and return the device."""
    import math

    from tunable_ops.cli.device import choose_device, set_threads

    if args.tile < 0 or args.tile % _MULTIPLE:
        raise ValueError(f"--tile must be 0 or a positive multiple of {_MULTIPLE}; got {args.tile}")
    if args.tile and not 0 <= args.overlap <= args.tile - _MULTIPLE:
        raise ValueError(f"--overlap must lie in 0..{args.tile - _MULTIPLE} (--tile - {_MULTIPLE}); got {args.overlap}")
    if args.noise is not None and not (math.isfinite(args.noise) and args.noise >= 0):
        raise ValueError(f"--noise must be at least 0; got {args.noise}")
    if not 0 <= args.seed < 2**63:
        raise ValueError(f"--seed must lie in 0..2^63 - 1; got {args.seed}")
    set_threads(args.threads)
    return choose_device(args.device)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"--out must be a folder to write in; got {str(folder)!r} ({error.strerror})") from error


def _small(image: Tensor) -> Tensor:
    """Shrink an image to _STRIP_HEIGHT, so that a strip of large images stays small."""
    import torch.nn.functional as F

    height, width = image.shape[1:]
    if height <= _STRIP_HEIGHT:
        return image
    size = (_STRIP_HEIGHT, max(1, round(width * _STRIP_HEIGHT / height)))
    return F.interpolate(image[None].float(), size, mode="bicubic", antialias=True)[0].clamp(0, 1)


def _psnr(image: Tensor, clean: Tensor) -> float:
    """Return the PSNR in dB for a peak of 1, with values clamped to [0, 1] as in a file, but not rounded."""
    error = (image.clamp(0, 1) - clean).double().square().mean()
    return float(-10 * error.clamp(min=1e-12).log10())


def _safe(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in name)
