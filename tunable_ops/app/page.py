"""The page as a whole, and the server behind it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from tunable_ops.app.desk import Desk
from tunable_ops.app.events import Events
from tunable_ops.app.layout import CSS, HEAD, lay_out, theme
from tunable_ops.app.moves import Moves
from tunable_ops.app.networks import Networks
from tunable_ops.app.settings import Settings
from tunable_ops.ports import free_port

__all__ = ["create_app", "launch"]


class App(gr.Blocks):
    """The page, and the requests that do not go through Gradio.

    Attributes:
        moves: Those of the sliders.
    """

    moves: Moves


def create_app(
    folder: Path,
    settings: Settings | None = None,
    models: Sequence[str] | None = None,
    knobs: Sequence[str] = (),
    device: Any = "cpu",
) -> App:
    """Return the page.

    Args:
        folder: Where files for the screen and for downloads are written; whoever made it removes it.
        settings: Limits; None: those of `Settings`.
        models: What the list of networks offers: names or files; None: all that ship.
        knobs: Files of knobs that are added to each.
        device: Where networks run.

    Raises:
        Refused: The first network cannot be loaded.
    """
    settings = settings or Settings()
    networks = Networks(device, settings, models, knobs)
    networks.engine(networks.names[0], networks.knobs)  # before the page is there, so that it is quick from the start
    # Gradio copies what it shows: copies go after a day at the latest
    with App(title="tunable_ops", analytics_enabled=False, delete_cache=(3600, 86400)) as demo:
        page = lay_out(networks, settings)
        desk = Desk(networks, settings, folder)
        Events(page, desk).wire(demo)
    demo.moves = Moves(desk)
    return demo


def launch(demo: App, host: str, port: int, settings: Settings, *, wait: bool = True, browser: bool = False) -> str:
    """Serve the page.

    Args:
        demo: What `create_app` returns.
        host: Address to listen at.
        port: Port; 0 takes a free one.
        settings: Limits of uploads.
        wait: Return only when a signal or Ctrl-C ends it.
        browser: Open the page in a browser.

    Returns:
        The address of the page.

    Raises:
        ValueError, OSError: As `ports.free_port`.
    """
    port = free_port(host, port)
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    _, url, _ = demo.queue(default_concurrency_limit=8, api_open=False).launch(
        server_name=host,
        server_port=port,
        share=False,
        inbrowser=browser,
        quiet=True,
        show_error=True,
        max_file_size=settings.max_bytes,
        footer_links=[],
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        run_history=False,
        prevent_thread_lock=not wait,
        theme=theme(),
        css=CSS,
        head=HEAD,
        app_kwargs={"routes": demo.moves.routes()},
    )
    return str(url)
