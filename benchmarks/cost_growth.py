"""How time and memory grow with the number of items, for encoding and for search, with the model that ships.

    python benchmarks/cost_growth.py
    python benchmarks/cost_growth.py --sizes 300 1000 3000 --repetitions 1

Every measurement is a process of its own: it fills a vector store with so many items (texts of the embedded data set,
and one picture in ten), a shard at a time, then searches a store of so many random vectors for 200 queries. Below the
table stand the slopes of a straight line through the logarithms: 1 is linear, 0 does not grow.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from umarvel_hf._torchvision import ensure_torchvision

ensure_torchvision()
import numpy as np
from measure import alone, machine, peak_rss, table
from workload import Draw

from umarvel_hf.emoji import model_dir
from umarvel_hf.encoding import load
from umarvel_hf.search import Search, encode_store, search_store
from umarvel_hf.store import VectorStore

QUERIES, DIMENSION, DEPTH, MEMORY = 200, 128, 50, 64 << 20
SHARD = 8_192  # rows: what is in memory at a time


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 3_000, 10_000, 30_000, 100_000])
    parser.add_argument("--repetitions", type=int, default=5, help="default: %(default)s")
    arguments = parser.parse_args()
    measured: dict[str, list[list[float]]] = {"encode": [], "search": []}
    for size in arguments.sizes:
        for name, one in (("encode", encoding), ("search", searching)):
            rounds = [alone(one, size) for _ in range(arguments.repetitions)]
            measured[name].append([statistics.median(values) for values in zip(*rounds, strict=True)])
    rows = [
        [f"{size:,}", *(cell for name in measured for cell in cells(size, *measured[name][at]))]
        for at, size in enumerate(arguments.sizes)
    ]
    slopes = [slope(arguments.sizes, values) for name in measured for values in zip(*measured[name], strict=True)]
    seconds, memory, seconds_of_search, memory_of_search = (f"{one:.3f}" for one in slopes)
    rows.append(["slope", seconds, "", memory, seconds_of_search, "", memory_of_search])
    print(machine())
    header = ["items", "encode, s", "items/s", "peak RSS", "search, s", "vectors/s", "peak RSS"]
    print(table(header, rows))


def cells(size: int, seconds: float, memory: float) -> list[str]:
    return [f"{seconds:.3f}", f"{size / seconds:,.0f}", f"{memory / 1e6:.0f} MB"]


def slope(sizes: list[int], values: tuple[float, ...]) -> float:
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


def searching(count: int) -> tuple[float, float]:
    generator = np.random.default_rng(0)

    def unit(rows: int) -> np.ndarray:
        vectors = generator.normal(size=(rows, DIMENSION)).astype(np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    with tempfile.TemporaryDirectory() as folder:
        store = VectorStore.write(folder, [str(at) for at in range(count)], unit(count), made_by={})
        queries = Search(unit(QUERIES), {"": None})
        seconds = []
        for _ in range(3):
            started = time.perf_counter()
            search_store(store, {"": queries}, k=DEPTH, memory=MEMORY)
            seconds.append(time.perf_counter() - started)
        return min(seconds), peak_rss()


if __name__ == "__main__":
    main()
