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

__all__ = ["create_app", "launch", "mount"]

_QUEUE: dict[str, Any] = {"default_concurrency_limit": 8, "api_open": False}


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
    _, url, _ = demo.queue(**_QUEUE).launch(
        server_name=host,
        server_port=port,
        share=False,
        inbrowser=browser,
        quiet=True,
        prevent_thread_lock=not wait,
        **_options(demo, settings),
    )
    return str(url)


def mount(app: Any, demo: App, path: str, settings: Settings | None = None) -> Any:
    """Make the page a part of another application, with its style, its scripts and the requests of its sliders.

    Args:
        app: A FastAPI application.
        demo: What `create_app` returns.
        path: Where the page is, such as "/tune".
        settings: Limits of uploads; None: those of `Settings`.

    Returns:
        The application.
    """
    return gr.mount_gradio_app(app, demo.queue(**_QUEUE), path, **_options(demo, settings or Settings()))


def _options(demo: App, settings: Settings) -> dict[str, Any]:
    """Return what Gradio is told wherever it serves the page."""
    return {
        "show_error": True,
        "max_file_size": settings.max_bytes,
        "footer_links": [],
        "ssr_mode": False,
        "enable_monitoring": False,
        "pwa": False,
        "mcp_server": False,
        "run_history": False,
        "theme": theme(),
        "css": CSS,
        "head": HEAD,
        "app_kwargs": {"routes": demo.moves.routes()},
    }
