"""Runner: every engine gives what the network gives, for any lambda, size and thread; and what it refuses."""

import asyncio
import re
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from tunable_ops import convert, deploy, fold, models
from tunable_ops.deploy import Runner, sizes
from tunable_ops.deploy import engine as engines
from tunable_ops.extras import install
from tunable_ops.modules import LambdaWarning
from tunable_ops.serialization import save

HERE = ("eager", "livefold")
SESSIONS = ("onnxruntime", "openvino")
NEEDED = {"onnxruntime": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("onnx", "onnxscript", "openvino")}
ALL = [
    *HERE,
    *(pytest.param(name, marks=pytest.mark.slow) for name in SESSIONS),
    pytest.param("compile", marks=pytest.mark.slow),
]
LAMBDAS = [{"sigma": 5.0, "texture": 0.0}, {"sigma": 25.0, "texture": 1.0}, {"sigma": 40.0, "texture": 0.25}]


def skip_without(engine):
    for package in NEEDED.get(engine, ()):
        pytest.importorskip(package, reason=f"{package} is not installed (tunable-ops[deploy])")


def picture(height=20, width=31, batch=1, seed=0):
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


def expected(net, x, lam):
    with torch.no_grad():
        return net(x, lam)


def assert_close(found, want):
    torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("engine", ALL)
def test_every_engine_follows_lambda(engine, small):
    """A lambda that moves at each call, one that rests for many calls, one for each sample, and back again."""
    skip_without(engine)
    x, many = picture(), picture(batch=3, seed=1)
    with Runner(small, engine) as runner:
        for lam in (*LAMBDAS, *[LAMBDAS[1]] * 5, *LAMBDAS):
            assert_close(runner(x, lam), expected(small, x, lam))
        each = {"sigma": torch.tensor([5.0, 40.0, 5.0]), "texture": torch.tensor([0.0, 1.0, 0.0])}
        assert_close(runner(many, each), expected(small, many, each))
        assert_close(runner(many, sigma=[5, 40, 5], texture=[0, 1, 0]), expected(small, many, each))
        assert_close(runner(x), expected(small, x, None))
        assert_close(runner(x[0], sigma=7), expected(small, x, {"sigma": 7})[0])
        assert_close(runner(x, [7, 0.5]), expected(small, x, [7, 0.5]))


@pytest.mark.parametrize("engine", ALL)
def test_threads_with_lambdas_of_their_own(engine, small):
    """Forty calls in eight threads, half of them with one lambda, give what they give one after the other."""
    skip_without(engine)
    runner = Runner(small, engine, remember=2)
    calls = [
        (picture(seed=n), {"sigma": float(n) if n % 2 else 25.0, "texture": n / 40 if n % 2 else 0.5})
        for n in range(40)
    ]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda call: runner(*call), calls))
    for output, call in zip(found, calls, strict=True):
        assert_close(output, expected(small, *call))


def test_submitted_calls_share_batches(small):
    """Futures and awaited results of many lambdas; those that wait together go through the network in one call."""
    seen = []
    calls = [(picture(16, 16 + 8 * (n % 2), seed=n), {"sigma": float(n), "texture": n / 20}) for n in range(20)]
    with Runner(small, "eager", sizes=8) as runner:
        run, held = runner.call, threading.Event()

        def counted(batch, lams):
            held.wait(10)
            seen.append(len(batch))
            return run(batch, lams)

        runner.call = counted
        futures = [runner.submit(*call) for call in calls]
        held.set()
        for future, call in zip(futures, calls, strict=True):
            assert_close(future.result(60), expected(small, *call))
        assert sum(seen) == 20 and len(seen) < 20
        runner.call = run
        many = picture(batch=3)
        assert_close(runner.submit(many, sigma=[5, 40, 5]).result(60), runner(many, sigma=[5, 40, 5]))

        async def together():
            return await asyncio.gather(*(runner.run_async(*call) for call in calls))

        for output, call in zip(asyncio.run(together()), calls, strict=True):
            assert_close(output, expected(small, *call))
        with pytest.raises(ValueError, match="lam must name parameters of the network"):
            runner.submit(picture(), noise=1)
    with pytest.raises(RuntimeError, match=r"runner must be open; got a picture after close\(\)"):
        runner.submit(picture())


