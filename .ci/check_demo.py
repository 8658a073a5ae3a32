"""Checks what `make demo` wrote: files, pictures that can be read, and the metrics the README promises."""

import itertools
import json
import sys
from pathlib import Path

from PIL import Image

from tunable_ops.serialization import load


def main(folder: Path) -> None:
    """Fails with the reason, or prints what was found."""
    metrics = json.loads((folder / "metrics.json").read_text())
    curve = metrics["psnr"]["mean"]
    gain = curve[-1] - metrics["psnr_noisy"]["mean"]
    assert all(a < b for a, b in itertools.pairwise(curve)), f"PSNR must rise along the slider; got {curve}"
    assert gain >= 5.0, f"full denoising must win 5 dB; got {gain:.2f}"
    strips = sorted(folder.glob("strip_*.png"))
    assert len(strips) >= 3, f"there must be a strip per held-out picture; got {strips}"
    for path in [*strips, folder / "psnr.png"]:
        with Image.open(path) as image:
            image.load()
            assert min(image.size) >= 200, f"{path} must show something; got {image.size}"
            assert len(image.convert("L").resize((64, 64)).getcolors() or []) > 8, f"{path} must not be blank"
    net = load(folder / "model.safetensors")
    assert net.spec.names == ("denoise", "keep")
    print(f"demo: {len(strips)} strips, +{gain:.2f} dB, curve {[round(v, 2) for v in curve]}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
