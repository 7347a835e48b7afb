"""What every kind of stage does. Each goes on where it was stopped, and leaves its results whole or not at all."""

import logging
import math
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from sentence_transformers import CrossEncoder, SentenceTransformer, SentenceTransformerTrainer
from sentence_transformers.cross_encoder import CrossEncoderTrainer, CrossEncoderTrainingArguments
from torch import nn
from transformers import TrainerCallback

from umarvel_hf.data import MBeir, Query
from umarvel_hf.emoji.cache import cache_dir
from umarvel_hf.encoding import load
from umarvel_hf.evaluation.reranked import fit_fusion
from umarvel_hf.fetch import snli
from umarvel_hf.mining import mine_benchmark
from umarvel_hf.negatives import NegativeTable, Strategy
from umarvel_hf.reranker_checkpoint import new_reranker
from umarvel_hf.reranking import load_reranker
from umarvel_hf.teaching import score_table
from umarvel_hf.trainer.adapters import add_lora, freeze_temperature, last_checkpoint, merge_adapter
from umarvel_hf.trainer.arguments import UMarvelTrainingArguments
from umarvel_hf.trainer.augmentation import Augmentation
from umarvel_hf.trainer.batches import BlockBatchSampler
from umarvel_hf.trainer.callbacks import HardNegativeMining
from umarvel_hf.trainer.evaluator import RetrievalEvaluator
from umarvel_hf.trainer.losses import DistillKL, InfoNCE, NotFinite, similarity_of
from umarvel_hf.trainer.pairs import Pairs
from umarvel_hf.trainer.quarantine import Quarantine
from umarvel_hf.trainer.recipe import (
    Captions,
    Contrastive,
    Data,
    Distill,
    Embedding,
    HardNegatives,
    Mine,
    Nli,
    Recipe,
    Reranker,
    Score,
    Stage,
    Training,
)
from umarvel_hf.trainer.reranker import Judgements, train_reranker
from umarvel_hf.trainer.rows import TrainingRows
from umarvel_hf.trainer.sources import Choice, MBeirRows, Source, TeacherLists
from umarvel_hf.trainer.trainer import UMarvelTrainer

logger = logging.getLogger(__name__)

TRIAL_ROWS = 4  # of a batch, at most
TRAIN_FILES = (
    "query/union_train/mbeir_union_up_train.jsonl",
    "cand_pool/global/mbeir_union_train_cand_pool.jsonl",
    "instructions/query_instructions.tsv",
)


@dataclass
class Context:
    """What stages share: the recipe, the data, and what earlier stages left.

    Args:
        start: The checkpoint of the start.
        model: The embedder so far.
        folders: Of the stages that are done.
    """

    recipe: Recipe
    benchmark: MBeir | None
    quarantine: Quarantine
    max_steps: int | None
    out: Path
    start: Path
    model: Path
    folders: dict[str, Path] = field(default_factory=dict)

    def done(self, stage: Stage, folder: Path) -> None:
        """Take note of a stage's results."""
        self.folders[stage.name] = folder
        if isinstance(stage, Embedding) and (folder / "model").is_dir():
            self.model = folder / "model"

    @property
    def data(self) -> MBeir:
        """The benchmark; a recipe that needs one is not begun without."""
        assert self.benchmark is not None
        return self.benchmark

    def arguments(self, stage: Training) -> dict[str, Any]:
        """The training arguments of a stage, with lines for a bar where there is no terminal; of a trial cut short."""
        given = {"disable_tqdm": not sys.stderr.isatty(), **stage.training}
        if self.max_steps is None:
            return given
        rows = min(TRIAL_ROWS, given.get("per_device_train_batch_size", TRIAL_ROWS))
        return {**given, "max_steps": self.max_steps, "per_device_train_batch_size": rows}

    def share(self, stage: Mine) -> float:
        """Of the training queries that are mined; a trial has few, and mines them all."""
        return stage.share if self.max_steps is None else 1.0

    def queries(self, stage: Mine) -> list[Query]:
        """The training queries that a stage mines, before a share of them is drawn."""
        queries = self.data.train_queries()
        if stage.groups is None:
            return queries
        if missing := sorted(set(stage.groups) - {query.group for query in queries}):
            raise ValueError(f"stage {stage.name}: {self.data.train_path} has no queries of {missing}; name others.")
        return [query for query in queries if query.group in stage.groups]

    def tables(self, name: str) -> dict[str, NegativeTable]:
        """The mined lists that a stage left, by pool."""
        return {path.stem: NegativeTable.open(path) for path in sorted(self.folders[name].glob("*.parquet"))}


