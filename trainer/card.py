"""What a run leaves at its end: the last embedder, with a card that tells how it was trained and what it scores."""

import json
import shutil
from importlib.resources import files
from pathlib import Path
from typing import Any

from accelerate import PartialState

from umarvel_hf.checkpoint import model_card
from umarvel_hf.data import MBeir
from umarvel_hf.emoji.cache import cache_dir
from umarvel_hf.encoding import load
from umarvel_hf.evaluation.benchmark import evaluate_benchmark
from umarvel_hf.trainer.recipe import KINDS, Captions, Contrastive, Nli, Recipe


def finish_model(last: Path, out: Path, recipe: Recipe, benchmark: MBeir | None) -> None:
    """Copy the last embedder to ``out`` with a card that tells its stages and, if the recipe asks, its test scores.

    The folder of the run, in which ``out`` lies, has ``recipe.yaml`` and ``history.jsonl``; the test scores go to its
    ``result.json``.
    """
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(last, out)
    folder, table = out.parent, "not measured\n"
    (folder / "result.json").unlink(missing_ok=True)  # of other weights
    model = load(str(out), device=str(PartialState().device))
    file = (folder / "recipe.yaml").read_text(encoding="utf-8")
    command = f"umarvel train {_name(recipe, file)}"
    if recipe.measures_test:
        assert benchmark is not None  # checked when the recipe was read
        result = evaluate_benchmark(model, benchmark, settings={"model": recipe.name, "command": command})
        result.save(folder / "result.json")
        table = result.table()
    notes = files("umarvel_hf.trainer").joinpath("trained_card.md").read_text(encoding="utf-8")
    told = notes.format(
        stages=_stages_table(recipe, folder / "history.jsonl"),
        data=_learned_from(recipe, benchmark),
        recipe=file.rstrip("\n") + "\n",
        table=table,
    )
    embedder: Any = model[0].model
    start = recipe.start.model or f"{recipe.name}: a tiny model trained from nothing"
    card = model_card(embedder, base=start, made_by=command, notes=told)
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


def _stages_table(recipe: Recipe, history: Path) -> str:
    """What was noted of every stage, as a table of Markdown."""
    kinds = {one: kind for kind, one in KINDS.items()}
    noted = {record["stage"]: record for record in map(json.loads, history.read_text(encoding="utf-8").splitlines())}
    lines = ["| stage | kind | steps | loss | temperature |", "| --- | --- | --- | --- | --- |"]
    for stage in recipe.stages:
        record = noted[stage.name]
        measured = [f"{record[name]:.3g}" if name in record else "" for name in ("last_loss", "temperature")]
        kind = kinds[type(stage)] + (", left out as its data could not be fetched" if "left_out" in record else "")
        cells = [stage.name, kind, str(record.get("steps", "")), *measured]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
