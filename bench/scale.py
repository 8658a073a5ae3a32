"""Pictures a second a core: CPU time of `tunable-ops apply` over a tar, without what a start costs.

    python -m bench.scale --size 256 --pictures 12

Each network that ships runs as a process of its own with one thread, over a tar of N + 1 pictures and over one of a
single picture; the difference of their CPU times, over N, is what a picture costs from tar to tar: reading,
decoding JPEG, the network, encoding and writing.
"""

import argparse
import io
import os
import resource
import statistics
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import torch

from tunable_ops import images, pretrained


def write_tar(path: Path, count: int, side: int) -> None:
    """Write a tar of JPEG pictures of smooth noise, each with a JSON."""
    generator = torch.Generator().manual_seed(0)
    with tarfile.open(path, "w") as tar:
        for number in range(count):
            small = torch.rand(1, 3, side // 4, side // 4, generator=generator)
            values = torch.nn.functional.interpolate(small, (side, side), mode="bicubic")[0]
            values = values + 0.05 * torch.randn(values.shape, generator=generator)
            frame = images.Frame.of(values, bits=8, duration=None, metadata=images.Metadata())
            for end, data in (("jpg", images.encode_picture([frame], "jpg")), ("json", b"{}")):
                header = tarfile.TarInfo(f"{number:06d}.{end}")
                header.size = len(data)
                tar.addfile(header, io.BytesIO(data))


def cpu_seconds(words: list[str]) -> float:
    """Run a command, and return its CPU time."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-m", "tunable_ops", *words], check=True, capture_output=True, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=256, help="side of the pictures that are read")
    parser.add_argument("--pictures", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--format", default="jpg", help="of what is written: jpg or png")
    parser.add_argument("--models", nargs="+", default=sorted(pretrained.names()))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tars = {count: folder / f"{count}.tar" for count in (1, args.pictures + 1)}
        for count, path in tars.items():
            write_tar(path, count, args.size)
        costs: dict[str, list[float]] = {model: [] for model in args.models}
        for _ in range(args.rounds):
            for model in args.models:
                words = [
                    "--model",
                    model,
                    "--threads",
                    "1",
                    "--device",
                    "cpu",
                    "--restart",
                    "--out",
                    str(folder / "out"),
                ]
                times = [cpu_seconds(["apply", str(path), "--format", args.format, *words]) for path in tars.values()]
                costs[model].append((times[1] - times[0]) / args.pictures)
    for model, found in costs.items():
        cost = statistics.median(found)
        shown = f"{1000 * min(found):.0f} to {1000 * max(found):.0f}"
        print(f"{model:24} {args.size}x{args.size} {1000 * cost:7.0f} ms ({shown})  {1 / cost:6.2f} a second a core")


if __name__ == "__main__":
    main()