def three_layers():
    """A network whose outputs depend on inputs at most 3 pixels away."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(8, 3, 3, padding=1))


@pytest.mark.parametrize("padding", sizes.PADDINGS)
@pytest.mark.parametrize("size", [32, [(24, 40), (64, 64)]])
def test_padded_pictures_differ_at_two_borders_only(padding, size):
    """Within the network's reach of the lower and the right border; elsewhere the results are those of the picture."""
    plain, x = three_layers(), picture(21, 35)
    found, want = Runner(plain, "eager", sizes=size, padding=padding)(x), plain(x).detach()
    assert found.shape == want.shape
    torch.testing.assert_close(found[..., :-3, :-3], want[..., :-3, :-3], rtol=0, atol=1e-6)
    assert (found[..., -3:, :] - want[..., -3:, :]).abs().max() > 1e-3
    exact = picture(64, 64)
    torch.testing.assert_close(Runner(plain, "eager", sizes=size)(exact), plain(exact).detach(), rtol=0, atol=1e-6)


def test_padding_by_more_than_the_picture():
    x = torch.arange(6.0).view(1, 1, 2, 3)
    assert sizes.pad(x, (5, 3), "reflect")[0, 0, :, 0].tolist() == [0, 3, 0, 3, 0]
    assert sizes.pad(x, (2, 7), "replicate")[0, 0, 0].tolist() == [0, 1, 2, 2, 2, 2, 2]
    inside = torch.nn.functional.pad(picture(9, 9), (0, 7, 0, 5), mode="reflect")
    assert torch.equal(sizes.pad(picture(9, 9), (14, 16), "reflect"), inside)


def test_enlarged_pictures_are_cropped():
    net, x = nn.Upsample(scale_factor=2), picture(9, 10)
    assert torch.equal(Runner(net, "eager", sizes=16)(x), net(x))


@pytest.mark.parametrize("options", [{"tile": 48}, {"tile": 48, "overlap": 24}, {"sizes": [(32, 32), (64, 48)]}])
def test_large_pictures_go_in_tiles(options):
    """With an overlap of three times the network's reach, or more, as if they were whole."""
    plain, x = three_layers(), picture(100, 130)
    runner = Runner(plain, "eager", **options)
    sides = []
    runner._run = lambda part, rows, run=runner._run: (sides.append(part.shape[-2:]), run(part, rows))[1]
    border = 3 if "sizes" in options else 0  # tiles at the lower border are padded to their bucket
    found, want = (y[..., : 100 - border, : 130 - border] for y in (runner(x), plain(x).detach()))
    torch.testing.assert_close(found, want, rtol=0, atol=1e-5)
    assert len(sides) > 4 and max(map(max, sides)) <= 64


def test_memory_decides_tiles(small):
    few, many = (Runner(small, "eager", memory=size) for size in (2_000_000, 8_000_000))
    assert few._tile is not None and 1.5 <= many._tile / few._tile <= 2.5  # four times the memory, twice the side
    x = picture(150, 160)
    assert few(x, sigma=5).shape == x.shape
    with pytest.raises(ValueError, match=r"memory must be at least [\d,]+ bytes, for tiles of 64; got 1,000"):
        Runner(small, "eager", memory=1000)


def test_the_estimate_of_memory():
    """Ten channels in, then two copies alive at one time: what a chain keeps is not counted twice."""
    from tunable_ops.deploy.memory import peak_bytes

    x = torch.zeros(1, 10, 8, 8)
    assert peak_bytes(nn.Sequential(*[nn.Tanh() for _ in range(5)]), x) == 2 * x.nbytes


