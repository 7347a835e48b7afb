"""How fast, and in how much memory, a union pool of M-BEIR's size is searched.

    python benchmarks/union_search.py --memory 8GB
    python benchmarks/union_search.py --rows 200000 --dimension 256 --memory 500MB

The store has 5.6 million vectors of 3,584 dimensions (40 GB) unless told otherwise. ITS VECTORS REPEAT: one shard of
random vectors is written, every other shard is a hard link to it under ids of its own, so less than 1 GB of disk is
needed. For the same reason the vectors come from the page cache: a disk slower than the rate shown would set the pace.
What is computed is the same as for vectors that differ; ties, of which there are as many as shards, cost extra.

It prints one table: peak memory beside the budget, time, and how near the rate of the search comes to a bare
single-precision matrix product of the same shape on this machine.
"""

import argparse
import hashlib
import io
import json
import multiprocessing
import os
import resource
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np

from umarvel_hf.search import ROWS, Search, search_store
from umarvel_hf.store import SHARD_ROWS, VectorStore

UNITS = {"GB": 10**9, "MB": 10**6}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=5_600_000, help="vectors in the store (default: %(default)s)")
    parser.add_argument("--dimension", type=int, default=3_584, help="of a vector (default: %(default)s)")
    parser.add_argument("--queries", type=int, default=16, help="searched at once (default: %(default)s)")
    parser.add_argument("-k", type=int, default=50, help="candidates kept per query (default: %(default)s)")
    parser.add_argument("--memory", type=size, default="8GB", help="budget of the search (default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="where the store is made and removed (default: a temporary one)")
    arguments = parser.parse_args()

    # 1. The store, made by another process, whose memory does not count.
    folder = Path(tempfile.mkdtemp(prefix="union-search-", dir=arguments.folder))
    try:
        made = (folder, arguments.rows, arguments.dimension)
        process = multiprocessing.get_context("spawn").Process(target=write_repeating_store, args=made)
        process.start()
        process.join()
        measure(folder, arguments)
    finally:
        shutil.rmtree(folder)


def measure(folder: Path, arguments: argparse.Namespace) -> None:
    # 2. Open it, which reads all of it to compare checksums.
    started = time.perf_counter()
    store = VectorStore.open(folder)
    opened = time.perf_counter() - started

    # 3. Search.
    queries = unit_rows(arguments.queries, arguments.dimension, seed=1)
    before = peak()
    started = time.perf_counter()
    ranking = search_store(store, {"": Search(queries, {"union": None})}, k=arguments.k, memory=arguments.memory)
    searched = time.perf_counter() - started
    after = peak()
    assert (ranking[""]["union"].positions >= 0).all()

    # 4. The roof: the product alone, of blocks that lie in memory.
    count, bytes_read = len(store), 2 * len(store) * arguments.dimension
    operations = 2 * count * arguments.dimension * arguments.queries
    roof = product_rate(arguments.queries, arguments.dimension)
    table = [
        ("vectors", f"{count:,} × {arguments.dimension:,} float16, {bytes_read / 1e9:.1f} GB (repeating)"),
        ("queries, k", f"{arguments.queries:,}, {arguments.k:,}"),
        ("opening (checksums)", f"{opened:.1f} s, {bytes_read / opened / 1e9:.2f} GB/s"),
        ("searching", f"{searched:.1f} s, {bytes_read / searched / 1e9:.2f} GB/s"),
        ("arithmetic", f"{operations / searched / 1e9:.1f} GFLOP/s"),
        ("matrix product alone", f"{roof / 1e9:.1f} GFLOP/s, {operations / roof:.1f} s"),
        ("budget", f"{arguments.memory / 1e9:.2f} GB"),
        ("peak RSS", f"{after / 1e9:.2f} GB, {before / 1e9:.2f} GB of it before the search"),
    ]
    for name, value in table:
        print(f"{name:32} {value}")


def write_repeating_store(folder: Path, rows: int, dimension: int) -> None:
    """Write one shard, and link the others to it; the last is a whole one, too."""
    shard_rows = min(SHARD_ROWS, rows)
    ids = np.array([b"%d:%d" % (at % 10, at) for at in range(-(-rows // shard_rows) * shard_rows)])
    VectorStore.write(folder, ids[:shard_rows], unit_rows(shard_rows, dimension, seed=0), made_by={"by": "chance"})
    manifest = json.loads((folder / "manifest.json").read_text())
    first, vectors = next(folder.glob("vectors-*.npy")), manifest["shards"][0]["vectors"]
    for shard, names in list(enumerate(ids.reshape(-1, shard_rows)))[1:]:
        os.link(first, folder / f"vectors-{shard:05d}-{vectors[:12]}.npy")
        content = io.BytesIO()
        np.save(content, names, allow_pickle=False)
        checksum = hashlib.sha256(content.getvalue()).hexdigest()
        (folder / f"ids-{shard:05d}-{checksum[:12]}.npy").write_bytes(content.getvalue())
        manifest["shards"].append({"rows": shard_rows, "vectors": vectors, "ids": checksum})
    (folder / "manifest.json").write_text(json.dumps(manifest | {"count": len(ids), "shard_rows": shard_rows}))


def unit_rows(rows: int, dimension: int, seed: int) -> np.ndarray:
    generator, vectors = np.random.default_rng(seed), np.empty((rows, dimension), dtype=np.float16)
    for start in range(0, rows, ROWS):
        block = generator.normal(size=vectors[start : start + ROWS].shape).astype(np.float32)
        vectors[start : start + ROWS] = block / np.linalg.norm(block, axis=1, keepdims=True)
    return vectors


def product_rate(queries: int, dimension: int) -> float:
    """Operations a second of queries times a block of candidates, the best of five."""
    left, right = np.ones((queries, dimension), np.float32), np.ones((ROWS, dimension), np.float32)
    scores, seconds = np.empty((queries, ROWS), np.float32), []
    for _ in range(5):
        started = time.perf_counter()
        np.matmul(left, right.T, out=scores)
        seconds.append(time.perf_counter() - started)
    return 2 * left.size * ROWS / min(seconds)


def peak() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def size(text: str) -> int:
    number, unit = text[:-2], text[-2:].upper()
    if unit not in UNITS:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write 8GB or 500MB.")
    return int(float(number) * UNITS[unit])


if __name__ == "__main__":
    main()
