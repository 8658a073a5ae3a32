"""The command `tunable-ops`: one module per subcommand, imported only when needed.

The module of a subcommand has `add_parser(subparsers)` and `run(args) -> int`. Exit codes: 0 done; 1 partly done (what
was skipped is named on stderr); 2 wrong input, nothing done; 130 stopped with Ctrl-C.
"""

from __future__ import annotations

import argparse
import importlib
import io
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from importlib import metadata
from typing import Any, NoReturn

from tunable_ops.extras import install
from tunable_ops.nearest import hint

__all__ = ["main", "parser_of"]

# the one-line help of every command, here so that the list imports none of them
COMMANDS = {
    "train": "train a network from a config file",
    "apply": "run a trained network on images, at one or more slider positions, or on videos",
    "eval": "measure a trained network over lambda on folders of pictures",
    "eval-gradient": "compare a perceptual gradient network with the true gradient",
    "app": "show pictures and sliders in the browser",
    "serve": "answer HTTP requests with restored pictures",
    "fold": "freeze the slider: write the plain network for one position",
    "export": "write a network as a file for other runtimes (ONNX, torch.export, AOTInductor)",
    "knob": "write what a tunable network adds to its base, as a small file",
    "models": "list the networks that ship, with their knobs and licences",
    "info": "describe a checkpoint or a knob, or this installation",
    "demo": "train a small denoiser on photographs and show its slider",
    "bench": "compare the speed of tunable and plain convolutions on this machine",
    "autotune": "time the kernels on this GPU and remember the fastest",
}
_LISTS = ("train", "bench")  # their errors may list the faults of a configuration, or a grammar, line by line
_RENAMED = {"pgn": "'train' (its configurations pgn_*) and 'eval-gradient'", "tune": "'autotune'"}
# import names of what the extras install
_EXTRAS = {
    "train": {
        "PIL",
        "imagecodecs",
        "matplotlib",
        "numpy",
        "pydantic",
        "safetensors",
        "skimage",
        "tensorboard",
        "tifffile",
        "tomli",
        "tqdm",
    },
    "app": {"gradio", "gradio_client"},
    "serve": {"fastapi", "prometheus_client", "starlette", "uvicorn"},
    "video": {"av"},
    "hub": {"huggingface_hub"},
    "onnx": {"onnx", "onnx_ir", "onnxruntime", "onnxscript"},
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand.

    Args:
        argv: Arguments of `tunable-ops`; None: those of this process.

    Returns:
        The exit code. Wrong input gives its message on stderr and 2, not a traceback, except with `--debug`. A message
        is one line, unless it lists several faults of a configuration or a grammar.
    """
    words, debug = _without_debug(sys.argv[1:] if argv is None else argv)
    _print_anything()
    name = next((word for word in words if not word.startswith("-")), "")
    prog = f"tunable-ops {name}" if name in COMMANDS else "tunable-ops"
    try:
        if name in _RENAMED:
            raise ValueError(f"the command {name!r} is now called {_RENAMED[name]}")
        parser, module = _parser(name)
        if name and name not in COMMANDS and words[0] == name:
            parser.error(f"COMMAND must be one of {', '.join(COMMANDS)}; got {name!r}{hint(name, COMMANDS)}")
        args = parser.parse_args(words)
        if module is None:
            parser.print_help()
            return 0
        with nullcontext() if debug else _plain_warnings(prog):
            code = int(module.run(args))
        sys.stdout.flush()  # raises here, not at exit, if the reader has closed the pipe
        return code
    except SystemExit as stop:  # argparse: 0 after --help and --version, 2 after an error
        return stop.code if isinstance(stop.code, int) else 2
    except KeyboardInterrupt:
        print(f"{prog}: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # as in `tunable-ops info x | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # otherwise flushing at exit fails again
        return 1
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        extra = next((name for name, packages in _EXTRAS.items() if package in packages), None)
        if debug or extra is None:
            raise
        message = f"this command needs the package {error.name!r}: {install(extra)}"
    except (ValueError, TypeError, RuntimeError, OSError) as error:
        if debug:
            raise
        message = _lines(error) if isinstance(error, ValueError) and name in _LISTS else one_line(error)
    print(f"{prog}: error: {message}", file=sys.stderr)
    return 2


def one_line(error: BaseException) -> str:
    """Return the message of an error in one line, without the error number of OSError."""
    text = str(error)
    if isinstance(error, OSError) and error.errno is not None and error.strerror:
        text = error.strerror + (f": {error.filename!r}" if error.filename is not None else "")
    return " ".join(text.split()) or type(error).__name__


def _lines(error: ValueError) -> str:
    """Return the message of an error with its own lines."""
    return "\n".join(line.rstrip() for line in str(error).splitlines() if line.strip()) or type(error).__name__


def _without_debug(argv: Sequence[str]) -> tuple[list[str], bool]:
    """Take --debug out of the arguments, up to a `--`."""
    words = list(argv)
    end = words.index("--") if "--" in words else len(words)
    kept = [word for word in words[:end] if word != "--debug"]
    return kept + words[end:], len(kept) < end


def _print_anything() -> None:
    """Escape what the terminal cannot show, such as file names of another encoding, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _parser(name: str) -> tuple[argparse.ArgumentParser, Any]:
    """Build the parser with the arguments of subcommand `name` only, without importing the other modules."""
    parser = _Parser(
        prog="tunable-ops",
        description="Tunable convolutions: networks with a slider.",
        epilog="`tunable-ops COMMAND --help` shows the options of a command.",
    )
    parser.add_argument("--version", action="version", version=f"tunable-ops {_version()}")
    # taken out beforehand, wherever it stands
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error; may stand anywhere")
    subparsers = parser.add_subparsers(metavar="COMMAND")
    module = None
    for command, text in COMMANDS.items():
        if command == name:
            module = importlib.import_module(f"{__name__}.{command.replace('-', '_')}")
            module.add_parser(subparsers)
        else:
            subparsers.add_parser(command, help=text)
    return parser, module


def parser_of(command: str) -> argparse.ArgumentParser:
    """Return the parser of one subcommand."""
    parser, _ = _parser(command)
    group = next(each for each in parser._actions if isinstance(each, argparse._SubParsersAction))
    found: argparse.ArgumentParser = group.choices[command]
    return found


class _Parser(argparse.ArgumentParser):
    """Parser that reports errors in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def _version() -> str:
    try:
        return metadata.version("tunable-ops")
    except metadata.PackageNotFoundError:
        return "(not installed)"


@contextmanager
def _plain_warnings(prog: str) -> Iterator[None]:
    """Print warnings in one line on stderr, without the source line."""

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        print(f"{prog}: warning: {' '.join(str(message).split())}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield
