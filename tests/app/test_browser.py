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
    page.wait_for_function(
        "() => document.querySelector('#command textarea').value.includes('--mask smooth_mask.png --inside')"
    )


def test_a_move_is_one_request_and_the_window_follows(visit, smooth):
    page = visit.page
    visit.open(smooth)
    before = page.get_attribute("#window figure:first-child img", "src")
    window = visit.window
    page.evaluate("document.addEventListener('window-shown', (event) => { window.seen = event.detail; })")
    asked = len(visit.asked)
    visit.press("knob0")
    page.wait_for_function("() => window.seen")
    assert page.evaluate("window.seen.input <= window.seen.sent && window.seen.received <= window.seen.shown")
    assert visit.asked[asked].endswith("/moves")  # nothing of Gradio's comes first
    assert visit.window != window
    assert page.get_attribute("#window figure:first-child img", "src") == before  # which is not sent again
    assert page.evaluate("document.querySelectorAll('#window img')[1].naturalWidth") > 30


def test_the_last_of_many_moves_is_shown(visit, smooth):
    page = visit.page
    visit.open(smooth)
    visit.press("knob0", "Home")
    old = visit.sources
    visit.press("knob0", times=30)
    visit.wait_for_other(old)
    page.wait_for_function("() => document.querySelector('#command textarea').value.includes('sigma=15,')")
    visit.wait_for_rest()
    assert page.input_value("#knob0 input[type=range]") == "15"


def test_the_whole_picture_waits_for_a_move_on_its_way(visit, smooth):
    """Otherwise the move, once it arrives, stops the picture, or brings an old position back."""
    page = visit.page
    visit.open(smooth)
    held, asked = [], len(visit.asked)
    page.route("**/moves", lambda route: held.append(route))
    old = visit.sources
    visit.press("knob0", "End")
    page.wait_for_timeout(900)  # a slider rests after 250 ms
    assert len(held) == 1 and [url.rsplit("/", 1)[1] for url in visit.asked[asked:]] == ["moves"]
    held[0].continue_()
    visit.wait_for_other(old)
    page.wait_for_function("() => document.querySelector('#command textarea').value.includes('sigma=50,')")


def test_a_move_that_was_lost_is_sent_again(visit, smooth, simplex_file):
    """On the simplex, where the whole picture is of the moves alone."""
    page = visit.page
    visit.choose_three(simplex_file)
    visit.open(smooth)
    page.route("**/moves", lambda route: route.abort(), times=1)
    visit.press("knob0", "End")
    page.wait_for_function("() => document.querySelector('#command textarea').value.includes('a=1,b=0,c=0')")


def test_a_page_whose_session_is_gone_says_so(visit, smooth):
    visit.open(smooth)
    lost = '{"problem": "the page must be open; got the key of none"}'
    visit.page.route("**/moves", lambda route: route.fulfill(status=404, body=lost))
    visit.page.route("**/queue/**", lambda route: route.abort())
    visit.press("knob0", "End")
    visit.status("The page is not open here any more: reload it.")


def test_a_slider_that_is_put_back(visit, smooth):
    page = visit.page
    visit.open(smooth)
    old = visit.sources
    visit.press("knob0", "Home")
    visit.wait_for_other(old)  # or it would be taken for that of the slider's old place
    page.wait_for_function("() => document.querySelector('#command textarea').value.includes('sigma=0,')")
    window, old = visit.window, visit.sources
    page.click("#knob0 button")
    visit.wait_for_other(old)
    assert page.input_value("#knob0 input[type=range]") == "25" and visit.window != window
    page.wait_for_function("() => document.querySelector('#command textarea').value.includes('sigma=25,')")


@pytest.mark.slow
def test_a_sweep(visit, smooth, tmp_path):
    page = visit.page
    visit.open(smooth)
    visit.unfold("#sweeps")
    page.click("#sweep")
    visit.status("The strip is ready.")
    page.wait_for_selector("#strip figure")
    labels = page.locator("#strip figcaption").all_inner_texts()
    assert labels == ["input", *(f"sigma {value} of 255" for value in ("0.00", "12.50", "25.00", "37.50", "50.00"))]
    for caption in page.locator("#strip figcaption").all():  # readable: all of it, below its picture
        assert (
            caption.evaluate("(e) => e.scrollWidth <= e.clientWidth && parseFloat(getComputedStyle(e).fontSize)") >= 14
        )
        picture = caption.locator("xpath=..").locator("img").bounding_box()
        assert caption.bounding_box()["y"] >= picture["y"] + picture["height"] - 1 and picture["width"] >= 190
    assert page.locator("#strip").bounding_box()["width"] > 1100  # of 1280
    with page.expect_download() as waiting:
        page.click("#savestrip")
    assert waiting.value.suggested_filename == "smooth_sweep.png"


