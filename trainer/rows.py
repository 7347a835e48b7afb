"""Rows of several sources as one data set for the trainer, drawn anew in every epoch."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from umarvel_hf.messages import Message
from umarvel_hf.negatives import NegativeTable
from umarvel_hf.pictures import open_picture
from umarvel_hf.trainer.augmentation import Augmentation
from umarvel_hf.trainer.losses import PADDING_ID
from umarvel_hf.trainer.sources import Source


class DrawnRows(TrainerCallback):
    """Rows that are drawn when a batch asks for them, from nothing but their numbers, a seed and the epoch.

    They are the same on every rank, for every number of workers, and after a resume. Pass ``dataset`` to the trainer
    and this object as a callback, which is how it learns the epoch.

    Attributes:
        dataset: Holds the numbers of rows and gives what :meth:`batch` makes of them.
    """

    def __init__(self, numbers: Sequence[int] | np.ndarray, *, seed: int) -> None:
        self.seed, self.epoch = seed, 0
        self.dataset = _Drawn(self, numbers)

    def __deepcopy__(self, memo: dict[int, Any]) -> "DrawnRows":
        """Itself: data sets copy all they refer to for every view of a column, and this refers to all the data."""
        return self

    def batch(self, numbers: Sequence[int]) -> dict[str, list[Any]]:
        """The columns of the rows of these numbers, as they are in this epoch."""
        raise NotImplementedError

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Refuse workers that would not see the epoch change."""
        if args.dataloader_persistent_workers:
            raise ValueError(
                "dataloader_persistent_workers is True; workers that outlive an epoch would draw every row as in the "
                "first one. Leave it out."
            )

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Note the epoch, also one that is gone on with in its middle."""
        self.epoch = int(state.epoch or 0)
        # On several ranks the host does not tell it to the sampler of an epoch that is gone on with in its middle.
        sampler = getattr(kwargs.get("train_dataloader"), "batch_sampler", None)
        while sampler is not None:
            if hasattr(sampler, "set_epoch"):
                sampler.set_epoch(self.epoch)
            sampler = getattr(sampler, "batch_sampler", None)


class TrainingRows(DrawnRows):
    """Rows of several sources for an embedder.

    Args:
        sources: One or more. Where their columns differ, batches must not mix them: pass ``columns`` to the
            :class:`~umarvel_hf.trainer.batches.BlockBatchSampler`.
        seed: Seed of all draws.
        augmentation: Changes pictures; None: they stay as they are.

    Attributes:
        dataset: Gives chats: the columns of a row's source, and ``label``, whose first number is the row's own in all
            sources. Pictures stay unopened until training begins.
        groups: The group of every row.
        columns: The columns of every group.

    Raises:
        ValueError: Two sources have rows of one group with different columns.
    """

    def __init__(self, sources: Sequence[Source], *, seed: int, augmentation: Augmentation | None = None) -> None:
        self.sources, self.augmentation, self.training = list(sources), augmentation, False
        self._starts = np.cumsum([0, *map(len, self.sources)])
        self._width = max(source.label_width for source in self.sources)
        self.groups = list(chain.from_iterable(source.groups for source in self.sources))
        self.columns: dict[str, tuple[str, ...]] = {}
        for source in self.sources:
            for group in dict.fromkeys(source.groups):
                if self.columns.setdefault(group, source.columns) != source.columns:
                    raise ValueError(
                        f"Two sources have rows of {group!r}, with the columns {', '.join(self.columns[group])} and "
                        f"{', '.join(source.columns)}. Train on them in stages of their own."
                    )
        # The model card reads slices with rows of all kinds, which have the columns of all, some of them empty.
        self._every_column = tuple(dict.fromkeys(chain.from_iterable(self.columns.values())))
        super().__init__(np.arange(len(self)), seed=seed)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def use(self, tables: Mapping[str, NegativeTable]) -> None:
        """Have the sources that take mined lists take these from now on."""
        for source in self.sources:
            if hasattr(source, "use"):
                source.use(tables)

    def name(self, label_qid: int) -> str:
        """Where the row comes from whose label begins with this number, such as ``"train.jsonl:7, query '9:12'"``."""
        source, number = self._locate(label_qid)
        return source.origin(number)

    def batch(self, numbers: Sequence[int]) -> dict[str, list[Any]]:
        """The columns of the rows of these numbers; an empty chat where a row has no such column."""
        located = [self._locate(number) for number in numbers]
        rows: list[dict[str, Any]] = [{}] * len(located)
        for source in dict.fromkeys(source for source, _ in located):
            places = [at for at, (other, _) in enumerate(located) if other is source]
            drawn = source.rows([located[at][1] for at in places], self.seed, self.epoch)
            for at, row in zip(places, drawn, strict=True):
                rows[at] = self._finished(row, source, located[at][1])
        columns = sorted(dict.fromkeys(chain.from_iterable(rows)), key="label".__eq__)
        return {column: [row.get(column, []) for row in rows] for column in columns}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Open pictures from now on."""
        super().on_train_begin(args, state, control, **kwargs)
        self.training = True

    def _locate(self, number: int) -> tuple[Source, int]:
        at = int(np.searchsorted(self._starts, number, side="right")) - 1
        return self.sources[at], int(number - self._starts[at])

    def _finished(self, row: dict[str, Any], source: Source, number: int) -> dict[str, Any]:
        start = int(self._starts[self.sources.index(source)])
        label = row["label"]
        if isinstance(label[0], int):  # ids, see InfoNCE; otherwise scores
            label = [start + label[0], *label[1:], *[PADDING_ID] * (self._width - len(label))]
        try:
            shown = {
                column: self._shown(row.get(column, []), f"{self.seed}-{self.epoch}-{start + number}-{column}")
                for column in (source.columns if self.training else self._every_column)
            }
        except (OSError, TypeError, ValueError) as error:
            raise ValueError(f"{source.origin(number)}: {error}") from error
        return {**shown, "label": label}

    def _shown(self, messages: list[Message], draw: str) -> list[Message]:
        if not self.training:  # the model card shows no picture
            return messages
        opened = [
            {
                **message,
                "content": [
                    {**part, "image": open_picture(part["image"])} if part.get("image") is not None else part
                    for part in message["content"]
                ],
            }
            for message in messages
        ]
        return opened if self.augmentation is None else self.augmentation(opened, draw)


class _Drawn(Dataset):
    """Row numbers in Arrow that become rows when they are asked for.

    A transform would do the same, but datasets pickles one, with every query behind it, for each copy's fingerprint.
    """

    def __init__(self, rows: DrawnRows, numbers: Sequence[int] | np.ndarray) -> None:
        super().__init__(Dataset.from_dict({"row": np.asarray(numbers)}).data)
        self._rows = rows

    def __getitem__(self, key: Any) -> Any:
        numbers = super().__getitem__(key)["row"]
        if isinstance(numbers, int):
            return {column: values[0] for column, values in self._rows.batch([numbers]).items()}
        return self._rows.batch(list(numbers))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[number] for number in range(len(self)))
