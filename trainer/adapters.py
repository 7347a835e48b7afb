"""Adapters: where they sit, how one becomes a checkpoint, and the checkpoint from which a training goes on."""

import json
import re
import shutil
import zipfile
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file
from sentence_transformers import CrossEncoder, SentenceTransformer
from torch import nn
from transformers import AutoModelForMultimodalLM, PretrainedConfig

from umarvel_hf.checkpoint import ADAPTER_PREFIX, base_of, empty_folder
from umarvel_hf.hub import local_folder
from umarvel_hf.modeling.configuration_umarvel import UMarvelConfig
from umarvel_hf.modeling.modeling_umarvel import UMarvelModel
from umarvel_hf.trainer.losses import similarity_of

ADAPTER_WEIGHTS = "adapter_model.safetensors"
# Weights, and what a training leaves beside them.
NOT_CARRIED = (
    "*.safetensors*",
    "adapter_*",
    "optimizer*",
    "scheduler*",
    "rng_state*",
    "scaler*",
    "train*",
    "pytorch_model_fsdp*",
)


@dataclass(frozen=True)
class Lora:
    """Size and place of a low-rank adapter (https://arxiv.org/abs/2106.09685; recipe.md §5.1, §5.6).

    Args:
        r: Rank.
        alpha: What the adapter adds is multiplied by alpha / r.
        dropout: Share of an adapted layer's inputs that its adapter does not see in training.
        projector: Path of a module of the backbone whose linear layers are adapted as well, such as
            ``"visual.merger"`` or ``"connector"``; None: those of the language model only.
    """

    r: int
    alpha: int
    dropout: float = 0.05
    projector: str | None = None

    def __post_init__(self) -> None:
        if self.r < 1 or not 0 <= self.dropout < 1:
            raise ValueError(f"r is {self.r}, dropout {self.dropout}; give at least 1, and from 0 to below 1.")


def add_lora(
    model: SentenceTransformer | CrossEncoder, lora: Lora, *, train_temperature: bool = False, seed: int = 0
) -> None:
    """Adapt every linear layer of the language model, each by its full path; everything else is frozen.

    The adapter is held in float32 whatever the model's dtype: a step of 1e-5 is lost in bfloat16. A model that was
    loaded in four bits (``model_kwargs={"quantization_config": …}``, QLoRA) is adapted alike.

    Args:
        model: A U-MARVEL checkpoint, or a re-ranker (which holds no temperature).
        train_temperature: Learn the temperature as well, and save it with the adapter.
        seed: Of the adapter's first weights, so that all ranks and a second run begin alike.

    Raises:
        ValueError: There is an adapter already, or ``lora.projector`` holds no linear layer.
    """
    inner: Any = model[0].model
    if getattr(inner, "_hf_peft_config_loaded", False):
        raise ValueError("The model has an adapter already; merge it first with merge_adapter, and load the result.")
    adapted = adapted_layers(inner.base_model, lora)
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=[name for name, module in inner.named_modules() if module in adapted],
        modules_to_save=["similarity"] if train_temperature else None,
        task_type="FEATURE_EXTRACTION",
    )
    with torch.random.fork_rng(devices=[inner.device] if inner.device.type == "cuda" else []):
        torch.manual_seed(seed)
        model.add_adapter(config)
    for parameter in inner.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def adapted_layers(backbone: Any, lora: Lora) -> set[nn.Linear]:
    """The layers of a backbone that an adapter is put on: those of its language model, and of its projector."""
    projector = set() if lora.projector is None else projector_layers(backbone, lora.projector)
    return linear_layers(backbone.get_decoder()) | projector


def projector_layers(backbone: nn.Module, path: str) -> set[nn.Linear]:
    """The linear layers of a module of the backbone; ValueError where there are none."""
    module = dict(backbone.named_modules()).get(path)
    if module is None or not linear_layers(module):
        found = ", ".join(name for name, child in backbone.named_children() if linear_layers(child))
        raise ValueError(
            f"projector is {path!r}, which holds no linear layer; modules of the backbone that do are: {found}, and "
            "modules below them."
        )
    return linear_layers(module)


def linear_layers(module: nn.Module) -> set[nn.Linear]:
    """The linear layers of a module, whatever lies between."""
    return {below for below in module.modules() if isinstance(below, nn.Linear)}


