"""Fixtures for losses that need published weights."""

import os

import pytest


@pytest.fixture
def published_weights() -> None:
    """Skip the test if the published weights, which the losses find by themselves, are missing."""
    if not os.environ.get("TUNABLE_OPS_DATA"):
        pytest.skip("TUNABLE_OPS_DATA is not set: no published weights at hand")
