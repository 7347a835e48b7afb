"""Evaluation inside training: retrieval on a slice of the validation split, for the host's ``eval_steps``."""

import csv
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import SentenceEvaluator

from umarvel_hf.data import MBeir
from umarvel_hf.encoding import can_encode, encode
from umarvel_hf.evaluation.benchmark import evaluate_benchmark
from umarvel_hf.evaluation.results import MODEL, POOLS, Result
from umarvel_hf.search import Encoder
from umarvel_hf.trainer.views import Slice

METRICS = ("hit@1", "hit@5", "hit@10", "ndcg@10")


class RetrievalEvaluator(SentenceEvaluator):
    """Retrieval by the model in training, as ``evaluate_benchmark`` measures it, for ``UMarvelTrainer(evaluator=...)``.

    It changes neither weights nor random states, and leaves every module in training or evaluation as it was. A metric
    is named ``<pool>_<metric>`` for the mean over tasks, ``<task>_<pool>_<metric>`` for a task's own metric, and
    ``<data set>_<pool>_score`` for the mean of these where a data set has several tasks; the trainer puts ``eval_``
    before it.

    Args:
        split: Whose queries are drawn.
        queries_per_task, candidates_per_task: Size of the slice (:class:`Slice`), each from 1.
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
        name: str = "",
        write_csv: bool = True,
    ) -> None:
        super().__init__()
        self.slice = Slice(benchmark, queries_per_task=queries_per_task, candidates_per_task=candidates_per_task)
        self.sizes = {task.name: len(self.slice.queries(task, split)) for task in self.slice.tasks(split)}
        self.split, self.pools = split, list(pools)
        self.name, self.write_csv = name, write_csv
        self.csv_file = f"Retrieval_evaluation{name and '_' + name}_results.csv"
        self.primary_metric = f"{self.pools[-1]}_hit@5"

    def __call__(  # type: ignore[override]  # as the host's own evaluators do
        self, model: SentenceTransformer, output_path: str | None = None, epoch: float = -1, steps: int = -1
    ) -> dict[str, float]:
        """Encode the slice and search it; metrics are 0 to 1, by the names above."""
        # Only what encodes: the weights' checksum, which evaluations store, is of no use here and takes long to make.
        one = partial(encode, model) if can_encode(model) else model.encode
        encoder = cast(Encoder, SimpleNamespace(encode=one))
        modes = [(module, module.training) for module in model.modules()]
        try:
            result = evaluate_benchmark(encoder, self.slice, split=self.split, pools=self.pools, baselines=False)
        finally:
            for module, training in modes:
                module.training = training
        metrics = self.prefix_name_to_metrics(_metrics(result), self.name)
        self.store_metrics_in_model_card_data(model, metrics, epoch, steps)  # type: ignore[arg-type]  # a part of one
        if output_path is not None and self.write_csv:
            _append(Path(output_path) / self.csv_file, {"epoch": epoch, "steps": steps, **metrics})
        return metrics

    def get_config_dict(self) -> dict[str, Any]:
        """What the model card says of it: split, pools and the queries of every task."""
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
