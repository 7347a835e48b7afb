"""Exact search over embeddings: many searches in one pass over a store, and the top k of a block.

Everywhere a higher score comes first, and of equal scores the higher id. Scores are inner products in double precision,
rounded to 6 decimals before they are compared: so a run file printed with 6 decimals sorts to the same order, and no
split into blocks shows.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor

from umarvel_hf.data import Item
from umarvel_hf.progress import Progress
from umarvel_hf.store import SHARD_ROWS, Vectors, VectorStore, check_unit, fill_store

SCALE = 1_000_000  # scores are compared in millionths
MARGIN = 2 / SCALE  # what rounding, to millionths and to single precision, can add to a score
ROWS, QUERIES = 8_192, 1_024  # of a block of scores, where memory allows
GROUP = 64  # scores that are passed over at once where the best of them cannot enter
LEAST_ROWS, LEAST_QUERIES = 64, 8
PAIRS = 256  # scored in double precision at a time
WORST = np.iinfo(np.int64).min


class Encoder(Protocol):
    """Anything that turns items into embeddings, such as a ``SentenceTransformer``."""

    def encode(
        self,
        inputs: Sequence[Item],
        *,
        prompt: str | None = None,
        show_progress_bar: bool | None = None,
    ) -> np.ndarray:
        """Return (N, D) float32 unit vectors, one per item and in their order; ``prompt`` is the instruction."""
        ...


@dataclass(frozen=True)
class Search:
    """Queries (Q, D) float16 or float32, of unit length and possibly memory-mapped, and the pools they search.

    A pool is the sorted positions in the store of its candidates; None is all of the store.
    """

    queries: np.ndarray
    pools: Mapping[str, np.ndarray | None]


@dataclass(frozen=True)
class Ranking:
    """The k best of every query: positions (Q, k) int64 in the store, best first, and scores (Q, k) float32.

    Where a pool has fewer than k candidates, positions are -1 and scores -inf.
    """

    positions: np.ndarray
    scores: np.ndarray


def embed(
    encoder: Encoder,
    items: Sequence[Item],
    *,
    instruction: str | None = None,
    batch_tokens: int | None = None,
    show_progress_bar: bool = False,
) -> np.ndarray:
    """Encode items and check what came back: (N, D) float32.

    A U-MARVEL checkpoint encodes by :func:`umarvel_hf.encoding.encode`; ``batch_tokens`` is for it alone.
    """
    from umarvel_hf.encoding import can_encode, encode  # here, for fakes and files of results are searched without it

    if can_encode(encoder):
        embeddings = encode(
            cast(Any, encoder), items, prompt=instruction, batch_tokens=batch_tokens,
            show_progress_bar=show_progress_bar,
        )  # fmt: skip
    elif batch_tokens is not None:
        raise ValueError(
            f"batch_tokens is {batch_tokens}, but {type(encoder).__name__} is no U-MARVEL checkpoint in one piece and "
            "makes batches of its own. Leave it out."
        )
    else:
        embeddings = encoder.encode(list(items), prompt=instruction, show_progress_bar=show_progress_bar)
    embeddings = np.asarray(embeddings, dtype=np.float32)
    if embeddings.ndim != 2 or len(embeddings) != len(items):
        raise ValueError(
            f"{type(encoder).__name__}.encode returned an array of shape {embeddings.shape} for {len(items):,} items. "
            "It must return one row per item, (N, D)."
        )
    check_unit(embeddings, "Normalise them in the encoder.")
    return embeddings


def top_k(scores: np.ndarray, k: int) -> np.ndarray:
    """Positions of the k highest scores of every row, best first; equal scores in the order of their position.

    Args:
        scores: (Q, N).

    Returns:
        (Q, min(k, N)) int64.
    """
    k = min(k, scores.shape[1])
    threshold = np.partition(scores, -k, axis=1)[:, -k]  # (Q,): the k-th highest
    best = np.empty((len(scores), k), dtype=np.int64)
    for row, at_least, out in zip(scores, threshold, best, strict=True):
        kept = np.flatnonzero(row >= at_least)
        out[:] = kept[np.argsort(-row[kept], kind="stable")[:k]]
    return best


def encode_store(
    encoder: Encoder,
    folder: str | Path,
    ids: Sequence[str] | np.ndarray,
    items: Sequence[Item],
    *,
    instructions: str | Sequence[str | None] | None = None,
    made_by: Mapping[str, str],
    root: Path | None = None,
    batch_tokens: int | None = None,
    shard_rows: int = SHARD_ROWS,
    show_progress_bar: bool = False,
    bar: Progress | None = None,
) -> VectorStore:
    """Encode items into a store, a shard at a time; stopped anywhere and called again, it goes on.

    Args:
        items: Anything with a length whose slices are lists of items; a shard of them is asked for at a time.
        instructions: One for all items, or one for each.
        made_by: What shapes a vector besides item and instruction, such as :func:`umarvel_hf.fingerprint.fingerprint`.
        root: Paths of pictures count from here, so that a folder that was moved is still the same data.
        show_progress_bar: One bar a shard.
        bar: Moved on to the end of every shard.

    Raises:
        ValueError: The folder holds other vectors (see :func:`umarvel_hf.store.fill_store`), or an item is refused.
    """
    everyone = instructions is None or isinstance(instructions, str)
    told: Sequence[Any] = [instructions] * len(items) if everyone else instructions  # type: ignore[assignment]
    if not len(ids) == len(items) == len(told):
        raise ValueError(
            f"{len(ids):,} ids, {len(items):,} items and {len(told):,} instructions. Pass one id and one instruction "
            "per item, or one instruction for all."
        )
    options: dict[str, Any] = {"batch_tokens": batch_tokens, "show_progress_bar": show_progress_bar}

    def encode(rows: slice) -> np.ndarray:
        batch, groups = items[rows], dict[str | None, list[int]]()
        for row, instruction in enumerate(told[rows]):
            groups.setdefault(instruction, []).append(row)
        parts = [
            embed(encoder, [batch[at] for at in group], instruction=one, **options) for one, group in groups.items()
        ]
        if bar is not None:
            bar.update(rows.stop - bar.n)
        return np.concatenate(parts)[np.argsort(np.concatenate(list(groups.values())))]

    def digest(rows: slice) -> str:
        return inputs_digest(ids[rows], items[rows], told[rows], root=root)

    return fill_store(folder, ids, encode, made_by=made_by, digest=digest, shard_rows=shard_rows)


def inputs_digest(
    ids: Sequence[str] | np.ndarray,
    items: Sequence[Item],
    instructions: Sequence[str | None] | None = None,
    *,
    root: Path | None = None,
) -> str:
    """A checksum over ids, instructions and items. Files count by their path from ``root`` and their size: reading them
    all would take as long as encoding some.
    """
    checksum = hashlib.sha256()
    for one, item, instruction in zip(ids, items, instructions or [None] * len(items), strict=True):
        record = [one.decode() if isinstance(one, bytes) else one, instruction, item]
        checksum.update(json.dumps(record, sort_keys=True, default=partial(_content, root=root)).encode() + b"\n")
    return checksum.hexdigest()


def search_store(
    store: Vectors, searches: Mapping[str, Search], *, k: int, memory: int
) -> dict[str, dict[str, Ranking]]:
    """Find the k best of every query in every pool, exactly, in one pass over the store.

    Single-precision products choose which candidates can matter, by the bound on their error, on a CUDA device where
    there is one; those are scored again in double precision. One integer holds the score in millionths and the rank of
    the id, so there are no ties.

    Args:
        k: Candidates kept per query and pool.
        memory: Bytes that the search may hold: results, a block of candidates, their scores, and what choosing takes.
            Mapped files, the store's ids and the queries as given are not counted.

    Returns:
        By search and pool.

    Raises:
        ValueError: ``k`` below 1, queries of another dimension or length, unsorted pools, or too little memory.
    """
    _check_searches(store, searches, k)
    rows, queries_a_block = _block_size(store, searches, k, memory)
    order = np.argsort(store.ids, kind="stable").astype(np.uint32)
    ranks = np.empty(len(store), dtype=np.uint32)  # of the id of every position, the highest is the best
    ranks[order] = np.arange(len(store), dtype=np.uint32)
    best = {
        name: {pool: np.full((len(search.queries), k), WORST, dtype=np.int64) for pool in search.pools}
        for name, search in searches.items()
    }
    device = "cuda" if torch.cuda.is_available() else "cpu"
    products = torch.empty(rows * queries_a_block, device=device)  # kept, as new memory costs more than its product
    with _full_precision():
        for here, half in store.blocks(rows):
            block = torch.tensor(half, dtype=torch.float32)  # (C, D)
            candidates = block.to(device)
            for name, search in searches.items():
                columns = {pool: _columns(positions, here) for pool, positions in search.pools.items()}
                pools = {pool: _Block(block.numpy(), at, ranks[here][at]) for pool, at in columns.items() if len(at)}
                for start in range(0, len(search.queries) if pools else 0, queries_a_block):
                    part = slice(start, start + queries_a_block)
                    queries = torch.tensor(search.queries[part], dtype=torch.float32)  # (Q, D)
                    scores = products[: len(queries) * len(block)].view(len(queries), len(block))
                    torch.mm(queries.to(device), candidates.T, out=scores)
                    for pool, of_pool in pools.items():
                        of_pool.offer(_select(scores, of_pool.columns), queries.numpy(), best[name][pool][part])
    return {
        name: {pool: _ranking(pools.pop(pool), order) for pool in list(pools)}  # so that each is freed once it is read
        for name, pools in best.items()
    }


@dataclass(frozen=True)
class _Block:
    """A block of candidates (C, D), which of them are in a pool (P,), and the ranks of their ids (P,)."""

    candidates: np.ndarray
    columns: np.ndarray
    ranks: np.ndarray

    def offer(self, scores: Tensor, queries: np.ndarray, best: np.ndarray) -> None:
        """Merge what single-precision scores (Q, P) let through into the best keys (Q, k), ascending, in place."""
        k, error = best.shape[1], product_error(queries.shape[1])
        floor = ((best[:, 0] >> 32) / SCALE - error - MARGIN).astype(np.float32)  # (Q,): below, none can enter
        passing = _Passing.of(scores, floor)
        many = passing.counts > 2 * k
        if many.any() and scores.shape[1] > k:
            # The first block, or one much better than all before: only its own k best can enter.
            own = scores[torch.from_numpy(many).to(scores.device)].topk(k, sorted=False).values
            floor[many] = np.maximum(floor[many], own.amin(dim=1).cpu().numpy() - np.float32(2 * error + MARGIN))
            passing = _Passing.of(scores, floor)
            many = passing.counts > 2 * k
        # A row of many near-ties is merged alone, which keeps to memory.
        alone = np.flatnonzero(many)
        for first, last in pairwise(np.unique([0, *alone, *(alone + 1), len(best)]).tolist()):
            self._merge(*passing.places(first, last), queries[first:last], best[first:last])

    def _merge(self, rows: np.ndarray, columns: np.ndarray, queries: np.ndarray, best: np.ndarray) -> None:
        """Score places (n,), by row, in double precision and keep the best."""
        k, counts = best.shape[1], np.bincount(rows, minlength=len(best))
        scores = np.rint(SCALE * exact_scores(queries, self.candidates, rows, self.columns[columns]))
        merged = np.full((len(best), k + counts.max()), WORST)
        merged[:, :k] = best
        first = np.cumsum(counts) - counts
        merged[rows, k + np.arange(len(rows)) - first[rows]] = (scores.astype(np.int64) << 32) | self.ranks[columns]
        merged.sort(axis=1)
        best[:] = merged[:, -k:]


@dataclass(frozen=True)
class _Passing:
    """Which scores reach the floor of their row: in which groups such are, and which of a group.

    Attributes:
        counts: (Q,), how many in a row.
        rows, groups: (n,), sorted.
        inside: (n, GROUP) bool.
    """

    counts: np.ndarray
    rows: np.ndarray
    groups: np.ndarray
    inside: np.ndarray

    @classmethod
    def of(cls, scores: Tensor, floor: np.ndarray) -> "_Passing":
        """Look at scores (Q, P), P divisible by ``GROUP``, for those that are not below the floor (Q,)."""
        grouped = scores.unflatten(1, (-1, GROUP))
        # A maximum costs no more than reading the scores; to compare each takes three times as long. What follows is
        # too little for several threads: where others use the cores too, to meet takes them longer than the work.
        highest = grouped.amax(dim=2).cpu().numpy()
        rows, groups = np.divmod(np.flatnonzero(highest >= floor[:, None]), highest.shape[1])
        hot = grouped[torch.from_numpy(rows).to(scores.device), torch.from_numpy(groups).to(scores.device)]
        inside = hot.cpu().numpy() >= floor[rows, None]
        counts = np.bincount(rows, weights=np.count_nonzero(inside, axis=1), minlength=len(floor))
        return cls(counts, rows, groups, inside)

    def places(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows, counted from the first, and columns (n,) of these scores between two rows, sorted by row."""
        here = slice(*np.searchsorted(self.rows, (first, last)))
        at, within = np.divmod(np.flatnonzero(self.inside[here]), GROUP)
        return self.rows[here][at] - first, self.groups[here][at] * GROUP + within


