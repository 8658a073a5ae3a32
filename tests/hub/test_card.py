"""The model card: what is measured, what strangers wrote, and a card that is there."""

import ast
import re

import pytest
import yaml

from tests.hub.networks import DNCNN, X, small
from tunable_ops import pretrained
from tunable_ops.hub import KnobFile


def test_a_card_has_the_curve_that_was_measured(tmp_path):
    scores = [
        {"set": "a", "picture": "1", "lam": [25, 0.0], "psnr": 30.0, "ssim": None, "lpips": None},
        {"set": "a", "picture": "2", "lam": [25, 0.0], "psnr": 31.0, "ssim": None, "lpips": None},
        {"set": "a", "picture": "1", "lam": None, "psnr": 20.0, "ssim": None, "lpips": None},
    ]
    net = small()
    net.save_pretrained(tmp_path / "a", arguments=DNCNN, measured={"scores": scores})
    card = (tmp_path / "a/README.md").read_text()
    assert "| sigma 25, texture 0 (a) | 30.5 |" in card and "| input (a) | 20 |" in card
    net.notes = {"validation_psnr": {"25,0": 29.25, "25,1": None}}
    net.save_pretrained(tmp_path / "b", arguments=DNCNN)
    card = (tmp_path / "b/README.md").read_text()
    assert "validation pictures" in card and "| 25,0 | 29.25 |" in card and "| 25,1 |  |" in card
    net.save_pretrained(tmp_path / "c", arguments=DNCNN, measured={"no noise": {"psnr": 40, "ssim": 0.9}})
    assert "| position | psnr | ssim |" in (tmp_path / "c/README.md").read_text()


def test_notes_of_strangers_stay_text(tmp_path):
    net = small()
    net.notes = {"trained_on": "x\n---\n# A heading <script>alert(1)</script>", "licence": "mine: [1,\n2]"}
    net.save_pretrained(tmp_path, arguments=DNCNN)
    head, body = (tmp_path / "README.md").read_text().split("\n---\n", 1)
    assert "<script" not in body and "\n# A heading" not in body
    assert yaml.safe_load(head.removeprefix("---"))["license_name"] == "mine: [1, 2]"


def test_a_card_that_is_there_stays(tmp_path):
    (tmp_path / "README.md").write_text("mine")
    small().save_pretrained(tmp_path, arguments=DNCNN)
    assert (tmp_path / "README.md").read_text() == "mine"


NAME = 'a": 0})\nimport os; os.system("id")  # '
MARKS = "![x](http://a/b.png) [y](http://c) `z` \\[w](http://d) <img src=x>"


def test_a_strangers_names_stay_names_in_the_code(tmp_path):
    net = small(names=[NAME, "b`c\ud800"])
    net.save_pretrained(tmp_path / 'a"b', arguments=DNCNN)
    text = (tmp_path / 'a"b/README.md').read_text()
    code = ast.parse(text.split("```python\n")[1].split("```")[0])
    assert [type(each).__name__ for each in code.body] == ["Import", "Assign", "Assign"]
    strings = [each.value for each in ast.walk(code) if isinstance(each, ast.Constant) and isinstance(each.value, str)]
    assert set(strings) == {NAME, "b`c\ud800", 'path/to/a"b'}
    assert "| `b'c?` | 0 | 1 |" in text


@pytest.mark.parametrize("start", ["", "# ", "~~~ ", "> ", "- "])
def test_notes_of_strangers_are_no_markup(tmp_path, start):
    net = small()
    net.notes = {
        "purpose": start + MARKS,
        "licence": start + MARKS,
        "trained_on": MARKS,
        "config": {"data": {"source": "a/`" + MARKS}, "objectives": [{"name": MARKS, "loss": MARKS}]},
        "pictures": {"licences": {MARKS: 1}, "authors": [MARKS]},
        "knobs": [{"names": [MARKS], "licence": MARKS, "notes": {"trained_on": MARKS}}],
        "validation_psnr": {MARKS: 1},
    }
    net.save_pretrained(tmp_path, arguments=DNCNN)
    body = (tmp_path / "README.md").read_text().split("\n---\n", 1)[1]
    html = (
        pytest.importorskip("markdown_it", reason="markdown-it-py is not installed")
        .MarkdownIt()
        .enable("table")
        .render(body)
    )
    assert not re.search(r"<(img|a|em|blockquote|li)\b", html)
    assert html.count("<pre>") == 2 and html.count("<h1>") == 1
    assert re.findall(r"<h2>(.*)</h2>", html) == ["Knobs", "Use", "Training", "Measured", "Licence"]


