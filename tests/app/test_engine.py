"""A network behind the page: what runs at the same time stays apart."""

import threading
import warnings
from types import SimpleNamespace

import pytest
import torch

from tests.app.conftest import ARGUMENTS, small_network
from tunable_ops.app.engine import Cancelled, Engine
from tunable_ops.app.networks import Choice
from tunable_ops.app.settings import Refused, Settings
from tunable_ops.cli import main
from tunable_ops.restorer import Restorer, make_restorer
from tunable_ops.serialization import save


def test_a_cancelled_picture_of_a_plain_network_leaves_windows_alone(session, network_file, tmp_path):
    file = tmp_path / "plain.safetensors"
    assert main(["fold", str(network_file), "--lam", "sigma=10,keep=0", "--out", str(file)]) == 0
    engine = session.choose(Choice(str(file)))
    image, token, outcomes = torch.rand(3, 32, 32), threading.Event(), []

    def cancelled_in_the_middle(*_):
        if token.is_set():
            return
        token.set()
        try:
            outcomes.append(engine.preview(image, None).shape)
        except Cancelled as error:
            outcomes.append(error)

    first = next(module for module in engine._full.live.network.modules() if isinstance(module, torch.nn.Conv2d))
    first.register_forward_hook(cancelled_in_the_middle)
    with pytest.raises(Cancelled):
        engine.restore(image, None, token=token)
    assert outcomes == [image.shape]


def restorer_that_waits(entered, go_on):
    """A restorer whose `set` takes until `go_on`."""

    def wait(_):
        entered.set()
        assert go_on.wait(10)

    live = SimpleNamespace(set=wait, network=torch.nn.Identity())
    return Restorer(None, None, None, live, "cpu", 3, 0, 0)


def test_two_threads_leave_the_warnings_of_the_process_as_they_were():
    first, second = ((threading.Event(), threading.Event()) for _ in range(2))
    before = list(warnings.filters)
    threads = [threading.Thread(target=restorer_that_waits(*events).set, args=((1.0,),)) for events in (first, second)]
    for thread, (entered, _) in zip(threads, (first, second), strict=True):
        thread.start()
        assert entered.wait(10)
    for thread, (_, go_on) in zip(threads, (first, second), strict=True):  # the first to enter leaves first
        go_on.set()
        thread.join(10)
    assert warnings.filters == before


def test_no_warning_of_a_level_for_grey(session):
    engine = session.engine
    image, mask = torch.rand(1, 32, 32), torch.ones(1, 32, 32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        engine.preview(image, (50.0, 0.0))
        engine.preview(image, (50.0, 0.0), (40.0, 1.0), mask)


def test_networks_of_other_channels():
    net = small_network()
    net.network.channels = 4
    with pytest.raises(Refused, match=r"^the network must take images of 1 or 3 channels; got 4 channels$"):
        Engine("four", net, net.spec, None, "cpu", Settings())
    with pytest.raises(ValueError, match=r"^make_restorer: net must take images of 1 or 3 channels; got 4 channels$"):
        make_restorer(net, net.spec, None, "cpu")


def test_a_file_that_was_written_anew_is_loaded_anew(session, network_file, tmp_path):
    file = tmp_path / "again.safetensors"
    file.write_bytes(network_file.read_bytes())
    first = session.choose(Choice(str(file)))
    assert session.choose(Choice(str(file))) is first
    assert main(["fold", str(network_file), "--lam", "sigma=10,keep=0", "--out", str(file)]) == 0
    assert session.choose(Choice(str(file))).spec is None


def test_a_folder_whose_file_was_written_in_place_is_loaded_anew(session, network_file, tmp_path):
    """Which leaves the folder's own time as it was."""
    (tmp_path / "shared").mkdir()
    file = tmp_path / "shared" / "model.safetensors"
    file.write_bytes(network_file.read_bytes())
    first = session.choose(Choice(str(file.parent)))
    before = file.parent.stat().st_mtime_ns
    other = tmp_path / "other.safetensors"
    save(small_network(3), other, architecture="dncnn", arguments=ARGUMENTS)
    file.write_bytes(other.read_bytes())
    assert file.parent.stat().st_mtime_ns == before
    assert session.choose(Choice(str(file.parent))) is not first