def input_files(stage: Stage | None, benchmark: MBeir | None) -> dict[str, Path]:
    """The files that a stage reads, besides what earlier stages left, by what a recipe calls them; None: the start."""
    data: Sequence[Data] = getattr(stage, "data", ())
    named = {one.nli: Path(one.nli) for one in data if isinstance(one, Nli) and one.nli != "snli"}
    named |= {one.captions: Path(one.captions) for one in data if isinstance(one, Captions)}
    if benchmark is None or (isinstance(stage, Contrastive) and stage.only_pairs):
        return named
    return named | {name: benchmark.root / name for name in TRAIN_FILES}


def missing_results(stage: Stage, folder: Path, record: Mapping[str, Any]) -> Path | None:
    """The first result of a finished stage that is not in its folder."""
    results = ["model/config.json"] if isinstance(stage, Training) and "left_out" not in record else []
    if isinstance(stage, Mine | Score):
        results = [f"{pool}.parquet" for pool in (stage.pools if isinstance(stage, Mine) else ["local"])]
    return next((folder / name for name in results if not (folder / name).is_file()), None)


def run_stage(stage: Stage, folder: Path, context: Context) -> dict[str, Any]:
    """Run a stage in its folder. Returns what is to be remembered of it."""
    runs: dict[type[Stage], Callable[[Any, Path, Context], dict[str, Any]]] = {
        Contrastive: _contrastive,
        Mine: _mine,
        HardNegatives: _hard_negatives,
        Reranker: _reranker,
        Score: _score,
        Distill: _distill,
    }
    try:
        return runs[type(stage)](stage, folder, context)
    except torch.OutOfMemoryError as error:
        sizes = {Embedding: "mini_batch_size", Reranker: "per_device_train_batch_size", Mine: "batch_tokens"}
        size = next((name for kind, name in sizes.items() if isinstance(stage, kind)), None)
        lower = f"Lower {size} and remove {folder}, or lower" if size else "Lower"
        raise ValueError(
            f"stage {stage.name}: {error} {lower} max_pixels and name another --out. Where memory was only taken by "
            "others, the same command goes on from the last checkpoint."
        ) from error


def _contrastive(stage: Contrastive, folder: Path, context: Context) -> dict[str, Any]:
    sources = [source_of(one, context) for one in stage.data]
    weights: dict[str, float] = {}
    for one, source in zip(stage.data, sources, strict=True):
        weights |= dict.fromkeys(source.groups, one.weight)
    rows = _rows(sources, stage, context)
    loss = partial(InfoNCE, symmetric=stage.symmetric)
    return _train_embedder(stage, folder, context, rows, loss, weights=weights)


def _hard_negatives(stage: HardNegatives, folder: Path, context: Context) -> dict[str, Any]:
    wanted = stage.negatives
    choice = Choice(
        {
            pool: Strategy(wanted.strategy, count, wanted.window, wanted.wrong_modality if pool == "union" else 0)
            for pool, count in (("local", wanted.local), ("union", wanted.union))
            if count
        },
        wanted.filters,
        wanted.tasks,
    )
    source = MBeirRows(context.data, tables=context.tables(wanted.table), choice=choice, quarantine=context.quarantine)
    rows = _rows([source], stage, context)
    callbacks: list[TrainerCallback] = []
    batches_per_epoch = None
    if stage.remine_every_epochs or stage.remine_every_steps:
        mined = context.recipe.stage(wanted.table)
        assert isinstance(mined, Mine)  # checked when the recipe was read
        remine = partial(_mined, mined, context)
        callbacks = [HardNegativeMining(remine, rows, folder / "mined", every_epochs=stage.remine_every_epochs or 1)]
    if stage.remine_every_steps:
        accumulated = stage.training.get("gradient_accumulation_steps", 1)
        batches_per_epoch = stage.remine_every_steps * accumulated * PartialState().num_processes
    loss = partial(InfoNCE, shared=wanted.shared)
    return _train_embedder(stage, folder, context, rows, loss, callbacks=callbacks, batches_per_epoch=batches_per_epoch)


def _distill(stage: Distill, folder: Path, context: Context) -> dict[str, Any]:
    table = context.tables(stage.table)["local"]
    source = TeacherLists(
        context.data, table, top=stage.top, keep_positive=stage.keep_positive, quarantine=context.quarantine
    )
    rows = _rows([source], stage, context)
    return _train_embedder(stage, folder, context, rows, partial(DistillKL, infonce_weight=stage.infonce_weight))


