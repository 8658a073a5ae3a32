"""The events of the page, called as Gradio calls them, and the files of its sessions."""

import threading
from types import SimpleNamespace

import pytest
import torch

from tests.app.conftest import ARGUMENTS, small_network, write_png
from tunable_ops.app import desk as module
from tunable_ops.app.desk import Desk
from tunable_ops.app.events import Events
from tunable_ops.app.layout import lay_out
from tunable_ops.app.moves import answer
from tunable_ops.app.networks import Choice, Networks
from tunable_ops.app.settings import Settings
from tunable_ops.serialization import save

FILE = {"architecture": "dncnn", "arguments": ARGUMENTS}
gr = pytest.importorskip("gradio")


def request(key="page"):
    return SimpleNamespace(session_hash=key)


@pytest.fixture
def desk(network_file, tmp_path):
    settings = Settings(tile=32, overlap=0)
    folder = tmp_path / "folder"
    folder.mkdir()
    return Desk(Networks("cpu", settings, [str(network_file)]), settings, folder)


@pytest.fixture
def events(desk):
    with gr.Blocks():
        return Events(lay_out(desk.networks, desk.settings), desk)


def started(events, picture):
    session, folder = events.desk.of("page")
    session.choose(Choice(events.desk.networks.names[0]))
    list(events.open(str(picture), request()))
    return session, folder


def test_files_of_a_page_go_with_it(events, picture, desk):
    session, folder = started(events, picture)
    list(events.sweep("keep", 2, request()))
    events.save("png", request())
    events.save_strip(request())
    assert len(list(folder.iterdir())) == 4  # before and after, strip, download
    events.end(request())
    assert not folder.exists() and session._run[0].is_set()


def test_files_of_the_oldest_page_go_where_there_are_too_many(desk, monkeypatch):
    monkeypatch.setattr(module, "_MOST_SESSIONS", 2)
    folders = [desk.of(key)[1] for key in "abc"]
    assert [folder.exists() for folder in folders] == [False, True, True]


def settled(events, turn=None):
    turn = events.desk.of("page")[0].turn if turn is None else turn
    return list(events.settle(request(), str(turn), *([10.0] * 8), *([0.0] * 8)))


def test_the_command_names_the_format_of_the_list(events, picture):
    started(events, picture)
    assert "--format webp" in events.tell("webp", request())
    updates = settled(events)
    assert "--format webp" in updates[0][events.page.command]


def test_a_format_that_cannot_hold_the_picture(events, tmp_path):
    wide = write_png(tmp_path / "wide.png", 8, 16400)
    started(events, wide)
    assert events.tell("webp", request()).startswith("# the format must hold the picture; got webp")
    updates = settled(events)
    assert updates[-1][events.page.whole]  # which is shown all the same


def hold(session):
    """Let the second tile of the network wait for the event that is returned."""
    go_on, calls = threading.Event(), []

    def wait(*_):
        calls.append(1)
        if len(calls) > 1:
            go_on.wait(10)

    first = next(each for each in session.engine._full.live.network.modules() if isinstance(each, torch.nn.Conv2d))
    first.register_forward_hook(wait)
    return go_on


def sweep_beginning(events):
    steps = events.sweep("keep", 5, request())
    assert "Making the strip" in next(steps)[events.page.status]
    return steps


def test_the_window_moves_while_a_strip_is_made(events, picture):
    session, _ = started(events, picture)
    steps = sweep_beginning(events)
    answer(session, {"across": 100.0, "down": 0.0}, "")
    assert session.centre == (0.0, 1.0)
    assert "The strip is ready." in list(steps)[-1][events.page.status]


def test_a_strip_that_is_stopped_says_so(events, picture):
    session, _ = started(events, picture)
    blocked = hold(session)
    steps = sweep_beginning(events)
    session.values = (1.0, 1.0)
    session.preview()
    blocked.set()
    assert "Stopped." in list(steps)[-1][events.page.status]


def test_a_strip_in_whose_stead_a_picture_is_made_leaves_the_status_to_it(events, picture):
    session, _ = started(events, picture)
    blocked = hold(session)
    steps = sweep_beginning(events)
    session.values = (1.0, 1.0)
    restoring = session.restore()
    blocked.set()
    list(restoring)
    assert all(not isinstance(step[events.page.status], str) or "Making" in step[events.page.status] for step in steps)


def test_a_strip_of_what_cannot_move(events, picture, tmp_path):
    save(small_network(names=("all",), domain="simplex"), tmp_path / "one.safetensors", **FILE)
    session, _ = started(events, picture)
    session.choose(Choice(str(tmp_path / "one.safetensors")))
    said = list(events.sweep("all", 3, request()))[-1][events.page.status]
    assert "A sweep must have a parameter to move; got a network whose only parameter is always 1." in said


def test_a_session_that_is_gone_says_so(events, picture):
    started(events, picture)
    events.end(request())
    said = settled(events)[-1][events.page.status]
    assert "The page is not open here any more: reload it." in said


def test_numbers_of_former_sliders_do_not_count(events, picture):
    """They may be on their way when the defaults, or those of another network, are taken."""
    session, _ = started(events, picture)
    settled(events)
    assert session.values == (10.0, 10.0)
    former, defaults = session.turn, session.engine.spec.defaults
    updates = list(events.reset(request()))
    assert session.values == defaults and updates[0][events.page.turn] == str(session.turn) != str(former)
    shown = settled(events, former)
    assert session.values == defaults and events.page.whole in shown[-1]
    answer(session, {"knob0": 5.0}, "", former)
    assert session.values == defaults
    answer(session, {"knob0": 5.0}, "", session.turn)
    assert session.values == (5.0, defaults[1])


def test_the_painter_is_drawn_anew_for_the_same_picture(events, picture):
    """Gradio leaves what has the same text as it is, with the strokes on it."""
    started(events, picture)
    first, again = (next(events.open(str(picture), request()))[events.page.painter] for _ in range(2))
    assert first != again