def freeze_temperature(model: SentenceTransformer) -> None:
    """Keep the temperature where it is; everything else trains on as before."""
    similarity_of(model).requires_grad_(False)


class ResumesAdapters:
    """Makes a host's trainer go on from an adapter's checkpoint bit for bit: ``class T(ResumesAdapters, Trainer)``.

    The host would load the backbone a second time, and round the adapter to its dtype.
    """

    model: Any

    def _load_from_checkpoint(self, checkpoint_path: str) -> None:
        path = Path(checkpoint_path) / ADAPTER_WEIGHTS
        if not path.is_file():
            super()._load_from_checkpoint(checkpoint_path)  # type: ignore[misc]
            return
        stored = load_file(path)
        weights = {name.removeprefix(ADAPTER_PREFIX): tensor for name, tensor in stored.items()}
        adapted = self.model[0].model
        _check_same(checkpoint_path, weights, get_peft_model_state_dict(adapted, adapter_name="default"))
        set_peft_model_state_dict(adapted, weights, adapter_name="default")


def merge_adapter(adapter: str | Path, out: str | Path) -> Path:
    """Merge an adapter into the checkpoint it was trained on (recipe.md §5.7; §13, 31), an embedder or a re-ranker.

    Merged in float32 and rounded once, to the dtype of that checkpoint; the temperature stays float32. Processor, chat
    template and prompts are the adapter's where it has them, else the checkpoint's; the README is the checkpoint's.

    Args:
        adapter: Folder of an adapter, such as a checkpoint of a training.
        out: Folder to write; it may exist, but must be empty. Until it is whole it is called ``out.unfinished``.

    Returns:
        ``out``.

    Raises:
        FileExistsError: ``out`` holds files.
        ValueError: The adapter does not name its base, or fits it in part only.
    """
    adapter, out = Path(adapter), empty_folder(out)
    base = local_folder(base_of(adapter))
    settings = PretrainedConfig.get_config_dict(base)[0]
    ours = settings["model_type"] == UMarvelConfig.model_type
    model = (UMarvelModel if ours else AutoModelForMultimodalLM).from_pretrained(base, dtype=torch.float32)
    adapted = PeftModel.from_pretrained(model, str(adapter))
    _check_same(adapter, load_file(adapter / ADAPTER_WEIGHTS), get_peft_model_state_dict(adapted))
    merged = adapted.merge_and_unload(safe_merge=True)
    dtype = getattr(torch, settings.get("dtype") or "float32")
    for name, parameter in merged.named_parameters():
        if not name.startswith("similarity."):
            parameter.data = parameter.data.to(dtype)
    unfinished = out.with_name(f"{out.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    shutil.copytree(base, unfinished, ignore=shutil.ignore_patterns(*NOT_CARRIED))
    shutil.copytree(adapter, unfinished, ignore=shutil.ignore_patterns(*NOT_CARRIED, "README.md"), dirs_exist_ok=True)
    merged.save_pretrained(unfinished)
    return unfinished.rename(out)


def _check_same(adapter: str | Path, stored: Collection[str], expected: Collection[str]) -> None:
    if differing := sorted(set(stored) ^ set(expected)):
        raise ValueError(
            f"{adapter}: {len(differing)} weights are only in the adapter or only asked for by its settings, "
            f"{differing[0]!r} the first. Pass the model and the settings that it was trained with."
        )


def last_checkpoint(folder: str | Path) -> str | None:
    """The last whole checkpoint of a training in ``folder``; None if there is none.

    A checkpoint is whole once its ``trainer_state.json`` is: the host writes that last. Only the random states of
    other ranks may come later still.
    """
    numbered = {}
    for path in Path(folder).glob("checkpoint-*"):
        if (number := re.fullmatch(r"checkpoint-(\d+)", path.name)) and _whole(path):
            numbered[int(number[1])] = path
    return str(numbered[max(numbered)]) if numbered else None


def _whole(checkpoint: Path) -> bool:
    with suppress(FileNotFoundError, NotADirectoryError, ValueError):
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        return all(zipfile.is_zipfile(state) for state in checkpoint.glob("rng_state*.pth"))
    return False
