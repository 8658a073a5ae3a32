"""Run a plan: start its processes, stop them at their limits, and keep what they print as they print it."""

import argparse
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from tunable_ops.bench import skipped
from tunable_ops.bench.gpu.plan import GRACE, MOST_BYTES, PLANS, Process, Stage, files, limit_of, plan

from tunable_ops import backends
from tunable_ops.backends import wgmma

# The stand-in's times say nothing about a GPU: its limits, this many times as long, only end what hangs. Interpreting
# the smoke stage takes some 100 s of a processor, on a machine that may have other work.
SLACK = 30.0


# Several processes append to one file.
_WRITING = threading.Lock()
_FULL: set[Path] = set()
FULL = "the rest is left out: this file is full\n"


class Log:
    """A file to which several processes append whole lines, up to a size."""

    def __init__(self, path: Path, most: int = MOST_BYTES - (1 << 20)) -> None:
        self.path, self.most = path, most
        path.touch()

    def write(self, text: str) -> None:
        """Append a line, unless the file is full."""
        with _WRITING:
            if self.path in _FULL:
                return
            if self.path.stat().st_size + len(text.encode()) > self.most - len(FULL):
                _FULL.add(self.path)
                text = FULL
            with self.path.open("a") as file:
                file.write(text)


class Runner:
    """Runs stages one after the other.

    Args:
        out: Folder of the results.
        cores: Processes at the same time.
        slack: Factor of all limits.
        start: Command that runs a module.
        accepted: Ends of the accepted reasons to skip a test.
    """

    def __init__(
        self,
        out: Path,
        cores: int,
        slack: float = 1.0,
        start: Sequence[str] = (sys.executable, "-m"),
        accepted: tuple[str, ...] = skipped.ACCEPTED,
    ) -> None:
        self.out, self.cores, self.slack, self.start, self.accepted = out, cores, slack, tuple(start), accepted
        self.site = str(Path(self.start[-1]).parent) if self.start[-1].endswith(".py") else ""
        self.began = time.monotonic()
        self.stopped = threading.Event()
        self.summary = Log(out / "summary.txt")

    def say(self, text: str) -> None:
        """Add a line to the summary and print it."""
        self.summary.write(f"{text}\n")
        print(text, flush=True)

    def run(self, stages: Sequence[Stage]) -> list[str]:
        """Run the stages; return the names of those that did not end well."""
        failed = []
        for index, stage in enumerate(stages):
            elapsed = (time.monotonic() - self.began) / self.slack
            limit = limit_of(stage, stages[index + 1 :], elapsed)
            if self.stopped.is_set() or limit < 2 * GRACE / 3:
                self.say(f"{stage.name:12s}    0 s  left out: {'stopped' if self.stopped.is_set() else 'no time left'}")
                failed.append(stage.name)
                continue
            began, compiled = time.monotonic(), _compiled()
            verdict = self._stage(stage, limit * self.slack)
            counted, wrong = self._skipped(stage)
            if verdict == "ok" and wrong:
                verdict = "failed: " + "; ".join(wrong)
            taken, new = time.monotonic() - began, _compiled() - compiled
            self.say(f"{stage.name:12s} {taken:4.0f} s  {verdict}; compiled {new}{counted}")
            if verdict != "ok":
                failed.append(stage.name)
        return failed

    def _stage(self, stage: Stage, limit: float) -> str:
        """Run the steps of a stage within a limit in seconds; return its verdict."""
        end, codes = time.monotonic() + limit, []
        for index, step in enumerate(stage.steps):
            last = index == len(stage.steps) - 1
            until = end if last else min(end, time.monotonic() + stage.shares[index] * limit)
            codes += self._step(step, until)
            if self.stopped.is_set():
                return "stopped"
        over = sum(code is None for code in codes)
        bad = [code for code in codes if code]
        texts = [f"{over} of {len(codes)} processes stopped at the limit of {limit:.0f} s"] if over else []
        texts += [f"{len(bad)} of {len(codes)} processes failed with status {sorted(set(bad))}"] if bad else []
        return "; ".join(texts) or "ok"

    def _step(self, step: Sequence[Process], until: float) -> list[int | None]:
        """Run processes at the same time, at most one per core; None for one that was stopped."""
        codes: list[int | None] = [None] * len(step)
        free = threading.Semaphore(self.cores)

        def one(index: int) -> None:
            with free:
                if time.monotonic() < until and not self.stopped.is_set():
                    codes[index] = self._process(step[index], until)

        threads = [threading.Thread(target=one, args=(i,)) for i in range(len(step))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return codes

    def _process(self, process: Process, until: float) -> int | None:
        """Run one process; at its limit interrupt its group, so that it reports, and then kill it."""
        log = self.summary if process.log == "summary.txt" else Log(self.out / process.log) if process.log else None
        words = list(process.words)
        if words[0] == "pytest":  # the package is not where pyproject.toml says
            words[1:1] = ["-o", f"pythonpath={self.site}"] if self.site else []
        command = [*process.tool, *((sys.executable,) if words[0].endswith(".py") else self.start), *words]
        prefix = f"[{process.label}] " if process.label else ""
        try:
            child = subprocess.Popen(
                command,
                env={**os.environ, **dict(process.environment)},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,
            )
        except OSError as error:  # a tool that is not there
            if log:
                log.write(f"{prefix}{error}\n")
            return 127
        reader = threading.Thread(target=_copy, args=(child, log, prefix), daemon=True)
        reader.start()
        code = self._wait(child, until - GRACE)
        if code is None:
            _signal(child, signal.SIGINT)
            if self._wait(child, until, stoppable=False) is None:
                _signal(child, signal.SIGKILL)
        child.wait()
        _signal(child, signal.SIGKILL)  # what it left behind in its group
        reader.join(timeout=2)
        return code

    def _wait(self, child: "subprocess.Popen[str]", until: float, stoppable: bool = True) -> int | None:
        while time.monotonic() < until and not (stoppable and self.stopped.is_set()):
            code = child.poll()
            if code is not None:
                return code
            time.sleep(0.05)
        return child.poll()

    def _skipped(self, stage: Stage) -> tuple[str, list[str]]:
        """Return what a stage left out, for its line, and what of that has no accepted reason."""
        logs = {p.log for step in stage.steps for p in step if p.log and p.words[0] == "pytest"}
        paths = [self.out / name for name in (*sorted(logs), *stage.results)]
        if not paths:
            return "", []
        tests, cases, wrong = skipped.counted(paths, self.accepted)
        return f"; skipped: {tests.total()} tests, {cases.total()} cases", wrong


def _copy(child: "subprocess.Popen[str]", log: Log | None, prefix: str) -> None:
    assert child.stdout is not None
    for line in child.stdout:
        if log is not None:
            log.write(prefix + line)


def _signal(child: "subprocess.Popen[str]", number: int) -> None:
    try:
        os.killpg(child.pid, number)
    except (ProcessLookupError, PermissionError):
        return


def _compiled() -> int:
    """Return the number of kernels in Triton's cache."""
    folder = Path(os.environ.get("TRITON_CACHE_DIR", Path.home() / ".triton" / "cache"))
    return sum(1 for _ in folder.glob("*/*.cubin"))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return 0, 1 if a stage did not end well, 2 for wrong arguments."""
    parser = argparse.ArgumentParser(prog="bench/on_gpu.sh", description="Run a plan on a machine with a GPU.")
    parser.add_argument("out", type=Path, help="folder of the results: at most 8 files")
    parser.add_argument("plan", help=f"one of {', '.join(PLANS)}")
    parser.add_argument("stages", nargs="*", help="some of its stages (default: all)")
    parser.add_argument("--stand-in", action="store_true", help="rehearse on the CPU with tiny shapes")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    out = args.out.resolve()
    cores = len(os.sched_getaffinity(0))
    library = backends.unavailable_reason("tunable_conv2d", "cuda") is None
    try:
        stages = plan(args.plan, cores, str(out), library, wgmma.is_loaded(), args.stand_in)
        known = [stage.name for stage in stages]
        for name in args.stages:
            if name not in known:
                raise ValueError(f"on_gpu: stage must be one of {', '.join(known)}; got {name!r}")
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    chosen = [stage for stage in stages if stage.name in args.stages or not args.stages]
    for name in files(chosen):  # results of an earlier run would count as this one's
        (out / name).unlink(missing_ok=True)
    start = (sys.executable, os.environ["TUNABLE_OPS_RUN"])
    runner = Runner(out, cores, start=start)
    if args.stand_in:
        runner = Runner(out, cores, SLACK, start, (*skipped.ACCEPTED, "needs a CUDA device"))
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: runner.stopped.set())
    failed = runner.run(chosen)
    if failed:
        print(f"on_gpu: not all stages ended well: {' '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0
