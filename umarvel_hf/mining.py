"""Mining: for every training query the best candidates of its pools that are no answers, found exactly."""

import hashlib
import json
import random
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist
from accelerate import PartialState

from umarvel_hf.data import CANDIDATE_MODALITY, MODALITIES, Candidate, Item, MBeir, Pool, Query
from umarvel_hf.fingerprint import fingerprint
from umarvel_hf.negatives import MinedList, NegativeTable, table_writer
from umarvel_hf.progress import Progress
from umarvel_hf.records import Ids
from umarvel_hf.search import PAIRS, SCALE, Encoder, Search, encode_store, exact_scores, inputs_digest, search_store
from umarvel_hf.store import StoreChain, Vectors, VectorStore, as_ids

MEMORY = 8 << 30
POOLS = ("local", "union")
ONE_COLLECTION = {"5", "6"}  # OVEN and InfoSeek ask for articles of one collection (recipe.md §6.1)


@dataclass(frozen=True)
class Queries:
    """Queries to mine for.

    Args:
        qids: Unique.
        instructions: None for a query that has none.
        positives: The dids of all right answers of each.
        groups: What the pools of each depend on; none where it is nothing.
    """

    qids: Sequence[str]
    items: Sequence[Item]
    instructions: Sequence[str | None]
    positives: Sequence[Sequence[str]]
    groups: Sequence[str] = ()

    def __post_init__(self) -> None:
        counts = {name: len(values) for name, values in vars(self).items() if name != "groups" or values}
        if len(set(counts.values())) > 1:
            raise ValueError(f"queries have {counts}. Give one of each a query.")


@dataclass(frozen=True)
class Candidates:
    """What is searched; see :meth:`of`.

    Args:
        dids: (N,) bytes.
        digests: (N,) uint64: equal where the contents are.
        positions: From dids to where they stand, -1 for those that do not.
        items: From positions to the items there, read a slice at a time.
        root: Paths of pictures count from here.
    """

    dids: np.ndarray
    digests: np.ndarray
    positions: Callable[[Sequence[str]], np.ndarray]
    items: Callable[[np.ndarray], Any]
    root: Path | None = None

    @classmethod
    def of(cls, dids: Sequence[str], items: Sequence[Item]) -> "Candidates":
        """Candidates in memory, under unique ids."""
        if len(dids) != len(items):
            raise ValueError(f"{len(dids):,} dids for {len(items):,} candidates. Give one a candidate.")
        names = as_ids(dids)
        digests = np.array([int(inputs_digest([""], [item])[:16], base=16) for item in items], dtype=np.uint64)
        return cls(names, digests, Ids(names).positions, _rows_of(items))


