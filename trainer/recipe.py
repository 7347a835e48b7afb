"""A recipe: everything that training a model needs, in one flat YAML file, and the run that follows it."""

import dataclasses
import inspect
import logging
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from umarvel_hf.checkpoint import model_card, new_model
from umarvel_hf.data import MBeir
from umarvel_hf.emoji.base import BaseSize, build_base
from umarvel_hf.encoding import load
from umarvel_hf.evaluation.benchmark import evaluate_benchmark
from umarvel_hf.evaluation.results import Result
from umarvel_hf.trainer.arguments import UMarvelTrainingArguments
from umarvel_hf.trainer.augmentation import Augmentation
from umarvel_hf.trainer.rows import BlockBatchSampler, mbeir_rows
from umarvel_hf.trainer.trainer import UMarvelTrainer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recipe:
    """What a recipe file says; its keys are these fields.

    Args:
        name: Names the run.
        seed: Seed of weights, rows, order and changes to pictures.
        block_size: Rows of one task that stand together in a batch (``BlockBatchSampler``).
        first: Data sets and tasks that open the first epoch, one after the other (``BlockBatchSampler``).
        attn_implementation: Attention kernel of the training run.
        training: Fields of ``UMarvelTrainingArguments``.
        augmentation: Arguments of ``Augmentation``.
        base: Fields of ``BaseSize``.
    """

    name: str
    seed: int
    block_size: int
    first: list[str]
    attn_implementation: str
    training: dict[str, Any]
    augmentation: dict[str, float]
    base: BaseSize = field(default_factory=BaseSize)


def read_recipe(recipe: str | Path) -> Recipe:
    """Read a recipe: the name of one that is shipped, or the path of a YAML file.

    Raises:
        FileNotFoundError: Neither a file nor a shipped recipe; the shipped ones are listed.
        ValueError: A key is unknown or missing.
    """
    recipes = [file for file in files("umarvel_hf.recipes").iterdir() if file.name.endswith(".yaml")]
    shipped = {file.name.removesuffix(".yaml"): file for file in recipes}
    path = shipped.get(str(recipe), Path(recipe))
    if not path.is_file():
        listed = ", ".join(sorted(shipped))
        raise FileNotFoundError(f"{recipe} is neither a file nor a shipped recipe; shipped are: {listed}.")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML ({' '.join(str(error).split())}).") from error
    _check_keys(f"{path}", content, known := _fields(Recipe), required=known)
    _check_keys(f"{path}: base", content["base"], _fields(BaseSize))
    _check_keys(f"{path}: training", content["training"], _fields(UMarvelTrainingArguments))
    for name, value in content["training"].items():
        if isinstance(value, str) and re.fullmatch(r"[-+]?\d+e[-+]?\d+", value):  # so YAML 1.1 reads 2e-3
            number = value.replace("e", ".0e")
            raise ValueError(f"{path}: training: {name} is the text {value!r}, no number; write a point: {number}.")
    known = [name for name in inspect.signature(Augmentation).parameters if name != "seed"]
    _check_keys(f"{path}: augmentation", content["augmentation"], known, required=known)
    return Recipe(**{**content, "base": BaseSize(**content["base"])})


def train(recipe: str | Path, out: str | Path, *, benchmark: MBeir, max_steps: int | None = None) -> Path:
    """Train a tiny model from scratch as a recipe says.

    The same command again goes on from the last checkpoint; once ``out/model`` is there, nothing is left to do.

    Args:
        recipe: Name or path (:func:`read_recipe`).
        out: Folder of the run: ``base``, ``start``, ``checkpoints``, ``model``, and ``result.json`` on the test split.
        benchmark: Its training split is learned, its test split measured.
        max_steps: Fewer steps than the recipe says, for a trial.

    Returns:
        ``out/model``, a checkpoint that three libraries load.
    """
    if max_steps is not None and max_steps < 1:
        raise ValueError(f"max_steps is {max_steps}; give at least 1, or leave it out for the recipe's own number.")
    plan, out = read_recipe(recipe), Path(out)
    if (out / "model").is_dir():
        logger.info("%s is finished; remove it to train again.", out / "model")
        return out / "model"
    if not (out / "start" / "README.md").is_file():  # the file that is written last
        shutil.rmtree(out / "start", ignore_errors=True)  # cut short
        base = build_base(benchmark, out / "base", plan.base, plan.seed)
        new_model(base, out / "start")
    model = load(str(out / "start"), device="cpu", model_kwargs={"attn_implementation": plan.attn_implementation})
    rows, groups = mbeir_rows(benchmark, seed=plan.seed)
    arguments = UMarvelTrainingArguments(
        output_dir=str(out / "checkpoints"),
        seed=plan.seed,
        batch_sampler=partial(BlockBatchSampler, groups=groups, block_size=plan.block_size, first=plan.first),
        **{**plan.training, **({} if max_steps is None else {"max_steps": max_steps})},
    )
    augmentation = Augmentation(**plan.augmentation, seed=plan.seed)
    trainer = UMarvelTrainer(
        model=model, args=arguments, train_dataset=rows.with_transform(augmentation), callbacks=[augmentation]
    )
    trainer.train(resume_from_checkpoint=_last_checkpoint(out / "checkpoints"))
    unfinished = out / "model.unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    model.save_pretrained(str(unfinished), create_model_card=False)
    _evaluate(unfinished, plan, benchmark).save(out / "result.json")
    return unfinished.rename(out / "model")


def _evaluate(folder: Path, plan: Recipe, benchmark: MBeir) -> Result:
    """Measure the checkpoint in ``folder`` on the test split, and write its card."""
    model = load(str(folder), device="cpu")
    result = evaluate_benchmark(
        model, benchmark, settings={"model": plan.name, "command": f"umarvel train {plan.name}"}
    )
    notes = files("umarvel_hf.trainer").joinpath("trained_card.md").read_text(encoding="utf-8")
    embedder: Any = model[0].model
    card = model_card(
        embedder,
        base=f"{plan.name}: a tiny model trained from nothing",
        made_by=f"umarvel train {plan.name}",
        notes=notes.format(recipe=yaml.safe_dump(dataclasses.asdict(plan), sort_keys=False), table=result.table()),
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
    return result


def _last_checkpoint(folder: Path) -> str | None:
    """The last complete checkpoint: one that was cut short lacks the trainer's state, which is written last."""
    complete = [path.parent for path in folder.glob("checkpoint-*/trainer_state.json")]
    return str(max(complete, key=lambda path: int(path.name.removeprefix("checkpoint-")))) if complete else None


def _fields(kind: type) -> list[str]:
    return [field.name for field in dataclasses.fields(kind)]


def _check_keys(where: str, given: Any, known: Iterable[str], required: Iterable[str] = ()) -> None:
    if not isinstance(given, dict):
        raise ValueError(f"{where}: found {given!r}; write keys and values, as the shipped recipes do.")
    unknown, missing = sorted(given.keys() - set(known), key=str), sorted(set(required) - given.keys())
    if unknown or missing:
        raise ValueError(f"{where}: unknown keys {unknown}, missing keys {missing}; known are {sorted(known)}.")
