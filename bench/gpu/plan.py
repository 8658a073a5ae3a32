"""The plans: stages in order, the processes of each, their time limits, and the files that they write.

A stage's steps follow each other; the processes of a step run at the same time. A stage never outlasts its limit, and
all of them end within `TOTAL`. The elastic stage gets what the others leave.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tunable_ops.bench.gpu.smoke import FAMILIES

TOTAL = 532.0  # seconds
GRACE = 6.0  # between SIGINT and SIGKILL, within the limit
# What may come back of a run, whoever carries it.
MOST_FILES, MOST_BYTES, DEEPEST = 8, 16 << 20, 2
PLANS = ("first", "second")
COMPILERS = 14  # processes that compile at a time, at most
ONE_THREAD = (("OMP_NUM_THREADS", "1"),)


@dataclass(frozen=True)
class Process:
    """One process of a step.

    Attributes:
        words: A module, or a script whose name ends with .py, and its arguments.
        log: The file that gets its output; None discards it.
        label: Stands before every line, where several processes share a log.
        tool: Command that runs Python, such as compute-sanitizer with its options.
        environment: Variables set for it.
    """

    words: tuple[str, ...]
    log: str | None = "log.txt"
    label: str = ""
    tool: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Stage:
    """Steps with one limit in seconds.

    Attributes:
        name: What the summary calls it.
        seconds: Limit; that of an elastic stage is a wish.
        steps: Processes that run at the same time, step after step.
        elastic: The stage may take what the others leave, and must leave what they need.
        shares: Part of the limit at which each step but the last must end.
        results: Result files in which refused cases are counted.
    """

    name: str
    seconds: float
    steps: tuple[tuple[Process, ...], ...]
    elastic: bool = False
    shares: tuple[float, ...] = ()
    results: tuple[str, ...] = ()


def plan(name: str, cores: int, out: str, library: bool, wgmma: bool, stand_in: bool = False) -> list[Stage]:
    """Return the stages of a plan.

    Args:
        name: One of `PLANS`.
        cores: Processors of the machine.
        out: Folder of the results.
        library: True if a compiled CUDA library is there already.
        wgmma: Likewise for the library of the wgmma kernel.
        stand_in: Plan for the CPU: tiny shapes, Triton's interpreter, and no tools that need a GPU.

    Raises:
        ValueError: An unknown plan.
    """
    if name not in PLANS:
        raise ValueError(f"on_gpu: plan must be one of {', '.join(PLANS)}; got {name!r}")
    device = ("--device", "cpu" if stand_in else "cuda")
    build = [] if stand_in or (library and wgmma) else [_build(library, wgmma)]
    if name == "second":
        return [*build, _environment(device), *_second(cores, out, device)]
    return [*build, _environment(device), *_first(cores, out, device, stand_in)]


def _module(module: str, *words: str, **options: object) -> Process:
    return Process((f"tunable_ops.bench.{module}", *words), **options)  # type: ignore[arg-type]


def _build(library: bool, wgmma: bool) -> Stage:
    """Return the stage that builds what is missing, the library that takes seconds and no nvcc before the other."""
    variables = (("TUNABLE_OPS_CPP", "0"), ("TUNABLE_OPS_CUDA", "1"), ("TUNABLE_OPS_CUDA_ARCHS", "90a"))
    steps = [] if wgmma else [(Process(("csrc/build_cuda.py",)),)]
    if not library:
        words = ("setup.py", "--quiet", "build_ext", "--inplace")
        steps.append((Process(words, environment=variables),))
    return Stage("build", 75, tuple(steps), shares=(0.4,) * (len(steps) - 1))


def _environment(device: tuple[str, ...]) -> Stage:
    return Stage("environment", 30, ((_module("gpu.environment", *device, log="summary.txt"),),))


def _compiling(cores: int, device: tuple[str, ...], what: str) -> tuple[Process, ...]:
    """Return processes that fill Triton's cache with the kernels of a stage."""
    parts = max(1, min(COMPILERS, cores))
    return tuple(
        _module("gpu.compile", what, f"{i}/{parts}", *device, label=f"{i}", environment=ONE_THREAD)
        for i in range(1, parts + 1)
    )


