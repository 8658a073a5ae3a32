"""What videos cost beside their decoding and the plain network: CPU time a frame, one thread, taking turns.

    python -m bench.video --model denoise --size 180x320 --frames 12

`plain` decodes and runs the folded network, made fast as `apply` does it (`accelerate`), on RGB of 8 bits: what a
script of ten lines does. `restore` is the package's way: exact colours, checksums, tiles and lambda, without encoding;
`moving` the same with another lambda in every frame; `encoded` with segments, encoder (libx264, medium) and muxing.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch

from tunable_ops import pretrained, video
from tunable_ops.modules import LiveFold, TunableModel, accelerate, fold
from tunable_ops.tiles import apply_tiled


def make_clip(path: Path, frames: int, height: int, width: int) -> None:
    """Write a clip of moving waves and noise, in H.264."""
    rows, columns = np.mgrid[:height, :width]
    generator = np.random.default_rng(0)
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=25, options={"crf": "18", "preset": "veryfast"})
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for number in range(frames):
            wave = [128 + 70 * np.sin(columns / (9 + k) + rows / (17 - k) + number / 5) for k in range(3)]
            values = np.stack(wave, 2) + generator.normal(0, 8, (height, width, 3))
            file.mux(stream.encode(av.VideoFrame.from_ndarray(values.clip(0, 255).astype(np.uint8), "rgb24")))
        file.mux(stream.encode(None))


class Ways:
    """The ways through a clip, each a call without arguments."""

    def __init__(self, path: Path, net: TunableModel, tile: int) -> None:
        self.path, self.net, self.tile = path, net, tile
        self.live = LiveFold(net)
        self.plain = fold(net)
        for network in (self.live.network, self.plain):
            accelerate(network.to(memory_format=torch.channels_last))
        name = net.spec.names[-1]
        low, high = net.spec.ranges[-1]
        self.rests = net.spec.fill({name: low})
        self.lams = [net.spec.fill({name: low + (high - low) * k / 50}) for k in range(50)]

    def decode(self) -> None:
        """Decode alone."""
        with av.open(str(self.path)) as file:
            for _ in file.decode(video=0):
                pass

    @torch.no_grad()
    def plain_network(self) -> None:
        """Decode, and run the plain network on RGB of 8 bits."""
        with av.open(str(self.path)) as file:
            for frame in file.decode(video=0):
                x = torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1)[None].float() / 255
                self.plain(x.contiguous(memory_format=torch.channels_last))

    def restore(self) -> None:
        """Read as the package does, and restore at a lambda that rests."""
        self.live.set(self.rests)
        for shot in video.VideoFile(self.path).frames():
            self._network(shot.colour)

    def moving(self) -> None:
        """The same with a lambda that moves."""
        for number, shot in enumerate(video.VideoFile(self.path).frames()):
            self.live.set(self.lams[number % len(self.lams)])
            self._network(shot.colour)

    def encoded(self) -> None:
        """The same as `restore`, with encoding and muxing."""
        self.live.set(self.rests)
        source = video.VideoFile(self.path)
        scale = getattr(self.live.network, "scale", getattr(self.live.network, "upscale", 1))
        size = (scale * source.shape.height, scale * source.shape.width)
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "out.mp4"
            coding = video.choose_coding("mp4", source.shape, size, threads=1)
            sink = video.FileSink(out, source.shape, coding, self.path, video.plan(self.path, "mp4", coding).copied)
            video.restore(source, sink, lambda shot, _: self._network(shot.colour), video.Job(out, {}), 125)

    @torch.no_grad()
    def _network(self, colour: torch.Tensor) -> torch.Tensor:
        return apply_tiled(self.live, colour[None], self.tile, 64, 16)[0]


def seconds(call: Callable[[], None]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="denoise", help="a network that ships")
    parser.add_argument("--size", default="180x320", help="height x width")
    parser.add_argument("--frames", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tile", type=int, default=512)
    args = parser.parse_args()
    torch.set_num_threads(1)
    height, width = map(int, args.size.split("x"))
    net = pretrained.load(args.model)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        make_clip(path, args.frames, height, width)
        ways = Ways(path, net, args.tile)
        calls = {
            "decode": ways.decode,
            "plain": ways.plain_network,
            "restore": ways.restore,
            "moving": ways.moving,
            "encoded": ways.encoded,
        }
        rounds = []
        for _ in range(args.rounds + 1):  # the first warms up
            rounds.append({name: seconds(call) / args.frames for name, call in calls.items()})
        rounds = rounds[1:]
    parameters = sum(parameter.numel() for parameter in ways.plain.parameters())
    print(f"{args.model}, {width}x{height}, {args.frames} frames, {args.rounds} rounds, {parameters:,} parameters")
    for name in calls:
        median = statistics.median(each[name] for each in rounds)
        ratios = sorted(each[name] / each["plain"] for each in rounds)
        rate = float(Fraction(1) / Fraction(median).limit_denominator(10**6)) if median else 0
        low, high = ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]
        shown = f"{statistics.median(ratios):.3f} ({low:.3f} to {high:.3f})"
        print(f"{name:8} {1000 * median:8.1f} ms  {rate:7.2f} frames/s  {shown}")


if __name__ == "__main__":
    main()
