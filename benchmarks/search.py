"""How fast, and in how much memory, the exact search is beside FAISS's flat index.

    python benchmarks/search.py
    python benchmarks/search.py --rows 20000 --queries 50 --repetitions 2

Random unit vectors in half precision, as they are stored. FAISS has them as float32 in memory, in the one array that
its index keeps; ours come from a `VectorStore` on disk, which the page cache may hold. Both run in turn in one process
with as many threads, and what they found is compared. Peak memory is that of a process of its own, which makes or opens
what it searches and loads no library that it does not use.

The roofline is the time that 2 · queries · rows · dimension operations take at the rate of a large matrix product,
measured in the same run.

The second table is of a store larger than the memory that the search may hold; three of its queries are compared with
products in double precision.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from memory import alone, peak_rss

BLOCK = 8_192  # vectors read at a time, where it is not the search that reads
QUERY_SEED = 2**32  # vectors are drawn by the row they start at
CHECKED = 3  # queries of the large store
TOLERANCE = 1e-5  # by which a score in single precision may be off, rounded to millionths; seen are some 2e-7


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="vectors (default: %(default)s)")
    parser.add_argument("--mapped-rows", type=int, help="vectors of the large store (default: four times as many)")
    parser.add_argument("--dimension", type=int, default=256, help="of a vector (default: %(default)s)")
    parser.add_argument("--queries", type=int, default=2_000, help="searched at once (default: %(default)s)")
    parser.add_argument("-k", type=int, default=100, help="candidates kept per query (default: %(default)s)")
    parser.add_argument("--repetitions", type=int, default=5, help="rounds that are timed (default: %(default)s)")
    parser.add_argument("--memory", type=int, default=300_000_000, help="bytes ours may hold (default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="where stores are made and removed (default: a temporary one)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="search-", dir=arguments.folder) as folder:
        beside_faiss(Path(folder) / "store", arguments)
        larger_than_memory(Path(folder) / "large", arguments)


def beside_faiss(folder: Path, arguments: argparse.Namespace) -> None:
    from measure import Products, interleaved, machine, ratio, table

    # 1. The vectors, and the peak of each subject, in processes of their own.
    size, asked = (arguments.rows, arguments.dimension), (arguments.queries, arguments.k)
    alone(write_store, folder, *size)
    peaks = {"FAISS flat": alone(faiss_peak, folder, *size, *asked)}
    peaks["ours"] = alone(our_peak, folder, *asked, arguments.memory)["peak"]

    # 2. Both in turn.
    queries = unit_rows(arguments.queries, arguments.dimension, QUERY_SEED)
    subjects = {
        "FAISS flat": faiss_search(folder, *size, queries, arguments.k),
        "ours": our_search(folder, queries, arguments.k, arguments.memory),
    }
    seconds, found = interleaved({**subjects, "products": (products := Products())}, arguments.repetitions)
    same = compared(*(found[name] for name in subjects))

    # 3. One table.
    rate = products.rate(seconds["products"])
    roof = 2 * arguments.queries * arguments.rows * arguments.dimension / rate
    rows = [
        (
            name,
            f"{(median := statistics.median(seconds[name])):.2f} s",
            f"{arguments.queries / median:,.0f}",
            ratio(seconds["FAISS flat"], seconds[name]),
            f"{peaks[name] / 1e6:,.0f} MB",
            f"{peaks[name] / peaks['FAISS flat']:.2f}×",
            f"{roof / median:.0%}",
        )
        for name in subjects
    ]
    print(machine())
    print(
        f"\nTop {arguments.k:,} of {arguments.queries:,} queries over {arguments.rows:,} × {arguments.dimension:,}, "
        f"{arguments.repetitions} rounds; roofline {roof:.2f} s at {rate / 1e9:,.0f} GFLOP/s; {same}\n"
    )
    print(table(("search", "median", "queries/s", "faster", "peak RSS", "of FAISS's", "of the roofline"), rows))


def larger_than_memory(folder: Path, arguments: argparse.Namespace) -> None:
    from measure import table

    rows = arguments.mapped_rows or 4 * arguments.rows
    alone(write_store, folder, rows, arguments.dimension)
    facts = alone(our_peak, folder, arguments.queries, arguments.k, arguments.memory)
    values = [
        ("vectors", f"{rows:,} × {arguments.dimension:,} float16, {2 * rows * arguments.dimension / 1e6:,.0f} MB"),
        ("memory of the search", f"{arguments.memory / 1e6:,.0f} MB"),
        ("peak RSS", f"{facts['peak'] / 1e6:,.0f} MB, {facts['before'] / 1e6:,.0f} MB of it before the search"),
        ("queries, k", f"{arguments.queries:,}, {arguments.k:,}"),
        ("time", f"{facts['seconds']:.1f} s, {arguments.queries / facts['seconds']:,.0f} queries/s"),
        ("as in double precision", f"{facts['equal']} of {facts['checked']} queries"),
    ]
    print()
    print(table(("a mapped store", ""), values))


def write_store(folder: Path, rows: int, dimension: int) -> None:
    from umarvel_hf.store import fill_store

    ids = [f"{at % 10}:{at}" for at in range(rows)]  # so that their order is not that of the rows

    def encode(here: slice) -> np.ndarray:
        return unit_rows(here.stop - here.start, dimension, here.start).astype(np.float16)

    fill_store(folder, ids, encode, made_by={"by": "chance"}, digest=str)


def unit_rows(rows: int, dimension: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((rows, dimension), dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def faiss_search(folder: Path, rows: int, dimension: int, queries: np.ndarray, k: int) -> Callable[[], Any]:
    """From a store, a search that returns scores and positions, each (Q, k)."""
    import faiss

    from umarvel_hf.store import VectorStore

    index = faiss.IndexFlatIP(dimension)
    # Filled where it lies: `add` copies what is there whenever it outgrows its array, so its peak would be higher.
    index.codes.resize(rows * index.code_size)
    index.ntotal = rows
    vectors = faiss.rev_swig_ptr(index.get_xb(), rows * dimension).reshape(rows, dimension)
    for here, block in VectorStore.open(folder).blocks(BLOCK):
        vectors[here] = block
    return lambda: index.search(queries, min(k, rows))


def our_search(folder: Path, queries: np.ndarray, k: int, memory: int) -> Callable[[], Any]:
    """A search that returns a ranking."""
    from umarvel_hf.search import Search, search_store
    from umarvel_hf.store import VectorStore

    store, searches = VectorStore.open(folder), {"": Search(queries, {"": None})}
    return lambda: search_store(store, searches, k=min(k, len(store)), memory=memory)[""][""]


def compared(theirs: tuple[np.ndarray, np.ndarray], ours: Any) -> str:
    """In how many lists are the same positions. Others, and all scores, may differ as far as rounding explains."""
    scores, positions = theirs
    if (worst := np.abs(scores - ours.scores).max()) > TOLERANCE:
        raise ValueError(f"scores of the same rank differ by {worst:.2g}; rounding explains {TOLERANCE}.")
    same = 0
    for row, (their_positions, our_positions) in enumerate(zip(positions, ours.positions, strict=True)):
        only_theirs = ~np.isin(their_positions, our_positions)
        if (scores[row][only_theirs] > ours.scores[row, -1] + TOLERANCE).any():
            raise ValueError(f"query {row}: FAISS found {their_positions[only_theirs]}, which ours did not.")
        same += not only_theirs.any()
    return f"the same ids in {same:,} of {len(positions):,} lists, scores within {worst:.1g}"


def faiss_peak(folder: Path, rows: int, dimension: int, queries: int, k: int) -> int:
    faiss_search(folder, rows, dimension, unit_rows(queries, dimension, QUERY_SEED), k)()
    return peak_rss()


def our_peak(folder: Path, queries: int, k: int, memory: int) -> dict[str, Any]:
    """Peak memory, seconds, and how many of some queries have the best in double precision, ties by id."""
    from umarvel_hf.store import VectorStore

    store = VectorStore.open(folder)
    asked = unit_rows(queries, store.dimension, QUERY_SEED)
    search = our_search(folder, asked, k, memory)
    before, started = peak_rss(), time.perf_counter()
    ranking = search()
    facts = {"before": before, "seconds": time.perf_counter() - started, "peak": peak_rss(), "equal": 0}
    checked = np.linspace(0, queries - 1, min(CHECKED, queries)).astype(int)
    for query in checked:
        blocks = store.blocks(BLOCK)
        millionths = np.concatenate([np.rint(1e6 * (block.astype(np.float64) @ asked[query])) for _, block in blocks])
        best = np.lexsort((store.ids, millionths))[::-1][: ranking.positions.shape[1]]
        facts["equal"] += int((best == ranking.positions[query]).all())
    return facts | {"checked": len(checked)}


if __name__ == "__main__":
    main()
