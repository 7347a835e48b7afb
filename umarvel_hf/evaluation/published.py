"""What papers print for M-BEIR and the zero-shot sets, to stand beside our own rows."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any


@dataclass(frozen=True)
class PublishedRow:
    """One model on one pool or kind of sets, in percent.

    Args:
        scores: By task name, each task's own metric; of zero-shot sets by (set, task or mean, metric). What a paper
            leaves out is not there.
        average: As printed; the plain mean of M-BEIR's 16.
    """

    model: str
    reranked: bool
    scores: dict[Any, float]
    average: float | None = None


@dataclass(frozen=True)
class Published:
    """The printed tables (recipe.md §11): rows by pool, what they are, and where they contradict themselves.

    Args:
        columns: Of zero-shot sets: set, task or mean, metric, in the order of the papers.
    """

    about: str
    notes: list[str]
    rows: dict[str, list[PublishedRow]]
    columns: list[tuple[str, str, str]] = field(default_factory=list)


@cache
def published() -> Published:
    """The tables of M-BEIR that the package carries, by pool."""
    content = _content()
    rows = {pool: _rows(content["tasks"], content[pool]) for pool in ("local", "union")}
    return Published(content["about"], content["notes"], rows)


@cache
def published_zero_shot(kind: str) -> Published:
    """That of the zero-shot sets of text and images (``image``), or of text and video (``video``)."""
    content = _content()["zero_shot"][kind]
    columns = [tuple(column) for column in content["columns"]]
    return Published(content["about"], content["notes"], {kind: _rows(columns, content["rows"])}, columns)


def _content() -> dict[str, Any]:
    text = files("umarvel_hf.evaluation").joinpath("published.json").read_text(encoding="utf-8")
    return dict(json.loads(text))


def _rows(columns: Sequence[Any], rows: Sequence[dict[str, Any]]) -> list[PublishedRow]:
    return [
        PublishedRow(
            row["model"],
            row["reranked"],
            {column: one for column, one in zip(columns, row["scores"], strict=True) if one is not None},
            row.get("average"),
        )
        for row in rows
    ]
