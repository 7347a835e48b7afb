"""Evaluation inside training: retrieval on a slice of the validation split, for the host's ``eval_steps``."""

import csv
import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import SentenceEvaluator

from umarvel_hf.data import MBeir, Pool, Query, Task
from umarvel_hf.evaluation.benchmark import evaluate_benchmark
from umarvel_hf.evaluation.results import MODEL, POOLS, Result
from umarvel_hf.search import Encoder

METRICS = ("hit@1", "hit@5", "hit@10", "ndcg@10")


class Slice(MBeir):
    """Some queries of every task, in pools that hold their right answers and some of the rest.

    Queries and candidates are drawn by the SHA-256 of their ids, so they are the same in every process. The union pool
    is that of the slice's local pools.

    Args:
        candidates_per_task: Size of a pool, unless the right answers alone are more.
    """

    def __init__(self, benchmark: MBeir, *, queries_per_task: int, candidates_per_task: int) -> None:
        super().__init__(benchmark.root)
        if min(queries_per_task, candidates_per_task) < 1:
            raise ValueError(
                f"queries_per_task is {queries_per_task}, candidates_per_task {candidates_per_task}; give at least 1."
            )
        self._whole, self._query_count, self._candidate_count = benchmark, queries_per_task, candidates_per_task
        self._drawn: dict[tuple[Task, str], tuple[list[Query], Pool]] = {}

    def tasks(self, split: str = "test") -> list[Task]:
        """Those of the benchmark."""
        return self._whole.tasks(split)

    def queries(self, task: Task, split: str = "test") -> list[Query]:
        """The drawn queries of a task, in the order of the file."""
        return self._draw(task, split)[0]

    def qrels(self, task: Task, split: str = "test") -> dict[str, dict[str, int]]:
        """The right answers of the drawn queries."""
        qrels = self._whole.qrels(task, split)
        return {query.qid: qrels[query.qid] for query in self.queries(task, split)}

    def pool(self, task: Task, split: str = "test") -> Pool:
        """The right answers of the drawn queries and a draw of the rest, in the order of the file."""
        return self._draw(task, split)[1]

    def has_union_pool(self, split: str = "test") -> bool:
        """There is no file of it: it is what the local pools hold."""
        return False

    def _draw(self, task: Task, split: str) -> tuple[list[Query], Pool]:
        if (task, split) not in self._drawn:
            whole, qrels = self._whole.queries(task, split), self._whole.qrels(task, split)
            queries = [whole[at] for at in _least([query.qid.encode() for query in whole], self._query_count)]
            pool = self._whole.pool(task, split)
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
        whole = self._whole.train_queries()
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
        pool = self._whole.union_pool("train")
        right = np.unique(pool.positions([did for query in self.train_queries() for did in query.positives]))
        rest = np.setdiff1d(np.arange(len(pool)), right)
        return pool.subset(np.union1d(right[right >= 0], rest[_least(pool.dids[rest], len(right))]))


class RetrievalEvaluator(SentenceEvaluator):
    """Retrieval by the model in training, as ``evaluate_benchmark`` measures it, for ``UMarvelTrainer(evaluator=...)``.

    It changes neither weights nor random states, and leaves every module in training or evaluation as it was. A metric
    is named ``<pool>_<metric>`` for the mean over tasks, ``<task>_<pool>_<metric>`` for a task's own metric, and
    ``<data set>_<pool>_score`` for the mean of these where a data set has several tasks; the trainer puts ``eval_``
    before it.

    Args:
        queries_per_task, candidates_per_task: Size of the slice (:class:`Slice`).
        pools: ``local``, ``union`` or both; ``hit@5`` on the last of them is the primary metric.
        name: Stands before every metric and in the name of the CSV file.
        write_csv: Add a line to ``<output_dir>/eval/Retrieval_evaluation_<name>_results.csv`` each time.

    Raises:
        FileNotFoundError, ValueError: The split is not there or not whole; better now than after the first steps.
    """

    def __init__(
        self,
        benchmark: MBeir,
        *,
        split: str = "val",
        queries_per_task: int = 50,
        candidates_per_task: int = 1000,
        pools: Sequence[str] = POOLS,
        batch_size: int = 32,
        name: str = "",
        write_csv: bool = True,
    ) -> None:
        super().__init__()
        self.slice = Slice(benchmark, queries_per_task=queries_per_task, candidates_per_task=candidates_per_task)
        self.sizes = {task.name: len(self.slice.queries(task, split)) for task in self.slice.tasks(split)}
        self.split, self.pools, self.batch_size = split, list(pools), batch_size
        self.name, self.write_csv = name, write_csv
        self.csv_file = f"Retrieval_evaluation{name and '_' + name}_results.csv"
        self.primary_metric = f"{self.pools[-1]}_hit@5"

    def __call__(  # type: ignore[override]  # as the host's own evaluators do
        self, model: SentenceTransformer, output_path: str | None = None, epoch: float = -1, steps: int = -1
    ) -> dict[str, float]:
        """Encode the slice and search it."""
        # Only what encodes: the weights' checksum, which evaluations store, is of no use here and takes long to make.
        encoder = cast(Encoder, SimpleNamespace(encode=model.encode))
        modes = [(module, module.training) for module in model.modules()]
        try:
            result = evaluate_benchmark(
                encoder, self.slice, split=self.split, pools=self.pools, baselines=False, batch_size=self.batch_size
            )
        finally:
            for module, training in modes:
                module.training = training
        metrics = self.prefix_name_to_metrics(_metrics(result), self.name)
        self.store_metrics_in_model_card_data(model, metrics, epoch, steps)  # type: ignore[arg-type]  # a part of one
        if output_path is not None and self.write_csv:
            _append(Path(output_path) / self.csv_file, {"epoch": epoch, "steps": steps, **metrics})
        return metrics

    def get_config_dict(self) -> dict[str, Any]:
        """For the model card."""
        return {"split": self.split, "pools": self.pools, "queries": self.sizes}


def _metrics(result: Result) -> dict[str, float]:
    found = {}
    for pool in result.pools:
        for metric in METRICS:
            found[f"{pool}_{metric}"] = float(np.mean([task.rate(MODEL, pool, metric) for task in result.tasks]))
        for group, tasks in result.groups.items():
            if len(tasks) > 1:
                found[f"{group}_{pool}_score"] = result.mean(group, MODEL, pool)
        for task in result.tasks:
            found[f"{task.name}_{pool}_{task.metric}"] = task.rate(MODEL, pool)
    return found


def _append(path: Path, row: dict[str, float]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(row))
        if fresh:
            writer.writeheader()
        writer.writerow(row)


def _least(ids: Sequence[bytes] | np.ndarray, count: int) -> np.ndarray:
    """Sorted positions of the ``count`` ids whose SHA-256 is least."""
    digests = np.array([int.from_bytes(hashlib.sha256(one).digest()[:8]) for one in ids], dtype=np.uint64)
    return np.sort(np.argsort(digests, kind="stable")[:count])
