"""Training a re-ranker: a positive and a mined negative of every query, Yes or No (recipe.md §7.1)."""

import random
from collections.abc import Sequence
from typing import Any

from sentence_transformers import CrossEncoder
from sentence_transformers.cross_encoder import CrossEncoderTrainer, CrossEncoderTrainingArguments
from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss
from transformers import PreTrainedTokenizerBase

from umarvel_hf.data import Item, MBeir
from umarvel_hf.negatives import NegativeTable
from umarvel_hf.reranking import as_parts, reranker_query
from umarvel_hf.trainer.adapters import ResumesAdapters, last_checkpoint
from umarvel_hf.trainer.cutting import cut_item
from umarvel_hf.trainer.rows import DrawnRows
from umarvel_hf.trainer.sharding import ShardsWeights


class Judgements(DrawnRows):
    """A re-ranker's training rows: each training query twice, with a positive (label 1) and a mined negative (0).

    A batch of B rows becomes 2·B pairs. Positive, negative and instruction are drawn by seed, epoch, qid and row, so a
    run that is continued sees what an unbroken one sees. Pairs are made when a batch asks for them, pictures stay paths
    until then.

    Args:
        benchmark: Its union of training queries and its union training pool are read.
        table: Mined lists; queries without one, or whose list has no positive or no candidate, are left out.
        tokenizer: The re-ranker's.
        seed: Seed of the draws.
        max_tokens: Longer texts are cut; in training only (recipe.md §7.1).

    Raises:
        ValueError: No query is left.
    """

    def __init__(
        self,
        benchmark: MBeir,
        table: NegativeTable,
        tokenizer: PreTrainedTokenizerBase,
        *,
        seed: int,
        max_tokens: int = 256,
    ) -> None:
        taught = {mined.qid for mined in table if mined.positives and mined.dids}
        self.benchmark, self.table, self.tokenizer = benchmark, table, tokenizer
        self.max_tokens = max_tokens
        numbers = [number for number, query in enumerate(benchmark.train_queries()) if query.qid in taught]
        if not numbers:
            raise ValueError(
                f"{table.path}: none of {len(table):,} lists is of a training query of {benchmark.root} and has a "
                "positive and a candidate. Mine these queries, or deeper."
            )
        super().__init__(numbers, seed=seed)

    def batch(self, numbers: Sequence[int]) -> dict[str, list[Any]]:
        """Two pairs for each of these training queries: ``query``, ``candidate`` and ``label``."""
        pairs = [pair for number in numbers for pair in self._pairs_of(number)]
        return dict(zip(("query", "candidate", "label"), map(list, zip(*pairs, strict=True)), strict=True))

    def _pairs_of(self, number: int) -> list[tuple[dict[str, Any], dict[str, Any], int]]:
        query, pool = self.benchmark.train_queries()[number], self.benchmark.union_pool("train")
        mined = self.table[query.qid]
        draw = random.Random(f"{self.seed}-{self.epoch}-{query.qid}-{number}")  # some rows are there several times
        positive, negative = pool[draw.choice(mined.positives)], pool[draw.choice(mined.dids)]
        asked = self._item(reranker_query(query, draw.choice(self.benchmark.prompts(query, positive.modality))))
        return [(asked, self._item(candidate.item), label) for label, candidate in ((1, positive), (0, negative))]

    def _item(self, item: Item) -> dict[str, Any]:
        return cut_item(as_parts(item), self.tokenizer, self.max_tokens)


class _Trainer(ShardsWeights, ResumesAdapters, CrossEncoderTrainer):
    """The host's, which goes on from adapters and splits weights where accelerate is told to."""


def train_reranker(
    model: CrossEncoder, rows: Judgements, arguments: CrossEncoderTrainingArguments
) -> CrossEncoderTrainer:
    """Train a re-ranker in place with the cross-entropy of Yes against No; it goes on from the last checkpoint.

    Args:
        model: From ``new_reranker``, with an adapter or without.
        arguments: ``per_device_train_batch_size`` counts queries, each of which is two pairs.

    Returns:
        The trainer, done.
    """
    trainer = _Trainer(
        model=model, args=arguments, train_dataset=rows.dataset, loss=BinaryCrossEntropyLoss(model), callbacks=[rows]
    )
    # DDP looks for the parameters that a batch without pictures leaves out in dicts, and the host returns a UserDict.
    with model.register_forward_hook(lambda _module, _inputs, features: dict(features)):
        trainer.train(resume_from_checkpoint=last_checkpoint(str(arguments.output_dir)))
    return trainer
