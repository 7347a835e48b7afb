"""Self-contained HTML pages from results: no script, no font and no picture from anywhere else."""

import base64
import hashlib
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from PIL import Image

from umarvel_hf import charts
from umarvel_hf.charts import Mark
from umarvel_hf.data import Candidate, MBeir, Query
from umarvel_hf.evaluation import results
from umarvel_hf.evaluation.frontier import FrontierPoint, pareto
from umarvel_hf.evaluation.overview import Measured, sections
from umarvel_hf.evaluation.published import published
from umarvel_hf.evaluation.results import MODEL, RERANKED, WRONG_MODALITY, Result, TaskResult
from umarvel_hf.evaluation.retrieval import Prompting
from umarvel_hf.evaluation.significance import bootstrap_interval
from umarvel_hf.store import whole_file

PICTURE_MAX_PIXELS = 160  # per side, in the page
TEXT_MAX_CHARACTERS = 240  # of a query or candidate
VERDICT_MARKS = {"better": "▲", "worse": "▼", "no difference shown": "○"}


@dataclass(frozen=True)
class Card:
    """A query or a candidate as the page shows it."""

    text: str
    picture: str | None  # data URI; "" where the file is gone or damaged
    kind: str = ""  # "right", "wrong" (a modality that no right answer has) or neither
    modality: str = ""


@dataclass(frozen=True)
class Example:
    """One query that the report shows: what was asked, what was found, and a right answer that was not."""

    task: str
    pool: str
    instruction: str
    query: Card
    found: list[Card]
    missed: Card | None  # a right answer, where none was found


def write_report(
    result: Result,
    benchmark: MBeir | None,
    out: str | Path,
    *,
    descriptions: Mapping[str, str] | None = None,
    frontier: Sequence[FrontierPoint] | None = None,
) -> Path:
    """Write the page of a result, one HTML file that needs no other.

    Args:
        benchmark: What was evaluated, some of whose queries and candidates the page shows; None: it shows none.
        out: The HTML file to write.
        descriptions: What each data set holds, in a few words, by its name.
        frontier: What smaller vectors cost and find, see ``evaluation/frontier.py``; None: it was not measured.

    Returns:
        ``out``.

    Raises:
        ValueError: ``benchmark`` has not the queries and candidates that were evaluated.
        FileNotFoundError: It lacks a file of the layout.
    """
    return _write_page(
        "report.html.j2",
        out,
        result=result,
        descriptions=descriptions or {},
        interval=interval,
        verdicts=results.verdict_lines(result) if result.baselines else [],
        charts={group: _task_charts(result, tasks) for group, tasks in result.groups.items()},
        metrics=list(result.tasks[0].scores[MODEL][result.pools[0]].values),
        published=published(),
        by_name={task.name: task for task in result.tasks},
        prompts=_prompt_charts(result),
        curve=_weight_chart(result.fusion) if result.fusion else None,
        frontier=frontier or [],
        frontier_charts=_frontier_charts(frontier) if frontier else {},
        examples=_examples(result, benchmark) if benchmark and result.suite != "trec" else None,
    )


def write_overview(measured: Measured, out: str | Path) -> Path:
    """Write the page of several results, one HTML file that needs no other; rows of papers stand apart from ours.

    Args:
        measured: As :func:`umarvel_hf.evaluation.overview.read_results` gives them.
        out: The HTML file to write.

    Returns:
        ``out``.
    """
    tables = sections(measured)
    models = dict.fromkeys(row.model for one in tables for row in one.measured)
    return _write_page(
        "overview.html.j2", out, sections=tables, models=models, results=measured.results, mteb=measured.mteb
    )


