"""Is one evaluation better than another? Task by task, over the same queries; a table, JSON and a forest plot."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from markupsafe import Markup

from umarvel_hf.evaluation.results import MODEL, Result, TaskResult, aligned, short_metric
from umarvel_hf.evaluation.significance import LEVEL, Comparison, corrected, paired

HEADINGS = ["95 % interval", "effect", "won", "lost", "verdict"]
STYLE = Markup(
    "<style>svg{color-scheme:light dark;--page:#fff;--ink:#1c1d1f;--soft:#62666d;--line:#dcdde0;--better:#0072b2;"
    "--worse:#d55e00}@media(prefers-color-scheme:dark){svg{--page:#16171a;--ink:#e9eaec;--soft:#a2a7b0;--line:#34373d;"
    "--better:#56b4e9;--worse:#e69f00}}.page{fill:var(--page)}text{font:12px system-ui,sans-serif;fill:var(--ink)}"
    ".title{font-size:15px;font-weight:600}.soft{fill:var(--soft)}.middle{text-anchor:middle}.end{text-anchor:end}.grid{stroke:var(--line)}"
    ".zero{stroke:var(--soft);stroke-width:1.5}.better{--mark:var(--better)}.worse{--mark:var(--worse)}"
    ".none{--mark:var(--soft)}g line{stroke:var(--mark);stroke-width:2}g path{fill:var(--mark);stroke:var(--mark);"
    "stroke-width:2}g.none path{fill:var(--page)}</style>"
)
OPEN = Markup(
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
    'role="img"><title>{title}</title>{style}<rect class="page" width="100%" height="100%"/>'
    '<text class="title" x="16" y="26">{title}</text><text class="soft" x="16" y="46">{subtitle}</text>'
)
TICK = Markup(
    '<line class="{kind}" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{bottom}"/>'
    '<text class="soft middle" x="{x:.1f}" y="{base}">{label}</text>'
)
ROW = Markup(
    '<text x="16" y="{base}">{name}</text><text class="soft end" x="296" y="{base}">{metric}</text><g class="{kind}">'
    '<line x1="{low:.1f}" x2="{high:.1f}" y1="{y}" y2="{y}"/><path transform="translate({x:.1f} {y})" d="{mark}"/></g>'
    '<text x="576" y="{base}">{numbers}</text>'
)
KEY = Markup(
    '<g class="{kind}"><path transform="translate({x} {y})" d="{mark}"/></g><text x="{after}" y="{base}">{word}</text>'
)
SHAPES = {  # verdict: class, outline around (0, 0)
    "better": ("better", "M0-6 6 5H-6Z"),
    "worse": ("worse", "M0 6 6-5H-6Z"),
    "no difference shown": ("none", "M-5 0A5 5 0 0 1 5 0 5 5 0 0 1-5 0Z"),
}


@dataclass(frozen=True)
class ResultComparison:
    """Two results on the tasks that both have.

    Args:
        comparisons: One per task, p-values corrected for their number.
        only_first, only_second: Names of the tasks that one result has alone.
    """

    pool: str
    system: str
    first: str
    second: str
    comparisons: list[Comparison]
    only_first: list[str]
    only_second: list[str]

    @property
    def conclusion(self) -> str:
        """One sentence."""
        verdicts = [one.verdict for one in self.comparisons]
        return (
            f"Of {len(verdicts)} tasks {self.first} is better than {self.second} on {verdicts.count('better')}, worse "
            f"on {verdicts.count('worse')}; on {verdicts.count('no difference shown')} no difference is shown (paired "
            f"randomisation over queries, Holm-corrected, p < {LEVEL})."
        )

    def table(self) -> str:
        """Aligned plain text, scores in percent, and the conclusion."""
        rows = [["task", "metric", "queries", self.first, self.second, "points", *HEADINGS]]
        lines = aligned([*rows, *map(_cells, self.comparisons)])
        for name, alone in ((self.first, self.only_first), (self.second, self.only_second)):
            if alone:
                lines += ["", f"Only in {name}, not compared: {', '.join(alone)}."]
        return "\n".join([*lines, "", self.conclusion])

    def as_json(self) -> str:
        """Everything, as one line."""
        return json.dumps(asdict(self), ensure_ascii=False)


def compare_results(
    first: Result,
    second: Result,
    *,
    metric: str | None = None,
    pool: str = "local",
    system: str = MODEL,
    names: tuple[str, str] = ("first", "second"),
) -> ResultComparison:
    """Compare one system of two evaluations, task by task, over the same queries and pools of the same size.

    Args:
        metric: Such as ``hit@1``; None: each task's own.
        pool: ``local`` or ``union``.
        system: ``model``, ``re-ranked`` or a baseline, as ``Result.systems`` lists them.
        names: How the two are called.

    Returns:
        A comparison a task, scores from 0 to 1, p-values corrected for their number.

    Raises:
        ValueError: The results differ in suite, split, queries or size of a pool, share no task, or one of them lacks
            the pool, the system or the metric.
    """
    _refuse_other("suite", first.suite, second.suite)
    _refuse_other("split", first.settings.get("split"), second.settings.get("split"))
    others = {task.name: task for task in second.tasks}
    pairs = [(task, others[task.name]) for task in first.tasks if task.name in others]
    shared = {task.name for task, _ in pairs}
    if not shared:
        raise ValueError(f"No task in common: {[task.name for task in first.tasks]} and {list(others)}.")
    comparisons = []
    for ours, theirs in pairs:
        measured = metric or ours.metric
        values = [_values(task, system, pool, measured, name) for task, name in zip((ours, theirs), names, strict=True)]
        _refuse_other(f"{ours.name}: size of the {pool} pool", ours.pool_sizes[pool], theirs.pool_sizes[pool])
        _refuse_other(f"{ours.name}: number of queries", len(ours.qids), len(theirs.qids))
        for at, pair in enumerate(zip(ours.qids, theirs.qids, strict=True), start=1):
            _refuse_other(f"{ours.name}: query {at}", *pair)
        comparisons.append(paired(ours.name, measured, names[0], values[0], names[1], values[1]))
    return ResultComparison(
        pool=pool,
        system=system,
        first=names[0],
        second=names[1],
        comparisons=corrected(comparisons),
        only_first=[task.name for task in first.tasks if task.name not in shared],
        only_second=[name for name in others if name not in shared],
    )


def plot(
    comparisons: Sequence[Comparison], *, title: str | None = None, not_shown: str = f"corrected p ≥ {LEVEL}"
) -> str:
    """A forest plot as an SVG file: differences in points, 95 % intervals, verdicts told apart by colour and shape.

    Args:
        title: None: says what is compared.
        not_shown: What keeps a difference from being shown, for the key.
    """
    if not comparisons:
        raise ValueError("There is no comparison to plot.")
    first = " / ".join(dict.fromkeys(one.first for one in comparisons))
    second = " / ".join(dict.fromkeys(one.second for one in comparisons))
    ends = [100 * end for one in comparisons for end in (one.low, one.high)]
    ticks = _ticks(min(0.0, *ends), max(0.0, *ends))
    left, right, top, step = 310, 556, 66, 26  # the scale runs from `left` to `right`
    scale = (right - left) / (ticks[-1] - ticks[0])
    bottom = top + step * len(comparisons)
    title = title or f"{first} against {second}"
    subtitle = "Difference in points and its 95 % interval"
    parts = [OPEN.format(width=720, height=bottom + 66, title=title, subtitle=subtitle, style=STYLE)]
    for tick in ticks:
        place = {"x": left + scale * (tick - ticks[0]), "top": top - 6, "bottom": bottom, "base": bottom + 16}
        parts.append(TICK.format(**place, kind="grid" if tick else "zero", label=f"{tick:+g}" if tick else "0"))
    for at, one in enumerate(comparisons):
        kind, mark = SHAPES[one.verdict]
        y = top + step * at + step // 2
        low, x, high = (left + scale * (100 * end - ticks[0]) for end in (one.low, one.difference, one.high))
        text = {"name": one.name, "metric": short_metric(one.metric), "numbers": " ".join(_points(one))}
        parts.append(ROW.format(**text, low=low, x=x, high=high, y=y, base=y + 4, kind=kind, mark=mark))
    for x, (word, (kind, mark)) in zip((24, 100, 176), SHAPES.items(), strict=True):
        word += f" ({not_shown})" if kind == "none" else ""
        parts.append(KEY.format(kind=kind, mark=mark, x=x, y=bottom + 44, after=x + 12, base=bottom + 48, word=word))
    return str(Markup("").join([*parts, Markup("</svg>\n")]))


def _refuse_other(what: str, first: object, second: object) -> None:
    if first != second:
        raise ValueError(f"{what}: {first!r} and {second!r}. Compare evaluations of the same queries and candidates.")


def _values(task: TaskResult, system: str, pool: str, metric: str, name: str) -> np.ndarray:
    """(Q,) what a system reached; refused with what there is instead."""
    pools = task.scores.get(system, {})
    for what, wanted, there in (("system", system, task.scores), ("pool", pool, pools)):
        if wanted not in there:
            raise ValueError(f"{name}: {task.name} has no {what} {wanted!r}; there is {', '.join(there)}.")
    pools[pool].mean(metric)  # refuses what was not measured
    return np.array(pools[pool].values[metric])


def _points(one: Comparison) -> tuple[str, str]:
    """Difference and interval, in points."""
    return f"{100 * one.difference:+.1f}", f"[{100 * one.low:+.1f}, {100 * one.high:+.1f}]"


def _cells(one: Comparison) -> list[str]:
    scores = [f"{100 * score:.1f}" for score in (one.first_score, one.second_score)]
    counts = [str(one.wins), str(one.losses)]
    verdict = f"{one.verdict}, p {one.p_holm:.4f}"
    metric = short_metric(one.metric)
    return [one.name, metric, f"{one.queries:,}", *scores, *_points(one), one.effect_text, *counts, verdict]


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers, four to seven of them, from at most ``low`` to at least ``high``."""
    rough = max(high - low, 1.0) / 5
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * times for times in (1, 2, 5, 10) if unit * times >= rough)
    first, last = math.floor(low / step), max(math.ceil(high / step), math.floor(low / step) + 1)
    return [round(step * at, 6) for at in range(first, last + 1)]
