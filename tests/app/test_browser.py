"""The page in Chromium: it loads, a slider moves, pixels change, a mask is painted. The rest is slow."""

import numpy as np
import pytest
from PIL import Image

from tests.app import browser as browsers
from tests.app.conftest import write_png

browsers.find_chromium()


@pytest.fixture(scope="module")
def url(tmp_path_factory, network_file, simplex_file):
    folder = tmp_path_factory.mktemp("served")
    with browsers.served(folder, [str(network_file), str(simplex_file)], max_pixels=200_000) as address:
        yield address


@pytest.fixture(scope="module")
def chromium():
    with browsers.chromium() as started:
        yield started


@pytest.fixture
def visit(chromium, url):
    made = browsers.Visit(chromium, url)
    yield made
    assert made.hosts == {url.split("/")[2]}, "the page must ask no other host for anything"
    assert made.faults == []
    made.close()


@pytest.fixture
def smooth(tmp_path):
    """A picture of 200x160 pixels without noise."""
    rows, columns = np.mgrid[:160, :200]
    pixels = np.stack([rows + 40, columns + 20, 255 - columns], 2).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "smooth.png")
    return tmp_path / "smooth.png"


def test_it_loads_a_slider_moves_and_pixels_change(visit, smooth):
    page = visit.page
    assert page.title() == "tunable_ops"
    assert "sigma (of 255)" in page.inner_text("#knob0") and "0 to 50 of 255, default 25" in page.inner_text("#knob0")
    assert page.input_value("#knob0 input[type=range]") == "25"
    visit.open(smooth)
    whole, window, old = visit.after, visit.window, visit.sources
    assert whole.shape == (160, 200, 3)
    visit.press("knob0", times=6)
    page.wait_for_function("(old) => document.querySelectorAll('#window img')[1].src != old", arg=window)
    visit.wait_for_other(old)  # the whole picture, when the slider rests
    assert np.abs(visit.after - whole).max() > 2
    page.wait_for_function("() => document.querySelector('#command textarea').value.includes('sigma=28')")


def test_painting_changes_pixels_there_only(visit, smooth):
    page = visit.page
    visit.open(smooth)
    whole, old = visit.after, visit.sources
    visit.unfold("#masks")
    canvas = page.wait_for_selector("#painter")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 6, y + 4, steps=4)
    page.mouse.up()
    visit.wait_for_other(old)
    changed = np.abs(visit.after - whole).max(2) > 6  # shown as JPEG
    rows, columns = np.nonzero(changed)
    assert len(rows) > 50
    assert rows.min() > 80 - 50 and rows.max() < 80 + 50
    assert columns.min() > 100 - 60 and columns.max() < 100 + 60
    page.wait_for_function("() => document.querySelector('#command textarea').value.startsWith('import torch')")


@pytest.mark.slow
def test_a_sweep(visit, smooth):
    visit.open(smooth)
    visit.unfold("#sweeps")
    visit.page.click("#sweep")
    visit.status("The strip is ready.")
    image = visit.page.wait_for_selector("#strip img")
    strip = visit.context.request.get(image.get_attribute("src"))
    assert strip.ok and len(strip.body()) > 1000


@pytest.mark.slow
def test_a_download(visit, tmp_path):
    deep = write_png(tmp_path / "deep.png", 50, 40, 4, np.uint16)
    visit.open(deep)
    with visit.page.expect_download() as waiting:
        visit.page.click("#save")
    saved = waiting.value
    assert saved.suggested_filename == "deep_lam25.00-0.00.png"
    saved.save_as(tmp_path / "saved.png")
    from tunable_ops import images

    picture = images.open_picture(tmp_path / "saved.png")
    assert (picture.size, picture.bits, picture.alpha) == ((50, 40), 16, True)


@pytest.mark.slow
def test_a_wrong_file_is_refused_in_the_page(visit, smooth, tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    visit.page.set_input_files("#picture input[type=file]", str(tmp_path / "text.png"))
    visit.status("The picture must be PNG, JPEG, WebP or TIFF; got 'text.png', which is none of these.")
    assert visit.page.get_attribute("#status .problem", "role") == "alert"
    visit.page.click("#picture button[aria-label='Clear']")
    visit.page.wait_for_selector("#picture input[type=file]", state="attached")
    visit.open(smooth)  # and goes on


@pytest.mark.slow
def test_a_mask_of_another_size_is_refused(visit, smooth, tmp_path):
    visit.open(smooth)
    visit.unfold("#masks")
    other = write_png(tmp_path / "mask.png", 10, 12, 1)
    with visit.page.expect_file_chooser() as chooser:
        visit.page.click("#maskfile")
    chooser.value.set_files(str(other))
    visit.status("The mask must have the size of the picture, 200x160 pixels; got 12x10 in 'mask.png'.")


@pytest.mark.slow
def test_sliders_that_sum_to_one(visit, smooth, simplex_file):
    page = visit.page
    page.click("#network input")
    page.click(f"ul[role=listbox] li:has-text('{simplex_file.name}')")
    page.wait_for_selector("#knob2 input[type=range]")
    visit.open(smooth)
    visit.press("knob0", "End")
    page.wait_for_function("() => Number(document.querySelector('#knob1 input[type=range]').value) == 0")
    assert page.input_value("#knob0 input[type=range]") == "1"


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone(chromium, url, smooth, scheme):
    options = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "color_scheme": scheme}
    visit = browsers.Visit(chromium, url, **options)
    visit.open(smooth)
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= 390
    dark = visit.page.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
    assert dark == (scheme == "dark")
    visit.close()


@pytest.mark.slow
def test_everything_has_a_name_for_screen_readers(visit, smooth):
    visit.open(smooth)
    nameless = visit.page.evaluate(
        """() => [...document.querySelectorAll("input, textarea, button, img")]
        .filter((e) => e.offsetParent && !(e.getAttribute("aria-label") || e.innerText || e.title || e.alt
            || e.labels?.length || e.getAttribute("aria-labelledby")))
        .map((e) => e.outerHTML.slice(0, 200))"""
    )
    assert nameless == []
    assert visit.page.get_attribute("#status", "aria-live") == "polite"
