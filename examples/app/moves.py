"""Time of a slider's move in the app, from the key press to the new pixels in Chromium, and in the server alone.

    python examples/app/moves.py --moves 50 --out moves.json      # the app, and Chromium through Playwright
    python examples/app/moves.py --server                         # CPU time of the server's part, by size of the window

The picture has 512x512 pixels. A key moves the first slider, one press after the other, with a pause in which the whole
picture is restored too. The parts of a move: from the key's event to the request (script), to its answer (server and
way), of which the network and the encoding are named alone, to the decoded picture in the page (browser).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from tunable_ops import images, pretrained
from tunable_ops.app import pictures

_SIDE = 512
# the last key's event, and each time that the picture after is another one and decoded
_WATCH = """() => {
  window.moves = [];
  let input = 0, old = "", parts = {};
  document.addEventListener("input", (event) => { input = event.timeStamp; }, true);
  document.addEventListener("window-shown", (event) => { parts = event.detail; });
  new MutationObserver(async () => {
    const image = document.querySelectorAll("#window img")[1];
    if (!image || image.src === old) return;
    old = image.src;
    await image.decode();
    const shown = performance.now();
    setTimeout(() => window.moves.push({ input, shown, ...(parts.input === input ? parts : {}), shown }));
  }).observe(document.querySelector("#window"), { subtree: true, childList: true, attributes: true });
}"""


def main(words: Sequence[str] | None = None) -> int:
    """Measure and print tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=pretrained.names())
    parser.add_argument("--moves", type=int, default=50)
    parser.add_argument("--pause", type=float, default=1.0, help="seconds between moves")
    parser.add_argument("--threads", type=int, default=2, help="of the app")
    parser.add_argument("--server", action="store_true", help="the server's part alone")
    parser.add_argument("--out", type=Path, help="file for all times as JSON")
    args = parser.parse_args(words)
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / "picture.png"
        sample = images.read_image(pictures.SAMPLES[0].file)
        images.write_image(torch.nn.functional.interpolate(sample[None], (_SIDE, _SIDE))[0], picture)
        rows = _server(args, picture) if args.server else _browser(args, picture)
    if args.out is not None:
        args.out.write_text(json.dumps(rows, indent=1) + "\n")
    return 0


def _server(args: argparse.Namespace, picture: Path) -> list[dict[str, Any]]:
    """Measure moves without a browser."""
    from tunable_ops.app.moves import answer
    from tunable_ops.app.networks import Choice, Networks
    from tunable_ops.app.session import Session
    from tunable_ops.app.settings import Settings

    torch.set_num_threads(1)
    settings = Settings()
    session = Session(Networks("cpu", settings), settings)
    rows = []
    for name in args.networks:
        engine = session.choose(Choice(name))
        session.open(picture)
        low, high = engine.spec.ranges[0]
        for side in (64, 96, 128, 160, 192, 224):
            times = []
            for step in range(8):
                engine.window, engine._late = side, 0
                start = time.process_time()
                answer(session, {"knob0": low + (high - low) * (step + 1) / 10}, "")
                times.append(1000 * (time.process_time() - start))
            rows.append({"network": name, "side": side, "cpu_ms": statistics.median(times[2:])})
            print(f"{name:22s} {side:4d} {rows[-1]['cpu_ms']:7.1f} ms", flush=True)
            if rows[-1]["cpu_ms"] > 150:
                break
    return rows


def _browser(args: argparse.Namespace, picture: Path) -> list[dict[str, Any]]:
    """Measure moves in Chromium."""
    from playwright.sync_api import sync_playwright

    browser = os.environ.get("TUNABLE_OPS_CHROMIUM") or shutil.which("chromium")
    rows = []
    with sync_playwright() as playwright, _app(args.threads) as url:
        chromium = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox", "--disable-gpu"])
        for name in args.networks:
            page = chromium.new_page(viewport={"width": 1280, "height": 1000})
            page.goto(url)
            page.wait_for_selector("#knob0 input[type=range]")
            page.click("#network input")
            page.click(f"ul[role=listbox] li:text-is('{name}')")
            page.wait_for_function("(name) => document.querySelector('#status').innerText.includes(name)", arg=name)
            page.set_input_files("#picture input[type=file]", str(picture))
            page.wait_for_function("() => document.querySelectorAll('#whole img').length == 2", timeout=120_000)
            page.evaluate(_WATCH)
            page.focus("#knob0 input[type=range]")
            for count in range(args.moves + 3):
                page.keyboard.press("ArrowRight" if count // 20 % 2 == 0 else "ArrowLeft")
                time.sleep(args.pause)
            moves = page.evaluate("window.moves")[3:]
            rows.append({"network": name, "moves": moves, "window": page.inner_text("#window .note")})
            _say(rows[-1])
            page.close()
        chromium.close()
    return rows


def _say(row: dict[str, Any]) -> None:
    parts = {
        "whole": [move["shown"] - move["input"] for move in row["moves"]],
        "script": [move["sent"] - move["input"] for move in row["moves"] if "sent" in move],
        "network": [move["restore"] for move in row["moves"] if "sent" in move],
        "encoding": [move["encode"] for move in row["moves"] if "sent" in move],
        "way": [m["received"] - m["sent"] - m["restore"] - m["encode"] for m in row["moves"] if "sent" in m],
        "browser": [move["shown"] - move["received"] for move in row["moves"] if "sent" in move],
    }
    print(f"{row['network']}: {len(row['moves'])} moves; window {row['window']}; load {os.getloadavg()[0]:.1f}")
    for name, times in parts.items():
        if len(times) > 1:
            tenths = statistics.quantiles(times, n=10)
            print(
                f"  {name:9s} median {statistics.median(times):6.1f}  90th percentile {tenths[8]:6.1f} ms", flush=True
            )


@contextmanager
def _app(threads: int) -> Iterator[str]:
    """Run the app in a process of its own: its address."""
    command = [sys.executable, "-m", "tunable_ops", "app", "--port", "0", "--threads", str(threads)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as app:
        try:
            assert app.stdout is not None
            found = next(filter(None, (re.search(r"http://\S+", line) for line in app.stdout)))
            yield found.group()
        finally:
            app.terminate()


if __name__ == "__main__":
    raise SystemExit(main())
