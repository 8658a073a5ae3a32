"""What every test runs under: TF32 off, few threads, and NaN in memory that nobody has written."""

import os
import signal
import threading
from typing import Any

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _numerics(request: pytest.FixtureRequest) -> None:
    torch.set_num_threads(1)  # the tensors are small, and several runs may share the cores
    torch.use_deterministic_algorithms(True, warn_only=True)
    # torch.empty then returns NaN, so that a value that is read before it is written shows.
    torch.utils.deterministic.fill_uninitialized_memory = not request.config.getoption("--leave-uninitialized")
    # The older switches: they set convolution and RNN alike, and torch.export reads them.
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def published_weights() -> None:
    """Skip the test if the published weights, which the losses find by themselves, are missing."""
    if not os.environ.get("TUNABLE_OPS_DATA"):
        pytest.skip("TUNABLE_OPS_DATA is not set: no published weights at hand")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--part", default="1/1", metavar="I/N", help="the I-th of N parts of the tests, dealt out in turns"
    )
    parser.addoption(
        "--leave-uninitialized",
        action="store_true",
        help="do not fill torch.empty's memory with NaN: compute-sanitizer's initcheck sees reads of unwritten memory",
    )


def pytest_configure() -> None:
    """End on SIGTERM, which `timeout` sends, as on Ctrl-C: pytest then reports what failed until there."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, interrupt)


def compilations(item: pytest.Item) -> int:
    """Return about how many kernels a test compiles on a GPU, as its marker says."""
    marker = item.get_closest_marker("compiles")
    return 0 if marker is None else marker.args[0]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    part, parts = map(int, config.getoption("--part").split("/"))
    if parts > 1:  # under a time limit what is quick to compile comes first, so that as many as possible run
        items.sort(key=compilations)
    items[:] = items[part - 1 :: parts]
    for item in items:
        # the marker, not the keyword, which the name of a folder is too
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
