"""Give an embedder's backbone back: alone, or as the language model that it was made of."""

from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from umarvel_hf._torchvision import ensure_torchvision

ensure_torchvision()
from transformers import AutoConfig, AutoModelForMultimodalLM, PreTrainedModel

from umarvel_hf.checkpoint import empty_folder, is_ours, load_processor
from umarvel_hf.hub import local_folder
from umarvel_hf.modeling.modeling_umarvel import UMarvelModel

HEAD = "lm_head.weight"


def export(model: str | Path, out: str | Path, *, bare: bool = False, base: str | Path | None = None) -> Path:
    """Write the backbone of a U-MARVEL checkpoint as a model of transformers' own, without code of ours.

    Args:
        model: Folder or Hub id of a U-MARVEL checkpoint.
        out: Folder to write; it may exist, but must be empty.
        bare: The backbone alone, for ``AutoModel``: its states are the embedder's (where ``positions`` is "native"), so
            its attention is. The processor is the embedder's, too.
        base: Folder or Hub id of the language model that the backbone was made of: its head is restored from there,
            attention is causal again, rows of tokens that the embedder added are left out, and the processor is the
            base's. For ``AutoModelForImageTextToText``.

    Returns:
        ``out``.

    Raises:
        FileExistsError: ``out`` holds files.
        ValueError: Neither or both of ``bare`` and ``base``; ``model`` is none of ours; ``base`` is of another kind or
            size, or has no head.
        FileNotFoundError, PermissionError, ConnectionError: As in :func:`umarvel_hf.hub.local_folder`.
    """
    if bare == (base is not None):
        raise ValueError(
            "give bare (--bare) for the backbone alone, or base (--base) to restore its head; one of them."
        )
    source, out = local_folder(model), empty_folder(out)
    if not is_ours(source):
        raise ValueError(f"{model} is no U-MARVEL checkpoint; there is nothing to take its backbone out of.")
    backbone = UMarvelModel.from_pretrained(source).vlm
    if base is None:
        backbone.save_pretrained(out)
        load_processor(source).save_pretrained(out)
        return out
    folder = local_folder(base)
    _check_base(backbone, folder, model)
    head = _head(folder)
    rows = AutoConfig.from_pretrained(folder).get_text_config().vocab_size if head is None else len(head)
    if rows < backbone.get_input_embeddings().weight.shape[0]:
        backbone.resize_token_embeddings(rows)
    language_model(backbone, head).save_pretrained(out)
    load_processor(folder).save_pretrained(out)
    return out


def language_model(backbone: PreTrainedModel, head: Tensor | None) -> PreTrainedModel:
    """The causal language model around a backbone of ours.

    Args:
        head: (rows, D); None: the token embeddings, tied.
    """
    config, text = backbone.config, backbone.config.get_text_config()
    text.__dict__.pop("is_causal", None)
    config.tie_word_embeddings = text.tie_word_embeddings = head is None
    with torch.device("meta"):  # the backbone is there already
        model = AutoModelForMultimodalLM.from_config(config)
    setattr(model, model.base_model_prefix, backbone)
    if head is None:
        model.tie_weights()
    else:
        model.get_output_embeddings().weight = torch.nn.Parameter(head.to(backbone.dtype))
    return model


def _check_base(backbone: PreTrainedModel, base: Path, model: str | Path) -> None:
    ours, theirs = backbone.config, AutoConfig.from_pretrained(base)
    facts = [
        (config.model_type, *(getattr(config.get_text_config(), name) for name in ("hidden_size", "num_hidden_layers")))
        for config in (ours, theirs)
    ]
    if facts[0] != facts[1]:
        names = ("type", "width", "layers")
        told = (", ".join(f"{name} {value}" for name, value in zip(names, one, strict=True)) for one in facts)
        raise ValueError(
            f"{model} has a backbone of {next(told)}, base {base} of {next(told)}. Give the base it was made of."
        )


def _head(base: Path) -> Tensor | None:
    """The stored head; None where it is the token embeddings."""
    for path in sorted(base.glob("*.safetensors")):
        with safe_open(path, framework="pt") as tensors:
            if name := next((one for one in tensors.keys() if one.endswith(HEAD)), None):  # noqa: SIM118
                found: Tensor = tensors.get_tensor(name)
                return found
    config = AutoConfig.from_pretrained(base)
    if not any(getattr(one, "tie_word_embeddings", False) for one in (config, config.get_text_config())):
        raise ValueError(f"{base} has no {HEAD} in its *.safetensors. Give the language model, not a backbone of it.")
    return None
