"""What an evaluation found: values per query, means, the comparison with the best baseline, JSON and a table."""

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import EvalResult

from umarvel_hf.data import TASK_TYPES, Task
from umarvel_hf.evaluation.significance import LEVEL, Comparison, corrected, paired
from umarvel_hf.evaluation.suites import ZERO_SHOT, task_name
from umarvel_hf.store import whole_file

FORMAT = 2
MODEL, RERANKED = "model", "re-ranked"
POOLS = ("local", "union")
KS = (1, 5, 10)
WRONG_MODALITY = "wrong_modality@10"  # share of the first ten candidates whose modality no right answer has
METRICS = ("hit@1", "hit@5", "hit@10", "hit@50", "recall@5", "recall@10", "recall@50", "ndcg@10", "mrr", "map")

# M-BEIR's 16 configurations, in the order in which papers print them, and the depth of the hit rate they report
# (recipe.md §9.2, §11).
MBEIR_TASKS = {
    Task("visualnews", 0): 5,
    Task("mscoco", 0): 5,
    Task("fashion200k", 0): 10,
    Task("webqa", 1): 5,
    Task("edis", 2): 5,
    Task("webqa", 2): 5,
    Task("visualnews", 3): 5,
    Task("mscoco", 3): 5,
    Task("fashion200k", 3): 10,
    Task("nights", 4): 5,
    Task("oven", 6): 5,
    Task("infoseek", 6): 5,
    Task("fashioniq", 7): 10,
    Task("cirr", 7): 5,
    Task("oven", 8): 5,
    Task("infoseek", 8): 5,
}

# The names under which mteb has them.
MTEB_NAMES = dict(
    zip(
        (
            "VisualNewsT2IRetrieval", "MSCOCOT2IRetrieval", "Fashion200kT2IRetrieval", "WebQAT2TRetrieval",
            "EDIST2ITRetrieval", "WebQAT2ITRetrieval", "VisualNewsI2TRetrieval", "MSCOCOI2TRetrieval",
            "Fashion200kI2TRetrieval", "NIGHTSI2IRetrieval", "OVENIT2TRetrieval", "InfoSeekIT2TRetrieval",
            "FashionIQIT2IRetrieval", "CIRRIT2IRetrieval", "OVENIT2ITRetrieval", "InfoSeekIT2ITRetrieval",
        ),
        MBEIR_TASKS,
        strict=True,
    )
)  # fmt: skip


@dataclass(frozen=True)
class PoolScore:
    """One system on one task and pool: by metric, one value from 0 to 1 for every query."""

    values: dict[str, list[float]]

    def mean(self, metric: str) -> float:
        """Mean over the queries."""
        if metric not in self.values:
            raise ValueError(f"{metric!r} was not measured; measured are {', '.join(self.values)}.")
        return float(np.mean(self.values[metric]))


@dataclass(frozen=True)
class TaskResult:
    """One task.

    Args:
        task_id: None for a run file that belongs to no benchmark.
        metric: The one to report: ``hit@5``; ``hit@10`` on Fashion200K and FashionIQ.
        pool_sizes: Number of candidates, by pool.
        scores: By system, by pool.
        top: By pool, the first ten dids that the model found for every query.
        by_prompt: By pool, the model's mean of ``metric`` with each prompt; empty where one prompt was used.
        comparison: The model against the best baseline on the first pool; None without baselines.
        part, shape: Of a zero-shot set: which of its tasks ("" where it has one), and what it asks for, such as
            ``text → video``.
    """

    dataset: str
    task_id: int | None
    metric: str
    qids: list[str]
    pool_sizes: dict[str, int]
    scores: dict[str, dict[str, PoolScore]]
    top: dict[str, list[list[str]]]
    by_prompt: dict[str, list[float]] = field(default_factory=dict)
    comparison: Comparison | None = None
    part: str = ""
    shape: str = ""

    @property
    def name(self) -> str:
        """As the files spell it, such as ``mscoco_task0``; of a zero-shot set such as ``sugarcrepe_swap_att``."""
        if self.task_id is not None:
            return Task(self.dataset, self.task_id).name
        return task_name(self.dataset, self.part)

    @property
    def type(self) -> str:
        """In words, such as ``text → image``."""
        return (self.shape or "run file") if self.task_id is None else TASK_TYPES[self.task_id]

    @property
    def systems(self) -> list[str]:
        """What was measured: the model, re-ranked or not, and the baselines."""
        return list(self.scores)

    def rate(self, system: str, pool: str, metric: str | None = None) -> float:
        """Mean of a metric (None: the task's own) of a system on a pool."""
        return self.scores[system][pool].mean(metric or self.metric)


