"""What the benchmarks share: interleaved timing, the machine's matrix rate, one table."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

RATE_SHAPE = (4096, 1024, 4096)  # rows, inner and outer size of the product that tells the matrix rate
GPU_RATE_SHAPE = (8192, 8192, 8192)


def interleaved(
    subjects: Mapping[str, Callable[[], Any]], repetitions: int
) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Seconds of every subject in every round, and what each returned; a first round that only warms up is not counted.

    Rounds go through the subjects in turn, so that what else the machine does meets all of them.
    """
    results = {name: run() for name, run in subjects.items()}
    seconds: dict[str, list[float]] = {name: [] for name in subjects}
    for _ in range(repetitions):
        for name, run in subjects.items():
            started = time.perf_counter()
            run()
            synchronize()
            seconds[name].append(time.perf_counter() - started)
    return seconds, results


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def ratio(peer: Sequence[float], ours: Sequence[float]) -> str:
    """How many times faster than a peer: the median over rounds, and the range of the rounds."""
    rounds = [theirs / own for theirs, own in zip(peer, ours, strict=True)]
    return f"{statistics.median(peer) / statistics.median(ours):.2f}× ({min(rounds):.2f}–{max(rounds):.2f})"


def matrix_rate(dtype: torch.dtype = torch.float32, device: str = "cpu") -> float:
    """Operations a second of a large matrix product, the best of thirty; of ten at a time on a GPU, which is told of
    the next while it works."""
    (rows, inner, outer), together = (RATE_SHAPE, 1) if device == "cpu" else (GPU_RATE_SHAPE, 10)
    left = torch.randn(rows, inner, dtype=dtype, device=device)
    weight = torch.randn(outer, inner, dtype=dtype, device=device)
    best = float("inf")
    with torch.inference_mode():
        for _ in range(30):
            synchronize()
            started = time.perf_counter()
            for _ in range(together):
                torch.nn.functional.linear(left, weight)
            synchronize()
            best = min(best, time.perf_counter() - started)
    return together * 2 * rows * inner * outer / best


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table as it also stands in docs/performance.md."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [header, ["-" * width for width in widths], *rows]
    padded = [[f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in padded)


def machine() -> str:
    """The processor and the versions that a result belongs to, in one line."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    cpu = f"{names[0]}, {len(names)} cores" if names else "processor unknown"
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "sentence-transformers"))
    return f"{cpu}{gpu}; {torch.get_num_threads()} threads; {packages}"
