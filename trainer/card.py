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
from umarvel_hf.trainer.recipe import KINDS, Recipe


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
    if recipe.measures_test:
        assert benchmark is not None  # checked when the recipe was read
        settings = {"model": recipe.name, "command": f"umarvel train {recipe.name}"}
        result = evaluate_benchmark(model, benchmark, settings=settings)
        result.save(folder / "result.json")
        table = result.table()
    notes = files("umarvel_hf.trainer").joinpath("trained_card.md").read_text(encoding="utf-8")
    told = notes.format(
        stages=_stages_table(recipe, folder / "history.jsonl"),
        data=_learned_from(benchmark),
        recipe=(folder / "recipe.yaml").read_text(encoding="utf-8"),
        table=table,
    )
    embedder: Any = model[0].model
    start = recipe.start.model or f"{recipe.name}: a tiny model trained from nothing"
    card = model_card(embedder, base=start, made_by=f"umarvel train {recipe.name}", notes=told)
    (out / "README.md").write_text(card, encoding="utf-8")


def _learned_from(benchmark: MBeir | None) -> str:
    """The data of a run in words."""
    if benchmark is None:
        return "the files that the recipe names"
    if benchmark.root.parent == cache_dir():
        return "the benchmark embedded in umarvel_hf (emoji artwork)"
    return f"the benchmark {benchmark.root.name}"


def _stages_table(recipe: Recipe, history: Path) -> str:
    """What was noted of every stage, as a table of Markdown."""
    kinds = {one: kind for kind, one in KINDS.items()}
    noted = {record["stage"]: record for record in map(json.loads, history.read_text(encoding="utf-8").splitlines())}
    lines = ["| stage | kind | steps | loss | temperature |", "| --- | --- | --- | --- | --- |"]
    for stage in recipe.stages:
        record = noted[stage.name]
        measured = [f"{record[name]:.3g}" if name in record else "" for name in ("last_loss", "temperature")]
        cells = [stage.name, kinds[type(stage)], str(record.get("steps", "")), *measured]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
