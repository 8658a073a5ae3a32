"""Load on a service on this machine: requests a second and latency, with batches and without.

    python examples/serve/load.py --clients 1 8 32 --sizes 64 128 --seconds 10 --out load.json

Starts the service twice, with batches and with `--max-batch 1`, and loads one after the other, round by round. Every
client sends one picture after the other, each with a lambda of its own, over a connection that it keeps. The clients
share the processor with the service. `cpu` is processor time of the service for each request, which other programs of
the machine disturb less than the rest.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import platform
import random
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tunable_ops.images import Frame, encode_picture

_TICK = os.sysconf("SC_CLK_TCK")


def main(words: Sequence[str] | None = None) -> int:
    """Measure, print a table, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="denoise", help="a network that ships (default: denoise)")
    parser.add_argument("--lam", default="sigma=50", help="lambda is drawn between 0 and this (default: sigma=50)")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128], help="sides of the pictures, in pixels")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each round")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of which the median is shown")
    parser.add_argument("--threads", type=int, default=1, help="threads of the network")
    parser.add_argument("--out", type=Path, help="file for the figures as JSON")
    args = parser.parse_args(words)
    services = {"batched": Service(args, []), "unbatched": Service(args, ["--max-batch", "1"])}
    try:
        rows = [
            _summary(size, clients, _rounds(args, services, size, clients))
            for size in args.sizes
            for clients in args.clients
        ]
    finally:
        for service in services.values():
            service.stop()
    print(table(rows))
    if args.out is not None:
        facts = {"processor": _processor(), "python": platform.python_version(), "threads": args.threads}
        args.out.write_text(json.dumps({**facts, "model": args.model, "rows": rows}, indent=2) + "\n")
    return 0


class Service:
    """A service in a process of its own."""

    def __init__(self, args: argparse.Namespace, words: Sequence[str]) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        command = [sys.executable, "-m", "tunable_ops", "serve", "--quiet", "--port", str(self.port)]
        command += ["--model", args.model, "--threads", str(args.threads), "--device", "cpu", "--queue", "256", *words]
        self._process = subprocess.Popen(command)
        for _ in range(3000):
            with socket.socket() as sock:
                if sock.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.1)
        raise RuntimeError("the service must start within five minutes; it has not")

    @property
    def cpu_seconds(self) -> float:
        """Processor time that the service has taken."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICK

    def stop(self) -> None:
        """End it in good order."""
        self._process.send_signal(signal.SIGTERM)
        self._process.wait()


def load(service: Service, model: str, lam: str, size: int, clients: int, seconds: float) -> dict[str, float]:
    """Load a service for a while.

    Returns:
        dict with requests (a second), p50, p95 and p99 (latency in ms) and cpu (ms of the service for each request).
    """
    name, _, top = lam.partition("=")
    content = encode_picture([Frame(np.random.default_rng(0).integers(0, 256, (size, size, 3), np.uint8))], "png")
    latencies: list[float] = []
    start, used = time.perf_counter(), service.cpu_seconds

    def client(seed: int) -> None:
        chance, connection = random.Random(seed), http.client.HTTPConnection("127.0.0.1", service.port, timeout=300)
        while (now := time.perf_counter()) - start < seconds:
            query = f"model={model}&lam={name}={chance.uniform(0, float(top)):.3f}"
            connection.request("POST", f"/v1/restore?{query}", content)
            response = connection.getresponse()
            body = response.read()
            if response.status != 200:
                raise RuntimeError(f"the service must answer with 200; got {response.status}: {body[:300]!r}")
            latencies.append(time.perf_counter() - now)

    threads = [threading.Thread(target=client, args=(seed,)) for seed in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    taken, count = time.perf_counter() - start, len(latencies)
    cuts = statistics.quantiles(latencies, n=100) if count > 1 else latencies * 99
    figures = {f"p{percent}": 1000 * cuts[percent - 1] for percent in (50, 95, 99)}
    return {"requests": count / taken, **figures, "cpu": 1000 * (service.cpu_seconds - used) / count}


def _rounds(
    args: argparse.Namespace, services: dict[str, Service], size: int, clients: int
) -> dict[str, list[dict[str, float]]]:
    found: dict[str, list[dict[str, float]]] = {name: [] for name in services}
    for service in services.values():
        load(service, args.model, args.lam, size, clients, min(args.seconds / 5, 2.0))  # to warm up
    for _ in range(args.rounds):
        for name, service in services.items():
            found[name].append(load(service, args.model, args.lam, size, clients, args.seconds))
    return found


def _summary(size: int, clients: int, rounds: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Take the median of every figure."""
    medians = {
        name: {key: round(statistics.median(each[key] for each in found), 2) for key in found[0]}
        for name, found in rounds.items()
    }
    return {"size": size, "clients": clients, **medians}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the figures as a table in Markdown."""
    keys = ("requests", "p50", "p95", "p99", "cpu")
    lines = [
        "| pictures | clients | | requests/s | p50 ms | p95 ms | p99 ms | cpu ms |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        for name in ("batched", "unbatched"):
            figures = " | ".join(f"{row[name][key]:.1f}" for key in keys)
            lines.append(f"| {row['size']}x{row['size']} | {row['clients']} | {name} | {figures} |")
    return "\n".join(lines)


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return f"{line.partition(': ')[2]}, {os.cpu_count()} cores"
    return platform.processor()


if __name__ == "__main__":
    raise SystemExit(main())
