"""The help of the commands: one text each."""

import pytest

from tunable_ops import cli


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_a_command_is_listed_with_the_same_text_whether_or_not_it_is_imported(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Train and bench once had two texts each: the list's, and their module's own."""
    assert cli.main(["--help"]) == 0
    listed = capsys.readouterr().out
    assert cli.COMMANDS[command] in " ".join(listed.split())
    assert cli.main(["--help", command]) == 0
    assert capsys.readouterr().out == listed