def _write_page(template: str, out: str | Path, **content: Any) -> Path:
    """Fill a template of the package, with its style."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["percent"] = lambda share, digits=1: f"{100 * share:.{digits}f}"
    environment.filters["signed"] = _signed
    environment.globals |= {
        "shapes": charts.SHAPES, "marks": VERDICT_MARKS, "model": MODEL, "reranked": RERANKED, "wrong": WRONG_MODALITY,
        "short_metric": results.short_metric, "short_type": results.short_type, "mbeir_tasks": results.MBEIR_TASKS,
        "style": Markup(_text("report.css")),
    }  # fmt: skip
    page = environment.from_string(_text(template)).render(content)
    with whole_file(Path(out)) as file:
        file.write(page.encode())
    return Path(out)


def _text(name: str) -> str:
    return files("umarvel_hf").joinpath(name).read_text(encoding="utf-8")


def picture(path: Path) -> str:
    """The image as a data URI, no larger than the page needs; small files keep their bytes. "" for a damaged one."""
    try:
        with Image.open(path) as image:
            image.load()
            content, kind = path.read_bytes(), Image.MIME.get(image.format or "")
            if max(image.size) > PICTURE_MAX_PIXELS or image.format not in ("PNG", "WEBP", "JPEG", "GIF"):
                image.thumbnail((PICTURE_MAX_PIXELS, PICTURE_MAX_PIXELS))
                image.convert("RGBA").save(shrunk := io.BytesIO(), format="WEBP", quality=80)
                content, kind = shrunk.getvalue(), "image/webp"
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):  # all that Pillow says of damaged files
        return ""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def interval(task: TaskResult, system: str, pool: str, metric: str) -> tuple[float, float]:
    """In which the mean lies, with 95 % confidence over queries."""
    return bootstrap_interval(np.array(task.scores[system][pool].values[metric]))


def _label(result: Result, task: TaskResult, *, alone: bool = False) -> str:
    """What names a task among those of its group, or ``alone``."""
    name = f"{task.dataset}: {task.type}" if alone or result.suite == "m-beir" else task.type
    return name if task.metric == "hit@5" else f"{name}, {results.short_metric(task.metric)}"


def _task_charts(result: Result, tasks: Sequence[TaskResult]) -> dict[str, Markup]:
    """Of a group of tasks: ``quality``, and on the union pool ``gap`` and ``wrong``; rows of the same height."""
    labels = {_label(result, task): task for task in tasks}
    quality = {label: _systems(result, task) for label, task in labels.items()}
    lines = max(map(len, quality.values()))
    drawn = {"quality": charts.bars("Own metric of every task", quality, axis=charts.axis_over([0, 1]), lines=lines)}
    if {"local", "union"} <= set(result.pools):
        axis = charts.axis_over([task.rate(MODEL, pool) for task in result.tasks for pool in ("local", "union")])
        gaps = {label: _gap(task) for label, task in labels.items()}
        drawn["gap"] = charts.dots("From the local to the union pool", gaps, axis=axis, lines=lines)
    if "union" in result.pools:
        shares = {task.name: _mark("wrong", task, MODEL, "union", WRONG_MODALITY) for task in result.tasks}
        axis = charts.axis_over([0, *(mark.interval[1] for mark in shares.values() if mark.interval)])
        wrong = {label: [shares[task.name]] for label, task in labels.items()}
        drawn["wrong"] = charts.bars("Share of wrong modality", wrong, axis=axis, lines=lines)
    return drawn


def _systems(result: Result, task: TaskResult) -> list[Mark]:
    """On the first pool: the model, re-ranked, the best baseline."""
    pool, one = result.pools[0], task.comparison
    marks = [_mark("ours", task, MODEL, pool, task.metric, VERDICT_MARKS[one.verdict] if one else "")]
    if RERANKED in task.systems:
        marks.append(_mark("reranked", task, RERANKED, pool, task.metric, RERANKED))
    return [*marks, _mark("best", task, one.second, pool, task.metric, one.second)] if one else marks


def _mark(kind: str, task: TaskResult, system: str, pool: str, metric: str, note: str = "") -> Mark:
    return Mark(kind, task.rate(system, pool, metric), interval(task, system, pool, metric), note)


def _gap(task: TaskResult) -> list[Mark]:
    local, union = task.rate(MODEL, "local"), task.rate(MODEL, "union")
    return [Mark("local", local), Mark("union", union, note=f"{100 * union:.1f} ({_signed(union - local)})")]


def _signed(difference: float) -> str:
    return f"{100 * difference:+.1f}".replace("-", "\u2212")


def _prompt_charts(result: Result) -> dict[str, Markup]:
    """By pool, how far each prompt is from the mean of its task; empty where one prompt was used."""
    drawn = {}
    for pool in result.pools:
        tasks = [task for task in result.tasks if pool in task.by_prompt]
        spread = {_label(result, task, alone=True): task.by_prompt[pool] for task in tasks}
        if spread:
            rows = {label: _deviations(scores) for label, scores in spread.items()}
            axis = charts.axis_over([mark.value for marks in rows.values() for mark in marks])
            drawn[pool] = charts.dots(f"Spread over prompts, {pool} pool", rows, axis=axis, lines=1)
    return drawn


def _deviations(scores: Sequence[float]) -> list[Mark]:
    mean = float(np.mean(scores))
    note = f"{100 * mean:.1f} ({100 * min(scores):.1f}–{100 * max(scores):.1f})"
    return [*(Mark("prompt", score - mean) for score in scores), Mark("mean", 0, note=note)]


def _weight_chart(fusion: Mapping[str, Any]) -> Markup:
    """The mean score with every weight that was tried, evenly spaced."""
    tried = sorted((float(weight), score) for weight, score in fusion["curve"].items())
    chosen = [weight for weight, _ in tried].index(fusion["weight"])
    marks = [Mark("weight", score) for _, score in tried]
    best = Mark("chosen", marks[chosen].value, note=f"{100 * marks[chosen].value:.1f}")
    line = [(at, score) for at, (_, score) in enumerate(tried)]
    across = {at: f"{weight:g}" for at, (weight, _) in enumerate(tried) if at % 2 == 0}
    axis = charts.axis_over([score for _, score in tried])
    return charts.plot("Score by weight", [*enumerate(marks), (chosen, best)], line, across=across, axis=axis)


def _frontier_charts(frontier: Sequence[FrontierPoint]) -> dict[tuple[str, int | None], Markup]:
    """By pool and number of pixels: bytes per vector against quality, the optimal ones joined, all on the same axes."""
    powers = [math.log2(point.bytes_per_vector) for point in frontier]
    across = {power: f"{2**power:,}" for power in range(math.floor(min(powers)), math.ceil(max(powers)) + 1, 2)}
    axis = charts.axis_over([score for point in frontier for score in (point.local, point.union)])
    drawn = {}
    for pool in ("local", "union"):
        for pixels in dict.fromkeys(point.max_pixels for point in frontier):
            panel = [point for point in frontier if point.max_pixels == pixels]
            best = pareto(panel, pool)
            notes = [str(one.dimension) if one in best else "" for one in panel]
            marks = [Mark(one.precision, getattr(one, pool), note=note) for one, note in zip(panel, notes, strict=True)]
            points = [(math.log2(one.bytes_per_vector), mark) for one, mark in zip(panel, marks, strict=True)]
            line = sorted((x, mark.value) for x, mark in points if mark.note)
            title = f"Bytes per vector and quality, {pool} pool"
            drawn[pool, pixels] = charts.plot(title, points, line, across=across, axis=axis)
    return drawn


def _examples(result: Result, benchmark: MBeir) -> dict[str, list[Example]]:
    """By data set."""
    examples: dict[str, list[Example]] = {}
    for task in result.tasks:
        examples.setdefault(task.dataset, []).extend(_Gallery(result, benchmark, task).examples())
    return examples


class _Gallery:
    """A task's success, its failure and, on the union pool, a candidate of the wrong modality in the first place."""

    def __init__(self, result: Result, benchmark: MBeir, task: TaskResult) -> None:
        self._task, self._benchmark, self._split = task, benchmark, result.settings["split"]
        self._pool, self._depth = result.pools[0], int(task.metric.partition("@")[2])
        self._top = {pool: dict(zip(task.qids, lists, strict=True)) for pool, lists in task.top.items()}
        kind, _, seed = result.settings.get("instructions", "first").partition(", ")
        gold = result.settings.get("candidate modality") != "of the task"
        self._prompting = Prompting(kind, int(seed or 0), gold)  # type: ignore[arg-type]
        self._own, *self._others = sorted(benchmark.tasks(self._split), key=lambda one: one.name != task.name)
        self._right = benchmark.qrels(self._own, self._split)
        self._queries = {query.qid: query for query in benchmark.queries(self._own, self._split)}
        if unknown := [qid for qid in task.qids if qid not in self._queries]:
            raise self._other(f"Query {unknown[0]!r}")

    def examples(self) -> list[Example]:
        """Of the queries of each kind the one whose id has the smallest SHA-256."""
        order = sorted(self._task.qids, key=lambda qid: hashlib.sha256(qid.encode()).hexdigest())
        kinds = {"found": self._pool, "missed": self._pool} | ({"wrong": "union"} if "union" in self._top else {})
        drawn = {kind: next((qid for qid in order if self._is(kind, qid)), None) for kind in kinds}
        return [self._example(qid, kinds[kind]) for kind, qid in drawn.items() if qid is not None]

    def _is(self, kind: str, qid: str) -> bool:
        if kind == "wrong":
            return self._candidate(self._top["union"][qid][0]).modality not in self._modalities(qid)
        found = not self._right[qid].keys().isdisjoint(self._top[self._pool][qid][: self._depth])
        return found == (kind == "found")

    def _example(self, qid: str, pool: str) -> Example:
        query, right, modalities = self._queries[qid], self._right[qid], self._modalities(qid)
        found = []
        for did in self._top[pool][qid][: self._depth]:
            one = self._candidate(did)
            kind = "right" if did in right else "" if one.modality in modalities else "wrong"
            found.append(_card(one, kind))
        answer = self._candidate(next(iter(right)))
        instruction = self._prompting.choose(self._benchmark, self._own, [query], [answer.modality])[0][0]
        missed = None if right.keys() & set(self._top[pool][qid][: self._depth]) else _card(answer, "right")
        return Example(self._task.type, pool, instruction, _card(query), found, missed)

    def _modalities(self, qid: str) -> set[str]:
        return {self._candidate(did).modality for did in self._right[qid]}

    def _candidate(self, did: str) -> Candidate:
        """From the task's own pool, or wherever else a candidate of the union may come from."""
        for task in [self._own, *self._others]:
            if did in (pool := self._benchmark.pool(task, self._split)):
                return pool[did]
        if self._benchmark.has_union_pool(self._split) and did in (pool := self._benchmark.union_pool(self._split)):
            return pool[did]
        raise self._other(f"Candidate {did!r}")

    def _other(self, what: str) -> ValueError:
        return ValueError(
            f"{what} of {self._task.name} is not in {self._benchmark.root}. Pass the benchmark of this result."
        )


def _card(one: Query | Candidate, kind: str = "") -> Card:
    text = one.text if len(one.text) <= TEXT_MAX_CHARACTERS else f"{one.text[:TEXT_MAX_CHARACTERS]}…"
    return Card(text, picture(one.image) if one.image else None, kind, one.modality.replace(",", "+"))
