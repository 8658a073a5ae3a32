"""Fixtures of the losses that need published weights."""

import os

import pytest


@pytest.fixture
def published_weights() -> None:
    """Skips where the published weights are not at hand; the losses find them by themselves."""
    if not os.environ.get("TUNABLE_OPS_DATA"):
        pytest.skip("TUNABLE_OPS_DATA is not set: no published weights at hand")