@dataclass(frozen=True)
class Result:
    """A whole evaluation.

    Args:
        suite: ``m-beir``, ``emoji``, a zero-shot set, or ``trec`` for a run file.
        tasks: Values of every query, by task; at least one.
        types: The model against the best baseline, by task type over all data sets; empty without baselines.
        settings: What is needed to reproduce the numbers.
        counts: Of tasks, queries and candidates.
        seconds: Duration of each phase.
        fusion: Weight of the re-ranker and how it was fitted (``reranking.Fusion`` as a dict); None without one.
    """

    suite: str
    tasks: list[TaskResult]
    types: list[Comparison]
    settings: dict[str, str]
    counts: dict[str, int]
    seconds: dict[str, float]
    fusion: dict[str, Any] | None = None

    @property
    def systems(self) -> list[str]:
        """What was measured: the model, re-ranked or not, and the baselines."""
        return self.tasks[0].systems

    @property
    def baselines(self) -> list[str]:
        """The systems that need no model."""
        return [system for system in self.systems if system not in (MODEL, RERANKED)]

    @property
    def pools(self) -> list[str]:
        """The pools that were searched."""
        return list(self.tasks[0].pool_sizes)

    @property
    def groups(self) -> dict[str, list[TaskResult]]:
        """The tasks whose plain mean is reported.

        M-BEIR's all together; of a zero-shot set those that it has a mean of, or every task alone; otherwise those of
        each data set.
        """
        if self.suite == "m-beir":
            return {"M-BEIR": self.tasks}
        if self.suite in ZERO_SHOT:
            means = ZERO_SHOT[self.suite].means or {task.name: (task.part,) for task in self.tasks}
            named = {name: [task for task in self.tasks if task.part in parts] for name, parts in means.items()}
            return {name: tasks for name, tasks in named.items() if tasks}
        groups: dict[str, list[TaskResult]] = {}
        for task in self.tasks:
            groups.setdefault(task.dataset, []).append(task)
        return groups

    @property
    def missing(self) -> list[str]:
        """Tasks of M-BEIR or of a zero-shot set that were not evaluated; a mean is one of all only where none is."""
        wanted = [task.name for task in MBEIR_TASKS] if self.suite == "m-beir" else []
        if self.suite in ZERO_SHOT:
            wanted = [task_name(self.suite, task.part) for task in ZERO_SHOT[self.suite].tasks]
        return [name for name in wanted if name not in {one.name for one in self.tasks}]

    def mean(self, group: str, system: str, pool: str, metric: str | None = None) -> float:
        """Plain mean over the tasks of a group, 0 to 1, as M-BEIR averages; metric None: each task's own.

        Raises:
            KeyError: There is no such group, system or pool.
            ValueError: The metric was not measured.
        """
        return float(np.mean([task.rate(system, pool, metric) for task in self.groups[group]]))

    def save(self, path: str | Path) -> None:
        """Write everything as JSON, whole or not at all."""
        with whole_file(Path(path)) as file:
            file.write(self.as_json().encode())

    def as_json(self) -> str:
        """Everything, as one line."""
        return json.dumps({"format": FORMAT, **asdict(self)}, ensure_ascii=False)

    @classmethod
    def load(cls, path: str | Path) -> "Result":
        """Read what :meth:`save` wrote; a folder stands for its ``result.json``.

        Raises:
            FileNotFoundError: There is none.
            ValueError: It is no result, or one of another format.
        """
        path = Path(path) / "result.json" if Path(path).is_dir() else Path(path)
        try:
            saved = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
        except ValueError as error:
            raise ValueError(f"{path} is not JSON ({error}). Pass the result.json of an evaluation.") from error
        found = saved.pop("format", None) if isinstance(saved, dict) else None
        if found != FORMAT:
            raise ValueError(f"{path} has format {found!r}; this version reads {FORMAT}. Evaluate again.")
        try:
            types = [Comparison(**one) for one in saved["types"]]
            result = cls(**saved | {"tasks": [_task(task) for task in saved["tasks"]], "types": types})
            result.mean(next(iter(result.groups)), MODEL, result.pools[0])
        except (KeyError, TypeError, IndexError, StopIteration) as error:
            raise ValueError(f"{path} is no whole result ({error!r}). Evaluate again.") from error
        return result

    def listed(self) -> list[EvalResult]:
        """The model's scores as the Hub lists them in a card: each task's own metric, by pool, 0 to 1."""
        return [
            EvalResult(
                task_type="retrieval",
                task_name=task.type,
                dataset_type=self.suite,
                dataset_name=task.name,
                dataset_config=task.name,  # the Hub tells results apart by it, not by the name
                dataset_split=self.settings["split"],
                metric_type={"hit": "hit_rate", "capped_map": "map"}.get(kind := task.metric.partition("@")[0], kind),
                metric_name=f"{task.metric}, {pool} pool",
                metric_value=round(task.rate(MODEL, pool), 4),
            )
            for task in self.tasks
            for pool in self.pools
        ]

    def table(self) -> str:
        """All tasks as aligned plain text, in percent, misses included."""
        lines = aligned(_suite_rows(self) if self.suite in ZERO_SHOT else _table_rows(self))
        if self.missing:
            lines += ["", f"Not evaluated: {', '.join(self.missing)}."]
        if self.baselines:
            how = f"Paired randomisation over queries, Holm-corrected; better and worse mean p < {LEVEL}."
            lines += ["", *verdict_lines(self), how]
        return "\n".join(lines)


