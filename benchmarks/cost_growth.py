"""How time and memory grow with the number of items, for encoding and for search, with the model that ships.

    python benchmarks/cost_growth.py
    python benchmarks/cost_growth.py --items 300 3000 --pools 1000 10000 --repetitions 1

Every measurement is a process of its own. One fills a vector store with so many items (texts of the embedded data set,
and one picture in ten), a shard at a time; one searches a store of so many random vectors for 200 queries. A slope is
that of a straight line through the logarithms: 1 is linear, 0 does not grow. It is told of all sizes, and of the last
two alone, where what does not depend on the size weighs least.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from umarvel_hf._torchvision import ensure_torchvision

ensure_torchvision()
import numpy as np
from measure import machine, table
from memory import alone, peak_rss
from workload import Draw

from umarvel_hf.emoji import model_dir
from umarvel_hf.encoding import load
from umarvel_hf.search import Search, encode_store, search_store

QUERIES, DIMENSION, DEPTH, MEMORY = 200, 128, 50, 256 << 20
SHARD = 8_192  # rows: what is in memory at a time


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--items", type=int, nargs="+", default=[1_000, 3_000, 10_000, 30_000, 100_000], help="to encode"
    )
    parser.add_argument(
        "--pools", type=int, nargs="+", default=[1_000, 10_000, 100_000, 1_000_000, 3_000_000], help="to search"
    )
    parser.add_argument("--repetitions", type=int, default=5, help="default: %(default)s")
    arguments = parser.parse_args()
    print(machine())
    print(f"\n{grown('items encoded', encoding, arguments.items, arguments.repetitions)}", flush=True)
    print(f"\n{grown('vectors searched', searching, arguments.pools, arguments.repetitions)}")


def grown(what: str, one: Callable[[int], tuple[float, float]], sizes: list[int], repetitions: int) -> str:
    """A table of medians for every size, and the slopes."""
    seconds, peaks, rows = [], [], []
    for size in sizes:
        rounds = [alone(one, size) for _ in range(repetitions)]
        times, memory = zip(*rounds, strict=True)
        seconds.append(statistics.median(times))
        peaks.append(statistics.median(memory))
        told = f"{seconds[-1]:.3f} ({min(times):.3f}–{max(times):.3f})"
        rows.append([f"{size:,}", told, f"{size / seconds[-1]:,.0f}", f"{peaks[-1] / 1e6:.0f} MB"])
    for name, last in (("slope", 0), ("slope of the last two", -2)):
        rows.append(
            [name, f"{slope(sizes[last:], seconds[last:]):.2f}", "", f"{slope(sizes[last:], peaks[last:]):.2f}"]
        )
    return table([what, "seconds", "a second", "peak RSS"], rows)


def slope(sizes: list[int], values: Sequence[float]) -> float:
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


class Items:
    """Drawn as they are asked for, so that they are not what grows."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, rows: slice) -> list[object]:
        start, stop, _ = rows.indices(self._count)
        draw = Draw(start)
        return [{"image": draw.picture((64, 64))} if at % 10 == 0 else draw.text() for at in range(start, stop)]


def encoding(count: int) -> tuple[float, float]:
    """Seconds, and peak resident bytes."""
    model = load(model_dir(), device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        encode_store(model, Path(folder) / "warm", [str(at) for at in range(64)], Items(64), made_by={})  # reads texts
        ids = [str(at) for at in range(count)]
        started = time.perf_counter()
        encode_store(model, Path(folder) / "store", ids, Items(count), made_by={}, shard_rows=SHARD)
        return time.perf_counter() - started, peak_rss()


class Noise:
    """Random vectors of length 1 for whatever it is given."""

    def __init__(self) -> None:
        self._generator = np.random.default_rng(0)

    def encode(self, inputs: Sequence[Any], **kwargs: Any) -> np.ndarray:
        vectors = self._generator.normal(size=(len(inputs), DIMENSION)).astype(np.float32)
        unit: np.ndarray = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return unit


def searching(count: int) -> tuple[float, float]:
    with tempfile.TemporaryDirectory() as folder:
        ids = [str(at) for at in range(count)]
        store = encode_store(Noise(), folder, ids, range(count), made_by={}, shard_rows=SHARD)
        queries = Search(Noise().encode(range(QUERIES)), {"": None})
        seconds = []
        for _ in range(3):
            started = time.perf_counter()
            search_store(store, {"": queries}, k=DEPTH, memory=MEMORY)
            seconds.append(time.perf_counter() - started)
        return min(seconds), peak_rss()


if __name__ == "__main__":
    main()
