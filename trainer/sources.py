"""What rows are made of: M-BEIR's training queries, and pairs of texts or of texts and pictures from plain files."""

import logging
import random
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from umarvel_hf.data import Item, MBeir, Query
from umarvel_hf.messages import Message, chat
from umarvel_hf.negatives import Filters, MinedList, NegativeTable, Strategy, TooFewNegatives, select
from umarvel_hf.records import MODALITIES, first_lines, id_array
from umarvel_hf.trainer.losses import PADDING_ID
from umarvel_hf.trainer.pairs import Pairs, first_of
from umarvel_hf.trainer.quarantine import Quarantine
from umarvel_hf.trainer.views import Screened

__all__ = ["Choice", "MBeirRows", "Pairs", "Quarantine", "Source", "TeacherLists"]

logger = logging.getLogger(__name__)


class Source(Protocol):
    """Rows of one kind.

    Attributes:
        name: Names it in messages.
        groups: The group of every row: data set and task, such as ``"102 task 7"``, or ``"nli"``.
        columns: Of every row, in the order in which the loss wants them.
        label_width: Numbers in a label of ids; 0: labels are scores.
    """

    name: str
    groups: list[str]
    columns: tuple[str, ...]
    label_width: int

    def __len__(self) -> int: ...

    def rows(self, numbers: Sequence[int], seed: int, epoch: int) -> list[dict[str, Any]]:
        """A chat for every column and a ``label``; ids are below 2**63, the first that of a row with this query."""
        ...

    def origin(self, number: int) -> str:
        """File, line and id of a row, for messages."""
        ...


@dataclass(frozen=True)
class Choice:
    """Which mined candidates become the hard negatives of a row.

    Args:
        strategies: By the pool whose table they are chosen from, in the order of the columns. A candidate that one
            table gave is not chosen from the lists of the next.
        filters: Of all of them.
        tasks: Another ``strategy`` (kind) and ``window`` for the groups named (recipe.md §6.5).

    Raises:
        ValueError: What ``tasks`` ask for is no :class:`~umarvel_hf.negatives.Strategy`.
    """

    strategies: Mapping[str, Strategy]
    filters: Filters = field(default_factory=Filters)
    tasks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for group in self.tasks:
            self.of(group)  # checks what is asked for

    @property
    def count(self) -> int:
        """Negatives of a row."""
        return sum(strategy.count for strategy in self.strategies.values())

    def of(self, group: str) -> dict[str, Strategy]:
        """The strategies for rows of a group, by pool."""
        if group not in self.tasks:
            return dict(self.strategies)
        chosen = {}
        for pool, usual in self.strategies.items():
            kind = self.tasks[group].get("strategy", usual.kind)
            window = self.tasks[group].get("window", usual.window if kind == usual.kind else None)
            chosen[pool] = replace(usual, kind=kind, window=None if window is None else tuple(window))
        return chosen


