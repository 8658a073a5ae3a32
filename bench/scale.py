"""Pictures a second a core: CPU time of `tunable-ops apply` over a tar, without what a start costs.

    python -m bench.scale --size 256 --pictures 6

Each network that ships runs in a process of its own with one thread, over a tar of N + 1 pictures and over one of a
single picture; the difference of their CPU times, over N, is what a picture costs from tar to tar: reading, decoding
JPEG, the network, encoding and writing.
"""

import argparse
import io
import os
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


# in a process of its own: once over a picture to warm up, then rounds over all, in CPU time of the process
_CODE = """
import sys, time
from tunable_ops import cli
words, tars, rounds = sys.argv[1].split("|"), sys.argv[2].split("|"), int(sys.argv[3])
assert cli.main(["apply", tars[0], *words]) == 0
for _ in range(rounds):
    times = []
    for tar in tars:
        start = time.process_time()
        assert cli.main(["apply", tar, *words]) == 0
        times.append(time.process_time() - start)
    print("cost", times[1] - times[0])
"""


def costs(words: list[str], tars: list[Path], rounds: int) -> list[float]:
    """Return what the second tar takes more than the first, in seconds of CPU time, in every round."""
    arguments = ["|".join(words), "|".join(map(str, tars)), str(rounds)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", _CODE, *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return [float(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("cost ")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=256, help="side of the pictures that are read")
    parser.add_argument("--pictures", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--format", default="jpg", help="of what is written: jpg or png")
    parser.add_argument("--models", nargs="+", default=sorted(pretrained.names()))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tars = {count: folder / f"{count}.tar" for count in (1, args.pictures + 1)}
        for count, path in tars.items():
            write_tar(path, count, args.size)
        for model in args.models:
            words = ["--model", model, "--threads", "1", "--device", "cpu", "--restart", "--quiet"]
            words += ["--format", args.format, "--out", str(folder / "out")]
            found = sorted(cost / args.pictures for cost in costs(words, list(tars.values()), args.rounds))
            cost, shown = statistics.median(found), f"{1000 * found[0]:.0f} to {1000 * found[-1]:.0f}"
            size = f"{args.size}x{args.size}"
            print(f"{model:24} {size} {1000 * cost:7.0f} ms ({shown})  {1 / cost:6.2f} a second a core", flush=True)


if __name__ == "__main__":
    main()