def versions() -> dict[str, str]:
    """The versions of what decides the numbers."""
    found = {"python": platform.python_version()}
    for package in ("umarvel_hf", "torch", "transformers", "sentence-transformers", "numpy", "Pillow"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def own_metric(task: Task) -> str:
    """What M-BEIR reports of a task: ``hit@5``, on Fashion200K and FashionIQ ``hit@10``."""
    return f"hit@{MBEIR_TASKS.get(task, 5)}"


def against_best(name: str, metric: str, values: dict[str, np.ndarray]) -> Comparison | None:
    """The model against the best of the baselines, query by query; None where there is no baseline.

    Args:
        values: By system, (Q,) one value of ``metric`` per query.
    """
    baselines = [system for system in values if system not in (MODEL, RERANKED)]
    if not baselines:
        return None
    best = max(baselines, key=lambda system: float(values[system].mean()))
    return paired(name, metric, MODEL, values[MODEL], best, values[best])


def compare_types(tasks: Sequence[TaskResult]) -> list[Comparison]:
    """One comparison per task type, over the queries of all data sets, on the first pool."""
    comparisons = []
    pool = next(iter(tasks[0].pool_sizes))
    for task_id in sorted({task.task_id for task in tasks if task.task_id is not None}):
        same = [task for task in tasks if task.task_id == task_id]
        values = {
            system: np.concatenate([task.scores[system][pool].values[task.metric] for task in same])
            for system in same[0].systems
        }
        comparisons.append(against_best(TASK_TYPES[task_id], same[0].metric, values))
    return corrected([one for one in comparisons if one is not None])


def verdict_lines(result: Result) -> list[str]:
    """Two sentences: how often the model beats the best baseline, by task and by task type."""
    lines = []
    tasks = [task.comparison for task in result.tasks if task.comparison is not None]
    for what, comparisons in (("tasks", tasks), ("task types", result.types)):
        verdicts = [one.verdict for one in comparisons]
        lines.append(
            f"Of {len(verdicts)} {what} the model is better than the best baseline on {verdicts.count('better')}, "
            f"worse on {verdicts.count('worse')}; on {verdicts.count('no difference shown')} no difference is shown."
        )
    return lines


def short_type(name: str) -> str:
    """``text → image+text`` as ``t->(i,t)``, which any terminal prints."""
    return name.replace("image+text", "(i,t)").replace("image", "i").replace("text", "t").replace(" → ", "->")


def short_metric(metric: str) -> str:
    """As tables head a column: ``R@5`` for ``hit@5``, which M-BEIR calls recall."""
    if metric == WRONG_MODALITY:
        return "wrong"
    return metric.replace("target_hit@", "target R@").replace("hit@", "R@").replace("capped_map@", "mAP@")


def aligned(rows: list[list[str]]) -> list[str]:
    """Lay out rows of cells as lines: the first two columns and the last to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    last = len(widths) - 1
    lines = []
    for row in rows:
        cells = enumerate(zip(row, widths, strict=True))
        laid = (cell.ljust(width) if at in (0, 1, last) else cell.rjust(width) for at, (cell, width) in cells)
        lines.append("  ".join(laid).rstrip())
    return lines


def _table_rows(result: Result) -> list[list[str]]:
    """The model on every pool, then what else was measured by each task's own metric, then the verdict."""
    ours = [(MODEL, pool, metric) for pool in result.pools for metric in ("hit@1", None, "hit@10")]
    if "union" in result.pools:
        ours.append((MODEL, "union", WRONG_MODALITY))
    others = [(RERANKED, pool, None) for pool in result.pools if RERANKED in result.systems]
    others += [(system, result.pools[0], None) for system in result.baselines]
    measured = [*ours, *others]
    metrics = {task.metric for task in result.tasks}
    own = short_metric(metrics.pop()) if len(metrics) == 1 else "score"
    above = [pool for _, pool, _ in ours] + [pool if name == RERANKED else name for name, pool, _ in others]
    below = [short_metric(metric) if metric else own for *_, metric in ours]
    below += [RERANKED if name == RERANKED else own for name, *_ in others]
    score, verdicts = ("score is" if own == "score" else ""), ("against the best" if result.baselines else "")
    rows = [["", "", "", result.pools[0], *above, verdicts], ["dataset", "task", "queries", "pool", *below, score]]
    for group, tasks in result.groups.items():
        for task in tasks:
            sizes = [f"{len(task.qids):,}", f"{task.pool_sizes[result.pools[0]]:,}"]
            note = [short_metric(task.metric)] if own == "score" else []
            note += [f"{task.comparison.verdict}, p {task.comparison.p_holm:.4f}"] if task.comparison else []
            percents = [f"{100 * task.rate(*one):.1f}" for one in measured]
            rows.append([task.dataset, short_type(task.type), *sizes, *percents, "  ".join(note)])
        means = [f"{100 * result.mean(group, *one):.1f}" for one in measured]
        rows.append([group, "mean", "", "", *means, f"of {len(tasks)} tasks"])
    return rows


def _suite_rows(result: Result) -> list[list[str]]:
    """Every task with all of its metrics, then the means."""
    metrics = list(
        dict.fromkeys(metric for task in result.tasks for metric in task.scores[MODEL][result.pools[0]].values)
    )
    rows = [["task", "", "queries", "candidates", *map(short_metric, metrics), ""]]
    for task in result.tasks:
        values = task.scores[MODEL][result.pools[0]]
        percents = [f"{100 * values.mean(one):.1f}" if one in values.values else "–" for one in metrics]
        sizes = [f"{len(task.qids):,}", f"{task.pool_sizes[result.pools[0]]:,}"]
        rows.append([task.name, short_type(task.type), *sizes, *percents, ""])
    for name, tasks in result.groups.items():
        if len(tasks) > 1:
            means = [f"{100 * result.mean(name, MODEL, result.pools[0], one):.1f}" for one in metrics]
            rows.append([name, "mean", "", "", *means, f"of {len(tasks)} tasks"])
    return rows


def _task(saved: dict[str, Any]) -> TaskResult:
    scores = {
        system: {pool: PoolScore(**score) for pool, score in pools.items()} for system, pools in saved["scores"].items()
    }
    comparison = Comparison(**saved["comparison"]) if saved["comparison"] else None
    return TaskResult(**saved | {"scores": scores, "comparison": comparison})


def _refuse_constant(name: str) -> None:
    raise ValueError(f"it holds {name}")