class _TrainQueries:
    """The training queries of M-BEIR that can be trained on: what the two sources below share.

    Attributes:
        queries: These queries.
    """

    name = "mbeir"
    columns: tuple[str, ...]

    def __init__(
        self,
        benchmark: MBeir,
        quarantine: Quarantine,
        groups: Sequence[str] | None,
        tables: Mapping[str, NegativeTable],
    ) -> None:
        if not isinstance(benchmark, Screened):
            benchmark = Screened(benchmark, quarantine)
        self._benchmark, self._pool, self._quarantine = benchmark, benchmark.union_pool("train"), quarantine
        self._path, self._queries = benchmark.train_path, benchmark.train_queries()
        names: dict[str, str] = {}  # one string a group, not one a row
        every = [names.setdefault(group := query.group, group) for query in self._queries]
        if unknown := sorted(set(groups or ()) - names.keys()):
            raise ValueError(f"{self._path} has no queries of {unknown}; there are those of {sorted(names)}.")
        wanted = [
            number
            for number, query in enumerate(self._queries)
            if (groups is None or every[number] in groups) and all(query.qid in table for table in tables.values())
        ]
        reasons = self._reasons(wanted, tables)
        lines = first_lines(self._path, "qid", {self._queries[number].qid for number in reasons}) if reasons else {}
        for number, reason in reasons.items():
            quarantine.add(self._path, lines[qid := self._queries[number].qid], qid, reason)
        kept = [number for number in wanted if number not in reasons]
        if not kept:
            raise ValueError(f"{self._path}: none of {len(self._queries):,} queries is left to train on.")
        quarantine.write()
        self._kept = np.array(kept, dtype=np.int32)
        self.groups = [every[number] for number in kept]
        self._first = first_of(id_array(self._queries[number].qid for number in kept))

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def queries(self) -> list[Query]:
        return [self._queries[number] for number in self._kept]

    def origin(self, number: int) -> str:
        qid = self._queries[self._kept[number]].qid
        return f"{self._path}:{first_lines(self._path, 'qid', {qid}).get(qid)}, query {qid!r}"

    def _reasons(self, numbers: Sequence[int], tables: Mapping[str, NegativeTable]) -> dict[int, str]:
        """Why tables do not give enough for queries, for those where it is so."""
        reasons, draw = {}, random.Random(0)  # whether there are enough depends on no draw
        for number in numbers if tables else ():
            query = self._queries[number]
            try:
                self._candidates(query, tables, draw)
            except TooFewNegatives as error:
                reasons[number] = str(error).removeprefix(f"query {query.qid!r}: ")
        return reasons

    def _candidates(self, query: Query, tables: Mapping[str, NegativeTable], draw: random.Random) -> list[str]:
        """The dids that tables give for a query."""
        raise NotImplementedError

    def _anchor(self, query: Query, positive: str, draw: random.Random) -> list[Message]:
        modality = MODALITIES[self._pool.modalities[self._pool.positions([positive])[0]]]
        return _chat(query.item, draw.choice(self._benchmark.prompts(query, modality)))

    def _row(self, anchor: list[Message], dids: Sequence[str], label: list[Any]) -> dict[str, Any]:
        shown = [_chat(candidate.item) for candidate in self._pool.at(self._pool.positions(dids))]
        return dict(zip((*self.columns, "label"), (anchor, *shown, label), strict=True))

    def _draw(self, number: int, seed: int, epoch: int) -> tuple[Query, random.Random]:
        """A row's query and random state; rows of one query, which M-BEIR repeats, have states of their own."""
        query = self._queries[at := int(self._kept[number])]
        return query, random.Random(f"{seed}-{epoch}-{query.qid}-{at}")


