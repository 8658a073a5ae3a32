"""A driver that notes launches, for the tests of calls without Python."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tunable_ops.bench.stand_in_driver import Driver


@pytest.fixture
def driver() -> Iterator[Driver]:
    from tunable_ops.bench import stand_in_driver
    from tunable_ops.bench.launches import taking_cpu_tensors

    with taking_cpu_tensors(), stand_in_driver.driven() as active:
        yield active


@pytest.fixture
def unused_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every tensor of a call gets memory of its own, so that an address tells which one it is."""
    from tunable_ops.backends.triton import plans

    monkeypatch.setattr(plans, "_with_releases", lambda steps, inputs, results: tuple(steps))