def mine(
    encoder: Encoder,
    queries: Queries,
    candidates: Candidates,
    out: Path,
    *,
    pools: Mapping[str, Mapping[str, np.ndarray | None]] | None = None,
    depth: int = 100,
    memory: int = MEMORY,
    batch_tokens: int | None = None,
    vectors: Path | None = None,
    made_by: Mapping[str, str] | None = None,
    facts: Mapping[str, str] | None = None,
    show_progress: bool = False,
) -> dict[str, NegativeTable]:
    """Encode queries and candidates once and write what every query finds in every pool to ``out/<pool>.parquet``.

    Candidates that no query is searched in are not encoded, unless they are right answers.

    Of several processes each encodes a part and the first searches; all see one file system. Stopped anywhere and
    called again, it goes on where it stopped, and takes tables that are there already.

    Args:
        pools: By name and group of queries, the sorted positions to search; None: ``union``, all candidates.
        depth: Candidates of a list; fewer only where the pool has no more.
        memory: Bytes that queries, results and blocks of the search may take together.
        vectors: Folder of the vectors, which stay there. None: one in ``out``, removed once the tables are there.
        made_by: What shapes a vector; None: :func:`umarvel_hf.fingerprint.fingerprint`.
        facts: What else the tables shall say of how they were made.

    Raises:
        ValueError: A query has no positive, or one that is no candidate; ``vectors`` holds other vectors, ``out`` a
            table that was mined otherwise.
    """
    groups = queries.groups or [""] * len(queries.qids)
    queries, pools = replace(queries, groups=groups), pools or {"union": dict.fromkeys(groups)}
    if depth < 1:
        raise ValueError(f"depth is {depth}; keep at least 1 candidate a list.")
    answers = positions_of_positives(queries.qids, queries.positives, candidates.positions)
    made_by = dict(fingerprint(encoder) if made_by is None else made_by)
    facts = {"depth": str(depth), **_digests(queries, candidates), **(facts or {}), **made_by}
    tables = {name: (out / f"{name}.parquet", {"pool": name, **facts}) for name in (*pools, *POOLS)}
    for path, known in tables.values():  # those not asked for, too: what lies side by side was mined alike
        if path.is_file():
            NegativeTable.open(path, known)
    files = {name: tables[name] for name in pools}
    candidates, pools, answers = _narrowed(candidates, pools, answers)
    folder = vectors or out / "vectors" / _sha256(json.dumps(made_by))[:12]  # not what another model left
    folder /= _sha256(candidates.dids.tobytes())[:12]  # nor what was encoded for other queries
    first = PartialState().is_main_process
    encode = partial(
        _encode,
        encoder,
        made_by=made_by,
        root=candidates.root,
        batch_tokens=batch_tokens,
        show_progress_bar=show_progress,
    )
    if not all(path.is_file() for path, _ in files.values()):
        with _meeting() as wait:
            encode(folder / "candidates", candidates.dids, candidates.items)
            qids = as_ids(queries.qids)
            encode(folder / "queries", qids, _rows_of(queries.items), instructions=queries.instructions)
            wait()
            if first:
                with ExitStack() as stack:
                    add = {name: stack.enter_context(table_writer(*file)) for name, file in files.items()}
                    found = _search(queries, answers, candidates, folder, pools, depth, memory)
                    for name, one in Progress(found, "lists", len(pools) * len(answers), show=show_progress):
                        add[name](one)
            wait()
    if first and vectors is None:
        shutil.rmtree(out / "vectors", ignore_errors=True)
    return {name: NegativeTable.open(path) for name, (path, _) in files.items()}


def mine_benchmark(
    encoder: Encoder,
    benchmark: MBeir,
    out: Path,
    *,
    queries: Sequence[Query] | None = None,
    pools: Sequence[str] = POOLS,
    share: float = 1.0,
    seed: int = 0,
    **options: Any,
) -> dict[str, NegativeTable]:
    """Mine the training queries of a benchmark, each qid once, see :func:`mine`.

    A task's local pool is what the union training pool holds of its data sets in the modality it looks for (recipe.md
    §6.1). The instruction of a query is drawn by seed and qid, for the modality of a positive that is drawn likewise.

    Args:
        out: Folder of the tables, ``<pool>.parquet``.
        queries: Some of the training queries; None: all. Rows of one qid count as one that has the positives of all.
        pools: ``local``, ``union`` or both.
        share: Of the queries, up to 1.0, as seed and qid draw them.
        options: As in :func:`mine`.

    Returns:
        The tables by pool.

    Raises:
        ValueError: As in :func:`mine`, or an unknown pool, a share that leaves no query, rows of one qid that ask
            different things.
    """
    if not pools or set(pools) - set(POOLS):
        raise ValueError(f"pools are {list(pools)}; choose from {', '.join(POOLS)}.")
    every = sorted(_each_once(benchmark.train_queries() if queries is None else queries), key=attrgetter("group"))
    asked = [query for query in every if int(_sha256(f"{seed}-{query.qid}")[:8], base=16) < share * 2**32]
    if not asked:
        raise ValueError(f"None of {len(every):,} training queries is left with share {share}. Take a larger one.")
    pool = benchmark.union_pool("train")
    positives = [query.positives for query in asked]
    answers = positions_of_positives([query.qid for query in asked], positives, pool.positions)
    union: dict[str, np.ndarray | None] = dict.fromkeys(query.group for query in asked)
    return mine(
        encoder,
        Queries(
            qids=[query.qid for query in asked],
            items=[query.item for query in asked],
            instructions=[
                _instruction(benchmark, query, pool.modalities[own], seed)
                for query, own in zip(asked, answers, strict=True)
            ],
            positives=positives,
            groups=[query.group for query in asked],
        ),
        Candidates(pool.dids, pool.digests, pool.positions, lambda rows: _Items(pool.subset(rows)), benchmark.root),
        out,
        pools={name: _local_pools(every, pool) if name == "local" else union for name in pools},
        facts={"seed": str(seed), "share": str(share)},
        **options,
    )


