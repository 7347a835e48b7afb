"""Parts of a benchmark: a slice to measure on, a small one for trials, and what is left without bad rows."""

import hashlib
from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np

from umarvel_hf.data import MBeir, Pool, Query, Task, query_of
from umarvel_hf.records import MODALITIES, first_lines, id_array, lines_of
from umarvel_hf.trainer.quarantine import Quarantine, bare

CHECKED_AT_ONCE = 4096


class View(MBeir):
    """A benchmark that shows another one, or a part of it."""

    def __init__(self, benchmark: MBeir) -> None:
        super().__init__(benchmark.root)
        self.whole = benchmark

    def tasks(self, split: str = "test") -> list[Task]:
        """See :meth:`MBeir.tasks`."""
        return self.whole.tasks(split)

    def queries(self, task: Task, split: str = "test") -> list[Query]:
        """See :meth:`MBeir.queries`."""
        return self.whole.queries(task, split)

    def train_queries(self) -> list[Query]:
        """See :meth:`MBeir.train_queries`."""
        return self.whole.train_queries()

    def pool(self, task: Task, split: str = "test") -> Pool:
        """See :meth:`MBeir.pool`."""
        return self.whole.pool(task, split)

    def union_pool(self, split: str = "test") -> Pool:
        """See :meth:`MBeir.union_pool`."""
        return self.whole.union_pool(split)

    def has_union_pool(self, split: str = "test") -> bool:
        """See :meth:`MBeir.has_union_pool`."""
        return self.whole.has_union_pool(split)

    def qrels(self, task: Task, split: str = "test") -> dict[str, dict[str, int]]:
        """See :meth:`MBeir.qrels`."""
        return self.whole.qrels(task, split)


class Slice(View):
    """Some queries of every task, in pools that hold their right answers and some of the rest.

    Queries and candidates are drawn by the SHA-256 of their ids, so they are the same in every process. The union pool
    is that of the slice's local pools.

    Args:
        candidates_per_task: Size of a pool, unless the right answers alone are more.
    """

    def __init__(self, benchmark: MBeir, *, queries_per_task: int, candidates_per_task: int) -> None:
        super().__init__(benchmark)
        if min(queries_per_task, candidates_per_task) < 1:
            raise ValueError(
                f"queries_per_task is {queries_per_task}, candidates_per_task {candidates_per_task}; give at least 1."
            )
        self._query_count, self._candidate_count = queries_per_task, candidates_per_task
        self._drawn: dict[tuple[Task, str], tuple[list[Query], Pool]] = {}

    def queries(self, task: Task, split: str = "test") -> list[Query]:
        """The drawn queries of a task, in the order of the file."""
        return self._draw(task, split)[0]

    def qrels(self, task: Task, split: str = "test") -> dict[str, dict[str, int]]:
        """The right answers of the drawn queries."""
        qrels = self.whole.qrels(task, split)
        return {query.qid: qrels[query.qid] for query in self.queries(task, split)}

    def pool(self, task: Task, split: str = "test") -> Pool:
        """The right answers of the drawn queries and a draw of the rest, in the order of the file."""
        return self._draw(task, split)[1]

    def has_union_pool(self, split: str = "test") -> bool:
        """There is no file of it: it is what the local pools hold."""
        return False

    def _draw(self, task: Task, split: str) -> tuple[list[Query], Pool]:
        if (task, split) not in self._drawn:
            whole, qrels = self.whole.queries(task, split), self.whole.qrels(task, split)
            queries = [whole[at] for at in _least([query.qid.encode() for query in whole], self._query_count)]
            pool = self.whole.pool(task, split)
            right = np.unique(pool.positions([did for query in queries for did in qrels[query.qid]]))
            rest = np.setdiff1d(np.arange(len(pool)), right)
            more = rest[_least(pool.dids[rest], max(0, self._candidate_count - len(right)))]
            self._drawn[task, split] = queries, pool.subset(np.sort(np.concatenate([right, more])))
        return self._drawn[task, split]


class Trial(Slice):
    """A benchmark cut down, training split included, so that a trial of a recipe sees every stage in a minute.

    A training query is drawn like those of a slice, some of every data set and task; the training pool holds their
    positives and as many others. Of the other splits there is one task of every data set.
    """

    TRAIN_QUERIES = 4  # of a data set and task

    def __init__(self, benchmark: MBeir) -> None:
        super().__init__(benchmark, queries_per_task=2, candidates_per_task=8)

    def tasks(self, split: str = "test") -> list[Task]:
        """The first task of every data set."""
        first = {task.dataset: task for task in reversed(super().tasks(split))}
        return list(reversed(first.values()))

    def train_queries(self) -> list[Query]:
        """The drawn training queries, in the order of the file."""
        return self._train_queries

    @cached_property
    def _train_queries(self) -> list[Query]:
        groups: dict[str, list[int]] = {}
        whole = self.whole.train_queries()
        for at, query in enumerate(whole):
            groups.setdefault(query.group, []).append(at)
        drawn = [
            rows[at]
            for rows in groups.values()
            for at in _least([f"{whole[row].qid} {row}".encode() for row in rows], self.TRAIN_QUERIES)
        ]
        return [whole[at] for at in sorted(drawn)]

    def union_pool(self, split: str = "test") -> Pool:
        """For training: the positives of the drawn queries and as many other candidates, in the order of the file."""
        return self._train_pool if split == "train" else super().union_pool(split)

    @cached_property
    def _train_pool(self) -> Pool:
        pool = self.whole.union_pool("train")
        right = np.unique(pool.positions([did for query in self.train_queries() for did in query.positives]))
        rest = np.setdiff1d(np.arange(len(pool)), right)
        return pool.subset(np.union1d(right[right >= 0], rest[_least(pool.dids[rest], len(right))]))