class MBeirRows(_TrainQueries):
    """A query with its instruction, one of its positives and, if asked for, mined negatives.

    Positive, prompt and negatives are drawn anew in every epoch. Candidates of equal content have equal ids.

    Args:
        benchmark: Its union of training queries and its union training pool are read.
        groups: Rows of these only, such as ``["102 task 7"]``; None: all.
        tables: Mined lists by pool. Queries that one of them lacks are no rows.
        choice: Which of the mined become negatives; None: none.
        quarantine: What becomes of queries without positives, with positives that the pool lacks, with pictures that do
            not open or with too few negatives.

    Raises:
        ValueError: A row is bad and is not to be left out; no row is left; a group or table is not there.
    """

    def __init__(
        self,
        benchmark: MBeir,
        *,
        groups: Sequence[str] | None = None,
        tables: Mapping[str, NegativeTable] | None = None,
        choice: Choice | None = None,
        quarantine: Quarantine | None = None,
    ) -> None:
        self._choice = choice or Choice({})
        self._tables = self._first_tables = self._chosen_from(tables or {})
        self._kept_lists: frozenset[str] = frozenset()  # qids that keep those of the first tables
        super().__init__(benchmark, quarantine or Quarantine(), groups, self._tables)
        if unknown := sorted(self._choice.tasks.keys() - set(self.groups)):
            raise ValueError(f"Negatives are chosen for {unknown}, but there are only {sorted(set(self.groups))}.")
        self.columns = ("anchor", "positive", *(f"negative_{at + 1}" for at in range(self._choice.count)))
        self.label_width = len(self.columns) + max(len(set(query.positives)) for query in self.queries) - 1

    def use(self, tables: Mapping[str, NegativeTable]) -> None:
        """Choose negatives from these tables from now on.

        Rows stay where they are: in quarantine, one that finds too few keeps the lists of the first tables.
        """
        self._tables = self._chosen_from(tables)
        lacked = {
            number: "it is not among those mined."
            for number in self._kept.tolist()
            if any(self._queries[number].qid not in table for table in self._tables.values())
        }
        mined = [number for number in self._kept.tolist() if number not in lacked]
        reasons = {self._queries[at].qid: why for at, why in (lacked | self._reasons(mined, self._tables)).items()}
        for qid, reason in reasons.items():
            if self._quarantine.path is None:
                raise ValueError(f"{self._path}: {qid!r}: {reason}")
            logger.warning("%s: %r keeps its first negatives: %s", self._path, qid, reason)
        self._kept_lists = frozenset(reasons)

    def rows(self, numbers: Sequence[int], seed: int, epoch: int) -> list[dict[str, Any]]:
        """A right answer and hard negatives for each query, drawn anew every epoch, as chats.

        The label holds ids of what is in the columns, and after them those of the query's other right answers.
        """
        return [self._drawn(number, seed, epoch) for number in numbers]

    def _drawn(self, number: int, seed: int, epoch: int) -> dict[str, Any]:
        query, draw = self._draw(number, seed, epoch)
        positive = draw.choice(query.positives)
        anchor = self._anchor(query, positive, draw)
        tables = self._first_tables if query.qid in self._kept_lists else self._tables
        dids = [positive, *self._candidates(query, tables, draw)]
        others = [did for did in dict.fromkeys(query.positives) if did != positive]
        ids = (self._pool.digests[self._pool.positions([*dids, *others])] >> np.uint64(1)).tolist()
        label = [int(self._first[number]), *ids]
        return self._row(anchor, dids, label + [PADDING_ID] * (self.label_width - len(label)))

    def _candidates(self, query: Query, tables: Mapping[str, NegativeTable], draw: random.Random) -> list[str]:
        chosen: list[str] = []
        for name, strategy in self._choice.of(query.group).items():
            mined = _without(tables[name][query.qid], {*chosen, *self._benchmark.unusable})
            chosen += select(mined, strategy, self._choice.filters, draw, self._pool)
        return chosen

    def _chosen_from(self, tables: Mapping[str, NegativeTable]) -> dict[str, NegativeTable]:
        if missing := sorted(self._choice.strategies.keys() - tables.keys()):
            raise ValueError(
                f"Negatives are chosen from {missing}; there are tables of {sorted(tables)}. Mine these too."
            )
        return {name: tables[name] for name in self._choice.strategies}