def show_lists(table: NegativeTable, benchmark: MBeir, *, qids: Sequence[str], top: int = 10) -> str:
    """What was mined for some queries, in words: their right answers (+) and best candidates (-).

    Args:
        top: Candidates shown a query.

    Raises:
        ValueError: A query was not mined, or ``benchmark`` does not have it.
    """
    asked, pool = {query.qid: query for query in benchmark.train_queries()}, benchmark.union_pool("train")
    if missing := [qid for qid in qids if qid not in table]:
        raise ValueError(f"{table.path}: query {missing[0]!r} is not among the {len(table):,} that were mined.")
    if missing := [qid for qid in qids if qid not in asked]:
        raise ValueError(f"{benchmark.train_path} has no query {missing[0]!r}. Name the data that were mined.")
    lines = []
    for mined in map(table.__getitem__, qids):
        lines.append(f"query {mined.qid}  {_shown(asked[mined.qid])}")
        for sign, dids, scores, answers in (
            ("+", mined.positives, mined.positive_scores, mined.positive_answers),
            ("-", mined.dids[:top], mined.scores, mined.answers),
        ):
            for at, did in enumerate(dids):
                judged = f"  P(Yes) {answers[at]:.3f}" if answers is not None and at < len(answers) else ""
                lines.append(f"{sign}{at + 1:>4}  {scores[at]:.4f}{judged}  {did}  {_shown(pool[did])}")
    return "\n".join(lines)


def positions_of_positives(
    qids: Sequence[str], positives: Sequence[Sequence[str]], positions: Callable[[Sequence[str]], np.ndarray]
) -> list[np.ndarray]:
    """Of every query, where its positives stand in the pool.

    Raises:
        ValueError: It has none, or one that the pool lacks.
    """
    for qid, own in zip(qids, positives, strict=True):
        if not own:
            raise ValueError(f"Training query {qid!r} names no positive. Give it one or leave it out.")
    dids = [did for own in positives for did in own]
    found, ends = positions(dids), np.cumsum(list(map(len, positives)))
    if (found < 0).any():
        first = int(np.argmax(found < 0))
        qid = qids[int(np.searchsorted(ends, first, side="right"))]
        raise ValueError(
            f"Training query {qid!r} has positive {dids[first]!r}, which is no candidate. Pass the pool that these "
            "queries were written for, or leave the query out."
        )
    return np.split(found, ends[:-1])


def _narrowed(
    candidates: Candidates, pools: Mapping[str, Mapping[str, np.ndarray | None]], answers: Sequence[np.ndarray]
) -> tuple[Candidates, dict[str, dict[str, np.ndarray | None]], list[np.ndarray]]:
    """Only the candidates that are searched or right answers, with pools and answers as positions among these."""
    needed = np.zeros(len(candidates.dids), dtype=bool)
    needed[np.concatenate(answers)] = True
    for at in (at for of_group in pools.values() for at in of_group.values()):
        needed[slice(None) if at is None else at] = True
    kept, place = np.flatnonzero(needed), np.cumsum(needed) - 1
    fewer = replace(
        candidates,
        dids=candidates.dids[kept],
        digests=candidates.digests[kept],
        items=lambda rows: candidates.items(kept[rows]),
    )
    pools_of_fewer = {
        name: {group: None if at is None else place[at] for group, at in of_group.items()}
        for name, of_group in pools.items()
    }
    return fewer, pools_of_fewer, [place[own] for own in answers]


