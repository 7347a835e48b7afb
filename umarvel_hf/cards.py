"""Model cards, written from facts: what a checkpoint is, how it was made, what it scored, what it cannot do."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from umarvel_hf.hub import is_repository, name_of

if TYPE_CHECKING:
    from umarvel_hf.modeling.modeling_umarvel import UMarvelModel

TAGS = ["umarvel", "sentence-transformers", "multimodal-retrieval"]
UNTRAINED = "It is not trained for retrieval yet: its vectors are as good as its backbone's states happen to be."


@dataclass(frozen=True)
class Trained:
    """How a checkpoint was trained.

    Args:
        stages: A table of Markdown, a row a stage.
        data: What the stages learned from, in words.
        recipe: The file that made it, and its sha256.
        table: Test scores as plain text; "" where none were measured.
        plot: Name of the picture of the stages' scores beside the card; "" where there is none.
        results: Test scores as the Hub lists them.
    """

    stages: str
    data: str
    recipe: str
    recipe_sha256: str
    table: str = ""
    plot: str = ""
    results: Sequence[EvalResult] = ()


def embedder_card(
    model: "UMarvelModel",
    *,
    base: str,
    made_by: str,
    name: str | None = None,
    license: str | None = None,
    limits: Sequence[str] = (),
    trained: Trained | None = None,
) -> str:
    """The card of an embedder.

    Args:
        base: What it was made of: a Hub id, or a folder, of which the name is told.
        made_by: The command.
        name: Of the model; None: that of its base.
        license: As the Hub spells licences; None: it is the base's, which states none.
        limits: What else it cannot do, a sentence each.
    """
    config = model.config
    return _render(
        "embedder_card.md.jinja",
        base=base,
        made_by=made_by,
        name=name or name_of(base).rpartition("/")[2],
        license=license,
        pipeline_tag="feature-extraction",
        limits=limits,
        trained=trained,
        model_type=config.vlm_config.model_type,
        parameters=f"{sum(parameter.numel() for parameter in model.parameters()):,}",
        dimension=config.hidden_size,
        attention="bidirectional" if config.bidirectional else "causal",
        pooling=config.pooling,
        positions=config.positions,
        longest=getattr(config.get_text_config(), "max_position_embeddings", None),
    )


def reranker_card(*, base: str, license: str | None = None) -> str:
    """The card of a re-ranker; arguments as of :func:`embedder_card`."""
    return _render(
        "reranker_card.md.jinja",
        base=base,
        name=name_of(base),
        license=license,
        pipeline_tag="text-ranking",
        trained=None,
    )


def list_scores(folder: Path, results: Sequence[EvalResult], table: str) -> None:
    """Write scores into the card of a checkpoint: the table for people, the list for the Hub; earlier ones go.

    Raises:
        FileNotFoundError: The folder has no card.
    """
    path = folder / "README.md"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} has no README.md; give the folder of a checkpoint.")
    card = ModelCard.load(path)
    card.data.eval_results, card.data.model_name = list(results), card.data.model_name or folder.name
    text = card.text.replace("\r\n", "\n")
    # In place of those that stand there, else before what the model cannot do, else last
    places = (r"^## Scores *\n(?s:.*?)(?=^## |\Z)", r"^(?=## Limits *$)", r"\Z")
    place = next(found for pattern in places if (found := re.search(pattern, text, re.MULTILINE)))
    before, after = text[: place.start()].rstrip(), text[place.end() :]
    scores = f"## Scores\n\nPercent:\n\n```\n{table}\n```\n"
    card.text = f"{before}\n\n{scores}" + (f"\n{after}" if after else "")
    card.save(path)


def told_by_card(folder: Path, field: str) -> str | None:
    """What the card in a folder says of a field of the Hub's, such as ``license``; None where it says nothing."""
    path = folder / "README.md"
    if not path.is_file():
        return None
    try:
        found = ModelCard.load(path, ignore_metadata_errors=True).data.to_dict().get(field)
    except (ValueError, yaml.YAMLError):  # whoever wrote it
        return None
    return found if isinstance(found, str) else None


def _render(template: str, *, base: str, name: str, license: str | None, pipeline_tag: str, **facts: Any) -> str:
    trained: Trained | None = facts["trained"]
    known = is_repository(base)
    data = ModelCardData(
        license=license,
        base_model=name_of(base) if known else None,
        library_name="sentence-transformers",
        pipeline_tag=pipeline_tag,
        tags=TAGS,
        model_name=name if trained is not None and trained.results else None,
        eval_results=list(trained.results) if trained is not None and trained.results else None,
    )
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, keep_trailing_newline=True)
    body = environment.from_string(files("umarvel_hf").joinpath(template).read_text(encoding="utf-8"))
    told = {"base": name_of(base), "name": name, "license": license}
    return f"---\n{data.to_yaml()}\n---\n\n{body.render(**told, **facts)}"