@pytest.mark.slow
def test_a_picture_of_a_strip_is_enlarged_by_the_keyboard(visit, smooth):
    page = visit.page
    visit.open(smooth)
    visit.unfold("#sweeps")
    page.click("#sweep")
    small = page.wait_for_selector("#strip figure:nth-child(2) button")
    small.focus()
    page.keyboard.press("Enter")
    dialog = page.wait_for_selector("#enlarged[open]")
    assert dialog.query_selector("span").inner_text() == "sigma 0.00 of 255"
    assert dialog.query_selector("img").bounding_box()["height"] > 3 * small.bounding_box()["height"]
    page.keyboard.press("ArrowRight")
    assert dialog.query_selector("img").get_attribute("alt") == "sigma 12.50 of 255"
    page.keyboard.press("Escape")
    page.wait_for_selector("#enlarged", state="hidden")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "Enlarge sigma 12.50 of 255"


@pytest.mark.slow
def test_a_mask_is_saved_and_taken_again(visit, smooth, tmp_path):
    page = visit.page
    visit.open(smooth)
    visit.unfold("#masks")
    page.focus("#painter")
    old = visit.sources
    page.keyboard.press(" ")
    visit.wait_for_other(old)
    masked = visit.after
    with page.expect_download() as waiting:
        page.click("#savemask")
    assert waiting.value.suggested_filename == "smooth_mask.png"
    waiting.value.save_as(tmp_path / "smooth_mask.png")
    mask = np.asarray(Image.open(tmp_path / "smooth_mask.png"))
    assert mask.shape == (160, 200) and mask[80, 100] == 65535 and mask[5, 5] == 0
    with page.expect_download() as waiting:
        page.click("#save")
    assert waiting.value.suggested_filename == "smooth_lam25.00-0.00_mask0.00-0.00.png"
    old = visit.sources
    page.click("#nomask")
    visit.wait_for_other(old)
    assert np.abs(visit.after - masked).max() > 6
    old = visit.sources
    with page.expect_file_chooser() as chooser:
        page.click("#maskfile")
    chooser.value.set_files(str(tmp_path / "smooth_mask.png"))
    visit.wait_for_other(old)
    assert np.array_equal(visit.after, masked)
    ink = "() => document.querySelector('#painter').getContext('2d').getImageData(100, 80, 1, 1).data[3]"
    page.wait_for_function(f"() => ({ink})() == 255")  # drawn, to be painted on


@pytest.mark.slow
def test_noise_is_estimated_only_where_a_slider_takes_it(visit, smooth, simplex_file):
    page = visit.page
    assert page.is_visible("#estimate")
    visit.choose_three(simplex_file)
    page.wait_for_selector("#estimate", state="hidden")


@pytest.mark.slow
def test_transparency_is_shown(visit, tmp_path):
    pixels = np.full((64, 96, 4), 65535, np.uint16)
    pixels[..., 0] = 0
    pixels[:, :48, 3] = 0
    from tunable_ops.images import Frame, encode_picture

    (tmp_path / "clear.png").write_bytes(encode_picture([Frame(pixels)], "png"))
    visit.open(tmp_path / "clear.png")
    left, right = visit.after[4:60, 4:44], visit.after[4:60, 52:92]
    assert right.std(axis=(0, 1)).max() < 3
    assert left.std(axis=(0, 1)).min() > 15 and np.ptp(left, axis=2).max() < 12  # grey squares


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
    visit.choose_three(simplex_file)
    visit.open(smooth)
    visit.press("knob0", "End")
    page.wait_for_function("() => Number(document.querySelector('#knob1 input[type=range]').value) == 0")
    assert page.input_value("#knob0 input[type=range]") == "1"


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone(chromium, url, smooth, scheme, tmp_path):
    options = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "color_scheme": scheme}
    visit = browsers.Visit(chromium, url, **options)
    (tmp_path / "text.png").write_text("no picture")
    visit.page.set_input_files("#picture input[type=file]", str(tmp_path / "text.png"))
    visit.status("The picture must be PNG, JPEG, WebP or TIFF; got 'text.png', which is none of these.")
    visit.page.wait_for_function(
        "(({ top, bottom }) => top >= 0 && bottom <= innerHeight)"
        "(document.querySelector('#status .problem').getBoundingClientRect())"
    )
    visit.page.click("#picture button[aria-label='Clear']")
    visit.page.wait_for_selector("#picture input[type=file]", state="attached")
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
