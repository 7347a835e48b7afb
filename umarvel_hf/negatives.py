"""Tables of mined candidates, one list a query, and the choice of a row's negatives among them."""

import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from umarvel_hf.data import Pool
from umarvel_hf.records import Ids, id_array
from umarvel_hf.store import differences, whole_file

GROUP_ROWS = 128  # read at once for one list: a millisecond, where lists have 100 candidates
TRIALS = 64  # random draws for each negative before the whole pool is looked through


@dataclass(frozen=True, slots=True, eq=False)
class MinedList:
    """What was mined for a query.

    Args:
        positives: All right answers that the query lists, best first.
        positive_scores: (P,) float32, their cosines.
        dids: The candidates, best first, each once; none is a listed positive or has the content of one.
        scores: (C,) float32, their cosines.
        positive_answers, answers: (P,) and (A,) float32, a re-ranker's P(Yes), 0 to 1, of the positives and the first
            ``A <= C`` candidates; None where it was not asked.
        positive_teacher_scores, teacher_scores: (P,) and (A,) float32, the scores to distil, likewise.
    """

    qid: str
    positives: tuple[str, ...]
    positive_scores: np.ndarray
    dids: tuple[str, ...]
    scores: np.ndarray
    positive_answers: np.ndarray | None = None
    answers: np.ndarray | None = None
    positive_teacher_scores: np.ndarray | None = None
    teacher_scores: np.ndarray | None = None


KINDS = {"qid": pa.string(), "positives": pa.list_(pa.string()), "dids": pa.list_(pa.string())}
SCHEMA = pa.schema([(field.name, KINDS.get(field.name, pa.list_(pa.float32()))) for field in fields(MinedList)])


