"""The page in a real browser: Debian's Chromium, or the one that TUNABLE_OPS_CHROMIUM names."""

import io
import os
import shutil
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image

from tunable_ops.app import Settings, create_app, launch

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update")
PATIENCE = 120_000  # milliseconds, on a machine that has much else to do


def find_chromium():
    """Return the browser's path, or skip."""
    pytest.importorskip("playwright", reason="Playwright is not installed (tunable-ops[dev])")
    found = os.environ.get("TUNABLE_OPS_CHROMIUM") or next(filter(None, map(shutil.which, _NAMES)), None)
    if found is None:
        pytest.skip("there is no Chromium here (apt-get install chromium)", allow_module_level=True)
    return found


@contextmanager
def served(folder, models, **settings):
    """Serve the page from this process: its address."""
    limits = Settings(**{"preview_ms": 200.0, **settings})
    demo = create_app(folder, limits, models)
    try:
        yield launch(demo, "127.0.0.1", 0, limits, wait=False)
    finally:
        demo.close(verbose=False)


@contextmanager
def chromium():
    """A browser without windows."""
    from playwright.sync_api import sync_playwright

    path = find_chromium()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(_FLAGS))
        try:
            yield browser
        finally:
            browser.close()


class Visit:
    """A page that was opened, with all that it asked for.

    Args:
        browser: The browser.
        url: The address.
        options: Of the browser's context, such as its viewport.
    """

    def __init__(self, browser, url, **options):
        options = {"viewport": {"width": 1280, "height": 1000}, "accept_downloads": True, **options}
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.page.set_default_timeout(PATIENCE)
        self.url, self.asked, self.faults = url, [], []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.goto(url)
        self.page.wait_for_selector("#knob0 input[type=range]")

    def close(self):
        self.context.close()

    @property
    def hosts(self):
        """The hosts that were asked for anything."""
        return {url.split("/")[2] for url in self.asked if url.startswith(("http", "ws"))}

    def choose_three(self, network):
        """Choose a network of three sliders and wait for them."""
        self.page.click("#network input")
        self.page.click(f"ul[role=listbox] li:has-text('{network.name}')")
        self.page.wait_for_selector("#knob2 input[type=range]")

    def open(self, path):
        """Drop in a picture and wait for the result."""
        before = self.sources
        self.page.set_input_files("#picture input[type=file]", str(path))
        self.wait_for_other(before)

    @property
    def sources(self):
        """The addresses of the whole picture, before and after."""
        return self.page.evaluate("[...document.querySelectorAll('#whole img')].map((img) => img.src)")

    def wait_for_other(self, sources):
        """Wait for a whole picture other than one."""
        self.page.wait_for_function(
            "(old) => { const now = [...document.querySelectorAll('#whole img')].map((img) => img.src);"
            " return now.length == 2 && now.join() != old.join(); }",
            arg=sources,
        )

    def wait_for_rest(self):
        """Wait until all moves are answered."""
        self.page.wait_for_function("() => window.movesRest()")

    @property
    def after(self):
        """The pixels of the whole picture, after: uint8 [H, W, 3]."""
        source = next(each for each in self.sources if "/after_" in each)
        return np.asarray(Image.open(io.BytesIO(self.context.request.get(source).body())).convert("RGB")).astype(int)

    @property
    def window(self):
        """The address that holds the pixels of the window, after."""
        return self.page.get_attribute("#window figure:nth-child(2) img", "src")

    def press(self, slider, key="ArrowRight", times=1):
        """Move a slider by the keyboard."""
        self.page.focus(f"#{slider} input[type=range]")
        for _ in range(times):
            self.page.keyboard.press(key)

    def status(self, text):
        """Wait for a text in the status line."""
        self.page.wait_for_function("(text) => document.querySelector('#status').innerText.includes(text)", arg=text)

    def unfold(self, selector):
        """Open an accordion."""
        self.page.click(f"{selector} button")