def _mine(stage: Mine, folder: Path, context: Context) -> dict[str, Any]:
    model = load(str(context.model), device=_device())
    return {f"{pool}_queries": len(table) for pool, table in _mined(stage, context, model, folder).items()}


def _mined(stage: Mine, context: Context, model: SentenceTransformer, folder: Path) -> dict[str, NegativeTable]:
    return mine_benchmark(
        model,
        context.data,
        folder,
        queries=context.queries(stage),
        pools=stage.pools,
        depth=stage.depth,
        share=context.share(stage),
        seed=context.recipe.seed,
        batch_tokens=stage.batch_tokens,
    )


def _reranker(stage: Reranker, folder: Path, context: Context) -> dict[str, Any]:
    base = context.folders[stage.base] / "model" if stage.base in context.folders else stage.base or context.start
    start, ranks = folder / "start", PartialState()
    if ranks.is_main_process and not (start / "README.md").is_file():  # the file that is written last
        shutil.rmtree(start, ignore_errors=True)
        new_reranker(base, start, max_pixels=context.recipe.max_pixels)
    ranks.wait_for_everyone()
    model = CrossEncoder(str(start), device="cpu", model_kwargs=_weights(stage))
    if stage.lora is not None:
        add_lora(model, stage.lora, seed=context.recipe.seed)
    table = context.tables(stage.table)["local"]
    rows = Judgements(context.data, table, model.tokenizer, seed=context.recipe.seed, max_tokens=stage.max_text_tokens)
    arguments = CrossEncoderTrainingArguments(
        output_dir=str(folder / "checkpoints"), seed=context.recipe.seed, **context.arguments(stage)
    )
    trainer = train_reranker(model, rows, arguments)
    _save(trainer, stage, folder)
    if ranks.is_main_process:  # the host's card shows training rows, with the paths of their pictures
        shutil.copyfile(start / "README.md", folder / "model" / "README.md")
    return {"steps": trainer.state.global_step, **_last_loss(trainer)}


def _score(stage: Score, folder: Path, context: Context) -> dict[str, Any]:
    trained = context.folders.get(stage.reranker)
    reranker = load_reranker(stage.reranker if trained is None else trained / "model")
    weight, record = stage.weight, {}
    if weight is None:
        encoder = load(str(context.model), device=_device())
        evaluator = _evaluator(context)
        assert evaluator is not None  # checked when the recipe was read
        fusion = fit_fusion(encoder, reranker, evaluator.slice, top=stage.fit_top, name=stage.reranker)
        fusion.save(folder / "fusion.json")
        weight, record = fusion.weight, {"validation_by_weight": fusion.curve}
    table = score_table(
        context.tables(stage.table)["local"],
        reranker,
        context.data,
        top=stage.top,
        weight=weight,
        out=folder / "local.parquet",
    )
    return {"queries": len(table), "weight": weight, **record}


def source_of(data: Data, context: Context) -> Source:
    """The rows of a data set."""
    quarantine = context.quarantine
    if isinstance(data, Nli):
        path = snli(cache_dir()) if data.nli == "snli" else Path(data.nli)
        return Pairs.nli(path, negatives=data.negatives, quarantine=quarantine)
    if isinstance(data, Captions):
        return Pairs.captions(
            data.captions,
            text=data.text,
            image=data.image,
            images=Path(data.images) if data.images else None,
            direction=data.direction,
            instruction=data.instruction,
            quarantine=quarantine,
        )
    groups = None if data.mbeir == "all" else data.mbeir
    return MBeirRows(context.data, groups=groups, quarantine=quarantine)


def _rows(sources: Sequence[Source], stage: Embedding, context: Context) -> TrainingRows:
    augmentation = None if stage.augmentation is None else Augmentation(**stage.augmentation)
    return TrainingRows(sources, seed=context.recipe.seed, augmentation=augmentation)


