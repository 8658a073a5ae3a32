"""Pieces of the page that are made anew: messages, the window, sliders, pictures for the screen."""

from __future__ import annotations

import html
import itertools
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr
import torch
import torch.nn.functional as F
from torch import Tensor

from tunable_ops.app import pictures
from tunable_ops.app.engine import MOST_PARAMETERS, Engine
from tunable_ops.app.masks import ink
from tunable_ops.app.pictures import Given
from tunable_ops.app.results import Preview, Strip
from tunable_ops.app.session import Session
from tunable_ops.images import Frame, encode_picture

__all__ = [
    "about",
    "before_and_after",
    "key",
    "knob_updates",
    "message",
    "painter",
    "problem",
    "progress",
    "strip",
    "window",
    "window_file",
    "window_note",
]

_STEPS = 100  # of a slider's range
_BRUSH = torch.tensor((255, 45, 135), dtype=torch.uint8)  # as in page.js
_TURNS = itertools.count()


def message(text: str) -> str:
    """Return a message for the status line."""
    return f"<p>{html.escape(text)}</p>"


def problem(error: Exception) -> str:
    """Return a refusal for the status line."""
    text = str(error)
    return f'<p class="problem" role="alert">{html.escape(text[:1].upper() + text[1:])}.</p>'


def progress(share: float, text: str) -> str:
    """Return a progress bar."""
    percent = round(100 * share)
    return (
        f'<p><progress max="100" value="{percent}" aria-label="{html.escape(text)}"></progress> '
        f"{html.escape(text)}: {percent} %</p>"
    )


def key(name: str) -> str:
    """Return what tells the page's script the name of its session."""
    return f'<span data-key="{html.escape(name)}"></span>'


def window(preview: Preview, scale: int) -> str:
    """Return the window, before and after; another text each time, for Gradio does not know what moves have drawn."""
    figures = "".join(
        f'<figure><img src="{pictures.data_url(window_file(image, preview))}" alt="{name}">'
        f"<figcaption>{name}</figcaption></figure>"
        for name, image in (("Window before", preview.before), ("Window after", preview.after))
    )
    about = f'data-tag="{preview.tag}" data-turn="{next(_TURNS)}"'
    return f'<div class="window" {about}>{figures}</div><p class="note">{window_note(preview, scale)}</p>'


def window_file(image: Tensor, preview: Preview) -> bytes:
    """Return the JPEG file of the window before or after."""
    return pictures.as_jpeg(pictures.on_checks(image, preview.alpha), 92)


def window_note(preview: Preview, scale: int) -> str:
    """Return the line below the window."""
    height, width = preview.before.shape[1:]
    larger = f", {scale} times as large after" if scale > 1 else ""
    return f"{width}x{height} pixels{larger}, in {1000 * preview.seconds:.0f} ms"


def strip(made: Strip) -> str:
    """Return the pictures of a strip, each with its position below; page.js enlarges the one that is clicked."""
    figures = "".join(
        f'<figure><button type="button" aria-label="Enlarge {html.escape(label)}">'
        f'<img src="{pictures.data_url(pictures.as_jpeg(image, 92))}" alt="{html.escape(label)}"></button>'
        f"<figcaption>{html.escape(label)}</figcaption></figure>"
        for image, label in zip(made.pictures, made.labels, strict=True)
    )
    return f'<div class="strip">{figures}</div>'


def about(engine: Engine, purpose: str | None) -> str:
    """Return a line about a network."""
    parts = [purpose or engine.title]
    if engine.spec is None:
        parts.append("a plain network: it has no sliders")
    elif engine.spec.domain == "simplex":
        parts.append("its parameters sum to 1: where one moves, the others follow")
    return f'<p class="note">{html.escape("; ".join(parts))}</p>'


def knob_updates(engine: Engine, values: Sequence[float]) -> list[Any]:
    """Return what puts a network's parameters on the sliders, and hides the others."""
    spec = engine.spec
    count = 0 if spec is None else spec.num_params
    updates = []
    for place in range(MOST_PARAMETERS):
        if spec is None or place >= count:
            updates.append(gr.update(visible=False))
            continue
        (low, high), unit, default = spec.ranges[place], spec.units[place], spec.defaults[place]
        updates.append(
            gr.update(
                visible=True,
                minimum=low,
                maximum=high,
                step=(high - low) / _STEPS,
                value=values[place],
                label=spec.names[place] + (f" ({unit})" if unit else ""),
                info=f"{low:g} to {high:g}{unit and f' {unit}'}, default {default:.4g}",
            )
        )
    return updates


def painter(given: Given, mask: Tensor | None = None) -> str:
    """Return the picture with a canvas on it, to paint a mask on (page.js), and the mask that is there already.

    Another text each time, for Gradio does not know what was painted.
    """
    view = pictures.on_checks(pictures.shrunk(given.image), given.frame.alpha)
    height, width = view.shape[1:]
    ready = "" if mask is None else f'data-mask="{pictures.data_url(_ink(mask), "png")}" '
    return (
        f'<div class="painter" data-turn="{next(_TURNS)}">'
        f'<img src="{pictures.data_url(pictures.as_jpeg(view, 92))}" alt="The picture">'
        f'<canvas id="painter" width="{width}" height="{height}" tabindex="0" role="application" {ready}'
        'aria-label="Paint the mask: arrow keys move, the space bar paints"></canvas></div>'
    )


def _ink(mask: Tensor) -> bytes:
    """Return a mask as a PNG in the colour of the brush, as opaque as it is white."""
    alpha = ink(mask)
    colours = _BRUSH.view(3, 1, 1).expand(-1, *alpha.shape[1:])
    pixels = torch.cat([colours, alpha.mul(255).round().to(torch.uint8)])
    return encode_picture([Frame(pixels.permute(1, 2, 0).contiguous().numpy())], "png")


def before_and_after(session: Session, folder: Path) -> tuple[str, str]:
    """Write the whole picture before and after, in one size for the screen, and return the files."""
    assert session.whole is not None and session.given is not None
    after = pictures.shrunk(session.whole.output)
    before = _like(session.given, after)
    after, before = (pictures.on_checks(image, session.given.frame.alpha) for image in (after, before))
    paths = []
    for name, image in (("before", before), ("after", after)):
        content = pictures.as_jpeg(image)
        path = folder / f"{name}_{zlib.crc32(content):08x}.jpg"  # a browser keeps what it has under a name
        for old in folder.glob(f"{name}_*.jpg"):
            old.unlink()
        path.write_bytes(content)
        paths.append(str(path))
    return paths[0], paths[1]


def _like(given: Given, after: Tensor) -> Tensor:
    """Return the picture before in the size of the one after."""
    size = (after.shape[1], after.shape[2])
    if given.size == size:
        return given.image
    return F.interpolate(given.image[None].clamp(0, 1), size, mode="bicubic", antialias=True)[0]
