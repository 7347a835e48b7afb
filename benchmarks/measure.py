"""What the benchmarks share: interleaved timing, the machine's matrix rate, one table."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch


def interleaved(
    subjects: Mapping[str, Callable[[], Any]], repetitions: int
) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Seconds of every subject in every round, and what each returned; a first round that only warms up is not counted.

    Rounds go through the subjects in turn, so that what else the machine does meets all of them.
    """
    results = {name: run() for name, run in subjects.items()}
    synchronize()
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


class Products:
    """Ten large matrix products. As a subject beside others they tell what the machine could do meanwhile."""

    def __init__(self, dtype: torch.dtype = torch.float32, device: str = "cpu") -> None:
        rows, inner, outer = (4096, 1024, 4096) if device == "cpu" else (8192, 8192, 8192)
        self._left = torch.randn(rows, inner, dtype=dtype, device=device)
        self._weight = torch.randn(outer, inner, dtype=dtype, device=device)
        self._operations = 10 * 2 * rows * inner * outer

    @torch.inference_mode()
    def __call__(self) -> None:
        for _ in range(10):
            torch.nn.functional.linear(self._left, self._weight)

    def rate(self, seconds: Sequence[float]) -> float:
        """Operations a second, by the median."""
        return self._operations / statistics.median(seconds)


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