def test_auto_measures_once_and_remembers_on_disk(small, tmp_path, monkeypatch):
    cache = tmp_path / "choices.json"
    runner = Runner(small, candidates=HERE, cache=cache)
    measured = []
    real = deploy.choice.measure

    def count(ready, *args):
        measured.append(list(ready))
        return {**real(ready, *args), "livefold": 1e-9}

    monkeypatch.setattr(deploy.choice, "measure", count)
    known = runner.warm_up([(20, 31)])
    assert known["1x3x20x31"]["engine"] == "livefold" and set(known["1x3x20x31"]["seconds"]) == set(HERE)
    for seed in range(3):
        assert_close(runner(picture(seed=seed), sigma=9), expected(small, picture(seed=seed), {"sigma": 9}))
    assert len(measured) == 1
    runner(picture(batch=2), sigma=[5, 6])  # another question
    assert len(measured) == 2 and "2x3x20x31 per sample" in runner.warm_up([(20, 31)])
    again = Runner(small, candidates=HERE, cache=cache)
    again(picture())
    assert len(measured) == 2
    other = fold(small, [5, 0.5])  # another network asks again
    Runner(other, candidates=HERE, cache=cache)(picture())
    assert len(measured) == 3
    Runner(small, candidates=HERE, cache=cache)(picture())
    assert len(measured) == 3


def test_auto_leaves_out_what_fails_or_is_wrong(small, monkeypatch):
    class Wrong(engines.Engine):
        def __init__(self, factor):
            self.factor = factor

        def __call__(self, x, rows):
            if not self.factor:
                raise RuntimeError("broken")
            return self.factor * expected(small, x, torch.tensor(rows[0]))

    made = {"livefold": Wrong(1.01), "compile": Wrong(0)}
    real = deploy.runner.build
    monkeypatch.setattr(engines, "require", lambda *_: None)
    monkeypatch.setattr(deploy.runner, "build", lambda name, *rest: made.get(name) or real(name, *rest))
    runner = Runner(small, candidates=("eager", "livefold", "compile"))
    with pytest.warns(UserWarning) as caught:
        assert_close(runner(picture(), sigma=5), expected(small, picture(), {"sigma": 5}))
    texts = [str(each.message) for each in caught]
    assert any("'livefold' is left out, its result differs from that of 'eager' by 0.01" in text for text in texts)
    assert any("'compile' is left out, it does not run: broken" in text for text in texts)


def test_files(small, tmp_path):
    net = convert(models.build("dncnn", features=4, depth=3), num_params=1, domain="box", names=("a",)).eval()
    save(net, tmp_path / "a.safetensors", architecture="dncnn", arguments={"features": 4, "depth": 3})
    assert_close(Runner(tmp_path / "a.safetensors", "livefold")(picture(), a=0.5), expected(net, picture(), 0.5))
    save(fold(net, 0.5), tmp_path / "b.safetensors", architecture="dncnn", arguments={"features": 4, "depth": 3})
    assert_close(Runner(str(tmp_path / "b.safetensors"), "eager")(picture()), expected(net, picture(), 0.5))


