"""The order in which batches take rows."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from itertools import count
from typing import Any

import numpy as np
from datasets import Dataset
from sentence_transformers.base.sampler import DefaultBatchSampler
from sentence_transformers.util.distributed import get_world_size
from torch.utils.data import SequentialSampler

logger = logging.getLogger(__name__)


class BlockBatchSampler(DefaultBatchSampler):
    """Batches made of blocks, each block of one group (say, one task).

    One group a batch gives the hardest negatives that a batch holds by itself; groups mixed row by row teach which
    modality is asked for. Blocks lie between: ``block_size=1`` mixes rows, ``block_size=batch_size`` gives one group a
    batch, ``block_size=batch_size * ranks`` one group a step.

    All epochs are stretches of one endless sequence, which follows from seed, groups, weights, ``first`` and
    ``block_size`` alone: rounds of blocks, mixed anew, in each of which a row comes as often as the weight of its group
    says. What does not fill a block or a batch opens the next round or epoch. So R ranks with batches of B rows take,
    step by step, what one takes with R·B.

    Args:
        dataset: The rows; their number must be that of ``groups``.
        groups: The group of every row.
        block_size: Rows of one group that stand together; it divides the batch size, or is a multiple of it.
        first: Groups whose blocks open the first round, one group after the other, before the others are mixed. A model
            that knows nothing yet learns fastest from one plain task; many at once hold it where all vectors are alike.
        weights: How often every row of a group comes in a round, 1 unless named; with 0.5, half of the rows come in one
            round and the others in the next.
        batches_per_epoch: Of all ranks together; None: as many as a round fills.
        columns: The columns of every group's rows, if they differ: no step may then mix them.
        ranks: None: as many as there are.
        host: As the host passes them: ``batch_size``, ``drop_last``, ``valid_label_columns``, ``generator``,
            ``seed``.

    Raises:
        ValueError: Other numbers of rows and groups; ``first`` or ``weights`` name a group that is not there; a weight
            is not above 0; ``block_size`` and batch size do not divide; a step would mix rows of several columns; an
            epoch has no batch, or no equal number for every rank.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        groups: Sequence[str],
        block_size: int,
        first: Sequence[str] = (),
        weights: Mapping[str, float] | None = None,
        batches_per_epoch: int | None = None,
        columns: Mapping[str, Sequence[str]] | None = None,
        ranks: int | None = None,
        **host: Any,
    ) -> None:
        super().__init__(SequentialSampler(dataset), **host)
        self.drop_last = True  # every batch is full, and none may be left over for some of the ranks
        if len(groups) != len(dataset):
            raise ValueError(f"There are {len(dataset):,} rows and {len(groups):,} groups; give one group a row.")
        numbers: dict[str, int] = {}
        codes = np.fromiter((numbers.setdefault(group, len(numbers)) for group in groups), np.int32, len(groups))
        self._rows_of = {group: np.flatnonzero(codes == number) for group, number in numbers.items()}
        for what, named in (("are to come first", first), ("have weights", weights or ())):
            if unknown := sorted(set(named) - numbers.keys()):
                raise ValueError(f"Groups {unknown} {what}, but there are only {sorted(numbers)}.")
        self._first, self._block_size = list(first), block_size
        self._weights = {group: Fraction(str((weights or {}).get(group, 1))) for group in numbers}
        self._check(columns or {}, ranks := get_world_size() if ranks is None else ranks)
        whole = int(sum(weight * len(self._rows_of[group]) for group, weight in self._weights.items()))
        self._batches = batches_per_epoch or whole // self.batch_size // ranks * ranks
        if self._batches < 1 or self._batches % ranks:
            raise ValueError(
                f"An epoch would have {self._batches} batches of {self.batch_size} rows for {ranks} ranks (rows times "
                f"weights: {whole:,}). Lower the batch size, raise the weights, or give a multiple of the ranks."
            )

    def __len__(self) -> int:
        return self._batches

    def __iter__(self) -> Iterator[list[int]]:
        start = self.epoch * len(self) * self.batch_size
        rows = self._stretch(start, start + len(self) * self.batch_size)
        return (batch.tolist() for batch in rows.reshape(-1, self.batch_size))

    def _check(self, columns: Mapping[str, Sequence[str]], ranks: int) -> None:
        size, step = self._block_size, self.batch_size * ranks
        if size < 1 or (self.batch_size % size and size % self.batch_size):
            raise ValueError(
                f"block_size {size} does not divide the batch size {self.batch_size}; choose one that does."
            )
        for group, weight in self._weights.items():
            if weight <= 0:
                raise ValueError(f"Group {group!r} has weight {float(weight):g}; give more than 0, or leave it out.")
            if len(self._rows_of[group]) < size:
                logger.warning(
                    "Group %r has %d rows, so blocks of %d hold some of them twice.",
                    group,
                    len(self._rows_of[group]),
                    size,
                )
        kinds = {tuple(columns[group]): group for group in self._rows_of if group in columns}
        if len(kinds) > 1 and size % step:
            raise ValueError(
                "; ".join(f"rows of {group!r} have the columns {', '.join(kind)}" for kind, group in kinds.items())
                + f". Blocks of {size} rows would mix them in a step of {step}; make them as large as that (one task a "
                "step), or train on them in stages of their own."
            )

    def _stretch(self, start: int, stop: int) -> np.ndarray:
        """Rows of the endless sequence, (stop - start,) int64."""
        parts = []
        for number in count():
            begin, end = self._begin(number), self._begin(number + 1)
            if end > start:
                parts.append(self._round(number)[max(start - begin, 0) : stop - begin])
            if end >= stop:
                return np.concatenate(parts)
        raise AssertionError  # rounds do not end

    def _begin(self, number: int) -> int:
        """Where a round begins."""
        return sum(self._blocks(group, number) for group in self._rows_of) * self._block_size

    def _blocks(self, group: str, number: int) -> int:
        """How many blocks a group has filled before a round."""
        return int(number * self._weights[group] * len(self._rows_of[group]) / self._block_size)

    def _round(self, number: int) -> np.ndarray:
        blocks, places = [], []
        for group in self._rows_of:
            begin, end = (self._blocks(group, at) * self._block_size for at in (number, number + 1))
            blocks.append(self._drawn(group, begin, end).reshape(-1, self._block_size))
            place = self._first.index(group) if number == 0 and group in self._first else len(self._first)
            places.append(np.full(len(blocks[-1]), place))
        order = np.random.default_rng((self.seed, number)).permutation(sum(map(len, blocks)))
        order = order[np.argsort(np.concatenate(places)[order], kind="stable")]
        return np.concatenate(blocks)[order].reshape(-1)

    def _drawn(self, group: str, begin: int, end: int) -> np.ndarray:
        """A stretch of a group's rows, which come in a new order again and again."""
        rows, number = self._rows_of[group], list(self._rows_of).index(group)
        passes = range(begin // len(rows), -(-end // len(rows)))
        orders = [np.random.default_rng((self.seed, number, one, 1)).permutation(rows) for one in passes]
        return np.concatenate([rows[:0], *orders])[begin - passes.start * len(rows) :][: end - begin]
