"""The command itself: help, versions, lazy imports, errors of one line."""

import re
import runpy
import subprocess
import sys
import types

import pytest

from tunable_ops import cli

KNOWN = ", ".join(cli.COMMANDS)


def test_help_lists_the_commands_and_imports_none(capsys):
    before = set(sys.modules)
    assert cli.main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(re.search(rf"^    {name}\s", out, re.MULTILINE) for name in cli.COMMANDS)
    assert not {name for name in set(sys.modules) - before if name.startswith("tunable_ops.cli.")}


def test_no_command_prints_the_help(capsys):
    assert cli.main([]) == 0
    assert "usage: tunable-ops" in capsys.readouterr().out


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("tunable-ops ")


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_has_help(capsys, command):
    assert cli.main([command, "--help"]) == 0
    assert f"usage: tunable-ops {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["tune"], "tunable-ops: error: the command 'tune' is now called 'autotune'"),
        (["aply"], f"tunable-ops: error: COMMAND must be one of {KNOWN}; got 'aply'; did you mean 'apply'?"),
        (["--debug", "aply", "a.png"], "got 'aply'; did you mean 'apply'?"),
        (["zzz"], f"tunable-ops: error: COMMAND must be one of {KNOWN}; got 'zzz' (see tunable-ops --help)"),
        (["apply", "a.png"], "tunable-ops apply: error: the following arguments are required: --model"),
        *(
            (
                ["apply", "a.png", "--model", "m", f"--sweep={wrong}"],
                f"argument --sweep: must be a number of positions such as 5, or name=5; got {wrong!r}",
            )
            for wrong in ("two", "", "=5", "texture=", "texture=1.5", "--5", "+-3")
        ),
        (["fold", "m"], "tunable-ops fold: error: the following arguments are required: --lam"),
    ],
)
def test_wrong_words_give_one_line_and_2(capsys, words, text):
    assert cli.main(words) == 2
    streams = capsys.readouterr()
    assert streams.out == "" and streams.err.count("\n") == 1
    assert text in streams.err


@pytest.fixture
def command(monkeypatch):
    """Replace `info` by a command that does what the test says."""

    def install(run):
        def add_parser(subparsers):
            subparsers.add_parser("info")

        module = types.SimpleNamespace(add_parser=add_parser, run=run)
        monkeypatch.setattr(cli.importlib, "import_module", lambda name: module)

    return install


def raiser(error):
    def run(args):
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("lam must be\n  finite; got nan"), "lam must be finite; got nan"),
        (TypeError("x must be a tensor"), "x must be a tensor"),
        (RuntimeError("backend must be there"), "backend must be there"),
        (FileNotFoundError(2, "No such file or directory", "a.png"), "No such file or directory: 'a.png'"),
        (OSError("disk on fire"), "disk on fire"),
        (ValueError(), "ValueError"),
        (
            ModuleNotFoundError("No module named 'PIL'", name="PIL"),
            "this command needs the package 'PIL': "
            "pip install --no-build-isolation --editable '.[train]', in a checkout of tunable_ops",
        ),
    ],
)
def test_errors_of_a_command_give_one_line_and_2(capsys, command, error, text):
    command(raiser(error))
    assert cli.main(["info"]) == 2
    assert capsys.readouterr().err == f"tunable-ops info: error: {text}\n"


@pytest.mark.parametrize("words", [["--debug", "info"], ["info", "--debug"], ["info", "--", "--debug"]])
def test_debug_shows_the_traceback_wherever_it_stands(capsys, command, words):
    command(raiser(ValueError("here")))
    if "--" in words:  # an argument of the command, which takes none
        assert cli.main(words) == 2
        return
    with pytest.raises(ValueError, match="here"):
        cli.main(words)


@pytest.mark.parametrize("error", [AssertionError("ours"), ModuleNotFoundError("No module named 'x'", name="x")])
def test_our_own_mistakes_are_not_hidden(command, error):
    command(raiser(error))
    with pytest.raises(type(error)):
        cli.main(["info"])


def test_ctrl_c_gives_130(capsys, command):
    command(raiser(KeyboardInterrupt()))
    assert cli.main(["info"]) == 130
    assert capsys.readouterr().err == "tunable-ops info: stopped\n"


def test_warnings_of_libraries_are_one_line(capsys, command):
    import warnings

    def run(args):
        warnings.warn("something\nodd", RuntimeWarning, stacklevel=1)
        return 0

    command(run)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert cli.main(["info"]) == 0
    assert capsys.readouterr().err == "tunable-ops info: warning: something odd\n"


def test_without_pillow():
    # what a machine without the [train] extra does, in a process of its own
    code = (
        "import sys; sys.modules['PIL'] = None\n"
        "from tunable_ops import cli; sys.exit(cli.main(['apply', 'a.png', '--model', 'm']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert done.stderr == (
        "tunable-ops apply: error: this command needs the package 'PIL': pip install "
        "--no-build-isolation --editable '.[train]', in a checkout of tunable_ops\n"
    )


@pytest.mark.parametrize("module", ["tunable_ops", "tunable_ops.cli"])
def test_as_a_module(capsys, monkeypatch, module):
    monkeypatch.setattr(sys, "argv", [module, "--version"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_module(module, run_name="__main__")
    assert stop.value.code == 0
    assert capsys.readouterr().out.startswith("tunable-ops ")


def test_a_reader_that_goes_away_is_no_error():
    # in a process of its own, since the answer is to point the real stdout elsewhere
    code = (
        "import sys, types; from tunable_ops import cli\n"
        "module = types.SimpleNamespace(add_parser=lambda s: s.add_parser('info'), run=lambda args: print('a') or 0)\n"
        "cli.importlib.import_module = lambda name: module\n"
        "sys.stdin.readline(); sys.exit(cli.main(['info']))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    process.stdout.close()
    process.stdout = None
    _, err = process.communicate("go\n")
    assert (process.returncode, err) == (1, "")
