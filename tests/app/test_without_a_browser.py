"""Where there is no Chromium, the tests of the page are skipped as modules."""

import pytest

from tests.app import browser


def test_a_machine_without_chromium_skips_the_module(monkeypatch) -> None:
    pytest.importorskip("playwright")
    monkeypatch.delenv("TUNABLE_OPS_CHROMIUM", raising=False)
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(pytest.skip.Exception, match="there is no Chromium here") as found:
        browser.find_chromium()
    assert found.value.allow_module_level