class NegativeTable:
    """Mined lists by qid in a Parquet file, read as they are asked for; only qids are in memory.

    ``table[qid]`` is a :class:`MinedList`, a KeyError where the query was not mined.

    Attributes:
        facts: What made the table.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no table of mined lists.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self._file = pq.ParquetFile(self.path, memory_map=True)
        except pa.ArrowInvalid as error:
            raise ValueError(f"{self.path} is no Parquet file ({error}). Mine anew.") from error
        columns, metadata = self._file.schema_arrow, self._file.metadata
        if columns.names != SCHEMA.names:
            raise ValueError(f"{self.path} has columns {columns.names}, mined lists have {SCHEMA.names}. Mine anew.")
        for found, expected in zip(columns, SCHEMA, strict=True):
            if found.type != expected.type:
                raise ValueError(
                    f"{self.path}: column {found.name!r} is {found.type}, in mined lists {expected.type}. Mine anew."
                )
        self.facts = {key.decode(): value.decode() for key, value in (columns.metadata or {}).items()}
        self._starts = np.cumsum([0, *(metadata.row_group(at).num_rows for at in range(metadata.num_row_groups))])
        # Nothing here starts a thread: data loader workers are forked after the table was opened.
        batches = self._file.iter_batches(columns=["qid"], use_threads=False)
        self._qids = id_array(chain.from_iterable(batch["qid"].to_pylist() for batch in batches))
        self._ids = Ids(self._qids)
        self._last: tuple[int, pa.Table] | None = None  # number and rows of the group that was read last

    @classmethod
    def open(cls, path: str | Path, facts: Mapping[str, str] | None = None) -> "NegativeTable":
        """Open what :meth:`write` wrote; ValueError where ``facts`` are given and it was made otherwise."""
        table = cls(path)
        if facts is not None and (told := differences(table.facts, facts)):
            raise ValueError(f"{path} was made otherwise: {told}. Name another file or folder, or remove it.")
        return table

    @classmethod
    def write(cls, path: str | Path, lists: Iterable[MinedList], facts: Mapping[str, str]) -> "NegativeTable":
        """Write lists as they come, no qid twice; the file appears once it is whole."""
        with table_writer(Path(path), facts) as add:
            for one in lists:
                add(one)
        return cls(path)

    def __reduce__(self) -> tuple[type["NegativeTable"], tuple[Path]]:
        return NegativeTable, (self.path,)  # a spawned worker opens it itself

    @property
    def qids(self) -> list[str]:
        """All qids, in the order of the file."""
        return [qid.decode() for qid in self._qids]

    def __len__(self) -> int:
        return len(self._qids)

    def __contains__(self, qid: object) -> bool:
        return isinstance(qid, str) and bool(self._ids.positions([qid])[0] >= 0)

    def __getitem__(self, qid: str) -> MinedList:
        if (position := int(self._ids.positions([qid])[0])) < 0:
            raise KeyError(f"query {qid!r} is not among the {len(self):,} of {self.path}.")
        group = int(np.searchsorted(self._starts, position, side="right")) - 1
        return _mined_list(self._group(group), position - int(self._starts[group]))

    def __iter__(self) -> Iterator[MinedList]:
        for group in range(len(self._starts) - 1):
            rows = self._group(group)
            yield from (_mined_list(rows, row) for row in range(len(rows)))

    def _group(self, group: int) -> pa.Table:
        if self._last is None or self._last[0] != group:
            self._last = group, self._file.read_row_group(group, use_threads=False)
        return self._last[1]


@contextmanager
def table_writer(path: Path, facts: Mapping[str, str]) -> Iterator[Callable[[MinedList], None]]:
    """Yield what adds a list to a new table, which takes its place as the block ends, and not if it raises."""
    waiting: list[dict[str, Any]] = []
    schema = SCHEMA.with_metadata(dict(facts))
    settings: dict[str, Any] = {"compression": "zstd", "use_dictionary": False, "write_statistics": False}

    def flush() -> None:
        writer.write_batch(pa.RecordBatch.from_pylist(waiting, schema=schema))
        waiting.clear()

    def add(one: MinedList) -> None:
        waiting.append({name: getattr(one, name) for name in SCHEMA.names})
        if len(waiting) == GROUP_ROWS:
            flush()

    with whole_file(path) as file, pq.ParquetWriter(file, schema, **settings) as writer:
        yield add
        if waiting:
            flush()


@dataclass(frozen=True)
class Filters:
    """Removes candidates that may be answers nobody listed; None removes nothing.

    The first three are as in ``sentence_transformers.util.mine_hard_negatives``.

    Scores are cosines, -1 to 1. What one of the filters removes is gone, whatever the others say.

    Args:
        relative_margin: A negative scores below the best positive by at least this share of that score.
        absolute_margin: A negative scores below the best positive by at least so much.
        max_score: A negative scores no higher.
        veto: Nor is P(Yes) of the re-ranker, 0 to 1, higher, where it was asked.
    """

    relative_margin: float | None = None
    absolute_margin: float | None = None
    max_score: float | None = None
    veto: float | None = None

    def removed(self, mined: MinedList) -> dict[str, np.ndarray]:
        """What each filter removes: (C,) bool, by its name.

        Raises:
            ValueError: ``veto``, and no re-ranker has judged the list.
        """
        scores, best = mined.scores, float(mined.positive_scores.max())
        removed = {}
        if self.relative_margin is not None:
            removed["relative_margin"] = scores > best - abs(best) * self.relative_margin
        if self.absolute_margin is not None:
            removed["absolute_margin"] = scores > best - self.absolute_margin
        if self.max_score is not None:
            removed["max_score"] = scores > self.max_score
        if self.veto is not None:
            if mined.answers is None:
                raise ValueError(
                    f"veto is {self.veto}, but no re-ranker has judged the list of query {mined.qid!r}. Use a table "
                    "that was scored, or leave veto out."
                )
            removed["veto"] = np.zeros(len(scores), dtype=bool)
            removed["veto"][: len(mined.answers)] = mined.answers > self.veto
        return removed


@dataclass(frozen=True)
class Strategy:
    """How negatives are chosen among the candidates that filters leave (recipe.md §6.5).

    Args:
        kind: ``top``: the best. ``window``: drawn from a stretch of the list. ``random``: drawn from the whole pool,
            but none that a filter removed from the list.
        count: How many.
        window: Of the list, as in a slice: (10, 60) skips ten and draws from the fifty that follow.
        wrong_modality: So many have another modality than every positive, the rest that of a positive; each kind is
            chosen as if it were alone. 0: modality does not count.

    Raises:
        ValueError: An unknown kind, a ``window`` missing, empty or beside another kind, ``count`` below 1, more of
            wrong modality than ``count``.
    """

    kind: Literal["top", "window", "random"]
    count: int
    window: tuple[int, int] | None = None
    wrong_modality: int = 0

    def __post_init__(self) -> None:
        if self.kind not in ("top", "window", "random"):
            raise ValueError(f"strategy is {self.kind!r}; choose top, window or random.")
        first, last = self.window or (0, 1)
        if (self.kind == "window") != (self.window is not None) or not 0 <= first < last:
            raise ValueError(f"strategy is {self.kind!r}, window {self.window}; a window (10, 60) belongs to 'window'.")
        if self.count < 1 or not 0 <= self.wrong_modality <= self.count:
            raise ValueError(f"{self.wrong_modality} of {self.count} negatives of wrong modality; give 0 to count.")


class TooFewNegatives(ValueError):
    """Fewer candidates of a query can be its negatives than are asked for."""


def select(mined: MinedList, strategy: Strategy, filters: Filters, draw: random.Random, pool: Pool) -> list[str]:
    """Choose ``strategy.count`` distinct negatives: ``top`` best first, those of wrong modality last.

    Args:
        draw: Where draws come from; a state of the row's own gives it the same negatives everywhere.
        pool: What the table was mined from.

    Raises:
        TooFewNegatives: There are fewer.
        ValueError: ``veto``, and no re-ranker has judged the list.
    """
    removed = filters.removed(mined)
    kept = ~np.any([np.zeros(len(mined.dids), dtype=bool), *removed.values()], axis=0)
    positives, candidates = pool.positions(mined.positives), pool.positions(mined.dids)
    if (positives < 0).any() or (candidates < 0).any():
        raise ValueError(f"query {mined.qid!r}: its list was mined from another pool than {pool.path}. Mine anew.")
    counts = [strategy.count - strategy.wrong_modality, strategy.wrong_modality]

    def choose(allowed: np.ndarray) -> list[np.ndarray]:
        """From positions in the pool, best first, those chosen of either modality."""
        wrong = ~np.isin(pool.modalities[allowed], pool.modalities[positives])
        parts = [allowed[~wrong], allowed[wrong]] if strategy.wrong_modality else [allowed, allowed[:0]]
        if strategy.kind == "window":
            parts = [part[slice(*strategy.window or ())] for part in parts]
            parts = [np.array(draw.sample(part.tolist(), len(part)), dtype=np.int64) for part in parts]
        return [part[:count] for part, count in zip(parts, counts, strict=True)]

    if strategy.kind == "random":
        numbers = np.random.default_rng(draw.getrandbits(64))
        for trials in (TRIALS * strategy.count, len(pool)):
            drawn = numbers.choice(len(pool), min(trials, len(pool)), replace=False)
            copies = np.isin(pool.digests[drawn], pool.digests[positives])
            chosen = choose(drawn[~copies & ~np.isin(drawn, candidates[~kept])])
            if sum(map(len, chosen)) == strategy.count:
                break
    else:
        chosen = choose(candidates[kept])
    if sum(map(len, chosen)) < strategy.count:
        reasons = "".join(f", {name} removes {mask.sum()}" for name, mask in removed.items())
        found = " + ".join(str(len(part)) for part in chosen)
        raise TooFewNegatives(
            f"query {mined.qid!r}: {strategy.count} negatives, {strategy.wrong_modality} of them of wrong modality, "
            f"are asked for and {found} found ({strategy.kind}; {len(mined.dids)} mined{reasons}). Mine deeper, loosen "
            "the filters or ask for fewer."
        )
    return [did.decode() for did in pool.dids[np.concatenate(chosen)]]


def _mined_list(rows: pa.Table, row: int) -> MinedList:
    values: dict[str, Any] = {"qid": rows["qid"][row].as_py()}
    for name in SCHEMA.names[1:]:
        one = rows[name][row]
        numbers = pa.types.is_floating(one.type.value_type)
        values[name] = (np.array(one.values) if numbers else tuple(one.as_py())) if one.is_valid else None
    return MinedList(**values)
