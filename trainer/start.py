"""What a recipe starts from, looked at before anything runs: is it a model that its stages can train?"""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, PretrainedConfig

from umarvel_hf.checkpoint import base_processor, is_ours
from umarvel_hf.emoji.base import SPECIAL_TOKENS, BaseSize, base_config
from umarvel_hf.hub import local_folder
from umarvel_hf.modeling.configuration_umarvel import UMarvelConfig
from umarvel_hf.trainer.adapters import projector_layers
from umarvel_hf.trainer.recipe import Recipe, Reranker, Score, Stage, Training


def check_start(recipe: Recipe, source: str | Path) -> Any:
    """The backbone of what a recipe starts from, on the meta device; None where its configuration is not here.

    Args:
        source: Folder or Hub id of the start; of one that is made from nothing, where it will be.

    Raises:
        ValueError: No embedder can be made of it, or it has not the ``projector`` that a stage adapts.
    """
    if recipe.start.model is not None and Path(source).is_dir() and not is_ours(folder := local_folder(source)):
        base_processor(folder)
    backbone = _backbone(recipe.start.tiny, source)
    if backbone is not None:
        _check_projectors(recipe, backbone)
    return backbone


def foreign_model(stage: Stage, recipe: Recipe) -> str | None:
    """The folder or Hub id of a model that a stage takes from outside the run: a re-ranker, or what one is made of."""
    named = stage.base if isinstance(stage, Reranker) else stage.reranker if isinstance(stage, Score) else None
    return None if named in [one.name for one in recipe.stages] else named


def _backbone(tiny: BaseSize | None, source: str | Path) -> Any:
    config: PretrainedConfig
    try:
        if tiny is not None:
            config = base_config(tiny, tiny.vocabulary, {token: at for at, token in enumerate(SPECIAL_TOKENS)})
        elif PretrainedConfig.get_config_dict(source)[0].get("model_type") == UMarvelConfig.model_type:
            config = UMarvelConfig.from_pretrained(source).vlm_config
        else:
            config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    except OSError:
        return None
    with torch.device("meta"):
        return AutoModel.from_config(config)


def _check_projectors(recipe: Recipe, backbone: nn.Module) -> None:
    for stage in recipe.stages:
        lora = stage.lora if isinstance(stage, Training) else None
        if lora is None or lora.projector is None or foreign_model(stage, recipe) is not None:
            continue
        try:
            projector_layers(backbone, lora.projector)
        except ValueError as error:
            raise ValueError(f"stage {stage.name!r}: {error}") from error