def best_first(ranking: Ranking, ids: np.ndarray) -> Ranking:
    """Sort every row of a ranking whose scores were changed; ``ids`` (N,) bytes are those of the positions."""
    _, ranks = np.unique(ids[ranking.positions], return_inverse=True)
    scores = np.rint(SCALE * ranking.scores.astype(np.float64))
    order = np.lexsort((ranks.reshape(scores.shape), scores), axis=1)[:, ::-1]
    sorted_scores = np.take_along_axis(scores / SCALE, order, axis=1).astype(np.float32)
    return Ranking(np.take_along_axis(ranking.positions, order, axis=1), sorted_scores)


def exact_scores(queries: np.ndarray, candidates: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Inner products of pairs (n,) in double precision; they do not depend on what else is scored beside them."""
    scores = np.empty(len(rows))
    for start in range(0, len(rows), PAIRS):
        part = slice(start, start + PAIRS)
        left, right = queries[rows[part]].astype(np.float64), candidates[columns[part]].astype(np.float64)
        np.einsum("nd,nd->n", left, right, out=scores[part])
    return scores


def product_error(dimension: int) -> float:
    """By how much a single-precision product of unit vectors may be off, summed in whatever order.

    λ √D u with λ = 8: the probabilistic bound of Higham & Mary, "A new approach to probabilistic rounding error
    analysis", 2019. The worst case, D u, would let through many times more candidates.
    """
    return float(8 * np.sqrt(dimension) * 2.0**-24)


@contextmanager
def _full_precision() -> Iterator[None]:
    """Products as precise as :func:`product_error` says, also where training lets torch use fewer bits."""
    kinds = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
    before = [kind.fp32_precision for kind in kinds]
    try:
        for kind in kinds:
            kind.fp32_precision = "ieee"
        yield
    finally:
        for kind, precision in zip(kinds, before, strict=True):
            kind.fp32_precision = precision


def _content(value: Any, root: Path | None) -> Any:
    """What JSON cannot hold: a file counts by its path and size, a picture or an array by its pixels."""
    if isinstance(value, Path):
        path = value.relative_to(root) if root and value.is_relative_to(root) else value
        return {"path": path.as_posix(), "bytes": value.stat().st_size if value.is_file() else None}
    array = np.asarray(value.convert("RGBA") if hasattr(value, "convert") else value)
    if array.dtype == object:
        raise TypeError(f"items cannot hold a {type(value).__name__}; give text, paths, pictures, arrays or chats.")
    pixels = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
    return {"shape": array.shape, "dtype": array.dtype.name, "sha256": pixels}


def _check_searches(store: Vectors, searches: Mapping[str, Search], k: int) -> None:
    if k < 1:
        raise ValueError(f"k is {k}; it must be at least 1.")
    for name, search in searches.items():
        if search.queries.ndim != 2 or search.queries.shape[1] != store.dimension:
            raise ValueError(
                f"search {name!r} has queries of shape {search.queries.shape}; the store holds vectors of "
                f"dimension {store.dimension}. Encode both with one model."
            )
        for start in range(0, len(search.queries), ROWS):
            check_unit(search.queries[start : start + ROWS], f"They are queries of search {name!r}: normalise them.")
        for pool, positions in search.pools.items():
            if positions is not None and (np.diff(positions, prepend=-1, append=len(store)) <= 0).any():
                raise ValueError(
                    f"pool {pool!r} of search {name!r} must hold sorted positions, each once, below {len(store):,}."
                )


def _block_size(store: Vectors, searches: Mapping[str, Search], k: int, memory: int) -> tuple[int, int]:
    """Rows of the store and queries in a block of scores that fit into memory."""
    most = max((len(search.queries) for search in searches.values()), default=0)
    rankings = sum(len(search.queries) * len(search.pools) for search in searches.values())
    results = k * (20 * rankings + 32 * most)  # a key and what it becomes, position and score; the steps in between
    fixed = results + 16 * len(store) + 24 * PAIRS * store.dimension  # the order of ids, pairs in double precision

    for halved in range(8):
        rows = min(max(ROWS >> halved, LEAST_ROWS), max(len(store), 1))
        queries = min(max(QUERIES >> halved, LEAST_QUERIES), max(most, 1))
        # The product, a pool's part, all its groups or its filled-up copy, rows for their own k best; what passes.
        scores = queries * -(-rows // GROUP) * GROUP * (4 * 4 + 4)
        merged = 128 * max(3 * queries * k, rows + k)
        need = fixed + 8 * store.dimension * (rows + queries) + scores + merged  # of blocks the last and the next
        if need <= memory:
            return rows, queries
    raise ValueError(
        f"memory is {memory:,} bytes, but {rankings:,} rankings of {k:,} candidates over {len(store):,} vectors of "
        f"dimension {store.dimension:,} need at least {need:,}. Allow more or search fewer at once."
    )


def _columns(positions: np.ndarray | None, here: slice) -> np.ndarray:
    """Which columns of a block belong to a pool."""
    if positions is None:
        return np.arange(here.stop - here.start)
    first, last = np.searchsorted(positions, (here.start, here.stop))
    return positions[first:last] - here.start


def _select(scores: Tensor, columns: np.ndarray) -> Tensor:
    """The scores of some columns, and -inf to fill up the last group."""
    if columns[-1] - columns[0] + 1 == len(columns):
        selected = scores[:, columns[0] : columns[-1] + 1]  # no copy
    else:
        selected = scores.index_select(1, torch.from_numpy(columns).to(scores.device))
    missing = -len(columns) % GROUP
    return torch.nn.functional.pad(selected, (0, missing), value=-torch.inf) if missing else selected


def _ranking(keys: np.ndarray, order: np.ndarray) -> Ranking:
    keys = keys[:, ::-1]
    found = keys != WORST
    positions = np.where(found, order[keys & 0xFFFFFFFF].astype(np.int64), -1)
    scores = np.where(found, (keys >> 32) / SCALE, -np.inf).astype(np.float32)
    return Ranking(positions, scores)
