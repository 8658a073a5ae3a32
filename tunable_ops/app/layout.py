"""What the page looks like: its parts, in their places."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr

from tunable_ops.app import pictures
from tunable_ops.app.engine import MOST_PARAMETERS
from tunable_ops.app.networks import Networks
from tunable_ops.app.settings import Settings

__all__ = ["CSS", "HEAD", "Page", "lay_out", "theme"]

_SANS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "DejaVu Sans", "sans-serif"]
_MONO = ["ui-monospace", "Menlo", "Consolas", "DejaVu Sans Mono", "monospace"]
_SUFFIXES = [".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".tif", ".tiff"]

_FOLDER = Path(__file__).parent
CSS = (_FOLDER / "page.css").read_text(encoding="utf-8")
_SCRIPTS = "\n".join((_FOLDER / name).read_text(encoding="utf-8") for name in ("moves.js", "page.js"))
HEAD = f"<script>\n{_SCRIPTS}</script>"


def theme() -> Any:
    """Return the theme: fonts of the system alone, so that nothing is fetched from another host."""
    return gr.themes.Base(primary_hue="teal", neutral_hue="slate", font=_SANS, font_mono=_MONO)


class Page(SimpleNamespace):
    """The parts of the page that events read or write; each function below puts in those that it makes."""


def lay_out(networks: Networks, settings: Settings) -> Page:
    """Put the parts into the Blocks that is open."""
    page = Page(samples=[])
    gr.Markdown(
        "# tunable_ops\n\nDrop in a picture, choose a network, move its sliders. All of it stays on this machine.",
        elem_id="title",
    )
    with gr.Row():
        with gr.Column(scale=2, min_width=320):
            _picture(page)
            _network(page, networks, settings)
            _sliders(page)
        with gr.Column(scale=3, min_width=320):
            _result(page)
            _mask(page)
    _sweep(page)
    page.key = gr.HTML("", elem_classes=["offscreen"])
    # of the sliders (`Session.turn`), which what the page sends names
    page.turn = gr.Textbox("0", label="Turn", elem_id="turn", elem_classes=["offscreen"])
    return page


def _picture(page: Page) -> None:
    page.file = _drop("Picture: PNG, JPEG, WebP or TIFF", _SUFFIXES, "single", "picture")
    with gr.Row():
        for number, sample in enumerate(pictures.SAMPLES):
            page.samples.append(gr.Button(sample.title, size="sm", min_width=90, elem_id=f"sample{number}"))


def _drop(label: str, suffixes: list[str], count: Any, name: str) -> Any:
    """Return a place to drop files on."""
    return gr.File(label=label, file_types=suffixes, file_count=count, height=140, elem_id=name)


def _network(page: Page, networks: Networks, settings: Settings) -> None:
    page.network = gr.Dropdown(networks.names, value=networks.names[0], label="Network", elem_id="network")
    page.about = gr.HTML("", elem_id="about")
    with gr.Accordion("Knob files and other networks", open=False):
        said = "Knobs, which go onto the network above, or one network with knobs (.safetensors)"
        page.files = _drop(said, [".safetensors"], "multiple", "files")
        page.path = gr.Textbox(
            label="Or paths on this machine, one a line", lines=2, visible=settings.paths, elem_id="path"
        )
        page.load = gr.Button("Load", elem_id="load")


def _sliders(page: Page) -> None:
    with gr.Group():
        page.knobs = _pool("knob")
    with gr.Row():
        page.defaults = gr.Button("Defaults", size="sm", min_width=90, elem_id="defaults")
        page.estimate = gr.Button("Estimate the noise", size="sm", min_width=90, elem_id="estimate")
    page.settle = gr.Button("Restore", elem_id="settle", elem_classes=["offscreen"])
    page.window = gr.HTML("", elem_id="window")
    with gr.Accordion("Place of the window, and noise to try with", open=False):
        page.across = gr.Slider(0, 100, 50, step=1, label="Window: from left to right (%)", elem_id="across")
        page.down = gr.Slider(0, 100, 50, step=1, label="Window: from top to bottom (%)", elem_id="down")
        page.noise = gr.Slider(
            0, 50, 0, step=1, label="Add noise (of 255)", elem_id="noise", info="White Gaussian noise, with seed 0"
        )


def _pool(name: str) -> list[Any]:
    """Return sliders that a network's parameters are put on."""
    return [
        gr.Slider(0, 1, 0, visible=False, elem_id=f"{name}{place}", elem_classes=["knob"], label=f"parameter {place}")
        for place in range(MOST_PARAMETERS)
    ]


def _result(page: Page) -> None:
    page.whole = gr.ImageSlider(
        label="Before | after: drag the divider", type="filepath", interactive=False, max_height=620, elem_id="whole"
    )
    page.status = gr.HTML("", elem_id="status")
    with gr.Row():
        page.kind = gr.Dropdown(
            pictures.KINDS, value=pictures.KINDS[0], label="Format", min_width=180, elem_id="kind", scale=2
        )
        page.save = gr.Button("Download", variant="primary", min_width=110, elem_id="save", scale=2)
        page.stop = gr.Button("Stop", variant="stop", min_width=80, elem_id="stop", scale=1)
    page.saved = gr.DownloadButton("Download", elem_id="saved", elem_classes=["offscreen"])
    page.command = gr.Textbox(
        label="Repeat it from the command line",
        lines=2,
        max_lines=12,
        interactive=False,
        buttons=["copy"],
        elem_id="command",
    )


def _mask(page: Page) -> None:
    with gr.Accordion("Mask: other values for a part of the picture", open=False, elem_id="masks"):
        gr.Markdown(
            "Paint the part with the pointer, or with the arrow keys and the space bar, and set its values below. "
            "Or give a picture of the same size that is white there."
        )
        page.painter = gr.HTML("", elem_id="paint")
        with gr.Row():
            # read by page.js alone
            gr.Slider(2, 200, 40, step=2, label="Brush (pixels)", elem_id="brush", min_width=140)
            gr.Checkbox(label="Erase", elem_id="erase", min_width=100)
        page.strokes = gr.Textbox(label="Strokes", elem_id="strokes", elem_classes=["offscreen"])
        page.painted = gr.Button("Take the mask", elem_id="painted", elem_classes=["offscreen"])
        with gr.Group():
            page.mask_knobs = _pool("inside")
        with gr.Row():
            page.mask_file = gr.UploadButton("Mask from a file", file_types=_SUFFIXES, size="sm", elem_id="maskfile")
            page.save_mask = gr.Button("Save the mask", size="sm", elem_id="savemask")
            page.no_mask = gr.Button("No mask", size="sm", elem_id="nomask")


def _sweep(page: Page) -> None:
    with gr.Accordion("Sweep: several positions side by side", open=False, elem_id="sweeps"):
        with gr.Row():
            page.moving = gr.Dropdown([], label="Parameter", elem_id="moving", min_width=120)
            page.count = gr.Slider(2, 9, 5, step=1, label="Positions", elem_id="count", min_width=120)
        with gr.Row():
            page.sweep = gr.Button("Make the strip", elem_id="sweep")
            page.save_strip = gr.Button("Save the strip", elem_id="savestrip")
        page.strip = gr.HTML("", elem_id="strip")