class TeacherLists(_TrainQueries):
    """A query with its instruction and the candidates retrieved first, as a teacher scores them (recipe.md §7.6).

    Its positives are among them where the search would have found them, by their cosines. The label holds the teacher's
    scores, best first (ties: the greater did), and 1.0 where a candidate is a positive, else 0.0.

    Args:
        table: Scored lists. Queries that it lacks are no rows.
        top: Candidates of a row.
        keep_positive: A row whose positives were not retrieved takes the one that the teacher scores highest for its
            last candidate.
        benchmark, groups, quarantine: As for :class:`MBeirRows`.

    Raises:
        ValueError: As for :class:`MBeirRows`; the table has no teacher scores.
    """

    label_width = 0

    def __init__(
        self,
        benchmark: MBeir,
        table: NegativeTable,
        *,
        top: int,
        keep_positive: bool = False,
        groups: Sequence[str] | None = None,
        quarantine: Quarantine | None = None,
    ) -> None:
        self._tables, self._top, self._keep_positive = {"": table}, top, keep_positive
        self.columns = ("anchor", *(f"candidate_{at + 1}" for at in range(top)))
        super().__init__(benchmark, quarantine or Quarantine(), groups, self._tables)

    def rows(self, numbers: Sequence[int], seed: int, epoch: int) -> list[dict[str, Any]]:
        """Queries and the candidates of their lists as chats; the label is said above."""
        drawn = []
        for number in numbers:
            query, draw = self._draw(number, seed, epoch)
            anchor = self._anchor(query, draw.choice(query.positives), draw)
            mined = self._tables[""][query.qid]
            scores = self._teacher_scores(mined)
            dids = self._ranked(query, mined, scores)
            label = [[scores[did] for did in dids], [float(did in query.positives) for did in dids]]
            drawn.append(self._row(anchor, dids, label))
        return drawn

    def _candidates(self, query: Query, tables: Mapping[str, NegativeTable], draw: random.Random) -> list[str]:
        mined = tables[""][query.qid]
        return self._ranked(query, mined, self._teacher_scores(mined))

    def _ranked(self, query: Query, mined: MinedList, scores: Mapping[str, float]) -> list[str]:
        """The candidates of a row, as the teacher orders them."""
        cosines = [
            *zip(mined.dids, mined.scores.tolist(), strict=True),
            *zip(mined.positives, mined.positive_scores.tolist(), strict=True),
        ]
        found = [pair for pair in cosines if pair[0] in scores]
        retrieved = [did for did, _ in sorted(found, key=lambda pair: (-pair[1], pair[0]))][: self._top]
        if len(retrieved) < self._top:
            raise TooFewNegatives(
                f"query {query.qid!r}: {self._top} candidates are asked for and {len(retrieved)} have teacher scores. "
                "Score more of them, or ask for fewer."
            )
        if (self._pool.positions(retrieved) < 0).any():
            raise ValueError(f"query {query.qid!r}: its list is of another pool than {self._pool.path}. Mine anew.")
        ranked = sorted(retrieved, key=lambda did: (scores[did], did), reverse=True)
        positives = [did for did in query.positives if did in scores]
        if self._keep_positive and positives and not set(positives) & set(ranked):
            ranked[-1] = max(positives, key=lambda did: (scores[did], did))
            ranked.sort(key=lambda did: (scores[did], did), reverse=True)
        return ranked

    def _teacher_scores(self, mined: MinedList) -> dict[str, float]:
        if mined.teacher_scores is None or mined.positive_teacher_scores is None:
            raise ValueError(
                f"{self._tables[''].path}: the list of {mined.qid!r} has no teacher scores. Score the table first."
            )
        scored = [*zip(mined.dids, mined.teacher_scores.tolist(), strict=False)]  # of the best candidates only
        scored += zip(mined.positives, mined.positive_teacher_scores.tolist(), strict=True)
        return {did: score for did, score in scored if did not in self._benchmark.unusable}


def _without(mined: MinedList, left_out: Set[str]) -> MinedList:
    if left_out.isdisjoint(mined.dids):
        return mined
    kept = np.array([did not in left_out for did in mined.dids])
    judged: dict[str, Any] = {
        name: None if scores is None else scores[kept[: len(scores)]]
        for name in ("scores", "answers", "teacher_scores")
        for scores in (getattr(mined, name),)
    }
    return replace(mined, dids=tuple(did for did in mined.dids if did not in left_out), **judged)


def _chat(item: Item, instruction: str | None = None) -> list[Message]:
    """The chat of an item whose picture is a path."""
    return chat({**item, "image": str(item["image"])} if isinstance(item, dict) else item, instruction)
