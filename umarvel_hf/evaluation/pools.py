"""The candidates of a split: its local pools one after the other, and the union of them, each did once."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from umarvel_hf.data import MODALITIES, Candidate, Item, MBeir, Pool, Task
from umarvel_hf.progress import Progress
from umarvel_hf.records import Ids
from umarvel_hf.search import Encoder, embed, inputs_digest
from umarvel_hf.store import StoreChain, VectorStore, fill_store

CHUNK = 2048  # items encoded between two steps of the progress bar
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Part:
    """A pool, whose candidates stand at ``start`` and after."""

    name: str
    pool: Pool
    start: int

    @property
    def rows(self) -> np.ndarray:
        return np.arange(self.start, self.start + len(self.pool))


class Candidates:
    """All local pools one after the other, then whatever the union file adds to them.

    A did may stand in several pools, and then has several positions.

    Args:
        tasks: Those to evaluate.
        union: Whether the union pool is searched, too; then the pools of all tasks of the split belong here, because
            M-BEIR's union is the concatenation of its local pools (recipe.md §9.2).

    Attributes:
        dids: (N,) bytes.
        modalities: (N,) int8, index into ``data.MODALITIES``.
        first: (N,) int64, where the did of each position stands first.
        distinct: Sorted positions, the first of every did. With ``union`` this is the union pool.

    Raises:
        ValueError: One did names two different candidates.
    """

    def __init__(self, benchmark: MBeir, tasks: Sequence[Task], split: str, *, union: bool) -> None:
        self._benchmark = benchmark
        self._parts: list[_Part] = []
        self._part_of: dict[Task, _Part] = {}
        for task in benchmark.tasks(split) if union else tasks:
            pool = benchmark.pool(task, split)
            self._part_of[task] = self._append(pool.path.stem, pool)
        parts = [part.pool for part in self._parts]
        whole = benchmark.union_pool(split) if union and benchmark.has_union_pool(split) else None
        self.dids = np.concatenate([pool.dids for pool in parts])
        if whole is not None:
            places = Ids(self.dids).positions(whole.dids)
            self._refuse_contradictions(whole, places, np.concatenate([pool.digests for pool in parts]))
            if len(extra := np.flatnonzero(places < 0)):
                logger.info("%s adds %d candidates to the local pools", whole.path, len(extra))
                parts.append(self._append(f"{whole.path.stem}-rest", whole.subset(extra)).pool)
                self.dids = np.concatenate([self.dids, parts[-1].dids])
        self.modalities = np.concatenate([pool.modalities for pool in parts])
        self._ids = Ids(self.dids)
        self.first = self._ids.positions(self.dids)
        self.distinct = np.unique(self.first)
        digests = np.concatenate([pool.digests for pool in parts])
        for part in self._parts:
            self._refuse_contradictions(part.pool, self.first[part.rows], digests)

    def local(self, task: Task) -> np.ndarray:
        """Sorted positions of a task's own pool."""
        return self._part_of[task].rows

    def at(self, positions: Sequence[int] | np.ndarray) -> list[Candidate]:
        """The candidates that stand there, in this order."""
        positions = np.asarray(positions, dtype=np.int64)
        found: dict[int, Candidate] = {}
        for part in self._parts:
            own = positions[(positions >= part.start) & (positions < part.start + len(part.pool))]
            found |= zip(own.tolist(), part.pool.at(own - part.start), strict=True)
        return [found[at] for at in positions.tolist()]

    def modality(self, did: str) -> str:
        """The modality of a candidate."""
        return MODALITIES[self.modalities[self._ids.positions([did])[0]]]

    def encode(
        self,
        encoder: Encoder,
        folder: Path,
        *,
        made_by: Mapping[str, str],
        batch_tokens: int | None = None,
        show_progress: bool = False,
    ) -> StoreChain:
        """Encode every did once, one store a pool below ``folder``; what stands there already is taken."""
        stores: list[VectorStore] = []
        with Progress(total=len(self.distinct), desc="candidates", show=show_progress) as bar:
            for part in self._parts:
                store = fill_store(
                    folder / part.name,
                    part.pool.dids,
                    partial(self._vectors, part, StoreChain(stores), partial(_embed, encoder, batch_tokens, bar)),
                    made_by={**made_by, "prompt": ""},
                    digest=partial(self._digest, part),
                )
                stores.append(store)
        return StoreChain(stores)

    def _vectors(
        self, part: _Part, earlier: StoreChain, embed_items: Callable[[list[Item]], np.ndarray], rows: slice
    ) -> np.ndarray:
        """Vectors of some rows of a pool; a did of an earlier pool has its vector there."""
        first = self.first[part.rows[rows]]
        known = first < part.start
        new = [one.item for one in part.pool.at(np.flatnonzero(~known) + rows.start)]
        if not known.any():
            return embed_items(new)
        vectors = np.empty((len(first), earlier.dimension), dtype=np.float32)
        vectors[known] = earlier.take(first[known])
        if new:
            vectors[~known] = embed_items(new)
        return vectors

    def _digest(self, part: _Part, rows: slice) -> str:
        at = range(*rows.indices(len(part.pool)))
        return inputs_digest(part.pool.dids[rows], [one.item for one in part.pool.at(at)], root=self._benchmark.root)

    def _append(self, name: str, pool: Pool) -> _Part:
        start = sum(len(part.pool) for part in self._parts)
        self._parts.append(_Part(name, pool, start))
        return self._parts[-1]

    def _refuse_contradictions(self, pool: Pool, places: np.ndarray, digests: np.ndarray) -> None:
        """``places`` (N,): where the dids of the pool stand among all, whose ``digests`` these are; -1: nowhere."""
        for at in np.flatnonzero((places >= 0) & (digests[places] != pool.digests))[:1]:
            (one,), (other,) = pool.at([at]), self.at(places[[at]])
            path = next(part.pool.path for part in reversed(self._parts) if part.start <= places[at])
            raise ValueError(
                f"did {one.did!r} is {other} in {path} and {one} in {pool.path}. "
                "One did must name one candidate: write the pools anew."
            )


def _embed(encoder: Encoder, batch_tokens: int | None, bar: Progress, items: list[Item]) -> np.ndarray:
    parts = []
    for start in range(0, len(items), CHUNK):
        parts.append(embed(encoder, items[start : start + CHUNK], batch_tokens=batch_tokens))
        bar.update(len(parts[-1]))
    return np.concatenate(parts)
