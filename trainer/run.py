"""Follow a recipe, stage by stage; stopped anywhere and called again, a run goes on where it was."""

import json
import logging
import shutil
import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import PartialState

from umarvel_hf.checkpoint import copy_model, is_ours, load_processor, new_model
from umarvel_hf.data import MBeir
from umarvel_hf.emoji.base import build_base
from umarvel_hf.fetch import Unreachable
from umarvel_hf.hub import local_folder
from umarvel_hf.store import locked, whole_file
from umarvel_hf.trainer.card import finish_model
from umarvel_hf.trainer.manifest import Manifest, begin, checksum, flat
from umarvel_hf.trainer.quarantine import Quarantine
from umarvel_hf.trainer.recipe import Contrastive, Recipe, Score, Stage
from umarvel_hf.trainer.recipe_reader import read_recipe, recipe_file
from umarvel_hf.trainer.stages import Context, input_files, missing_results, run_stage
from umarvel_hf.trainer.start import check_start, foreign_model
from umarvel_hf.trainer.views import Screened, Trial

logger = logging.getLogger(__name__)

# Arguments of a training that shape no weight: they may change while a run is stopped.
WEIGHTLESS = (
    *("logging_", "log_", "save_", "eval_", "hub_", "push_to_hub", "report_to", "run_name", "disable_tqdm"),
    *("dataloader_num_workers", "dataloader_prefetch_factor", "dataloader_pin_memory"),
)

MODEL_FACTS = "model.json"  # what ``model`` was made of


def train(recipe: str | Path, out: str | Path, *, benchmark: MBeir | None = None, max_steps: int | None = None) -> Path:
    """Train as a recipe says; the same call again goes on where a stopped run was.

    Every stage has a folder with a manifest of what it was told and, once it is done, what it measured. A finished
    stage is not run again; an unfinished one goes on from its last checkpoint and ends with the weights of an unbroken
    run. Launched by ``accelerate launch``, all ranks work on every stage.

    Args:
        recipe: Name or path (:func:`read_recipe`).
        out: Folder of the run: ``start``, ``1-<stage>``, …, ``history.jsonl`` with a line a stage, ``model``.
        benchmark: Its training split is learned, its validation and test splits measured; None: nothing asks for one.
        max_steps: A trial: so many steps a training stage, of at most 4 rows, on a small part of the benchmark.

    Returns:
        ``out/model``, the last embedder: a checkpoint that three libraries load.

    Raises:
        FileNotFoundError: ``recipe`` is neither a shipped one nor a file.
        ValueError: Stages do not fit together; a stage was begun with other settings or inputs; a row is bad; the
            recipe asks for a benchmark and none is given; ``max_steps`` is below 1.
        BlockingIOError: Another process works in ``out``.
    """
    if max_steps is not None and max_steps < 1:
        raise ValueError(f"max_steps is {max_steps}; give at least 1, or leave it out for the recipe's own number.")
    plan = read_recipe(recipe)
    if benchmark is None and plan.needs_benchmark:
        raise ValueError(f"Recipe {plan.name!r} learns from a benchmark; pass benchmark=MBeir(FOLDER).")
    quarantine = Quarantine(Path(out) / "quarantine.jsonl" if plan.bad_rows == "quarantine" else None)
    if benchmark is not None:
        if max_steps is not None:
            benchmark = Trial(Screened(benchmark, quarantine, pictures=False))
        benchmark = Screened(benchmark, quarantine)
    check_splits(plan, benchmark)
    # Absolute: adapters note where their base is, and a run may be continued from another folder.
    run = _Run(plan, benchmark, quarantine, Path(out).absolute(), max_steps)
    with locked(run.out) if run.ranks.is_main_process else nullcontext():
        run.begin()
        if run.ranks.is_main_process:
            with whole_file(run.out / "recipe.yaml") as file:
                file.write(recipe_file(recipe).read_bytes())
        run.follow()
    return Path(out) / "model"


def check_splits(recipe: Recipe, benchmark: MBeir | None) -> None:
    """Raise FileNotFoundError where a split is not there that a recipe measures on."""
    if recipe.evaluation is not None and benchmark is not None:
        for split in ("val", "test") if recipe.measures_test else ("val",):
            benchmark.tasks(split)