class Screened(View):
    """A benchmark without the training rows that nobody can learn from.

    Left out are lines that are cut short, queries without positives, with positives that the pool lacks, with pictures
    that do not open or with a qid under which an earlier row asks something else, and candidates whose pictures do not
    open. Without a file to list them in, the first such query raises, and pictures are not tried.

    Args:
        quarantine: What becomes of them.
        pictures: Whether pictures are tried.

    Raises:
        ValueError: When training rows are first asked for: a row is bad and is not to be left out; no row is left; a
            query finds no instruction.
    """

    def __init__(self, benchmark: MBeir, quarantine: Quarantine, *, pictures: bool = True) -> None:
        super().__init__(benchmark)
        self._quarantine, self._tried = quarantine, pictures and quarantine.path is not None

    def train_queries(self) -> list[Query]:
        """The training queries that can be used, in the order of the file."""
        return self._train_queries

    @cached_property
    def _train_queries(self) -> list[Query]:
        kept = list(self._usable(self._read()))
        self._quarantine.write()
        if not kept:
            raise ValueError(f"{self.train_path}: no query is left to train on.")
        return kept

    def union_pool(self, split: str = "test") -> Pool:
        """For training: the candidates that can be used, in the order of the file."""
        return self._train_pool if split == "train" else super().union_pool(split)

    @cached_property
    def unusable(self) -> dict[str, str]:
        """What is wrong with the candidates that are left out, by did."""
        pool = self.whole.union_pool("train")
        found: dict[str, str] = {}
        for block in np.array_split(np.arange(len(pool)), 1 + len(pool) // CHECKED_AT_ONCE) if self._tried else ():
            pictures = {one.did: one.image for one in pool.at(block) if one.image is not None}
            problems = self._quarantine.unreadable(pictures.values())
            found |= {did: problems[image] for did, image in pictures.items() if image in problems}
        lines = first_lines(pool.path, "did", found) if found else {}
        for did, problem in found.items():
            self._quarantine.add(pool.path, lines[did], did, problem)
        self._quarantine.write()
        return found

    @cached_property
    def _train_pool(self) -> Pool:
        pool = self.whole.union_pool("train")
        if not self.unusable:
            return pool
        return pool.subset(np.flatnonzero(~np.isin(pool.dids, id_array(self.unusable))))

    def _read(self) -> Sequence[Query]:
        try:
            return self.whole.train_queries()
        except ValueError:
            if self._quarantine.path is None:
                raise
        queries = []
        for number, _, line in lines_of(self.train_path):
            try:
                queries.append(query_of(self.root, self.train_path, number, line))
            except ValueError as error:
                self._quarantine.add(self.train_path, number, "", bare(error, self.train_path, number))
        return queries

    def _usable(self, queries: Sequence[Query]) -> Iterator[Query]:
        """The queries that can be trained on; the others are listed."""
        pool, prompted = self._train_pool, set[tuple[str, str, str]]()
        images = {query.image for query in queries if query.image is not None} if self._tried else ()
        unreadable = self._quarantine.unreadable(images)
        bad: list[tuple[Query, str]] = []
        first: dict[str, Query] = {}  # of every qid
        for start in range(0, len(queries), CHECKED_AT_ONCE):
            block = queries[start : start + CHECKED_AT_ONCE]
            dids = [did for query in block for did in query.positives]
            found = np.split(pool.positions(dids), np.cumsum([len(query.positives) for query in block])[:-1])
            for query, positions in zip(block, found, strict=True):
                if reason := (query.image and unreadable.get(query.image)) or self._reason(query, positions):
                    bad.append((query, reason))
                    continue
                if not first.setdefault(query.qid, query).asks_as(query):
                    other = f"{query.item!r} (task {query.task_id})"
                    bad.append((query, f"a later row of this qid asks otherwise, {other}; give it one of its own."))
                    continue
                for modality in {MODALITIES[code] for code in pool.modalities[positions]}:
                    if (asked := (query.qid.split(":")[0], query.modality, modality)) not in prompted:
                        self.prompts(query, modality)  # raises if there are none
                        prompted.add(asked)
                yield query
        lines = first_lines(self.train_path, "qid", {query.qid for query, _ in bad}) if bad else {}
        for query, reason in bad:
            self._quarantine.add(self.train_path, lines[query.qid], query.qid, reason)

    def _reason(self, query: Query, positions: np.ndarray) -> str | None:
        """Why nobody can learn from a query, as far as its positives go; None: one can."""
        if not query.positives:
            return "it names no positive; complete its pos_cand_list or remove it."
        if (positions >= 0).all():
            return None
        did = query.positives[int(np.argmax(positions < 0))]
        if did in self.unusable:
            return f"its positive {did!r}: {self.unusable[did]}"
        pool = self._train_pool
        return (
            f"its positive {did!r} is not among the {len(pool):,} candidates of {pool.path}. Use the pool that these "
            "queries were written for."
        )


def _least(ids: Sequence[bytes] | np.ndarray, count: int) -> np.ndarray:
    """Sorted positions of the ``count`` ids whose SHA-256 is least."""
    digests = np.array([int.from_bytes(hashlib.sha256(one).digest()[:8]) for one in ids], dtype=np.uint64)
    return np.sort(np.argsort(digests, kind="stable")[:count])
