"""What an evaluation found: numbers per task, the comparison with the best baseline, JSON and a table."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from umarvel_hf.data import TASK_TYPES
from umarvel_hf.evaluation.metrics import hits_at
from umarvel_hf.evaluation.significance import holm, paired_randomisation

KS = (1, 5, 10)
MODEL = "model"
POOLS = ("local", "union")
LEVEL = 0.05


@dataclass(frozen=True)
class PoolScore:
    """One system on one task and pool: ``hit@k`` from 0 to 1, and per query the rank of its first right answer
    (from 1; 0 where it is not among the first 10)."""

    hit_rates: dict[str, float]
    first_hits: list[int]


@dataclass(frozen=True)
class Comparison:
    """The model against the baseline with the highest R@5 on local pools, query by query."""

    name: str
    queries: int
    model: float
    baseline: str
    baseline_score: float
    p_value: float
    p_holm: float = 1.0

    @property
    def verdict(self) -> str:
        """``better`` or ``worse`` where the corrected p-value is below 0.05, else ``no difference shown``."""
        if self.p_holm >= LEVEL:
            return "no difference shown"
        return "better" if self.model > self.baseline_score else "worse"


@dataclass(frozen=True)
class TaskResult:
    dataset: str
    task_id: int
    qids: list[str]
    pool_sizes: dict[str, int]
    scores: dict[str, dict[str, PoolScore]]  # by system, by pool
    top: list[list[str]]  # the model's first five dids on the local pool, per query
    comparison: Comparison

    def rate(self, system: str, pool: str, k: int) -> float:
        """Share of queries, 0 to 1, with a right answer among the first ``k`` of a system on a pool."""
        return self.scores[system][pool].hit_rates[f"hit@{k}"]


@dataclass(frozen=True)
class Result:
    tasks: list[TaskResult]
    types: list[Comparison]  # one per task type, over the queries of all data sets
    settings: dict[str, str]
    counts: dict[str, int]
    seconds: dict[str, float]

    @property
    def baselines(self) -> list[str]:
        """The systems beside the model."""
        return [system for system in self.tasks[0].scores if system != MODEL]

    @property
    def datasets(self) -> list[str]:
        """The data sets, in the order of their tasks."""
        return list(dict.fromkeys(task.dataset for task in self.tasks))

    def of(self, dataset: str) -> list[TaskResult]:
        """The results on one data set."""
        return [task for task in self.tasks if task.dataset == dataset]

    def mean(self, dataset: str, system: str, pool: str, k: int) -> float:
        """Plain mean over the tasks of a data set, as M-BEIR averages."""
        return float(np.mean([task.rate(system, pool, k) for task in self.of(dataset)]))

    def save(self, path: str | Path) -> None:
        """Write everything as JSON."""
        Path(path).write_text(json.dumps(asdict(self), ensure_ascii=False), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> "Result":
        """Read what :meth:`save` wrote."""
        saved = json.loads(Path(path).read_text(encoding="utf-8"))
        return cls(**saved | {"tasks": [_task(task) for task in saved["tasks"]], "types": _comparisons(saved["types"])})

    def table(self) -> str:
        """All tasks as aligned plain text, in percent, misses included."""
        how = f"Paired randomisation over queries, Holm-corrected; better and worse mean p < {LEVEL}."
        return "\n".join([*_aligned(_table_rows(self)), "", *verdict_lines(self), how])


def compare(name: str, first: Mapping[str, Sequence[int]]) -> Comparison:
    """Compare by R@5.

    Args:
        first: for every system, the rank of each query's first right answer.
    """
    hits = {system: hits_at(np.asarray(ranks), 5) for system, ranks in first.items()}
    rates = {system: float(values.mean()) for system, values in hits.items()}
    baseline = max((system for system in hits if system != MODEL), key=lambda system: rates[system])
    return Comparison(
        name=name,
        queries=len(hits[MODEL]),
        model=rates[MODEL],
        baseline=baseline,
        baseline_score=rates[baseline],
        p_value=paired_randomisation(hits[MODEL], hits[baseline]),
    )


def corrected(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The same comparisons with p-values corrected for their number (Holm)."""
    p_values = holm([one.p_value for one in comparisons])
    return [replace(one, p_holm=p) for one, p in zip(comparisons, p_values, strict=True)]


def compare_types(tasks: Sequence[TaskResult]) -> list[Comparison]:
    """One comparison per task type, over the queries of all data sets."""
    comparisons = []
    for task_id in sorted({task.task_id for task in tasks}):
        same = [task for task in tasks if task.task_id == task_id]
        systems = same[0].scores
        first = {
            system: [rank for task in same for rank in task.scores[system]["local"].first_hits] for system in systems
        }
        comparisons.append(compare(TASK_TYPES[task_id], first))
    return corrected(comparisons)


def verdict_lines(result: Result) -> list[str]:
    """Two sentences: how often the model beats the best baseline, by task and by task type."""
    lines = []
    for what, comparisons in (("tasks", [task.comparison for task in result.tasks]), ("task types", result.types)):
        verdicts = [one.verdict for one in comparisons]
        lines.append(
            f"Of {len(verdicts)} {what} the model is better than the best baseline on {verdicts.count('better')}, "
            f"worse on {verdicts.count('worse')}; on {verdicts.count('no difference shown')} no difference is shown."
        )
    return lines


def _table_rows(result: Result) -> list[list[str]]:
    ks = [f"R@{k}" for k in KS]
    rows = [
        [
            "",
            "",
            "",
            "local",
            *[pool for pool in POOLS for _ in KS],
            *result.baselines,
            "R@5 against the best of these",
        ],
        ["dataset", "task", "queries", "pool", *ks * len(POOLS), *["R@5" for _ in result.baselines], ""],
    ]
    for dataset in result.datasets:
        for task in result.of(dataset):
            sizes = [f"{len(task.qids):,}", f"{task.pool_sizes['local']:,}"]
            verdict = f"{task.comparison.verdict}, p {task.comparison.p_holm:.4f}"
            rows.append([dataset, _short(task.task_id), *sizes, *_percents(result, task.rate), verdict])
        rows.append([dataset, "mean", "", "", *_percents(result, partial(result.mean, dataset)), ""])
    return rows


def _short(task_id: int) -> str:
    """``text → image+text`` as ``t->(i,t)``, which any terminal prints."""
    name = TASK_TYPES[task_id].replace("image+text", "(i,t)").replace("image", "i").replace("text", "t")
    return name.replace(" → ", "->")


def _percents(result: Result, rate: Callable[[str, str, int], float]) -> list[str]:
    own = [rate(MODEL, pool, k) for pool in POOLS for k in KS]
    return [f"{100 * value:.1f}" for value in [*own, *[rate(name, "local", 5) for name in result.baselines]]]


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    last = len(widths) - 1
    lines = []
    for row in rows:
        cells = enumerate(zip(row, widths, strict=True))
        aligned = (cell.ljust(width) if at in (0, 1, last) else cell.rjust(width) for at, (cell, width) in cells)
        lines.append("  ".join(aligned).rstrip())
    return lines


def _comparisons(saved: list[dict[str, Any]]) -> list[Comparison]:
    return [Comparison(**one) for one in saved]


def _task(saved: dict[str, Any]) -> TaskResult:
    scores = {
        system: {pool: PoolScore(**score) for pool, score in pools.items()} for system, pools in saved["scores"].items()
    }
    return TaskResult(**saved | {"scores": scores, "comparison": Comparison(**saved["comparison"])})
