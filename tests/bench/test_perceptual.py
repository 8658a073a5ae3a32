"""The suite of perceptual gradients: rows of the same form, and the operations that the arithmetic promises."""

import pytest
from tunable_ops.bench import perceptual
from tunable_ops.bench.measure import Settings
from tunable_ops.bench.networks import NetworkCase

FAST = Settings(rounds=3, min_call=0, budget=0.1)


def test_rows_have_the_form_of_a_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(perceptual.BUILDERS, "true-vgg19")
    case = NetworkCase("perceptual", 16, 1, "both", kernels=1)
    row = perceptual.measure(case, "cpu", FAST)
    assert row["network"]["size"] == 16
    assert {result["status"] for result in row["providers"].values()} == {"ok"}
    assert row["providers"]["pgn-unet"]["peak_bytes"] < row["providers"]["plain"]["peak_bytes"]


def test_operations_are_a_tenth_of_vgg19s() -> None:
    found = perceptual.macs()
    assert found["true-vgg19"] > 10 * found["pgn-unet"]
    assert found["pgn-unet-published"] == pytest.approx(1.94, abs=0.005)
    assert found["pgn-resnet4"] == pytest.approx(19.7, abs=0.1)
    assert perceptual.macs(112)["plain"] == pytest.approx(found["plain"] / 4, rel=0.01)
