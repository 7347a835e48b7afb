"""What a run leaves at its end: the last embedder, with a card that tells how it was trained and what it scores."""

import hashlib
import json
import shutil
from importlib.resources import files
from pathlib import Path
from typing import Any

from accelerate import PartialState

from umarvel_hf.cards import Trained, embedder_card, told_by_card
from umarvel_hf.charts import stage_chart
from umarvel_hf.data import MBeir
from umarvel_hf.emoji.cache import cache_dir
from umarvel_hf.encoding import load
from umarvel_hf.evaluation.benchmark import evaluate_benchmark
from umarvel_hf.evaluation.results import POOLS
from umarvel_hf.trainer.recipe import KINDS, Captions, Contrastive, Nli, Recipe

PLOT = "scores.svg"
TRIAL = (
    "It is a trial of {max_steps} steps a stage on a small part of the data; its scores, on a small part of the test "
    "split, show only that everything runs."
)
SHIPPED_LICENSE = "apache-2.0"  # of models that are trained from nothing


def finish_model(
    last: Path, out: Path, recipe: Recipe, benchmark: MBeir | None, *, max_steps: int | None = None
) -> None:
    """Copy the last embedder to ``out`` with a card that tells its stages and, if the recipe asks, its test scores.

    The folder of the run, in which ``out`` lies, has ``recipe.yaml`` and ``history.jsonl``; the test scores go to its
    ``result.json``.
    """
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(last, out)
    folder, result = out.parent, None
    (folder / "result.json").unlink(missing_ok=True)  # of other weights
    model = load(str(out), device=str(PartialState().device))
    file = (folder / "recipe.yaml").read_text(encoding="utf-8")
    command = f"umarvel train {_name(recipe, file)}" + (f" --max-steps {max_steps}" if max_steps else "")
    if recipe.measures_test:
        assert benchmark is not None  # checked when the recipe was read
        result = evaluate_benchmark(model, benchmark, settings={"model": recipe.name, "command": command})
        result.save(folder / "result.json")
    noted = [json.loads(line) for line in (folder / "history.jsonl").read_text(encoding="utf-8").splitlines()]
    scores = {record["stage"]: _scores(record) for record in noted if _scores(record)}
    if scores:
        (out / PLOT).write_text(stage_chart(scores), encoding="utf-8")
    embedder: Any = model[0].model
    card = embedder_card(
        embedder,
        base=recipe.start.model or f"{recipe.name}: a tiny model trained from nothing",
        made_by=command,
        name=recipe.name,
        license=told_by_card(last, "license") if recipe.start.model else SHIPPED_LICENSE,
        limits=[TRIAL.format(max_steps=max_steps)] if max_steps else [],
        trained=Trained(
            stages=_stages_table(recipe, {record["stage"]: record for record in noted}),
            data=_learned_from(recipe, benchmark),
            recipe=file.rstrip("\n"),
            recipe_sha256=hashlib.sha256(file.encode()).hexdigest(),
            table=result.table() if result is not None else "",
            plot=PLOT if scores else "",
            results=result.listed() if result is not None and not max_steps else (),
        ),
    )
    (out / "README.md").write_text(card, encoding="utf-8")


def _name(recipe: Recipe, file: str) -> str:
    """What ``umarvel train`` is given: the name of a recipe that ships, or the file that the card holds."""
    shipped = files("umarvel_hf.recipes").joinpath(f"{recipe.name}.yaml")
    is_shipped = shipped.is_file() and shipped.read_text(encoding="utf-8") == file
    return recipe.name if is_shipped else f"{recipe.name}.yaml"


def _learned_from(recipe: Recipe, benchmark: MBeir | None) -> str:
    """The data of a run in words: the files that stages name, and the benchmark that all others learn from."""
    data = [one for stage in recipe.stages if isinstance(stage, Contrastive) for one in stage.data]
    named = [one.nli if isinstance(one, Nli) else one.captions for one in data if isinstance(one, Nli | Captions)]
    told = list(dict.fromkeys(f"`{Path(one).name}`" for one in named))
    if benchmark is not None and recipe.learns_from_benchmark:
        embedded = benchmark.root.parent == cache_dir()
        told.append("the benchmark embedded in umarvel_hf (emoji artwork)" if embedded else f"`{benchmark.root.name}`")
    return ", ".join(told)


def _scores(record: dict[str, Any]) -> dict[str, float]:
    """By pool, the share of validation queries with a right answer among the first five; nothing of other stages."""
    measured = record.get("validation", {})
    return {pool: measured[f"{pool}_hit@5"] for pool in POOLS if f"{pool}_hit@5" in measured}


def _stages_table(recipe: Recipe, noted: dict[str, dict[str, Any]]) -> str:
    """What was noted of every stage, as a table of Markdown."""
    kinds = {one: kind for kind, one in KINDS.items()}
    names = ["stage", "kind", "steps", "loss", "temperature", *POOLS]
    lines = [f"| {' | '.join(names)} |", f"|{' --- |' * len(names)}"]
    for stage in recipe.stages:
        record = noted[stage.name]
        measured = [f"{record[name]:.3g}" if name in record else "" for name in ("last_loss", "temperature")]
        scores = _scores(record)
        measured += [f"{100 * scores[pool]:.1f}" if pool in scores else "" for pool in POOLS]
        kind = kinds[type(stage)] + (", left out as its data could not be fetched" if "left_out" in record else "")
        cells = [stage.name, kind, str(record.get("steps", "")), *measured]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