def _train_embedder(
    stage: Embedding,
    folder: Path,
    context: Context,
    rows: TrainingRows,
    loss: Callable[..., nn.Module],
    *,
    weights: Mapping[str, float] | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    batches_per_epoch: int | None = None,
) -> dict[str, Any]:
    """Train from the last checkpoint on, merge the adapter if there is one, measure."""
    recipe = context.recipe
    model = load(str(context.model), device="cpu", model_kwargs=_weights(stage))
    learned = stage.temperature == "learned"
    if stage.lora is not None:
        add_lora(model, stage.lora, train_temperature=learned, seed=recipe.seed)
    elif not learned:
        freeze_temperature(model)
    given = context.arguments(stage)
    batch_size = given.get("per_device_train_batch_size", 8)
    blocks = {"mixed": 1, "per_task": batch_size * PartialState().num_processes}
    block_size = blocks.get(str(stage.batches), stage.batches)
    sampler = partial(
        BlockBatchSampler,
        groups=rows.groups,
        block_size=block_size if context.max_steps is None else min(block_size, batch_size),
        first=stage.first,
        weights=weights,
        columns=rows.columns,
        batches_per_epoch=batches_per_epoch,
    )
    arguments = UMarvelTrainingArguments(
        output_dir=str(folder / "checkpoints"), seed=recipe.seed, batch_sampler=sampler, **given
    )
    evaluator = _evaluator(context) if arguments.eval_strategy != "no" else None
    trainer = UMarvelTrainer(
        model=model,
        args=arguments,
        train_dataset=rows.dataset,
        loss=loss(model, mini_batch_size=arguments.mini_batch_size),
        callbacks=[rows, *callbacks],
        evaluator=evaluator,
    )
    try:
        trainer.train(resume_from_checkpoint=last_checkpoint(folder / "checkpoints"))
    except NotFinite as error:
        at = f"stage {stage.name}, step {trainer.state.global_step + 1}"
        named = "; ".join(dict.fromkeys(rows.name(number) for number in _numbers(error, trainer)))
        raise ValueError(f"{at}: {error} The last checkpoint is whole. Its rows: {named}") from error
    except torch.OutOfMemoryError as error:
        raise torch.OutOfMemoryError(f"step {trainer.state.global_step + 1}: {error}") from error
    _save(trainer, stage, folder)
    return _record(trainer, folder / "model", context)


def _weights(stage: Training) -> dict[str, str]:
    """How weights are loaded: those that are trained in single precision, an adapter's base as it is stored."""
    return {"attn_implementation": stage.attn_implementation, "dtype": "auto" if stage.lora else "float32"}


def _numbers(error: NotFinite, trainer: UMarvelTrainer) -> Iterable[int]:
    """The rows of a batch whose loss is no number; where its labels are scores, those of all batches of the step."""
    if error.labels is not None and not error.labels.is_floating_point():
        return error.labels[:, 0].tolist()
    loader: Any = trainer.callback_handler.train_dataloader
    batches = list(loader.batch_sampler)  # of this rank and epoch
    in_step = trainer.args.gradient_accumulation_steps
    first = trainer.state.global_step % math.ceil(len(batches) / in_step) * in_step
    return chain.from_iterable(batches[first : first + in_step])


def _save(trainer: SentenceTransformerTrainer | CrossEncoderTrainer, stage: Training, folder: Path) -> None:
    """Leave ``folder/model``, a checkpoint of all weights; the first rank writes, the others hand over their parts."""
    unfinished, first = folder / ("adapter" if stage.lora else "model.unfinished"), trainer.is_world_process_zero()
    if first:
        shutil.rmtree(unfinished, ignore_errors=True)
    trainer.save_model(str(unfinished))
    if not first:
        return
    (unfinished / "training_args.bin").unlink(missing_ok=True)
    shutil.rmtree(folder / "model", ignore_errors=True)
    if stage.lora is not None:
        merge_adapter(unfinished, folder / "model")
    else:
        unfinished.rename(folder / "model")


def _record(trainer: UMarvelTrainer, model: Path, context: Context) -> dict[str, Any]:
    """What training and the validation slice say of a stage."""
    temperature = round(similarity_of(trainer.model).temperature.item(), 6)
    record = {"steps": trainer.state.global_step, "temperature": temperature, **_last_loss(trainer)}
    evaluator = _evaluator(context)
    if evaluator is not None and trainer.is_world_process_zero():
        metrics = evaluator(load(str(model), device=_device()))
        record["validation"] = {name: round(value, 4) for name, value in metrics.items()}
    return record


def _last_loss(trainer: SentenceTransformerTrainer | CrossEncoderTrainer) -> dict[str, Any]:
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {"last_loss": logged[-1]} if logged else {}


def _evaluator(context: Context) -> RetrievalEvaluator | None:
    sizes = context.recipe.evaluation
    if sizes is None:
        return None
    return RetrievalEvaluator(
        context.data, queries_per_task=sizes.queries_per_task, candidates_per_task=sizes.candidates_per_task
    )


def _device() -> str:
    return str(PartialState().device)
