"""Charts of the report as SVG: 340 units wide, so that a phone shows them readably; every text in them is escaped."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

WIDTH, LEFT, SPAN = 340, 8, 200  # of a chart; where bars start; how long the longest is
AXIS_HEIGHT, LABEL_HEIGHT, LINE_HEIGHT, PLOT_HEIGHT = 22, 20, 15, 200
STEPS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)  # between ticks
CIRCLE, SQUARE = "M-5,0a5,5 0 1 0 10,0a5,5 0 1 0 -10,0Z", "M-4.5,-4.5h9v9h-9Z"
DIAMOND, TRIANGLE = "M0,-6L6,0L0,6L-6,0Z", "M0,-6L5.5,4.5H-5.5Z"
SHAPES = {  # what tells kinds apart where colours do not
    "local": CIRCLE, "union": DIAMOND, "prompt": CIRCLE, "mean": "M-1,-8h2v16h-2Z", "weight": CIRCLE, "chosen": DIAMOND,
    "float32": CIRCLE, "int8": SQUARE, "binary": TRIANGLE,
}  # fmt: skip

# The colours of a chart that stands alone, on light and dark pages.
ALONE = Markup(
    "<style>svg{color-scheme:light dark;--page:#fff;--ink:#1c1d1f;--soft:#62666d;--line:#dcdde0;--local:#0072b2;"
    "--union:#d55e00}@media(prefers-color-scheme:dark){svg{--page:#17181a;--ink:#e8e9eb;--soft:#9da1a8;--line:#3a3c40;"
    "--local:#56b4e9;--union:#e69f00}}text{fill:var(--ink)}.tick{fill:var(--soft);text-anchor:middle}.label{font-weight:"
    "600}.grid{stroke:var(--line)}.local{fill:var(--local)}.union{fill:var(--union)}.paper{fill:var(--page)}</style>"
    '<rect class="paper" width="100%" height="100%"/>'
)
SVG = Markup('<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{title}">')
LINE = Markup('<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>')
TEXT = Markup('<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{text}</text>')
BAR = Markup('<rect class="{kind}" x="{x}" y="{y}" width="{length:.1f}" height="12" rx="2"/>')
WHISKER = Markup('<path class="whisker" d="M{low:.1f},{y}v6m0,-3H{high:.1f}m0,-3v6"/>')
SYMBOL = Markup('<path class="{kind}" d="{shape}" transform="translate({x:.1f},{y:.1f})"/>')
JOINED = Markup('<polyline class="joined" points="{points}"/>')


@dataclass(frozen=True)
class Mark:
    """A value from 0 to 1 in a row of a chart, with its interval where it has one."""

    kind: str
    value: float
    interval: tuple[float, float] | None = None
    note: str = ""


def axis_over(values: Sequence[float]) -> list[float]:
    """Two to six round numbers, evenly spaced, around values from 0 to 1."""
    for step in STEPS:
        first, last = math.floor(min(values) / step + 1e-6), math.ceil(max(values) / step - 1e-6)
        if last - first <= 5:
            break
    return [number * step for number in range(first, max(last, first + 1) + 1)]


def bars(title: str, rows: Mapping[str, Sequence[Mark]], *, axis: Sequence[float], lines: int) -> Markup:
    """Draw below the label of a row one bar a mark, with its interval as a whisker; percentage and note stand behind.

    The first of ``axis`` is 0. A row has room for so many ``lines``: charts with the same number line up side by side.
    """
    parts = _frame(title, rows, axis, lines)
    for at, marks in enumerate(rows.values()):
        for number, mark in enumerate(marks):
            y, end = _top(at, lines) + LABEL_HEIGHT + LINE_HEIGHT * number, _x(mark.value, axis)
            parts.append(BAR.format(kind=mark.kind, x=LEFT, y=y, length=end - LEFT))
            if mark.interval and mark.interval[1] > mark.interval[0]:
                low, high = (_x(one, axis) for one in mark.interval)
                parts.append(WHISKER.format(low=low, high=high, y=y + 3))
                end = max(end, high)
            text = f"{100 * mark.value:.1f} {mark.note}"
            parts.append(TEXT.format(kind="note", x=end + 5, y=y + 10, text=text))
    return Markup("").join(parts) + Markup("</svg>")


def dots(title: str, rows: Mapping[str, Sequence[Mark]], *, axis: Sequence[float], lines: int) -> Markup:
    """Draw the marks of a row as symbols on a line from the least to the greatest, its note behind it."""
    parts = _frame(title, rows, axis, lines)
    for at, marks in enumerate(rows.values()):
        y = _top(at, lines) + LABEL_HEIGHT + LINE_HEIGHT * lines / 2 - 2
        ends = [_x(mark.value, axis) for mark in marks]
        parts.append(LINE.format(kind="range", x1=min(ends), y1=y, x2=max(ends), y2=y))
        parts += [_symbol(mark.kind, x, y) for mark, x in zip(marks, ends, strict=True)]
        note = " ".join(mark.note for mark in marks if mark.note)
        parts.append(TEXT.format(kind="note", x=LEFT + SPAN + 12, y=y + 4, text=note))
    return Markup("").join(parts) + Markup("</svg>")


def plot(
    title: str, points: Sequence[tuple[float, Mark]], line: Sequence[tuple[float, float]], *,
    across: Mapping[int, str], axis: Sequence[float],
) -> Markup:  # fmt: skip
    """Draw marks by their ``x`` and their value, and a line; ``across`` stands below the horizontal axis, by ``x``."""
    left, right, top, bottom = 46, WIDTH - 18, 24, PLOT_HEIGHT - 22
    least, most = (extreme([*across, *(x for x, _ in points)]) for extreme in (min, max))

    def place(x: float, y: float) -> tuple[float, float]:
        share = (y - axis[0]) / (axis[-1] - axis[0])
        return left + (right - left) * (x - least) / ((most - least) or 1), bottom - (bottom - top) * share

    parts = [SVG.format(width=WIDTH, height=PLOT_HEIGHT, title=title)]
    for tick in axis:
        _, y = place(least, tick)
        parts.append(LINE.format(kind="grid", x1=left - 10, y1=y, x2=WIDTH - 8, y2=y))
        parts.append(TEXT.format(kind="tick end", x=left - 14, y=y + 4, text=f"{100 * tick:.6g}"))
    for number, text in across.items():
        parts.append(TEXT.format(kind="tick", x=place(number, axis[0])[0], y=PLOT_HEIGHT - 5, text=text))
    parts.append(JOINED.format(points=" ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*one) for one in line))))
    for at, mark in points:
        x, y = place(at, mark.value)
        parts += [_symbol(mark.kind, x, y), TEXT.format(kind="note middle", x=x, y=y - 9, text=mark.note)]
    return Markup("").join(parts) + Markup("</svg>")


def stage_chart(scores: Mapping[str, Mapping[str, float]]) -> str:
    """An SVG file of its own: by stage and pool, a value from 0 to 1 as a bar."""
    rows = {
        stage: [Mark(pool, value, note=pool) for pool, value in by_pool.items()] for stage, by_pool in scores.items()
    }
    lines = max(map(len, rows.values()))
    chart = bars("R@5 of the stages, in percent", rows, axis=[0, 0.25, 0.5, 0.75, 1], lines=lines)
    head, _, body = chart.partition(">")
    return f'{head} xmlns="http://www.w3.org/2000/svg" font-family="sans-serif" font-size="11">{ALONE}{body}\n'


def _frame(title: str, rows: Mapping[str, Sequence[Mark]], axis: Sequence[float], lines: int) -> list[Markup]:
    """The opening tag, the grid with its percentages, the labels of the rows."""
    height = _top(len(rows), lines)
    parts = [SVG.format(width=WIDTH, height=height, title=title)]
    for tick in axis:
        x = _x(tick, axis)
        parts.append(LINE.format(kind="grid", x1=x, y1=AXIS_HEIGHT - 6, x2=x, y2=height))
        parts.append(TEXT.format(kind="tick", x=x, y=11, text=f"{100 * tick:.6g}".replace("-", "\u2212")))
    labels = ((_top(at, lines) + 15, label) for at, label in enumerate(rows))
    return parts + [TEXT.format(kind="label", x=LEFT, y=y, text=label) for y, label in labels]


def _top(at: int, lines: int) -> int:
    return AXIS_HEIGHT + at * (LABEL_HEIGHT + LINE_HEIGHT * lines + 5)


def _x(value: float, axis: Sequence[float]) -> float:
    return LEFT + SPAN * (value - axis[0]) / (axis[-1] - axis[0])


def _symbol(kind: str, x: float, y: float) -> Markup:
    return SYMBOL.format(kind=kind, shape=SHAPES.get(kind, SQUARE), x=x, y=y)
