"""What papers print for M-BEIR, to stand beside our own rows."""

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files


@dataclass(frozen=True)
class PublishedRow:
    """One model on one pool, in percent.

    Args:
        scores: By task name, each task's own metric.
        average: As printed; the plain mean of the 16.
    """

    model: str
    reranked: bool
    scores: dict[str, float]
    average: float


@dataclass(frozen=True)
class Published:
    """The printed tables (recipe.md §11): rows by pool, what they are, and where they contradict themselves."""

    about: str
    notes: list[str]
    rows: dict[str, list[PublishedRow]]


@cache
def published() -> Published:
    """Read the tables that the package carries."""
    content = json.loads(files("umarvel_hf.evaluation").joinpath("published.json").read_text(encoding="utf-8"))
    rows = {
        pool: [
            PublishedRow(
                row["model"], row["reranked"], dict(zip(content["tasks"], row["scores"], strict=True)), row["average"]
            )
            for row in content[pool]
        ]
        for pool in ("local", "union")
    }
    return Published(content["about"], content["notes"], rows)
