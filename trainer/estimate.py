"""What a recipe would do, before it does it: rows, steps, sizes, and an estimate of memory."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from umarvel_hf.data import MBeir
from umarvel_hf.evaluation.results import aligned
from umarvel_hf.trainer.adapters import Lora, adapted_layers, linear_layers
from umarvel_hf.trainer.quarantine import Quarantine
from umarvel_hf.trainer.recipe import (
    Contrastive,
    Distill,
    Embedding,
    HardNegatives,
    Mine,
    Recipe,
    Reranker,
    Score,
    Stage,
    Training,
)
from umarvel_hf.trainer.recipe_reader import read_recipe
from umarvel_hf.trainer.run import check_splits
from umarvel_hf.trainer.stages import Context, source_of
from umarvel_hf.trainer.start import check_start, foreign_model
from umarvel_hf.trainer.views import Screened, Trial

TEXT_TOKENS = 64  # of a row, beside its picture
PIXELS = 448 * 448  # of a picture, where a recipe sets no limit
UNKNOWN = "not here"


@dataclass(frozen=True)
class Size:
    """What decides memory: the backbone, and of its decoder what a row takes."""

    backbone: Any  # without weights
    tokens: int

    @property
    def parameters(self) -> int:
        """Weights of the backbone."""
        return sum(one.numel() for one in self.backbone.parameters())

    def trained(self, lora: Lora | None) -> int:
        """Weights that a stage learns."""
        if lora is None:
            return self.parameters
        return lora.r * sum(one.in_features + one.out_features for one in adapted_layers(self.backbone, lora))


def describe(
    recipe: str | Path, out: Path, *, benchmark: MBeir | None = None, max_steps: int | None = None, ranks: int = 1
) -> str:
    """A table of the stages of a recipe: rows, steps, what is trained, and an estimate of memory a device.

    Memory is weights, gradients and moments in float32 for what is trained (Adam has two, Muon one, here for what it
    trains of the decoder), and activations of 34 bytes a token, layer and hidden unit in half precision
    (https://arxiv.org/abs/2205.05198, without attention maps), one layer's and 2 bytes for the others under gradient
    checkpointing. Libraries' own and the vision tower's are left out.

    Args:
        out: Folder of the run; what is there already is not estimated.
        benchmark: None: rows of it are not counted.

    Raises:
        ValueError, FileNotFoundError: As :func:`read_recipe`.
    """
    plan = read_recipe(recipe)
    check_splits(plan, benchmark)
    backbone = check_start(plan, plan.start.model or out / "start" / "model")
    size = None if backbone is None else _size(backbone, plan)
    lines = [["stage", "kind", "rows", "rows a step", "steps", "trained", "memory a device"]]
    with TemporaryDirectory() as folder:
        quarantine = Quarantine(Path(folder) / "quarantine.jsonl" if plan.bad_rows == "quarantine" else None)
        if benchmark is not None:
            benchmark = Screened(benchmark, quarantine, pictures=False)
            benchmark = benchmark if max_steps is None else Trial(benchmark)
        context = Context(plan, benchmark, quarantine, max_steps, out, start=out, model=out)
        for stage in plan.stages:
            lines.append([stage.name, type(stage).__name__, *_cells(stage, context, size, ranks)])
    of = f"{size.parameters:,} parameters" if size else "a start that is not here"
    return "\n".join([f"{plan.name}: seed {plan.seed}, {of}, {ranks} device(s)", "", *aligned(lines)])


def _cells(stage: Stage, context: Context, size: Size | None, ranks: int) -> list[str]:
    if not isinstance(stage, Training):
        return [_queries(stage, context), "", "", "", ""]
    rows, training = _count(stage, context), context.arguments(stage)
    batch = training.get("per_device_train_batch_size", 8) * ranks
    accumulated = training.get("gradient_accumulation_steps", 1)
    steps = max(training.get("max_steps", 0), 0)
    if not steps and rows is not None:
        # An embedder's batches are all full, the re-ranker's last one need not be.
        batches = math.ceil(rows / batch) if isinstance(stage, Reranker) else rows // batch
        in_epoch = getattr(stage, "remine_every_steps", None) or math.ceil(batches / accumulated)
        steps = math.ceil(in_epoch * training.get("num_train_epochs", 3))
    if rows is not None and isinstance(stage, Embedding) and rows < batch:
        raise ValueError(f"stage {stage.name!r}: {rows:,} rows fill no batch of {batch:,}. Lower the batch size.")
    if foreign_model(stage, context.recipe) is not None:
        size = None
    trained = f"{size.trained(stage.lora):,}" if size else UNKNOWN
    memory = f"{_memory(stage, training, size) / 2**30:,.1f} GiB" if size else UNKNOWN
    return [
        f"{rows:,}" if rows is not None else UNKNOWN,
        f"{batch * accumulated:,}",
        f"{steps:,}" if steps else UNKNOWN,
        trained,
        memory,
    ]


def _count(stage: Training, context: Context) -> int | None:
    """Training rows; None where the data are not here."""
    if context.benchmark is None and not (isinstance(stage, Contrastive) and stage.only_pairs):
        return None
    try:
        if isinstance(stage, Contrastive):
            return sum(round(one.weight * len(source_of(one, context))) for one in stage.data)
        name = stage.negatives.table if isinstance(stage, HardNegatives) else getattr(stage, "table", None)
        while name is not None:
            table = context.recipe.stage(name)
            if isinstance(table, Mine):
                return _mined(table, context)
            name = getattr(table, "table", None)
        return len(context.data.train_queries())
    except OSError:
        return None


def _mined(stage: Mine, context: Context) -> int:
    return round(len(context.queries(stage)) * context.share(stage))


def _queries(stage: Stage, context: Context) -> str:
    if context.benchmark is None or not isinstance(stage, Mine | Score):
        return UNKNOWN
    mined = stage if isinstance(stage, Mine) else context.recipe.stage(stage.table)
    assert isinstance(mined, Mine)
    try:
        return f"{_mined(mined, context):,}"
    except OSError:
        return UNKNOWN


def _memory(stage: Training, training: Mapping[str, Any], size: Size) -> float:
    """Bytes a device."""
    trained, stored = size.trained(stage.lora), size.backbone.dtype.itemsize
    weights = size.parameters * (4 if stage.lora is None else stored) + (4 * trained if stage.lora else 0)
    columns = 2
    if isinstance(stage, HardNegatives):
        columns += stage.negatives.local + stage.negatives.union
    if isinstance(stage, Distill):
        columns = 1 + stage.top
    rows = columns * training.get("per_device_train_batch_size", 8)
    rows = min(rows, training.get("mini_batch_size") or rows)
    half = 1 if training.get("bf16") or training.get("fp16") or stored == 2 else 2
    text = size.backbone.config.get_text_config()
    states = half * rows * size.tokens * text.hidden_size
    saving = training.get("gradient_checkpointing") or training.get("activation_checkpointing")
    layers = text.num_hidden_layers
    activations = 34 * states + 2 * states * layers if saving else 34 * states * layers
    return weights + 12 * trained - 4 * _by_muon(stage, training, size) + activations


def _by_muon(stage: Training, training: Mapping[str, Any], size: Size) -> int:
    """Weights with one moment in place of two."""
    if training.get("muon_learning_rate") is None:
        return 0
    if stage.lora is not None:
        return size.trained(stage.lora)
    return sum(one.weight.numel() for one in linear_layers(size.backbone.get_decoder()))


def _size(model: Any, recipe: Recipe) -> Size:
    vision = model.config.vision_config
    unit = getattr(vision, "patch_size", 14) * getattr(vision, "spatial_merge_size", 1)
    tiny = recipe.start.tiny
    tokens = TEXT_TOKENS + (recipe.max_pixels or (tiny.image_side**2 if tiny else PIXELS)) // unit**2
    return Size(model, tokens)
