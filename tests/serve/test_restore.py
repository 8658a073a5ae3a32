"""POST /v1/restore: what comes out, and what is kept of a picture."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from tests.picture_files import WIDE, exif
from tests.serve.conftest import picture, serving, small_network
from tunable_ops import fold, images
from tunable_ops.grey import stronger
from tunable_ops.images import Frame, Metadata, encode_picture, open_picture

FLOAT = 1e-6  # of 1: rounding of the network's sums


def post(client, content, model="small", **query):
    response = client.post("/v1/restore", params={"model": model, **query}, content=content)
    assert response.status_code == 200, response.text
    return response


def pixels(content):
    return next(open_picture(content).frames()).pixels


def expected(net, content, lam):
    """What the network makes of a picture in colour, [H, W, 3] in [0, 1]."""
    with torch.no_grad():
        return net(next(open_picture(content).frames()).colour[None], lam)[0].clamp(0, 1).permute(1, 2, 0).numpy()


@pytest.mark.parametrize("lam", [None, "sigma=25", "sigma=0,keep=1", "keep=0.25", " keep = 1 , sigma = 5 "])
def test_the_answer_is_the_networks_at_lambda(client, net, lam):
    content = picture()
    given = dict(part.split("=") for part in (lam or "").replace(" ", "").split(",") if part)
    want = {"sigma": 25.0, "keep": 0.0} | {name: float(number) for name, number in given.items()}
    response = post(client, content, **({} if lam is None else {"lam": lam}))
    assert response.headers["content-type"] == "image/png"
    assert response.headers["tunable-lambda"] == f"sigma={want['sigma']:g},keep={want['keep']:g}"
    found = pixels(response.content) / 255
    assert np.abs(found - expected(net, content, want)).max() <= 0.5 / 255 + FLOAT


@pytest.mark.parametrize("kind, media_type", [("png", "png"), ("jpg", "jpeg"), ("webp", "webp"), ("tiff", "tiff")])
@pytest.mark.parametrize("channels", [1, 3])
def test_formats_in_and_out(client, kind, media_type, channels):
    content = picture(channels=channels, kind=kind)
    own = post(client, content)
    assert own.headers["content-type"] == ("image/png" if kind == "jpg" else f"image/{media_type}")
    asked = post(client, picture(channels=channels), format=kind)
    assert asked.headers["content-type"] == f"image/{media_type}"
    assert open_picture(asked.content).format == {"jpg": "JPEG"}.get(kind, kind.upper())
    assert pixels(own.content).shape == pixels(content).shape


@pytest.mark.parametrize("kind", ["png", "tiff"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_bits_channels_and_alpha_are_kept(client, kind, channels, dtype):
    content = picture(channels=channels, dtype=dtype, kind=kind)
    given, found = pixels(content), pixels(post(client, content).content)
    assert (found.shape, found.dtype) == (given.shape, given.dtype)
    if channels in (2, 4):
        assert np.array_equal(found[..., -1], given[..., -1])


def test_sixteen_bits_are_the_networks_and_not_eight_that_were_widened(client, net):
    content = picture(dtype=np.uint16)
    found = pixels(post(client, content, lam="sigma=5").content) / 65535
    assert np.abs(found - expected(net, content, {"sigma": 5.0})).max() <= 0.5 / 65535 + FLOAT


@pytest.mark.parametrize("bits", [8, 16])
def test_bits_can_be_chosen(client, bits):
    assert open_picture(post(client, picture(), bits=bits).content).bits == bits


def test_profile_resolution_and_text_are_kept(client):
    metadata = Metadata(icc=WIDE, dpi=(300, 300), texts={"Title": "a"})
    content = encode_picture([Frame(pixels(picture()), metadata=metadata)], "png")
    found = open_picture(post(client, content).content).metadata
    assert found.icc == WIDE and found.texts == {"Title": "a"}
    assert found.dpi == pytest.approx((300, 300), rel=1e-4)


def test_the_orientation_is_applied_and_the_rest_of_exif_kept(client):
    stream = io.BytesIO()
    Image.fromarray(pixels(picture())).save(stream, "JPEG", exif=exif(6))
    response = post(client, stream.getvalue(), format="jpg")
    written = Image.open(io.BytesIO(response.content))
    assert written.size == (20, 30)
    assert written.getexif()[0x0112] == 1 and written.getexif()[0x010F] == "A maker"


def test_what_a_format_cannot_keep_is_said(client):
    response = post(client, picture(channels=4, dtype=np.uint16), format="jpg", quality=80)
    notes = response.headers["tunable-notes"]
    assert "jpg has no transparency" in notes and "jpg has 8 bits" in notes


@pytest.mark.parametrize("kind", ["png", "webp"])
def test_animations_stay_animations(client, kind):
    frames = [Frame(pixels(picture(seed=seed)), duration=40) for seed in range(3)]
    found = open_picture(post(client, encode_picture(frames, kind, loop=2)).content)
    assert (found.count, found.animated, found.loop) == (3, True, 2)
    assert [frame.duration for frame in found.frames()] == [40, 40, 40]


def test_pages_of_all_sizes_stay_pages(client):
    content = encode_picture([Frame(pixels(picture())), Frame(pixels(picture(9, 11, 1)))], "tiff")
    found = [frame.pixels.shape for frame in open_picture(post(client, content).content).frames()]
    assert found == [(20, 30, 3), (9, 11, 3)]  # a document is in colour or grey as a whole, as with `apply`


def test_the_content_decides_and_not_its_type(client):
    query = {"model": "small"}
    response = client.post("/v1/restore", params=query, content=picture(), headers={"content-type": "text/html"})
    assert response.status_code == 200 and response.headers["content-type"] == "image/png"


def test_grey_pictures_stay_grey_at_the_lambda_for_grey(client, net):
    content = picture(channels=1)
    lam = stronger(net, (20.0, 0.0))
    assert lam[0] > 30
    colour = next(open_picture(content).frames()).colour
    with torch.no_grad():
        want = net(colour.expand(3, -1, -1)[None], lam)[0].mean(0).clamp(0, 1).numpy()
    response = post(client, content, lam="sigma=20")
    assert response.headers["tunable-lambda"] == "sigma=20,keep=0"
    assert np.abs(pixels(response.content)[..., 0] / 255 - want).max() <= 0.5 / 255 + FLOAT


def test_the_noise_can_be_estimated(client):
    content = picture(64, 64)
    (frame,) = open_picture(content).frames()
    sigma = min(images.estimate_noise(frame.colour), 50)
    response = post(client, content, lam="sigma=auto")
    assert response.headers["tunable-lambda"] == f"sigma={sigma:.6g},keep=0"
    assert post(client, picture(4, 4), lam="sigma=auto").headers["tunable-lambda"] == "sigma=25,keep=0"  # too small


def test_the_noise_of_a_jpeg_with_subsampled_colour(client):
    stream = io.BytesIO()
    noise = np.random.default_rng(0).normal(128, 25, (64, 64, 3)).clip(0, 255).astype(np.uint8)
    Image.fromarray(noise).save(stream, "JPEG", quality=95, subsampling="4:2:0")
    said = post(client, stream.getvalue(), lam="sigma=auto").headers["tunable-lambda"]
    assert float(said.removeprefix("sigma=").removesuffix(",keep=0")) == pytest.approx(25, rel=0.1)


def test_large_pictures_go_through_tiles(net):
    content = picture(70, 90)
    with serving({"small": net}, tile=32, overlap=16) as client:
        found = pixels(post(client, content, lam="sigma=10").content) / 255
    assert np.abs(found - expected(net, content, {"sigma": 10.0})).max() <= 0.5 / 255 + FLOAT


def test_networks_of_one_channel_take_each_colour(tmp_path):
    net, content = small_network(channels=1), picture()
    with serving({"small": net}) as client:
        found = pixels(post(client, content, lam="sigma=9").content) / 255
    colour = next(open_picture(content).frames()).colour
    with torch.no_grad():
        want = net(colour[:, None], {"sigma": 9.0})[:, 0].clamp(0, 1).permute(1, 2, 0).numpy()
    assert np.abs(found - want).max() <= 0.5 / 255 + FLOAT


def test_plain_networks_and_weights_that_sum_to_one(net):
    mixed = small_network(
        domain="simplex", names=("denoise", "keep"), ranges=((0, 1),) * 2, units=None, defaults=(0.5, 0.5)
    )
    content = picture()
    with serving({"plain": fold(net, (5, 0.5)), "mixed": mixed}) as client:
        listed = client.get("/v1/models").json()["models"]
        plain = post(client, content, model="plain")
        half = post(client, content, model="mixed", lam="denoise=0.25")
    assert listed[0]["parameters"] == [] and listed[0]["domain"] is None
    assert "tunable-lambda" not in plain.headers
    assert np.abs(pixels(plain.content) / 255 - expected(net, content, (5.0, 0.5))).max() <= 0.5 / 255 + FLOAT
    assert half.headers["tunable-lambda"] == "denoise=0.25,keep=0.75"
    assert np.abs(pixels(half.content) / 255 - expected(mixed, content, (0.25, 0.75))).max() <= 0.5 / 255 + FLOAT


def test_the_list_of_models(client):
    (model,) = client.get("/v1/models").json()["models"]
    assert model == {
        "name": "small",
        "purpose": None,
        "scale": 1,
        "domain": "box",
        "parameters": [
            {"name": "sigma", "unit": "of 255", "low": 0.0, "high": 50.0, "default": 25.0},
            {"name": "keep", "unit": "", "low": 0.0, "high": 1.0, "default": 0.0},
        ],
        "batched": True,
    }
    assert client.get("/healthz").json() == {"status": "ok"}


def test_metrics(client):
    post(client, picture())
    client.post("/v1/restore", params={"model": "none"}, content=b"x")
    client.get("/nowhere/else")
    text = client.get("/metrics").text
    for line in (
        'tunable_ops_requests_total{path="/v1/restore",status="200"} 1.0',
        'tunable_ops_requests_total{path="other",status="404"} 1.0',
        'tunable_ops_refused_total{code="unknown_model"} 1.0',
        'tunable_ops_pixels_total{model="small"} 600.0',
        'tunable_ops_batch_size_count{model="small"} 1.0',
        'tunable_ops_stage_seconds_count{stage="encode"} 1.0',
        "tunable_ops_running 0.0",
    ):
        assert line in text.splitlines(), line


@pytest.mark.slow
@pytest.mark.parametrize("name, scale", [("denoise", 1), ("denoise_deblur", 1), ("super_resolution_x4", 4)])
def test_networks_that_ship(name, scale):
    from tunable_ops import pretrained

    with serving({name: pretrained.load(name)}) as client:
        assert client.get("/v1/models").json()["models"][0]["batched"]
        found = pixels(post(client, picture(24, 33), model=name).content)
    assert found.shape == (24 * scale, 33 * scale, 3)