@pytest.mark.slow
@pytest.mark.parametrize("form", ["shared", "per_sample", "map", "folded"])
@pytest.mark.parametrize("ending", ["onnx", "pt2"])
def test_exported_files(ending, form, small, tmp_path):
    skip_without("openvino")
    path = tmp_path / f"a.{ending}"
    write = deploy.export_onnx if ending == "onnx" else deploy.export_program
    lam = {"sigma": 10.0, "texture": 0.5}
    if form == "folded":
        write(fold(small, lam), path)
    else:
        write(small, path, form == "per_sample", lambda_map=form == "map")
    for engine in engines.ENGINES[ending]:
        runner = Runner(path, engine, sizes=[(32, 40)])
        x = picture(32, 40, batch=2)
        if form == "folded":
            assert_close(runner(x), expected(small, x, lam))
            with pytest.raises(ValueError, match="lam must be left out for a network without one"):
                runner(x, lam)
            continue
        for position in (*LAMBDAS, *[LAMBDAS[0]] * 4):
            assert_close(runner(x, position), expected(small, x, position))
        each = torch.tensor([[5.0, 0.0], [40.0, 1.0]])
        assert_close(runner(x, each), expected(small, x, each))
    with pytest.raises(ValueError, match=r"engine must be auto or one of .* for an? (ONNX|\.pt2) file; got 'livefold'"):
        Runner(path, "livefold")
    with pytest.raises(ValueError, match="memory must be left out for a file: give tile"):
        Runner(path, memory=1 << 30)


def test_a_value_outside_its_range_warns_once(small):
    runner = Runner(small, "livefold")
    with pytest.warns(LambdaWarning, match=r"sigma = 80 of 255 is outside the range 0\.\.50 .* \(said once\)"):
        runner(picture(), sigma=80)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        runner(picture(), sigma=90)
    with pytest.warns(LambdaWarning, match="texture = 2 is outside"):
        runner(picture(), sigma=90, texture=2)


@pytest.mark.parametrize(
    "kind, text, options",
    [
        (
            ValueError,
            r"engine must be auto or one of eager, .*openvino for a network; got 'tensorrt'",
            {"engine": "tensorrt"},
        ),
        (ValueError, "padding must be one of reflect, replicate; got 'zeros'", {"padding": "zeros"}),
        (ValueError, "sizes must hold pairs of at least 1", {"sizes": [(0, 5)]}),
        (TypeError, r"sizes must be a number or pairs \(height, width\)", {"sizes": [5]}),
        (ValueError, "tile must be a positive multiple of 16; got 20", {"tile": 20}),
        (ValueError, "memory must be positive, bytes; got -5", {"memory": -5}),
        (ValueError, "tile must be left out beside memory", {"tile": 32, "memory": 1 << 30}),
        (ValueError, r"overlap must lie in 0\.\.16 \(tile - 16\); got 20", {"tile": 32, "overlap": 20}),
        (ValueError, "overlap must be left out without tiles", {"overlap": 20}),
        (ValueError, "precision must be auto or one of float32, float16, bfloat16; got 'int8'", {"precision": "int8"}),
        (ValueError, "candidates must be left out beside engine='eager'", {"engine": "eager", "candidates": HERE}),
        (ValueError, "candidates must be names of engines", {"candidates": ()}),
        (ValueError, "remember must be at least 0; got -1", {"remember": -1}),
        (TypeError, "max_batch must be an int; got 1.5", {"max_batch": 1.5}),
        (ValueError, "cache must lie in an existing folder", {"cache": "no/such/folder.json"}),
    ],
)
def test_bad_options(kind, text, options, small):
    with pytest.raises(kind, match=f"Runner: {text}"):
        Runner(small, **options)