@pytest.mark.parametrize(
    "notes",
    [
        {"validation_psnr": "x"},
        {"validation_psnr": [1]},
        {"validation_psnr": {"0": "good", "1": [2]}},
        {"validation_psnr": {"scores": [3]}},
        {"knobs": [{}]},
        {"knobs": 3},
        {"knobs": [3, {"names": 3, "notes": "x"}, {"names": [None], "licence": {"a": 1}}]},
        {"licence": {"name": "MIT"}},
        {"purpose": ["x"], "trained_on": {"a": 1}},
        {"pictures": {"licences": "x", "authors": 3}},
        {"config": {"objectives": [3], "data": {"source": 3}}},
    ],
    ids=str,
)
def test_notes_of_other_types_are_left_out(tmp_path, notes):
    net = small()
    net.notes = {"pictures": {"authors": ["somebody"]}, **notes}
    net.save_pretrained(tmp_path, arguments=DNCNN)
    card = (tmp_path / "README.md").read_text()
    assert "## Measured" not in card and card.endswith("## Licence\n\nNot stated.\n")
    assert ("somebody" in card) == ("pictures" not in notes)


def test_what_of_the_notes_can_be_read_is_shown(tmp_path):
    net = small()
    net.notes = {
        "validation_psnr": {"25,0": 29.25, "25,1": "good"},
        "knobs": [{}, {"names": ["b"], "notes": {"trained_on": "c"}}],
    }
    net.save_pretrained(tmp_path, arguments=DNCNN)
    card = (tmp_path / "README.md").read_text()
    assert "| 25,0 | 29.25 |" in card and "good" not in card and "Knob b: Trained on c." in card


def test_an_edited_card_on_the_hub_stays(hub, tmp_path):
    net = small()
    net.push_to_hub("me/denoiser", arguments=DNCNN)
    net.push_to_hub("me/denoiser", arguments=DNCNN)  # the same card: nothing to say
    hub.add("me/denoiser", {"README.md": b"mine\r\n"})
    with pytest.warns(UserWarning, match=r"README.md of 'me/denoiser' stays as it is"):
        net.push_to_hub("me/denoiser", arguments=DNCNN, purpose="another")
    assert hub.at("me/denoiser", "main")[1]["README.md"] == b"mine\r\n"


def test_an_unknown_option_makes_no_repository(hub):
    with pytest.raises(TypeError, match="unexpected keyword argument 'licens'"):
        small().push_to_hub("me/denoiser", arguments=DNCNN, licens="MIT")
    assert hub.asked == []


def test_after_an_upload_a_folder_has_its_own_card(hub, tmp_path):
    knob = KnobFile(pretrained.find("denoise").knobs[0])
    knob.push_to_hub("me/texture")
    knob.save_pretrained(tmp_path / "copy")
    card = (tmp_path / "copy/README.md").read_text()
    assert "# copy\n" in card and '"path/to/copy"' in card and "me/texture" not in card


def test_the_five_lines_of_a_card_run(tmp_path, monkeypatch):
    small().save_pretrained(tmp_path / "net", arguments=DNCNN)
    monkeypatch.chdir(tmp_path)
    code = (tmp_path / "net/README.md").read_text().split("```python\n")[1].split("```")[0]
    assert len(code.splitlines()) <= 5
    scope = {"x": X}
    exec(code.replace("path/to/net", "net"), scope)
    assert scope["y"].shape == X.shape


@pytest.mark.parametrize(
    "source, shown", [("shared/photos", "photos"), ("shared/photos/", "photos"), ("photos//", "photos"), (".", ".")]
)
def test_a_folder_is_named_with_or_without_a_slash_at_its_end(tmp_path, source, shown):
    net = small()
    net.notes = {"config": {"data": {"source": source}}}
    net.save_pretrained(tmp_path, arguments=DNCNN)
    assert f"Trained on the pictures `{shown}`." in (tmp_path / "README.md").read_text()
