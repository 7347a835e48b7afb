"""Results of one or several models side by side: M-BEIR, zero-shot sets, mteb; what papers print stands apart."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from umarvel_hf.evaluation.published import published, published_zero_shot
from umarvel_hf.evaluation.results import (
    MBEIR_TASKS,
    MODEL,
    MTEB_NAMES,
    POOLS,
    RERANKED,
    Result,
    own_metric,
    short_type,
)
from umarvel_hf.evaluation.suites import ZERO_SHOT, task_name

UNNAMED = "model without a name"


@dataclass(frozen=True)
class Column:
    """A task or a mean over tasks: what heads it, and by which metric."""

    key: Any
    title: str
    metric: str


@dataclass(frozen=True)
class Row:
    """One model: percent by the key of a column; what was not measured is not there."""

    model: str
    reranked: bool
    scores: dict[Any, float]


@dataclass(frozen=True)
class Section:
    """A table: rows that were measured here, and, apart from them, those that papers print."""

    title: str
    columns: list[Column]
    measured: list[Row]
    published: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class MtebScores:
    """One task and split as mteb measured it: means over its subsets, from 0 to 1, by metric.

    Args:
        model: Name, and where several revisions of it were given, the folder of this one.
    """

    model: str
    task: str
    split: str
    scores: dict[str, float]
    main: float
    path: Path


@dataclass(frozen=True)
class Evaluated:
    """One evaluation, where it was read from, and what its rows are called."""

    path: Path
    name: str
    result: Result


@dataclass(frozen=True)
class Measured:
    """What was given: evaluations, and tasks of mteb. Names of a model measured twice on a task hold paths."""

    results: list[Evaluated]
    mteb: list[MtebScores]


def read_results(paths: Sequence[str | Path]) -> Measured:
    """Read evaluations and results of mteb.

    Args:
        paths: Each the folder of an evaluation, its ``result.json``, a JSON file of mteb, or a folder with such files
            at any depth, such as mteb's cache.

    Raises:
        FileNotFoundError: There is nothing, or a folder holds neither.
        ValueError: A file is neither, or is given twice.
    """
    results, mteb = list[Evaluated](), list[MtebScores]()
    for path in map(Path, [paths] if isinstance(paths, str | Path) else paths):
        if path.is_dir() and not (path / "result.json").is_file():
            found = [one for file in sorted(path.rglob("*.json")) for one in _mteb_scores(file)]
            if not found:
                raise FileNotFoundError(f"{path} holds neither result.json nor results of mteb. Name another folder.")
            mteb += found
        elif path.is_file() and (found := _mteb_scores(path)):
            mteb += found
        else:
            result = Result.load(path)
            results.append(
                Evaluated(path, result.settings.get("model") or result.settings.get("run") or UNNAMED, result)
            )
    files = {(one.path.resolve(), one.split) for one in mteb}
    if len({one.path.resolve() for one in results}) + len(files) < len(results) + len(mteb):
        raise ValueError(f"a result is given twice among {', '.join(map(str, paths))}. Leave one out.")
    measured = Counter((one.name, one.result.suite, task.name) for one in results for task in one.result.tasks)
    folders: dict[str, set[Path]] = {}
    for one in mteb:
        folders.setdefault(one.model, set()).add(one.path.parent)  # mteb's: one a revision
    return Measured(
        [
            replace(one, name=f"{one.name} ({one.path})")
            if any(measured[one.name, one.result.suite, task.name] > 1 for task in one.result.tasks)
            else one
            for one in results
        ],
        [
            replace(one, model=f"{one.model} ({one.path.parent})") if len(folders[one.model]) > 1 else one
            for one in mteb
        ],
    )


def sections(measured: Measured) -> list[Section]:
    """The tables, only those with something measured in them: M-BEIR by pool, zero-shot sets, others, mteb."""
    by_suite: dict[str, list[Evaluated]] = {}
    for one in measured.results:
        by_suite.setdefault(one.result.suite, []).append(one)
    mbeir = by_suite.pop("m-beir", [])
    made = [
        *(_mbeir([one for one in mbeir if pool in one.result.pools], pool) for pool in POOLS),
        *_zero_shot([one for suite in ZERO_SHOT for one in by_suite.pop(suite, [])]),
        *(_others(results, suite) for suite, results in by_suite.items()),
        _mteb(measured.mteb),
    ]
    shown, told = list[Section](), set[str]()
    for section in made:
        if section.measured:
            shown.append(replace(section, notes=[note for note in section.notes if note not in told]))
            told.update(section.notes)  # what holds for several tables is said once
    return shown


def _mbeir(evaluated: Sequence[Evaluated], pool: str) -> Section:
    told = published()
    columns = [Column("average", "average", "mean of 16")]
    columns += [Column(one.name, f"{one.dataset} {_way(one.type)}", own_metric(one)) for one in MBEIR_TASKS]
    rows = []
    for one in evaluated:
        result = one.result
        for system in (MODEL, RERANKED):
            if system in result.systems:
                scores = {task.name: 100 * task.rate(system, pool) for task in result.tasks}
                if not result.missing:
                    scores["average"] = 100 * result.mean("M-BEIR", system, pool)
                rows.append(Row(one.name, system == RERANKED, scores))
    printed = [
        Row(row.model, row.reranked, row.scores | ({} if row.average is None else {"average": row.average}))
        for row in told.rows[pool]
    ]
    splits = [
        f"{one.name} was measured on split {one.result.settings['split']}, the rows of papers are of test."
        for one in evaluated
        if one.result.settings["split"] != "test"
    ]
    notes = [told.about, *told.notes, *splits]
    return Section(f"M-BEIR, {pool} pool{'s' if pool == 'local' else ''}", columns, _joined(rows), printed, notes)


def _zero_shot(evaluated: Sequence[Evaluated]) -> Iterator[Section]:
    """Text and images, then text and video: the columns of the papers, then whatever else was measured."""
    rows = _joined([Row(one.name, False, dict(_zero_shot_scores(one.result))) for one in evaluated])
    for kind, title in (("image", "Zero-shot, text and images"), ("video", "Zero-shot, text and video")):
        told = published_zero_shot(kind)
        scored = dict.fromkeys(key for row in rows for key in row.scores)
        own = [key for key in scored if _is_video(key[0]) == (kind == "video")]
        keys = [one for one in told.columns if one in own] + [one for one in own if one not in told.columns]
        printed = [Row(one.model, one.reranked, one.scores) for one in told.rows[kind] if one.scores.keys() & set(keys)]
        shown = [Row(row.model, False, {key: row.scores[key] for key in keys if key in row.scores}) for row in rows]
        notes = [told.about, *told.notes] if printed else []
        notes += [note for one in evaluated if _is_video(one.result.suite) == (kind == "video") for note in _parts(one)]
        yield Section(
            title, [Column(key, _zero_shot_title(key), key[2]) for key in keys], [row for row in shown if row.scores],
            printed, notes,
        )  # fmt: skip


def _zero_shot_scores(result: Result) -> Iterator[tuple[tuple[str, str, str], float]]:
    """By set, task or mean, and metric, in percent. A mean stands for its tasks, where none of them is missing."""
    pool, means = result.pools[0], ZERO_SHOT[result.suite].means
    whole = {name: tasks for name, tasks in result.groups.items() if len(tasks) == len(means.get(name, tasks))}
    covered = {task.name for tasks in whole.values() for task in tasks}
    for name in whole:
        for metric in _reported(result, name):
            yield (result.suite, name, metric), 100 * result.mean(name, MODEL, pool, metric)
    for task in result.tasks:
        if task.name not in covered:
            yield (result.suite, task.name, task.metric), 100 * task.rate(MODEL, pool)


def _parts(one: Evaluated) -> Iterator[str]:
    """What was measured on a part of a set, where its size is known."""
    sizes = {task.part: task.size for task in ZERO_SHOT[one.result.suite].tasks}
    for task in one.result.tasks:
        size = sizes[task.part]
        if size is not None and len(task.qids) != size:
            yield f"{one.name} was measured on {len(task.qids):,} queries of {task.name}; the whole set has {size:,}."


def _reported(result: Result, name: str) -> list[str]:
    """The metrics that papers print of it; where they print none, its first."""
    printed = [column for kind in ("image", "video") for column in published_zero_shot(kind).columns]
    found = [metric for suite, group, metric in printed if (suite, group) == (result.suite, name)]
    return found or [result.groups[name][0].metric]


def _zero_shot_title(key: tuple[str, str, str]) -> str:
    suite, name, _ = key
    types = {task_name(suite, task.part): task for task in ZERO_SHOT[suite].tasks if task.part}
    title = ZERO_SHOT[suite].title
    if name not in types:
        return title if name in (suite, title) else f"{title} {name}"
    part = types[name].part
    return f"{title} {_way(types[name].type) if part in ('t2i', 'i2t') else part}"


def _way(words: str) -> str:
    """``t → i`` for ``text → image``."""
    return short_type(words).replace("->", " → ")


def _is_video(suite: str) -> bool:
    return any(task.candidate.video for task in ZERO_SHOT[suite].tasks)


def _others(evaluated: Sequence[Evaluated], suite: str) -> Section:
    """The means of a benchmark that no paper has, by pool."""
    columns: dict[Any, Column] = {}
    rows = []
    for one in evaluated:
        result = one.result
        for system in (MODEL, RERANKED):
            if system not in result.systems:
                continue
            scores = {}
            for group, tasks in result.groups.items():
                for pool in result.pools:
                    key = (group, pool, *(task.name for task in tasks))  # a mean over other tasks is another number
                    columns[key] = Column(key, f"{group}, {pool}", f"mean of {len(tasks)}")
                    scores[key] = 100 * result.mean(group, system, pool)
            rows.append(Row(one.name, system == RERANKED, scores))
    titles = {"emoji": "Embedded benchmark", "trec": "Run files"}
    return Section(titles.get(suite, suite), list(columns.values()), _joined(rows))


def _mteb(scores: Sequence[MtebScores]) -> Section:
    columns, rows = dict[str, Column](), []
    for one in scores:
        metric = "main_score"
        if one.task in MTEB_NAMES:
            metric = own_metric(MTEB_NAMES[one.task]).replace("hit@", "hit_rate_at_")
        value = one.main if metric == "main_score" else one.scores.get(metric)
        if value is None:
            raise ValueError(f"{one.path} has no {metric}; it has {', '.join(sorted(one.scores))}. Evaluate again.")
        key = one.task if one.split == "test" else f"{one.task}, {one.split}"
        columns[key] = Column(key, key, metric)
        rows.append(Row(one.model, False, {key: 100 * value}))
    return Section("mteb", list(columns.values()), _joined(rows))


def _joined(rows: Sequence[Row]) -> list[Row]:
    """One row a model."""
    joined: dict[tuple[str, bool], dict[Any, float]] = {}
    for row in rows:
        joined.setdefault((row.model, row.reranked), {}).update(row.scores)
    return [Row(model, reranked, scores) for (model, reranked), scores in joined.items()]


def _mteb_scores(path: Path) -> list[MtebScores]:
    """What a task's file of mteb holds, by split; nothing for any other JSON."""
    saved = _json(path)
    if not isinstance(saved, dict) or not {"task_name", "scores", "mteb_version"} <= saved.keys():
        return []
    meta = path.with_name("model_meta.json")
    model = _json(meta) if meta.is_file() else {}
    name = model.get("name") if isinstance(model, dict) else None
    found = []
    try:
        for split, subsets in saved["scores"].items():
            numbers = [{key: one for key, one in subset.items() if type(one) in (int, float)} for subset in subsets]
            shared = [key for key in numbers[0] if all(key in one for one in numbers)]
            means = {key: sum(one[key] for one in numbers) / len(numbers) for key in shared}
            found.append(MtebScores(name or UNNAMED, str(saved["task_name"]), split, means, means["main_score"], path))
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no whole result of mteb ({error!r}). Evaluate again.") from error
    return found


def _json(path: Path) -> Any:
    """What a file holds; None where it is no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return None
