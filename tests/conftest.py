"""What every test runs under: TF32 off, few threads, and NaN in memory that nobody has written."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _numerics() -> None:
    torch.set_num_threads(1)  # the tensors are small, and several runs may share the cores
    # torch.empty then returns NaN, so that a value that is read before it is written shows.
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    # The older switches: they set convolution and RNN alike, and torch.export reads them.
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--part", default="1/1", metavar="I/N", help="the I-th of N parts of the tests, dealt out in turns"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    part, parts = map(int, config.getoption("--part").split("/"))
    items[:] = items[part - 1 :: parts]
    for item in items:
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
