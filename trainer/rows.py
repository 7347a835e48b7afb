"""Rows for the trainer from M-BEIR queries, and the order in which batches take them."""

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from sentence_transformers.base.sampler import DefaultBatchSampler
from torch.utils.data import SequentialSampler

from umarvel_hf.data import MODALITIES, MBeir, Pool, Query
from umarvel_hf.messages import Message, chat
from umarvel_hf.trainer.losses import PADDING_ID


def mbeir_rows(benchmark: MBeir, *, seed: int) -> tuple[Dataset, list[str]]:
    """One row for every training query: anchor, positive, and the ids that keep false negatives out of the loss.

    The positive and the prompt of a query are drawn from its own random state, so a row is the same on every rank and
    after a resume.

    Args:
        benchmark: Its union of training queries and its union training pool are read.
        seed: Seed of the draws.

    Returns:
        A data set with the columns ``anchor`` (a chat with the instruction as system message), ``positive`` (a chat)
        and ``label`` (see ``InfoNCE``), its pictures as paths that are opened when a batch is made; and the group of
        every row: data set and task, such as ``"102 task 7"``.

    Raises:
        ValueError: A query names no positive, or one that is not in the pool.
    """
    queries, pool = benchmark.train_queries(), benchmark.union_pool("train")
    width = max(len(query.positives) for query in queries)
    rows: dict[str, list[Any]] = {"anchor": [], "positive": [], "label": []}
    groups, chosen = [], []
    for number, query in enumerate(queries):
        draw = random.Random(f"{seed}-{query.qid}-{number}")
        positive, others = _draw_positive(draw, query, pool)
        instruction = draw.choice(benchmark.prompts(query, MODALITIES[pool.modalities[positive]]))
        rows["anchor"].append(_paths_as_strings(chat(query.item, instruction)))
        rows["label"].append([number, positive, *others, *[PADDING_ID] * (width - 1 - len(others))])
        groups.append(f"{query.qid.split(':')[0]} task {query.task_id}")
        chosen.append(positive)
    rows["positive"] = [_paths_as_strings(chat(candidate.item)) for candidate in pool.at(chosen)]
    return Dataset.from_dict(rows), groups


class BlockBatchSampler(DefaultBatchSampler):
    """Batches made of blocks, each block of one group (say, one task).

    One group a batch gives the hardest negatives that a batch holds by itself; groups mixed row by row teach which
    modality is asked for. Blocks lie between: ``block_size=1`` mixes rows, ``block_size=batch_size`` gives one group a
    batch.

    Args:
        dataset: The rows; their number must be that of ``groups``.
        groups: The group of every row.
        block_size: Rows of one group that stand together; it divides the batch size. What is left of a group when its
            blocks are full is left out for this epoch, others the next.
        first: Groups whose blocks open the first epoch, one group after the other, before the others are mixed. A model
            that knows nothing yet learns fastest from one plain task; many at once hold it where all vectors are alike.
        kwargs: As the host passes them: ``batch_size``, ``drop_last``, ``valid_label_columns``, ``generator``,
            ``seed``.
    """

    def __init__(
        self, dataset: Dataset, *, groups: Sequence[str], block_size: int, first: Sequence[str], **kwargs: Any
    ) -> None:
        super().__init__(SequentialSampler(dataset), **kwargs)
        if len(groups) != len(dataset):
            raise ValueError(f"There are {len(dataset):,} rows and {len(groups):,} groups; give one group a row.")
        if self.batch_size % block_size:
            raise ValueError(
                f"block_size {block_size} does not divide the batch size {self.batch_size}; choose one that does."
            )
        if unknown := sorted(set(first) - set(groups)):
            raise ValueError(f"Groups {unknown} are to come first, but there are only {sorted(set(groups))}.")
        self.block_size, self.first = block_size, list(first)
        self.rows_of: dict[str, list[int]] = {}
        for row, group in enumerate(groups):
            self.rows_of.setdefault(group, []).append(row)

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        blocks = []
        for group, rows in self.rows_of.items():
            order = torch.randperm(len(rows), generator=generator).tolist()
            full = len(rows) // self.block_size * self.block_size
            place = self.first.index(group) if self.epoch == 0 and group in self.first else len(self.first)
            blocks += [
                (place, [rows[i] for i in order[at : at + self.block_size]]) for at in range(0, full, self.block_size)
            ]
        mixed = [blocks[i] for i in torch.randperm(len(blocks), generator=generator).tolist()]
        shuffled = [block for _, block in sorted(mixed, key=lambda placed: placed[0])]
        per_batch = self.batch_size // self.block_size
        for at in range(0, len(self) * per_batch, per_batch):
            yield [row for block in shuffled[at : at + per_batch] for row in block]

    def __len__(self) -> int:
        blocks = sum(len(rows) // self.block_size for rows in self.rows_of.values())
        return blocks * self.block_size // self.batch_size


def _draw_positive(draw: random.Random, query: Query, pool: Pool) -> tuple[int, list[int]]:
    """The positions in the pool of one positive and of the others."""
    if not query.positives:
        raise ValueError(f"Training query {query.qid!r} names no positive; complete its pos_cand_list or remove it.")
    positions = pool.positions(query.positives).tolist()
    did, positive = draw.choice(list(zip(query.positives, positions, strict=True)))
    if positive < 0:
        raise ValueError(
            f"Training query {query.qid!r} has positive {did!r}, which is not among the {len(pool):,} candidates of "
            "the union training pool. Use the pool that these queries were written for."
        )
    return positive, [other for other in positions if other not in (positive, -1)]


def _paths_as_strings(messages: list[Message]) -> list[Message]:
    """Arrow knows no paths, and wants the same keys in every part."""
    keys = ("type", "text", "image")
    return [
        {
            "role": message["role"],
            "content": [
                {key: str(part[key]) if isinstance(part.get(key), Path) else part.get(key) for key in keys}
                for part in message["content"]
            ],
        }
        for message in messages
    ]
