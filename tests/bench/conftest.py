"""The small comparison, trained once for all tests of it."""

from pathlib import Path
from typing import Any

import pytest
from tunable_ops.bench.comparison import plan, run
from tunable_ops.bench.comparison.collect import collect

from tests.bench.small_comparison import TINY, make_pictures


@pytest.fixture(scope="package")
def data(tmp_path_factory: pytest.TempPathFactory) -> plan.Data:
    return make_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="package")
def done(data: plan.Data, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a comparison that is finished."""
    out = tmp_path_factory.mktemp("comparison")
    assert run.run_all(TINY, data, out, progress=False)
    return out


@pytest.fixture(scope="package")
def collected(done: Path) -> dict[str, Any]:
    return collect(done, size=16, rounds=3)
