"""Whole plain networks against other inference engines: ONNX Runtime and OpenVINO, on a CPU.

A network is folded at one lambda, exported to ONNX, and timed beside eager PyTorch, torch.compile and ours. Every
output is compared with the plain one first; what differs gets no time. Rows have the form of `bench.networks`.
"""

import copy
import importlib.util
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tunable_ops.bench import network_gate, networks
from tunable_ops.bench import step as steps
from tunable_ops.bench.measure import Settings, failure
from tunable_ops.bench.timing import cpu_threads

import tunable_ops
from tunable_ops import models, pretrained
from tunable_ops.extras import install

PACKAGES = {"onnxruntime": ("onnxruntime", "onnx", "onnxscript"), "openvino": ("openvino", "onnx", "onnxscript")}
NAMES = {
    "plain": "the folded network, eager, channels_last",
    "accelerated": "ours: the folded network through tunable_ops.accelerate",
    "tunable": "ours: the tunable network, with another lambda at every call",
    "compiled": "torch.compile of the folded network",
    "onnxruntime": "the folded network in ONNX Runtime",
    "openvino": "the folded network in OpenVINO, float32",
}


@dataclass(frozen=True)
class EngineCase(networks.NetworkCase):
    """A network that ships, or "nafnet" with random weights; and the number of threads of every engine."""

    threads: int = 1

    @property
    def id(self) -> str:
        """Return the name that filters match and results carry."""
        return f"{super().id}-T{self.threads}"


_LAMBDA = {
    "denoise": {"sigma": 25.0, "texture": 0.5},
    "super_resolution_x2": {"perceptual": 0.5},
    "super_resolution_x4": {"perceptual": 0.5},
}


def engine_suite(device: str) -> list[EngineCase]:
    """Return the networks that ship and NAFNet-32, on one and two threads; nothing on a GPU."""
    if device != "cpu":
        return []
    sizes = {"denoise": 256, "super_resolution_x2": 128, "super_resolution_x4": 256, "nafnet": 256}
    return [EngineCase(name, size, 1, threads=threads) for threads in (1, 2) for name, size in sizes.items()]


def unavailable_reason(engine: str) -> str | None:
    """Return which packages of an engine are missing, or None if all are here."""
    missing = [name for name in PACKAGES[engine] if importlib.util.find_spec(name) is None]
    return f"not installed: {', '.join(missing)} ({install('bench')})" if missing else None


def export(net: nn.Module, x: Tensor, path: Path) -> None:
    """Write a network as ONNX, for inputs of the size of `x`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's, about packages that a plain network does not need
        torch.onnx.export(net, (x,), path, dynamo=True, input_names=["input"], output_names=["output"], verbose=False)


def session(engine: str, path: Path, threads: int) -> Callable[[Any], Any]:
    """Return a function of an array [B, C, H, W] that runs the network of an ONNX file."""
    if engine == "onnxruntime":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        # Otherwise its threads spin on while others are timed.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        run = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        return lambda array: run.run(None, {"input": array})[0]
    import openvino

    core = openvino.Core()
    # "f32": where the processor has bfloat16, OpenVINO takes it by default.
    options = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    request = core.compile_model(core.read_model(path), "CPU", options).create_infer_request()
    return lambda array: request.infer([array], share_inputs=True, share_outputs=True)[0]


def measure(case: EngineCase, device: str, settings: Settings, names: Sequence[str] = ()) -> dict[str, Any]:
    """Return the results of a network, in the form of `bench.measure.measure`.

    Args:
        case: The network.
        device: "cpu".
        settings: How long to measure.
        names: Who is timed beside "plain"; by default all of `NAMES`.
    """
    row: dict[str, Any] = {"id": case.id, "network": case.to_dict()}
    wanted = [name for name in NAMES if name == "plain" or not names or name in names]
    results: dict[str, dict[str, Any]] = {}
    with cpu_threads(case.threads):
        try:
            net, lam = _network(case.network)
            x = torch.rand(case.batch, 3, case.size, case.size, device=device)
            with torch.no_grad():
                folded = tunable_ops.fold(net, lam).requires_grad_(False)
            makers = _makers(case, net, folded, lam, x)
            plain = makers.pop("plain")()
            expected = plain()[0]
        except Exception as error:
            return {**row, "providers": dict.fromkeys(wanted, failure(error))}
        ready = {"plain": plain}
        for name in wanted[1:]:
            reason = unavailable_reason(name) if name in PACKAGES else None
            if reason is not None:
                results[name] = {"status": "unsupported", "reason": reason}
                continue
            try:
                step = makers[name]()
                _check(name, step()[0], expected)
                ready[name] = step
            except Exception as error:
                results[name] = failure(error)
        results.update(networks.timed(ready, case.mode, device, settings))
    return {**row, "providers": {name: results[name] for name in wanted}}


def _network(name: str) -> tuple[nn.Module, dict[str, float]]:
    """Return a tunable network and a lambda between the ends of its ranges."""
    if name in _LAMBDA:
        return pretrained.load(name).eval(), _LAMBDA[name]
    torch.manual_seed(0)
    plain = models.NAFNet()
    network_gate.randomise(plain)
    net = tunable_ops.convert(plain, num_params=2, names=("first", "second"))
    network_gate.spread(net)
    return net, {"first": 0.5, "second": 0.5}


def _makers(
    case: EngineCase, net: nn.Module, folded: nn.Module, lam: dict[str, float], x: Tensor
) -> dict[str, Callable[[], steps.Step]]:
    """Return, by name, what makes the step of each engine; each keeps the memory format that it is fastest in."""
    last = x.contiguous(memory_format=torch.channels_last)
    net = net.to(memory_format=torch.channels_last)

    def copied() -> nn.Module:
        return copy.deepcopy(folded).to(memory_format=torch.channels_last)

    def engine(name: str) -> steps.Step:
        with tempfile.TemporaryDirectory() as folder:
            export(folded, x, Path(folder) / "network.onnx")
            run = session(name, Path(folder) / "network.onnx", case.threads)
        array = x.numpy()
        return lambda: [torch.from_numpy(run(array))]

    return {
        "plain": lambda: _step(copied(), last),
        "accelerated": lambda: _step(tunable_ops.accelerate(copied()), last),
        "tunable": lambda: _moving(net, lam, last),
        "compiled": lambda: _step(steps.compiled(copied()), last),
        **{name: lambda name=name: engine(name) for name in PACKAGES},  # type: ignore[misc]
    }


def _step(net: Callable[[Tensor], Tensor], x: Tensor) -> steps.Step:
    def forward() -> list[Tensor]:
        with torch.no_grad():
            return [net(x)]

    return forward


def _moving(net: nn.Module, lam: dict[str, float], x: Tensor) -> steps.Step:
    """Return a step whose lambda differs from that of the call before, by too little to be seen in the result."""
    first, second = torch.tensor(list(lam.values())), torch.tensor(list(lam.values())) * (1 + 1e-6)
    count = 0

    def forward() -> list[Tensor]:
        nonlocal count
        count += 1
        with torch.no_grad():
            return [net(x, first if count % 2 else second)]

    return forward


def _check(name: str, got: Tensor, expected: Tensor) -> None:
    error = (got.float() - expected).square().mean().sqrt() / expected.square().mean().sqrt()
    bound = network_gate.BOUNDS["fp32"]
    if not error.item() <= bound:
        raise ArithmeticError(f"{name}: rms error of the output must be at most {bound}; got {error.item():.2g}")