@dataclass
class _Run:
    recipe: Recipe
    benchmark: MBeir | None
    quarantine: Quarantine
    out: Path
    max_steps: int | None
    # Without being told, accelerate takes ranks without GPUs for one process each.
    ranks: PartialState = field(default_factory=lambda: PartialState(cpu=not torch.accelerator.is_available()))
    manifests: dict[str, Manifest] = field(default_factory=dict)

    def begin(self) -> None:
        """Read the manifests of all stages and refuse what does not fit before anything runs."""
        start = self.recipe.start
        facts = {**flat(start, "start"), "seed": str(self.recipe.seed), "max_pixels": str(self.recipe.max_pixels)}
        if start.tiny is not None:
            facts |= self._inputs(None)
        self.manifests["start"] = begin(self.out / "start", facts)
        for stage, folder in self._folders:
            self.manifests[stage.name] = manifest = begin(folder, self._facts(stage))
            if manifest.finished and (gone := missing_results(stage, folder, manifest.record)):
                raise FileNotFoundError(
                    f"Stage {stage.name} is finished, but {gone} is gone. Put it back, or remove {folder} and what "
                    "came after it to run them anew."
                )
        if (self.out / "model").exists() and not (self.out / MODEL_FACTS).is_file():
            raise FileExistsError(f"{self.out / 'model'} is not of this run and is left alone. Name another --out.")
        if self.ranks.is_main_process:
            self._check_models()
        self.ranks.wait_for_everyone()

    def _check_models(self) -> None:
        """Fetch the models that stages start from, and refuse those that are none."""
        start, built = self.recipe.start.model, self.out / "start" / "model"
        check_start(self.recipe, built if start is None or self.manifests["start"].finished else local_folder(start))
        for stage in self.recipe.stages:
            named = foreign_model(stage, self.recipe)
            if named is not None and not self.manifests[stage.name].finished:
                load_processor(local_folder(named))

    def follow(self) -> None:
        """Run what is not finished."""
        start = self._start()
        context = Context(
            self.recipe, self.benchmark, self.quarantine, self.max_steps, self.out, start=start, model=start
        )
        for stage, folder in self._folders:
            self._stage(stage, folder, context)
        if self.ranks.is_main_process:
            self._finish(context)
        self.ranks.wait_for_everyone()

    @property
    def _folders(self) -> list[tuple[Stage, Path]]:
        return [(stage, self.out / f"{at}-{stage.name}") for at, stage in enumerate(self.recipe.stages, start=1)]

    def _start(self) -> Path:
        """The checkpoint that the first stage starts from."""
        folder, manifest = self.out / "start", self.manifests["start"]
        if not manifest.finished and self.ranks.is_main_process:
            shutil.rmtree(folder, ignore_errors=True)  # cut short
            manifest.save(folder)
            self._write_start(folder)
            manifest.finished = True
            manifest.save(folder)
        self.ranks.wait_for_everyone()
        return folder / "model"

    def _finish(self, context: Context) -> None:
        """Leave ``model``, unless it is of these very stages."""
        model, path = self.out / "model", self.out / MODEL_FACTS
        facts = {name: {"digest": one.digest, "record": one.record} for name, one in self.manifests.items()}
        now = json.dumps({"recipe": self.recipe.name, "test": self.recipe.measures_test, "stages": facts}).encode()
        if model.is_dir() and path.read_bytes() == now:
            return
        unfinished = self.out / "model.unfinished"
        finish_model(context.model, unfinished, self.recipe, self.benchmark, max_steps=self.max_steps)
        shutil.rmtree(model, ignore_errors=True)
        with whole_file(path) as file:
            file.write(now)
        unfinished.rename(model)

    def _write_start(self, folder: Path) -> None:
        start, max_pixels = self.recipe.start, self.recipe.max_pixels
        if start.model is not None and is_ours(source := local_folder(start.model)):
            copy_model(source, folder / "model", max_pixels=max_pixels)
        else:
            new_model(
                self._base(folder),
                folder / "model",
                positions=start.positions,
                deepstack=start.deepstack,
                max_pixels=max_pixels,
            )

    def _base(self, folder: Path) -> str | Path:
        start = self.recipe.start
        if start.tiny is not None:
            assert self.benchmark is not None  # checked when the recipe was read
            return build_base(self.benchmark, folder / "base", start.tiny, self.recipe.seed)
        if start.smollm2 is not None:
            from umarvel_hf.smollm2 import build_smollm2_vl

            return build_smollm2_vl(folder / "base", seed=self.recipe.seed, **start.smollm2)
        assert start.model is not None  # one of the three is given
        return start.model

    def _stage(self, stage: Stage, folder: Path, context: Context) -> None:
        manifest = self.manifests[stage.name]
        if manifest.finished:
            logger.info("stage %s is finished", stage.name)
        else:
            if self.ranks.is_main_process:
                manifest.save(folder)
            self.ranks.wait_for_everyone()
            logger.info("stage %s", stage.name)
            began = time.monotonic()
            record = self._run_stage(stage, folder, context)
            self.ranks.wait_for_everyone()
            if self.ranks.is_main_process:
                seconds = round(time.monotonic() - began, 1)
                manifest.record = {"stage": stage.name, **record, "seconds_since_last_start": seconds}
                manifest.finished = True
                manifest.save(folder)
        if self.ranks.is_main_process:
            self._write_history()
        context.done(stage, folder)
        self.ranks.wait_for_everyone()

    def _run_stage(self, stage: Stage, folder: Path, context: Context) -> dict[str, object]:
        try:
            return run_stage(stage, folder, context)
        except Unreachable as error:
            if not (isinstance(stage, Contrastive) and stage.optional):
                raise
            logger.warning("stage %s is left out, as its data cannot be fetched: %s", stage.name, error)
            return {"left_out": str(error)}

    def _facts(self, stage: Stage) -> dict[str, str]:
        """All that decides what a stage leaves; a model from outside the run stands in it by its name alone."""
        facts = {"kind": type(stage).__name__, **flat(stage)}
        shapeless = tuple(f"training.{name}" for name in WEIGHTLESS)
        facts = {name: value for name, value in facts.items() if not name.startswith(shapeless)}
        facts |= {"seed": str(self.recipe.seed), "max_steps": str(self.max_steps), **self._inputs(stage)}
        facts |= {f"from {name}": manifest.digest for name, manifest in self.manifests.items()}
        sizes = self.recipe.evaluation
        if isinstance(stage, Score) and stage.weight is None and sizes is not None:  # which fit the weight
            facts |= {"queries_per_task": str(sizes.queries_per_task), "candidates": str(sizes.candidates_per_task)}
        return facts

    def _inputs(self, stage: Stage | None) -> dict[str, str]:
        """Checksums of the files that a stage reads; pictures count by their paths in these."""
        return {f"input {name}": checksum(path) for name, path in input_files(stage, self.benchmark).items()}

    def _write_history(self) -> None:
        lines = [json.dumps(one.record, ensure_ascii=False) + "\n" for one in self.manifests.values() if one.record]
        with whole_file(self.out / "history.jsonl") as file:
            file.write("".join(lines).encode())