def _first(cores: int, out: str, device: tuple[str, ...], stand_in: bool) -> list[Stage]:
    interpreted = (("TRITON_INTERPRET", "1"), *ONE_THREAD) if stand_in else ONE_THREAD
    smoke = tuple(
        _module("gpu.smoke", family, *device, log="smoke.txt", label=family, environment=interpreted)
        for family in FAMILIES
    )
    parts = 2 if stand_in else max(1, min(12, cores))
    tests = tuple(_tests(f"{i}/{parts}", "tests.txt") for i in range(1, parts + 1))
    # The smallest launches; without torch's pool every tensor is an allocation of its own.
    sanitizer = () if stand_in else ("compute-sanitizer", "--tool", "racecheck", "--error-exitcode", "9")
    variables = (("PYTORCH_NO_CUDA_MEMORY_CACHING", "1"),)
    racecheck = tuple(
        _tests(f"{i}/{parts}", "racecheck.txt", "-k", "sanitizer", tool=sanitizer, environment=variables)
        for i in range(1, parts + 1)
    )
    return [
        Stage("smoke", 40, (smoke,)),
        Stage(
            "targets",
            160,
            (_compiling(cores, device, "targets"), (_bench("targets", out, device, "targets"),)),
            shares=(0.4,),
            results=("targets.json",),
        ),
        Stage("networks", 60, ((_bench("networks", out, device, "target-networks"),),), results=("networks.json",)),
        Stage("counters", 30, ((_counters(device, stand_in),),)),
        Stage("tests", 180, (tests,), elastic=True),
        Stage("racecheck", 40, (racecheck,)),
    ]


def _second(cores: int, out: str, device: tuple[str, ...]) -> list[Stage]:
    tune = _module("gpu.tune", "--out", f"{out}/table.json", *device)
    targets = _bench("targets", out, device, "targets")
    return [
        Stage("tune", 330, (_compiling(cores, device, "tune"), (tune,)), shares=(0.5,)),
        Stage(
            "targets", 160, (_compiling(cores, device, "targets"), (targets,)), shares=(0.3,), results=("targets.json",)
        ),
    ]


def _bench(name: str, out: str, device: tuple[str, ...], suite: str) -> Process:
    return Process(("tunable_ops.bench", "--suite", suite, "--out", f"{out}/{name}.json", "--budget", "0.6", *device))


def _counters(device: tuple[str, ...], stand_in: bool) -> Process:
    ncu = ("ncu", "--clock-control", "none", "--profile-from-start", "off", "--set", "basic", "--csv")
    return _module("gpu.profiled", *device, log="counters.txt", tool=() if stand_in else ncu)


def _tests(part: str, log: str, *more: str, **options: object) -> Process:
    words = ("pytest", "-q", *TEST_OPTIONS, "-m", "gpu", "--part", part, *more, *TEST_FILES)
    return Process(words, log, label=part.partition("/")[0], **options)  # type: ignore[arg-type]


# A file that needs a package that is not there fails alone: without the second option no test of any file would run.
TEST_OPTIONS = ("-p", "no:cacheprovider", "--continue-on-collection-errors")
# Every file with tests marked gpu. The wgmma kernel is what runs by default: its tests come first, and take no compiler
# of Triton's.
TEST_FILES = (
    "tests/gpu/test_wgmma.py",
    "tests/gpu/test_default_paths.py",
    "tests/gpu/test_triton.py",
    "tests/gpu/test_cuda_operator.py",
    "tests/deploy/test_graphs.py",
    "tests/losses/test_samplers.py",
)


def limit_of(stage: Stage, later: Sequence[Stage], elapsed: float, total: float = TOTAL) -> float:
    """Return the seconds that a stage has: its own limit, or what is left; 0 or less: none.

    Args:
        stage: The stage to start.
        later: Those after it.
        elapsed: Seconds since the first one began.
        total: Seconds that all have together.
    """
    left = total - elapsed
    if stage.elastic:
        return left - sum(other.seconds for other in later)
    # Before the elastic stage the others have their limits; what ran over there, it lost.
    return min(stage.seconds, left)


def files(stages: Sequence[Stage]) -> list[str]:
    """Return the names of the files that a plan writes into its folder."""
    processes = [process for stage in stages for step in stage.steps for process in step]
    named = {"summary.txt", *(process.log for process in processes if process.log)}
    for process in processes:
        named |= {process.words[i + 1].rpartition("/")[2] for i, word in enumerate(process.words) if word == "--out"}
    return sorted(named)
