"""Rows of several sources as one data set for the trainer."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from umarvel_hf.messages import Message, load_image
from umarvel_hf.negatives import NegativeTable
from umarvel_hf.trainer.augmentation import Augmentation
from umarvel_hf.trainer.losses import PADDING_ID
from umarvel_hf.trainer.sources import Source


class TrainingRows(TrainerCallback):
    """Rows of several sources, drawn anew in every epoch.

    A row follows from seed, epoch and its place alone: it is the same on every rank, for every number of workers, and
    after a resume. Pass ``dataset`` to the trainer and this object as a callback, which is how it learns the epoch.

    Args:
        sources: One or more. Where their columns differ, batches must not mix them: pass ``columns`` to the
            :class:`~umarvel_hf.trainer.batches.BlockBatchSampler`.
        seed: Seed of all draws.
        augmentation: Changes pictures; None: they stay as they are.

    Attributes:
        dataset: Holds the numbers of rows, and gives chats: the columns of a row's source, and ``label``, whose first
            number is the row's own in all sources. Pictures stay unopened until training begins.
        groups: The group of every row.
        columns: The columns of every group.
    """

    def __init__(self, sources: Sequence[Source], *, seed: int, augmentation: Augmentation | None = None) -> None:
        self.sources, self.seed, self.augmentation = list(sources), seed, augmentation
        self.epoch, self.training = 0, False
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
        self.dataset = _Chats(self)

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

    def chats(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """The rows of these numbers, as they are in this epoch."""
        located = [self._locate(number) for number in numbers]
        rows: list[dict[str, Any]] = [{}] * len(located)
        for source in dict.fromkeys(source for source, _ in located):
            places = [at for at, (other, _) in enumerate(located) if other is source]
            drawn = source.rows([located[at][1] for at in places], self.seed, self.epoch)
            for at, row in zip(places, drawn, strict=True):
                rows[at] = self._finished(row, source, located[at][1])
        return rows

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Refuse workers that would not see the epoch change."""
        if args.dataloader_persistent_workers:
            raise ValueError(
                "dataloader_persistent_workers is True; workers that outlive an epoch would draw every row as in the "
                "first one. Leave it out."
            )
        self.training = True

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
        if self.augmentation is not None:
            return self.augmentation(messages, draw)
        return [
            {
                **message,
                "content": [
                    {**part, "image": load_image(part["image"])} if part.get("image") is not None else part
                    for part in message["content"]
                ],
            }
            for message in messages
        ]


class _Chats(Dataset):
    """Row numbers in Arrow that become chats when they are asked for.

    A transform would do the same, but datasets pickles one, with every query behind it, for each copy's fingerprint.
    """

    def __init__(self, rows: TrainingRows) -> None:
        super().__init__(Dataset.from_dict({"row": np.arange(len(rows))}).data)
        self._training_rows = rows

    def __getitem__(self, key: Any) -> Any:
        numbers = super().__getitem__(key)["row"]
        if isinstance(numbers, int):
            return self._training_rows.chats([numbers])[0]
        rows = self._training_rows.chats(list(numbers))
        columns = sorted(dict.fromkeys(chain.from_iterable(rows)), key="label".__eq__)
        return {column: [row.get(column, []) for row in rows] for column in columns}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[number] for number in range(len(self)))
