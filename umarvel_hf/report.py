"""One self-contained HTML page from an evaluation's result: no script, no font and no picture from anywhere else."""

import base64
import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from PIL import Image

from umarvel_hf.data import TASK_TYPES, Candidate, MBeir, Pool, Query, Task
from umarvel_hf.evaluation.results import KS, MODEL, POOLS, Comparison, Result, TaskResult, verdict_lines

PICTURE_MAX_PIXELS = 160  # per side, in the page
SVG = Markup('<svg viewBox="0 0 340 {height}" role="img" aria-label="The model and the best baseline, by task">')
GRID = Markup(
    '<line class="grid" x1="{x}" x2="{x}" y1="{top}" y2="{bottom}"/><text class="tick" x="{x}" y="12">{percent}</text>'
)
LABEL = Markup('<text class="label" x="{x}" y="{y}">{label}</text>')
BAR = Markup(
    '<rect class="{kind}" x="{x}" y="{y}" width="{length:.1f}" height="13" rx="2"/>'
    '<text x="{end:.1f}" y="{base}">{percent:.0f} {note}</text>'
)
MARKS = {"better": "▲", "worse": "▼", "no difference shown": "○"}


@dataclass(frozen=True)
class Card:
    """A query or a candidate as the page shows it."""

    picture: str | None  # data URI
    text: str
    right: bool = False


@dataclass(frozen=True)
class Example:
    task: str
    instruction: str
    query: Card
    found: list[Card]
    missed: Card | None  # a right answer, where none was found

    @property
    def first_right(self) -> int:
        """Rank of the first right answer, from 1; 0 where there is none."""
        return next((rank for rank, card in enumerate(self.found, 1) if card.right), 0)


def write_report(
    result: Result, benchmark: MBeir, out: str | Path, *, descriptions: Mapping[str, str] | None = None
) -> Path:
    """Write the page.

    Args:
        benchmark: what was evaluated; the page shows some of its queries and candidates.
        out: the HTML file to write.
        descriptions: what each data set holds, in a few words, by its name.
    """
    template = files("umarvel_hf").joinpath("report.html.j2").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["percent"] = lambda share, digits=1: f"{100 * share:.{digits}f}"
    page = environment.from_string(template).render(
        result=result,
        descriptions=descriptions or {},
        examples={dataset: _examples(result, benchmark, dataset) for dataset in result.datasets},
        charts={
            dataset: bars([task.comparison for task in result.of(dataset)], _labels(result, dataset))
            for dataset in result.datasets
        },
        verdicts=verdict_lines(result),
        task_types=TASK_TYPES,
        marks=MARKS,
        ks=KS,
        pools=POOLS,
        model=MODEL,
    )
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page, encoding="utf-8")
    return out


def bars(comparisons: Sequence[Comparison], labels: Sequence[str]) -> Markup:
    """Draw the model above the best baseline, one pair of bars per task, from 0 to 100 %."""
    left, width, top, step = 8, 236, 22, 56  # bars start at `left` and are `width` wide at 100 %
    height = top + step * len(comparisons)
    parts = [SVG.format(height=height)]
    for tick in range(0, 101, 25):
        parts.append(GRID.format(x=left + width * tick / 100, top=top - 4, bottom=height, percent=tick))
    for at, (one, label) in enumerate(zip(comparisons, labels, strict=True)):
        y = top + step * at
        parts.append(LABEL.format(x=left, y=y + 14, label=label))
        systems = ((one.model, "ours", MARKS[one.verdict]), (one.baseline_score, "best", one.baseline))
        for row, (share, kind, note) in enumerate(systems, start=1):
            length = width * share
            place = {"x": left, "y": y + 15 * row + 4, "end": left + length + 5, "base": y + 15 * row + 15}
            parts.append(BAR.format(**place, kind=kind, length=length, percent=100 * share, note=note))
    return Markup("").join([*parts, Markup("</svg>")])


def picture(path: Path) -> str:
    """The image as a data URI, no larger than the page needs; small files keep their bytes."""
    with Image.open(path) as image:
        if max(image.size) <= PICTURE_MAX_PIXELS and image.format in ("PNG", "WEBP", "JPEG", "GIF"):
            return _data_uri(path.read_bytes(), Image.MIME[image.format])
        image.thumbnail((PICTURE_MAX_PIXELS, PICTURE_MAX_PIXELS))
        content = io.BytesIO()
        image.convert("RGBA").save(content, format="WEBP", quality=80)
        return _data_uri(content.getvalue(), "image/webp")


def _data_uri(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _labels(result: Result, dataset: str) -> list[str]:
    return [TASK_TYPES[task.task_id] for task in result.of(dataset)]


def _examples(result: Result, benchmark: MBeir, dataset: str) -> list[Example]:
    """For every task one success and one failure: those whose query id has the smallest SHA-256."""
    examples = []
    for task in result.of(dataset):
        first = dict(zip(task.qids, task.scores[MODEL]["local"].first_hits, strict=True))
        drawn = sorted(task.qids, key=lambda qid: hashlib.sha256(qid.encode()).hexdigest())
        for success in (True, False):
            qid = next((qid for qid in drawn if (1 <= first[qid] <= 5) == success), None)
            if qid is not None:
                examples.append(_example(result, benchmark, task, qid))
    return examples


def _example(result: Result, benchmark: MBeir, task: TaskResult, qid: str) -> Example:
    split = result.settings["split"]
    source = Task(task.dataset, task.task_id)
    query = next((one for one in benchmark.queries(source, split) if one.qid == qid), None)
    if query is None:
        raise ValueError(
            f"Query {qid!r} of {source.name} is not in {benchmark.root}. Pass the benchmark of this result."
        )
    pool: Pool = benchmark.pool(source, split)
    right = benchmark.qrels(source, split)[qid]
    found = [_card(pool[did], did in right) for did in task.top[task.qids.index(qid)]]
    return Example(
        task=source.type,
        instruction=benchmark.instruction(query, pool[right[0]].modality),
        query=_card(query),
        found=found,
        missed=None if any(card.right for card in found) else _card(pool[right[0]], True),
    )


def _card(one: Query | Candidate, right: bool = False) -> Card:
    return Card(picture(one.image) if one.image else None, one.text, right)
