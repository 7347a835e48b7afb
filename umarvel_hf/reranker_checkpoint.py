"""Make re-rankers: native ``CrossEncoder`` folders that answer Yes or No, of any vision-language model."""

import json
import shutil
import tempfile
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any

from umarvel_hf._torchvision import ensure_torchvision

ensure_torchvision()
from sentence_transformers import CrossEncoder
from sentence_transformers.base.modules.transformer import Transformer
from sentence_transformers.cross_encoder.modules import LogitScore

from umarvel_hf.cards import reranker_card, told_by_card
from umarvel_hf.chat_template import control_tokens, data_of, read_markers, with_data
from umarvel_hf.checkpoint import empty_folder, limit_pixels, load_processor
from umarvel_hf.exporting import language_model
from umarvel_hf.hub import local_folder
from umarvel_hf.modeling.configuration_umarvel import UMarvelConfig
from umarvel_hf.modeling.modeling_umarvel import UMarvelModel

# The reference's text to the letter, with the 24 spaces of a continued line and "responed" (recipe.md §7.1).
PROMPT = (
    f"I will provide you with a query and a candidate. Please evaluate whether the candidate{24 * ' '}"
    "meets the requirements of the query. If it does, respond with 'Yes'; if it doesn't, responed with 'No'."
)
MARKERS = ("head", "to_assistant", "image", "video")  # of a backbone's own, those that a re-ranker writes


def new_reranker(src: str | Path, out: str | Path, *, max_pixels: int | None = None) -> Path:
    """Make a re-ranker of any causal vision-language model (a re-ranker is one) or of a U-MARVEL backbone.

    A U-MARVEL checkpoint has no language-model head: its token embeddings, tied, take that place. Its attention is
    causal from now on, its positions are the backbone's own.

    Args:
        src: Folder or Hub id.
        out: Folder to write; it may exist, but must be empty. ``CrossEncoder(out)`` loads it, without remote code.
        max_pixels: Larger pictures are scaled down to so many; None: as the processor of ``src`` says.

    Returns:
        ``out``.

    Raises:
        FileExistsError: ``out`` holds files.
        ValueError: ``src`` has no multimodal processor, or its tokenizer begins "Yes" and "No" alike; ``max_pixels``,
            and its processor has no limit of pixels.
        FileNotFoundError, PermissionError, ConnectionError: As in :func:`umarvel_hf.hub.local_folder`.
    """
    out, source = empty_folder(out), local_folder(src)
    card = reranker_card(base=str(src), license=told_by_card(source, "license"))
    processor = load_processor(source)
    if "default_instruction" in data_of(processor.chat_template or ""):
        raise ValueError(
            f"{src} was converted from another family and writes texts as that does. Make the re-ranker of a "
            f"language model; `umarvel export {src} OUT --base BASE` gives one with its weights."
        )
    yes, no = (_first_token(processor.tokenizer, word) for word in ("Yes", "No"))
    if yes == no:
        token = processor.tokenizer.convert_ids_to_tokens(yes)
        raise ValueError(
            f"The tokenizer of {src} begins both 'Yes' and 'No' with {token!r}, so that an answer's first token "
            "tells nothing. Name a model whose vocabulary tells them apart."
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{out.name}-", dir=out.parent) as scratch:
        if UMarvelConfig.get_config_dict(source)[0].get("model_type") == UMarvelConfig.model_type:
            source = _language_model(source, Path(scratch))
        module = Transformer(
            str(source),
            transformer_task="any-to-any",
            processor_kwargs={"chat_template": reranker_template(processor)},
            processing_kwargs={"text": {"truncation": False}},  # what is cut off is the candidate's end
        )
        if max_pixels is not None:
            limit_pixels(module.processor.image_processor, max_pixels)
        module.model.config._name_or_path = ""  # where the base lies on this machine is no one's business
        CrossEncoder(modules=[module, LogitScore(yes, no)]).save_pretrained(str(out), create_model_card=False)
    (out / "README.md").write_text(card, encoding="utf-8")
    return out


def reranker_template(processor: Any) -> str:
    """The Jinja template of a re-ranker: the prompt of recipe.md §7.1 between a backbone's own markers."""
    markers = _stored_markers(processor.chat_template or "") or asdict(read_markers(processor, generation_prompt=False))
    data = {name: markers[name] for name in MARKERS} | {"control_tokens": control_tokens(processor), "prompt": PROMPT}
    return with_data(files("umarvel_hf").joinpath("reranker_template.jinja"), data)


def _stored_markers(template: str) -> dict[str, str]:
    """The markers that stand above a template of ours, an embedder's or a re-ranker's; none above another."""
    stored = data_of(template)
    return {name: json.loads(stored[name]) for name in MARKERS} if stored.keys() >= set(MARKERS) else {}


def _first_token(tokenizer: Any, word: str) -> int:
    first: int = tokenizer(word, add_special_tokens=False).input_ids[0]
    return first


def _language_model(checkpoint: Path, out: Path) -> Path:
    """Write a U-MARVEL checkpoint's backbone as the causal language model that it was made of, beside its processor."""
    shutil.copytree(checkpoint, out, ignore=shutil.ignore_patterns("*.safetensors*", "*.py"), dirs_exist_ok=True)
    language_model(UMarvelModel.from_pretrained(checkpoint).vlm, head=None).save_pretrained(out)
    return out