def test_bad_calls(small, tmp_path):
    runner = Runner(small, "eager")
    x = picture()
    for kind, text, args, named in (
        (ValueError, r"lam must name parameters of the network \(sigma, texture\); got 'noise'", (x,), {"noise": 5}),
        (ValueError, "lam must name each parameter once; got sigma twice", (x, {"sigma": 5}), {"sigma": 5}),
        (ValueError, "lam must be names with numbers beside sigma=", (x, [5, 0]), {"sigma": 5}),
        (ValueError, "lam must be 1 lambda or 1, one for each sample; got 2", (x, [[5, 0], [6, 0]]), {}),
        (
            ValueError,
            "lam must be one for the batch or one for each sample; got a map",
            (x, torch.rand(1, 2, 4, 4)),
            {},
        ),
        (ValueError, "lam must be finite", (x,), {"sigma": float("nan")}),
        (TypeError, "picture must be a floating-point tensor; got torch.uint8", (x.byte(),), {}),
        (ValueError, r"picture must be \[B, 3, H, W\] or \[3, H, W\]; got \[1, 1, 20, 31\]", (x[:, :1],), {}),
        (ValueError, "picture must have at least one sample and one pixel", (x[:0],), {}),
    ):
        with pytest.raises(kind, match=f"Runner: {text}"):
            runner(*args, **named)
    large = convert(nn.Sequential(nn.Conv2d(3, 3, 7)), 1, domain="box", names=("a",))
    with pytest.raises(ValueError, match="picture must be at least 7 x 7 for this network; got 6 x 40"):
        Runner(large, "eager")(picture(6, 40))
    for path, kind, text in (
        ("none.onnx", FileNotFoundError, "path must be an existing file"),
        ("none", FileNotFoundError, "model must be an existing file or folder, or one of denoise"),
        ("text.onnx", ValueError, "path must be a whole ONNX file"),
        ("text.pt2", ValueError, "path must be an .onnx or a whole .pt2 file"),
        ("text.json", ValueError, "cache must be a file of choices, or not exist"),
    ):
        if path.startswith("text"):
            (tmp_path / path).write_text("{}")
        if path == "text.onnx":
            skip_without("onnxruntime")
        with pytest.raises(kind, match=text):
            Runner(small, cache=tmp_path / path) if path.endswith("json") else Runner(
                tmp_path / path if "." in path else path
            )
    with pytest.raises(TypeError, match="model must be a module, a name or a path; got int"):
        Runner(5)


def test_an_engine_that_is_not_installed_names_its_extra(small, monkeypatch):
    monkeypatch.setattr(engines.importlib.util, "find_spec", lambda name: None if name == "openvino" else object())
    text = re.escape(f"got 'openvino', not installed: openvino ({install('deploy')})")
    with pytest.raises(ModuleNotFoundError, match=text):
        Runner(small, "openvino")
    monkeypatch.setattr(engines, "_has_compiler", lambda: False)
    with pytest.raises(RuntimeError, match=r"got 'compile', needs a C\+\+ compiler"):
        Runner(small, "compile")


def test_the_callers_network_stays_as_it_is(small):
    before = {name: (value.clone(), value.stride()) for name, value in small.state_dict().items()}
    Runner(small, "eager")(picture(), sigma=5)
    assert small.remember is False
    for name, value in small.state_dict().items():
        assert torch.equal(value, before[name][0]) and value.stride() == before[name][1]


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision(precision, small):
    found = Runner(small, "livefold", precision=precision)(picture(), sigma=5)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected(small, picture(), {"sigma": 5}), rtol=0, atol=0.05)


def test_results_have_the_pictures_dtype(small):
    assert Runner(small, "eager")(picture().double()).dtype == torch.float64


def test_an_example_tells_the_channels():
    net = nn.Conv2d(5, 2, 3, padding=1)
    assert Runner(net, "eager", example=torch.zeros(1, 5, 8, 8))(torch.rand(1, 5, 9, 9)).shape == (1, 2, 9, 9)


def test_a_session_is_made_once_calls_have_cost_as_much():
    from tunable_ops.deploy.sessions import AtRest

    made = []
    rest = AtRest(lambda row: made.append(row) or (lambda arrays: row), seconds=1.0, most=1)
    for seconds in (0.4, 0.7):
        assert rest.find((1.0,)) is None
        rest.count((1.0,), seconds)
    assert rest.find((1.0,))([]) == (1.0,) and made == [(1.0,)]
    rest.count((2.0,), 0.9)
    rest.count((3.0,), 0.9)  # moves: the time of another lambda does not count
    assert rest.find((2.0,)) is None and rest.find((3.0,)) is None
    rest.count((3.0,), 0.2)
    assert rest.find((3.0,))([]) == (3.0,) and rest.find((1.0,)) is None  # the memory of one
