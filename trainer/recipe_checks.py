"""What cannot run is refused by name before anything runs: settings of a recipe that do not fit together."""

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sentence_transformers.cross_encoder import CrossEncoderTrainingArguments
from transformers.integrations import get_available_reporting_integrations
from transformers.trainer_utils import IntervalStrategy, SaveStrategy, SchedulerType
from transformers.training_args import OptimizerNames
from transformers.utils import (
    is_flash_attn_2_available,
    is_flash_attn_3_available,
    is_flash_attn_4_available,
    is_kernels_available,
)

from umarvel_hf.evaluation.retrieval import DEPTH
from umarvel_hf.negatives import Strategy
from umarvel_hf.trainer.arguments import UMarvelTrainingArguments
from umarvel_hf.trainer.augmentation import Augmentation
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


@dataclass(frozen=True)
class Rule:
    """What values of some training arguments must be, as a test and in words."""

    names: tuple[str, ...]
    holds: Callable[[Any], bool]
    words: str


def _is(kind: type | tuple[type, ...], value: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _is_rate(value: Any) -> bool:
    return _is((int, float), value) and 0 <= value < math.inf


def _one_of(*names: str, of: Iterable[Any]) -> Rule:
    known = [str(getattr(one, "value", one)) for one in of]
    return Rule(names, lambda value: value in known, f"one of {', '.join(known)}")


RULES = (
    Rule(
        ("per_device_train_batch_size", "gradient_accumulation_steps", "max_text_tokens"),
        lambda value: _is(int, value) and value >= 1,
        "a whole number from 1",
    ),
    Rule(("mini_batch_size",), lambda value: value is None or (_is(int, value) and value >= 1), "from 1, or left out"),
    Rule(
        ("muon_learning_rate", "temperature_learning_rate"),
        lambda value: value is None or _is_rate(value),
        "a number from 0, or left out",
    ),
    Rule(("max_steps",), lambda value: _is(int, value) and (value >= 1 or value == -1), "a whole number from 1"),
    Rule(("learning_rate", "weight_decay", "max_grad_norm"), _is_rate, "a number from 0"),
    Rule(("num_train_epochs",), lambda value: _is((int, float), value) and 0 < value < math.inf, "a number above 0"),
    _one_of("lr_scheduler_type", of=SchedulerType),
    _one_of("optim", of=OptimizerNames),
    _one_of("save_strategy", of=SaveStrategy),
    _one_of("eval_strategy", "logging_strategy", of=IntervalStrategy),
)
FLASH_ATTENTION = {
    "flash_attention_2": is_flash_attn_2_available,
    "flash_attention_3": is_flash_attn_3_available,
    "flash_attention_4": is_flash_attn_4_available,
}
THE_RUNS_OWN = ("output_dir", "seed", "data_seed", "batch_sampler", "resume_from_checkpoint")


def check_keys(where: str, given: Any, known: Iterable[str], required: Iterable[str] = ()) -> None:
    """Raise ValueError where ``given`` is no mapping of known keys that has the required ones."""
    if not isinstance(given, dict):
        raise ValueError(f"{where}: found {given!r}; write keys and values, as the shipped recipes do.")
    unknown, missing = sorted(given.keys() - set(known), key=str), sorted(set(required) - given.keys())
    if unknown or missing:
        raise ValueError(f"{where}: unknown keys {unknown}, missing keys {missing}; known are {sorted(known)}.")


def text_for_number(value: Any) -> str | None:
    """How to write a number that YAML 1.1 takes for text, such as 2e-3; None for anything else."""
    if isinstance(value, str) and re.fullmatch(r"[-+]?\d+e[-+]?\d+", value):
        return value.replace("e", ".0e")
    return None


def check(recipe: Recipe, where: str) -> None:
    """Raise ValueError, naming stage and value, where a recipe cannot run."""
    earlier: dict[str, Stage] = {}
    for stage in recipe.stages:
        here = f"{where}: stage {stage.name!r}"
        if not re.fullmatch(r"[\w.-]+", stage.name) or stage.name in ("start", *earlier):
            raise ValueError(f"{here}: names are letters, digits, dots and hyphens, not start, and each stands once.")
        if isinstance(stage, Training):
            _check_training(stage, here)
            _check_attention(stage, here)
        for problem in _misfits(stage, earlier, recipe):
            raise ValueError(f"{here}: {problem}")
        earlier[stage.name] = stage


def _check_training(stage: Training, here: str) -> None:
    arguments = CrossEncoderTrainingArguments if isinstance(stage, Reranker) else UMarvelTrainingArguments
    check_keys(f"{here}: training", stage.training, [one.name for one in dataclasses.fields(arguments)])
    if own := sorted(set(stage.training) & set(THE_RUNS_OWN)):
        raise ValueError(f"{here}: training: {own} are the run's own to set; leave them out.")
    for name, value in stage.training.items():
        if number := text_for_number(value):
            raise ValueError(f"{here}: training: {name} is the text {value!r}, no number; write a point: {number}.")
        if name == "report_to":
            available = ["none", "all", *get_available_reporting_integrations()]
            if unknown := [one for one in (value if isinstance(value, list) else [value]) if one not in available]:
                raise ValueError(
                    f"{here}: training: report_to is {unknown[0]!r}; here are {', '.join(available)}. Install it, "
                    "or name another."
                )
        wanted = next((rule for rule in RULES if name in rule.names and not rule.holds(value)), None)
        if wanted is not None:
            raise ValueError(f"{here}: training: {name} is {value!r}; it must be {wanted.words}.")


def _check_attention(stage: Training, here: str) -> None:
    """Refuse what transformers does not know, or has no package for; a kernel of the Hub is named OWNER/NAME."""
    named, hub = stage.attn_implementation, is_kernels_available()
    usable = ["eager", "sdpa", *(name for name, is_here in FLASH_ATTENTION.items() if hub or is_here())]
    if isinstance(stage, Reranker):
        usable.append("flex_attention")  # embedders know it not
    if named not in usable and not (hub and "/" in named):
        raise ValueError(
            f"{here}: attn_implementation is {named!r}; here are {', '.join(usable)}. Name one of them, or install the "
            "package of another."
        )


def _misfits(stage: Stage, earlier: Mapping[str, Stage], recipe: Recipe) -> Iterable[str]:
    """What is wrong with a stage, in words; after the first of these it may not be asked on."""
    if isinstance(stage, Training) and stage.training.get("dataloader_persistent_workers"):
        yield "training.dataloader_persistent_workers is True; such workers never see a new epoch. Leave it out."
    if isinstance(stage, Embedding):
        yield from _batch_misfits(stage)
    if isinstance(stage, Contrastive):
        yield from _data_misfits(stage.data)
    if isinstance(stage, Reranker) and stage.max_text_tokens < 1:
        yield f"max_text_tokens is {stage.max_text_tokens}; give at least 1."
    of_the_run = [one.name for one in recipe.stages]
    base = stage.base if isinstance(stage, Reranker) else None
    if base in of_the_run and not isinstance(earlier.get(base), Training):
        yield f"base {base!r} leaves no model before; name an earlier stage that trains, a folder or a Hub id."
    if isinstance(stage, Distill) and not 0 <= stage.infonce_weight < math.inf:
        yield f"infonce_weight is {stage.infonce_weight}; give a number from 0."
    if isinstance(stage, HardNegatives):
        yield from _negative_misfits(stage, earlier)
    if isinstance(stage, Mine) and not (stage.depth >= 1 and 0 < stage.share <= 1 and stage.pools):
        given = f"depth is {stage.depth}, share {stage.share}, pools {stage.pools}"
        yield f"{given}; give at least 1, above 0 to 1, at least one."
    if isinstance(stage, Mine) and stage.batch_tokens is not None and stage.batch_tokens < 1:
        yield f"batch_tokens is {stage.batch_tokens}; give at least 1."
    if isinstance(stage, Reranker | Score):
        yield from _table_misfits(stage.table, earlier, (Mine,), "local")
    if isinstance(stage, Score):
        table = earlier[stage.table]
        if stage.reranker in of_the_run and not isinstance(earlier.get(stage.reranker), Reranker):
            yield f"reranker {stage.reranker!r} is no earlier stage of kind reranker; name one, a folder or a Hub id."
        if isinstance(table, Mine) and not 1 <= stage.top <= table.depth:
            yield f"top is {stage.top}, but stage {stage.table!r} keeps {table.depth} candidates; give at most these."
        if stage.weight is not None and not 0 <= stage.weight < math.inf:
            yield f"weight is {stage.weight}; give a number from 0, or leave it out to have it fitted."
        if not 1 <= stage.fit_top <= DEPTH:
            yield f"fit_top is {stage.fit_top}; give more than the tasks' metrics count, and at most {DEPTH}."
        if stage.weight is None and recipe.evaluation is None:
            yield "weight is to be fitted on the validation split, but evaluation is left out; give a weight."
    if isinstance(stage, Distill):
        yield from _table_misfits(stage.table, earlier, (Score,), "local")
        table = earlier[stage.table]
        if isinstance(table, Score) and not 2 <= stage.top <= table.top:
            yield f"top is {stage.top}, but stage {stage.table!r} scores {table.top} candidates; give 2 to so many."


def _data_misfits(data: Iterable[Data]) -> Iterable[str]:
    """Groups are what weights and batches go by, so no two data sets may share one."""
    groups: list[str] = []
    for one in data:
        if not 0 < one.weight < math.inf:
            yield f"data: weight is {one.weight}; give a number above 0."
        if isinstance(one, Nli):
            groups.append("nli")
        elif isinstance(one, Captions):
            groups.append(Path(one.captions).stem)
        else:
            groups += ["all"] if one.mbeir == "all" else one.mbeir
    if repeated := sorted({group for group in groups if groups.count(group) > 1}):
        yield f"data: several data sets are called {repeated}; join or rename their files."
    if "all" in groups and any(re.fullmatch(r"\d+ task \d+", group) for group in groups):
        yield "data: mbeir is given as 'all' and by groups; weights of single groups need them all named."


def _batch_misfits(stage: Embedding) -> Iterable[str]:
    size = stage.training.get("per_device_train_batch_size", 8)
    if stage.augmentation is not None:
        try:
            Augmentation(**stage.augmentation)
        except (TypeError, ValueError) as error:
            yield f"augmentation: {error}"
    if isinstance(stage.batches, int) and (stage.batches < 1 or size % stage.batches):
        yield f"batches of blocks of {stage.batches} rows do not fill a batch of {size}; choose a divisor."
    if stage.temperature == "fixed" and stage.training.get("temperature_learning_rate") is not None:
        yield "temperature is fixed, but training gives it a temperature_learning_rate; leave one out."
    optim = str(stage.training.get("optim", "adamw_torch"))
    if stage.training.get("muon_learning_rate") is not None and optim not in ("adamw_torch", "adamw_torch_fused"):
        yield f"optim is {optim!r}, but muon_learning_rate trains all but linear layers by AdamW; leave one out."


def _negative_misfits(stage: HardNegatives, earlier: Mapping[str, Stage]) -> Iterable[str]:
    wanted = stage.negatives
    counts = {"local": wanted.local, "union": wanted.union}
    if min(counts.values()) < 0 or not any(counts.values()):
        yield f"negatives are {wanted.local} local and {wanted.union} union; give at least one of either."
    for pool in (pool for pool, count in counts.items() if count):
        yield from _table_misfits(wanted.table, earlier, (Mine, Score), pool)
    mined = earlier[wanted.table]
    if isinstance(mined, Score):
        mined = earlier[mined.table]
    last = wanted.window[1] if wanted.window else max(counts.values())
    if isinstance(mined, Mine) and last > mined.depth:
        yield f"negatives reach down to rank {last}, but stage {mined.name!r} mines {mined.depth}."
    if (wanted.strategy == "window") != (wanted.window is not None):
        yield f"strategy is {wanted.strategy!r}, window {wanted.window}; a window belongs to the strategy of that name."
    if wanted.local and "random" in {wanted.strategy, *(task.get("strategy") for task in wanted.tasks.values())}:
        yield f"strategy random draws from the whole training pool, but {wanted.local} are local; ask for union ones."
    if wanted.wrong_modality > wanted.union:
        yield f"wrong_modality is {wanted.wrong_modality}, but only {wanted.union} come from the union pool."
    if wanted.filters.veto is not None and not isinstance(earlier[wanted.table], Score):
        yield f"filters.veto asks a re-ranker's answers, which stage {wanted.table!r} has not; name a score stage."
    for group, other in wanted.tasks.items():
        if not re.fullmatch(r"\d+ task \d+", group) or other.keys() - {"strategy", "window"}:
            yield f"negatives.tasks: {group!r}: {other}; write DATA SET task NUMBER: {{strategy: …, window: …}}."
            continue
        window = other.get("window", wanted.window if "strategy" not in other else None)
        try:
            Strategy(other.get("strategy", wanted.strategy), 1, None if window is None else tuple(window))
        except (TypeError, ValueError) as error:
            yield f"negatives.tasks: {group!r}: {error}"
    for name in ("remine_every_epochs", "remine_every_steps"):
        if (every := getattr(stage, name)) is not None and every < 1:
            yield f"{name} is {every}; give at least 1."
    if stage.remine_every_epochs is not None and stage.remine_every_steps is not None:
        yield "remine_every_epochs and remine_every_steps are both given; give one."
    if (stage.remine_every_epochs or stage.remine_every_steps) and isinstance(earlier[wanted.table], Score):
        yield f"lists mined anew have no answers of a re-ranker; name a mine stage instead of {wanted.table!r}."


def _table_misfits(name: str, earlier: Mapping[str, Stage], kinds: tuple[type[Stage], ...], pool: str) -> Iterable[str]:
    stage = earlier.get(name)
    if not isinstance(stage, kinds):
        wanted = " or ".join(kind.__name__.lower() for kind in kinds)
        yield f"table {name!r} is no earlier stage of kind {wanted}; earlier are {list(earlier)}."
    if isinstance(stage, Mine) and pool not in stage.pools:
        yield f"it needs {pool} lists, but stage {name!r} mines {stage.pools}."
    if isinstance(stage, Score) and pool != "local":
        yield f"it needs {pool} lists, but stage {name!r} scores local ones."
