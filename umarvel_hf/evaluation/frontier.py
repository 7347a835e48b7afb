"""What smaller vectors and pictures cost: quality by dimension, precision and pixels, beside bytes and milliseconds."""

import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from umarvel_hf.checkpoint import knows_pixels, limit_pixels
from umarvel_hf.data import MBeir, Task
from umarvel_hf.evaluation.metrics import judge, measure
from umarvel_hf.evaluation.pools import Candidates
from umarvel_hf.evaluation.results import aligned, own_metric
from umarvel_hf.evaluation.retrieval import (
    DEPTH,
    MEMORY,
    Found,
    Prompting,
    ask,
    choose_tasks,
    encode_queries,
    vectors_folder,
)
from umarvel_hf.fingerprint import fingerprint
from umarvel_hf.progress import Progress
from umarvel_hf.search import Encoder, Ranking, best_first, embed
from umarvel_hf.store import whole_file

PRECISIONS: dict[str, Callable[[int], Any]] = {  # from a dimension to an empty index
    "float32": faiss.IndexFlatIP,
    "int8": lambda d: faiss.IndexScalarQuantizer(d, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT),
    "binary": lambda d: faiss.IndexBinaryFlat(-(-d // 8) * 8),
}
LEAST_DIMENSION = 16  # of those that are tried by themselves
ROWS = 65_536  # vectors read from the store at a time
TIMED, TIMED_AT_ONCE, TIMED_QUERIES, REPEATS = 8, 32, 50, 3
FORMAT = 1


@dataclass(frozen=True)
class FrontierPoint:
    """One way to keep and search vectors.

    Args:
        max_pixels: Upper limit of a picture's area; None: the encoder has none.
        local, union: Mean over the tasks of each task's own metric, 0 to 1, by pool.
        encode_ms: Milliseconds a candidate, the median over batches of a drawn sample, texts and pictures as they come.
        search_ms: Milliseconds a query, asked alone, for its 50 best of the union pool; the median, on one thread.
    """

    precision: str
    dimension: int
    max_pixels: int | None
    bytes_per_vector: int
    local: float
    union: float
    encode_ms: float
    search_ms: float


def measure_frontier(
    encoder: Encoder,
    benchmark: MBeir,
    *,
    suite: str = "emoji",
    tasks: Sequence[str] | None = None,
    split: str = "test",
    dimensions: Sequence[int] | None = None,
    precisions: Sequence[str] = tuple(PRECISIONS),
    max_pixels: Sequence[int] | None = None,
    vectors: str | Path | None = None,
    batch_tokens: int | None = None,
    memory: int = MEMORY,
    show_progress: bool = False,
) -> list[FrontierPoint]:
    """Measure every dimension in every precision under every limit of pixels.

    Everything is encoded once per limit of pixels. A smaller vector is the first numbers of a whole one, brought to
    length 1 again. FAISS searches exhaustively: inner products of ``float32``; of ``int8``, queries too brought to the
    256 steps between the extremes of the pool; Hamming distances of the signs (``binary``). Ties go by id, descending.

    Args:
        suite, tasks, split: As in ``evaluate_benchmark``; queries get the first prompt of their key.
        dimensions: None: that of the model, and its halves down to 16.
        max_pixels: Upper limits of a picture's area, each above the processor's lower one; None: the checkpoint's own.
        vectors: Folder of the vector stores, to go on after an interruption; the checkpoint's own limit shares it with
            ``evaluate_benchmark``. None: a temporary one.
        memory: Bytes that an index may take.

    Raises:
        ValueError: An unknown precision, a dimension or limit that this model cannot have, too little memory.
    """
    chosen = choose_tasks(benchmark, suite, tasks, split)
    if unknown := [precision for precision in precisions if precision not in PRECISIONS]:
        raise ValueError(f"precisions are {list(precisions)}; {unknown[0]!r} is none of {', '.join(PRECISIONS)}.")
    limits: Sequence[int | None] = max_pixels or [None]
    points = []
    with vectors_folder(Path(vectors) if vectors is not None else None) as folder:
        for limit in Progress(limits, "image pixels", show=show_progress):
            with image_pixels(encoder, limit) as (own, pixels):
                place = folder if pixels == own else folder / f"pixels-{pixels}"
                encoded = _Encoded(encoder, benchmark, chosen, split, place, batch_tokens, show_progress)
            whole = encoded.store.dimension
            for dimension in dimensions or halves(whole):
                if not 1 <= dimension <= whole:
                    raise ValueError(f"dimension {dimension} is asked for; this model's vectors have 1 to {whole}.")
                points += [encoded.point(precision, dimension, pixels, memory) for precision in precisions]
    return points


def pareto(points: Sequence[FrontierPoint], pool: str = "union") -> list[FrontierPoint]:
    """The points that no other beats, smallest first: none is better in as few bytes, or as good in fewer."""

    def rank(one: FrontierPoint) -> tuple[int, float]:
        return one.bytes_per_vector, -getattr(one, pool)

    best: list[FrontierPoint] = []
    for one in sorted(points, key=rank):
        if not best or rank(one)[1] < rank(best[-1])[1] or rank(one) == rank(best[-1]):
            best.append(one)
    return best


def save_frontier(points: Sequence[FrontierPoint], path: str | Path) -> None:
    """Write the points as JSON, whole or not at all."""
    content = {"format": FORMAT, "points": [asdict(point) for point in points]}
    with whole_file(Path(path)) as file:
        file.write(json.dumps(content, indent=1).encode())


def load_frontier(path: str | Path) -> list[FrontierPoint]:
    """Read what :func:`save_frontier` wrote; a folder stands for its ``frontier.json``."""
    path = Path(path) / "frontier.json" if Path(path).is_dir() else Path(path)
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        if saved["format"] != FORMAT:
            raise ValueError(f"format {saved['format']!r}, not {FORMAT}")
        return [FrontierPoint(**point) for point in saved["points"]]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} holds no frontier ({error}). Pass the frontier.json that was written.") from error


def frontier_table(points: Sequence[FrontierPoint]) -> str:
    """All points as aligned plain text, a star at those that no other beats."""
    best = pareto(points)
    rows = [["precision", "pixels", "dimension", "bytes", "local", "union", "encode ms", "search ms", ""]]
    for point in points:
        sizes = [f"{point.dimension:,}", f"{point.bytes_per_vector:,}"]
        figures = [f"{100 * point.local:.1f}", f"{100 * point.union:.1f}"]
        times = [f"{point.encode_ms:.2f}", f"{point.search_ms:.3f}"]
        pixels = f"{point.max_pixels:,}" if point.max_pixels else "-"
        rows.append([point.precision, pixels, *sizes, *figures, *times, "*" if point in best else ""])
    return "\n".join([*aligned(rows), "", "*: no other point has a better union in as few bytes, or as good in fewer."])


@contextmanager
def image_pixels(encoder: Encoder, limit: int | None) -> Iterator[tuple[int | None, int | None]]:
    """Let the encoder's processor shrink pictures to at most ``limit`` pixels; afterwards it is as it was.

    Yields its own limit and the one that holds now; None where it knows none.

    Raises:
        ValueError: The processor knows no limit of pixels, or its lower limit is above this one.
    """
    module: Any = encoder[0] if hasattr(encoder, "__getitem__") else None
    processor: Any = getattr(getattr(module, "processor", None), "image_processor", None)
    if limit is None and not knows_pixels(processor):
        yield None, None
        return
    own: Any = getattr(processor, "size", None)
    try:
        if limit is not None:
            limit_pixels(processor or encoder, limit)
        yield own.longest_edge, processor.size.longest_edge
    finally:
        if processor is not None:
            processor.size = own


def halves(dimension: int) -> list[int]:
    """The dimension, its half, its quarter and so on, down to 16."""
    found = [dimension]
    while (half := found[-1] // 2) >= LEAST_DIMENSION:
        found.append(half)
    return found


class _Encoded:
    """Candidates and queries, encoded under one limit of pixels."""

    def __init__(
        self,
        encoder: Encoder,
        benchmark: MBeir,
        tasks: Sequence[Task],
        split: str,
        folder: Path,
        batch_tokens: int | None,
        show_progress: bool,
    ) -> None:
        self.candidates = Candidates(benchmark, tasks, split, union=True)
        made_by = fingerprint(encoder)
        self.store = self.candidates.encode(
            encoder, folder, made_by=made_by, batch_tokens=batch_tokens, show_progress=show_progress
        )
        self._asked: list[tuple[Found, np.ndarray]] = []  # queries are (Q, D) float32
        for task in tasks:
            found = ask(benchmark, self.candidates, task, split, Prompting())
            queries = encode_queries(
                encoder, benchmark, found, found.instructions[0], folder, made_by, split, batch_tokens
            )
            self._asked.append((found, queries.astype(np.float32)))
        self._encode_ms = self._timed(encoder, batch_tokens)

    def point(self, precision: str, dimension: int, pixels: int | None, memory: int) -> FrontierPoint:
        """Search all pools in a precision and dimension."""
        union = _Pool(self, self.candidates.distinct, precision, dimension, memory)
        values: dict[str, list[float]] = {"local": [], "union": []}
        for found, queries in self._asked:
            local = _Pool(self, self.candidates.local(found.task), precision, dimension, memory)
            metric = own_metric(found.task)
            for name, pool in (("local", local), ("union", union)):
                values[name].append(measure(judge(pool.best(queries), found.right), [metric])[metric].mean())
        return FrontierPoint(
            precision=precision,
            dimension=dimension,
            max_pixels=pixels,
            bytes_per_vector=int(union.index.code_size),
            local=float(np.mean(values["local"])),
            union=float(np.mean(values["union"])),
            encode_ms=self._encode_ms,
            search_ms=union.milliseconds(np.concatenate([queries for _, queries in self._asked])),
        )

    def _timed(self, encoder: Encoder, batch_tokens: int | None) -> float:
        """The median over groups of items, each drawn anew from the pools."""
        count = min(len(self.candidates.distinct), TIMED * TIMED_AT_ONCE)
        drawn = np.random.default_rng(0).choice(self.candidates.distinct, count, replace=False)
        items = [one.item for one in self.candidates.at(drawn)]
        groups = [items[start : start + TIMED_AT_ONCE] for start in range(0, count, TIMED_AT_ONCE)]
        times = [_seconds(partial(embed, encoder, group, batch_tokens=batch_tokens)) / len(group) for group in groups]
        return 1000 * statistics.median(times)


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


class _Pool:
    """Some candidates in an index of FAISS, cut to a dimension, in a precision."""

    def __init__(self, encoded: _Encoded, positions: np.ndarray, precision: str, dimension: int, memory: int) -> None:
        self._store, self._dids, self._positions = encoded.store, encoded.candidates.dids, positions
        self._dimension, self._memory = dimension, memory
        self.index: Any = PRECISIONS[precision](dimension)
        if (needed := len(positions) * self.index.code_size) > memory:
            raise ValueError(
                f"An index of {len(positions):,} vectors in {precision} with {dimension} numbers takes {needed:,} "
                f"bytes, memory is {memory:,}. Give more, or smaller dimensions and precisions."
            )
        if precision == "int8":
            # The quantiser looks for the extremes of every number: those of the blocks train it like all vectors.
            extremes = [np.stack([block.min(axis=0), block.max(axis=0)]) for block in self._blocks()]
            self.index.train(np.concatenate(extremes))
        for block in self._blocks():
            self.index.add(self._coded(block))

    def best(self, queries: np.ndarray) -> list[list[str]]:
        """The dids of the first 50 of every query."""
        asked, count = self._asked(queries), len(self._positions)
        k = min(DEPTH, count)
        best, tied = np.empty((len(asked), k), dtype=np.int64), np.empty(len(asked), dtype=bool)
        pending, depth = np.arange(len(asked)), k + 1
        while len(pending):
            depth = min(depth, count)
            at_a_time = max(1, self._memory // (32 * depth))
            for rows in np.split(pending, range(at_a_time, len(pending), at_a_time)):
                ranking = self._search(asked[rows], depth)
                best[rows] = best_first(ranking, self._dids).positions[:, :k]
                # While the tie at the last place reaches beyond what was fetched, the id cannot decide.
                tied[rows] = (ranking.scores[:, k - 1] <= ranking.scores[:, -1] + 1e-6) & (depth < count)
            pending, depth = pending[tied[pending]], 2 * depth
        return [[did.decode() for did in row] for row in self._dids[best]]

    def milliseconds(self, queries: np.ndarray) -> float:
        """The median over queries and repetitions, one query at a time on one thread."""
        asked, k = self._asked(queries[:TIMED_QUERIES]), min(DEPTH, len(self._positions))
        threads = faiss.omp_get_max_threads()
        faiss.omp_set_num_threads(1)
        try:
            times = [_seconds(partial(self.index.search, query[None], k)) for query in [*asked] * REPEATS]
        finally:
            faiss.omp_set_num_threads(threads)
        return 1000 * statistics.median(times)

    def _blocks(self) -> Iterator[np.ndarray]:
        for start in range(0, len(self._positions), ROWS):
            yield self._shortened(self._store.take(self._positions[start : start + ROWS]))

    def _shortened(self, vectors: np.ndarray) -> np.ndarray:
        """The first numbers of (n, D), of length 1."""
        if vectors.shape[1] == self._dimension:
            return vectors
        cut = vectors[:, : self._dimension]
        shortened: np.ndarray = cut / np.maximum(np.linalg.norm(cut, axis=1, keepdims=True), 1e-12)
        return shortened

    def _coded(self, vectors: np.ndarray) -> np.ndarray:
        """As the index takes them: signs as bits, the last byte filled up with zeros, or as they are."""
        return np.packbits(vectors > 0, axis=1) if isinstance(self.index, faiss.IndexBinary) else vectors

    def _asked(self, queries: np.ndarray) -> np.ndarray:
        """Queries in the index's precision."""
        queries = self._coded(self._shortened(queries))
        if isinstance(self.index, faiss.IndexScalarQuantizer):
            queries = self.index.sa_decode(self.index.sa_encode(queries))
        return queries

    def _search(self, asked: np.ndarray, depth: int) -> Ranking:
        scores, rows = self.index.search(asked, depth)
        scores = -scores if isinstance(self.index, faiss.IndexBinary) else scores
        return Ranking(self._positions[rows], scores.astype(np.float32))