def _search(
    queries: Queries,
    answers: Sequence[np.ndarray],
    candidates: Candidates,
    folder: Path,
    pools: Mapping[str, Mapping[str, np.ndarray | None]],
    depth: int,
    memory: int,
) -> Iterator[tuple[str, MinedList]]:
    """The lists of every query, in order, each with its pool's name; a block of queries searches in one pass."""
    vectors, place = _opened(folder / "candidates", len(candidates.dids))
    asked, asked_place = _opened(folder / "queries", len(answers))
    digests = candidates.digests[np.argsort(place)]
    local = {
        name: {group: None if at is None else np.sort(place[at]) for group, at in of_group.items()}
        for name, of_group in pools.items()
    }
    k = min(depth + _room(answers, candidates.digests), len(place))
    block = max(1, memory // 2 // (4 * vectors.dimension + k * (20 * len(pools) + 32)))  # as search_store counts
    for start in range(0, len(answers), block):
        here = range(start, min(start + block, len(answers)))
        runs = [(group, list(rows)) for group, rows in groupby(here, key=lambda row: queries.groups[row])]
        searches = {
            str(rows[0]): Search(asked.take(asked_place[rows]), {name: local[name][group] for name in pools})
            for group, rows in runs
        }
        taken = sum(search.queries.nbytes for search in searches.values())
        rankings = search_store(vectors, searches, k=k, memory=memory - taken)
        for _, rows in runs:
            search, found = searches[str(rows[0])], rankings[str(rows[0])]
            own = [place[np.unique(answers[row])] for row in rows]
            for number, (row, at, scores) in enumerate(
                zip(rows, own, _scores(search.queries, own, vectors), strict=True)
            ):
                order = np.lexsort((vectors.ids[at], scores))[::-1]
                right = _names(vectors.ids[at[order]]), scores[order].astype(np.float32)
                for name, ranking in found.items():
                    ranked = ranking.positions[number]
                    left = np.flatnonzero((ranked >= 0) & ~np.isin(digests[ranked], digests[at]))[:depth]
                    dids = _names(vectors.ids[ranked[left]])
                    yield name, MinedList(queries.qids[row], *right, dids, ranking.scores[number][left])


def _names(dids: np.ndarray) -> tuple[str, ...]:
    return tuple(did.decode() for did in dids.tolist())


def _room(answers: Sequence[np.ndarray], digests: np.ndarray) -> int:
    """The most candidates that are left out of a list: positives and what has the content of one."""
    ordered, own = np.sort(digests), digests[np.concatenate(answers)]
    copies = np.searchsorted(ordered, own, side="right") - np.searchsorted(ordered, own)
    return int(np.add.reduceat(copies, np.cumsum([0, *map(len, answers[:-1])])).max())


def _scores(queries: np.ndarray, positions: Sequence[np.ndarray], vectors: Vectors) -> list[np.ndarray]:
    """The scores of each query with the vectors at its own positions, as the search would have them."""
    counts, every = [len(own) for own in positions], np.concatenate(positions)
    rows, scores = np.repeat(np.arange(len(counts)), counts), np.empty(len(every))
    for start in range(0, len(every), PAIRS):
        part = slice(start, start + PAIRS)
        taken = vectors.take(every[part])
        scores[part] = exact_scores(queries, taken, rows[part], np.arange(len(taken)))
    return np.split(np.rint(SCALE * scores) / SCALE, np.cumsum(counts)[:-1])


def _parts(count: int) -> list[np.ndarray]:
    """The rows that each process encodes, dealt in turn, since long stretches of a pool are texts or pictures alone."""
    processes = PartialState().num_processes
    return [np.arange(first, count, processes) for first in range(processes)]


def _encode(
    encoder: Encoder,
    folder: Path,
    ids: np.ndarray,
    items: Callable[[np.ndarray], Any],
    *,
    instructions: Sequence[str | None] | None = None,
    **options: Any,
) -> None:
    """Encode this process's part into a store of its own."""
    index = PartialState().process_index
    rows = _parts(len(ids))[index]
    if len(rows):
        told: Any = instructions and [instructions[row] for row in rows]
        encode_store(encoder, _store(folder, index), ids[rows], items(rows), instructions=told, **options)


def _opened(folder: Path, count: int) -> tuple[Vectors, np.ndarray]:
    """The vectors that all processes encoded, and where among them that of each row stands."""
    parts = _parts(count)
    stores = [VectorStore.open(_store(folder, index)) for index, rows in enumerate(parts) if len(rows)]
    return StoreChain(stores), np.argsort(np.concatenate(parts))


def _store(folder: Path, index: int) -> Path:
    return folder.with_name(f"{folder.name}-{index}-of-{PartialState().num_processes}")


@contextmanager
def _meeting() -> Iterator[Callable[[], None]]:
    """Yield what waits for all processes; for days, where the host's own barriers give up within minutes."""
    if PartialState().num_processes == 1:
        yield lambda: None
        return
    group = dist.new_group(backend="gloo", timeout=timedelta(days=30))
    try:
        yield partial(dist.barrier, group)
    finally:
        dist.destroy_process_group(group)


def _digests(queries: Queries, candidates: Candidates) -> dict[str, str]:
    asked = inputs_digest(queries.qids, queries.items, queries.instructions, root=candidates.root)
    answers = json.dumps([*map(list, queries.positives), queries.groups])
    dids = b"\n".join(candidates.dids.tolist())
    return {
        "queries": _sha256(asked + answers),
        "candidates": _sha256(dids + candidates.digests.tobytes()),
    }


def _sha256(content: str | bytes) -> str:
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()


class _Items:
    """The items of a pool, read as they are asked for."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def __len__(self) -> int:
        return len(self._pool)

    def __getitem__(self, rows: slice) -> list[Item]:
        return [one.item for one in self._pool.at(range(*rows.indices(len(self))))]


def _rows_of(items: Sequence[Item]) -> Callable[[np.ndarray], list[Item]]:
    return lambda rows: [items[row] for row in rows]


def _each_once(queries: Sequence[Query]) -> list[Query]:
    """One query a qid, with the positives of all its rows."""
    merged: dict[str, Query] = {}
    for query in queries:
        known = merged.setdefault(query.qid, query)
        if not known.asks_as(query):
            raise ValueError(f"Training query {query.qid!r} is {known} in one row and {query} in another.")
        if known.positives != query.positives:
            merged[query.qid] = replace(known, positives=tuple(dict.fromkeys(known.positives + query.positives)))
    return list(merged.values())


def _instruction(benchmark: MBeir, query: Query, modalities: np.ndarray, seed: int) -> str:
    draw = random.Random(f"{seed}-{query.qid}")
    return draw.choice(benchmark.prompts(query, MODALITIES[draw.choice(modalities.tolist())]))


def _local_pools(queries: Iterable[Query], pool: Pool) -> dict[str, np.ndarray]:
    """By task, the sorted positions of its data sets' candidates in the modality it looks for."""
    dataset = np.strings.partition(pool.dids, b":")[0]
    pools = {}
    for task, own in groupby(queries, key=attrgetter("group")):
        asked = list(own)
        datasets = {one.split(":")[0] for query in asked for one in (query.qid, *query.positives)}
        if datasets & ONE_COLLECTION:
            datasets |= ONE_COLLECTION
        modality = MODALITIES.index(CANDIDATE_MODALITY[asked[0].task_id])
        of_datasets = np.isin(dataset, [one.encode() for one in sorted(datasets)])
        pools[task] = np.flatnonzero(of_datasets & (pool.modalities == modality))
    return pools


def _shown(one: Query | Candidate) -> str:
    return "  ".join(filter(None, (one.modality, str(one.image or ""), one.text)))
