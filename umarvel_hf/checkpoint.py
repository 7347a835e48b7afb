"""Make U-MARVEL checkpoints of any vision-language model, and write them with all that three libraries read."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from umarvel_hf._torchvision import ensure_torchvision

ensure_torchvision()
from transformers import AddedToken, AutoConfig, AutoModel, AutoProcessor, PretrainedConfig, PreTrainedModel

from umarvel_hf.cards import UNTRAINED, embedder_card, told_by_card
from umarvel_hf.chat_template import EMB, INSTRUCTION_END, INSTRUCTION_START, control_tokens, make_template
from umarvel_hf.hub import local_folder, name_of
from umarvel_hf.modeling.configuration_umarvel import UMarvelConfig
from umarvel_hf.modeling.modeling_umarvel import Similarity, UMarvelModel

TOKENS = (EMB, INSTRUCTION_START, INSTRUCTION_END)
REFERENCE_TEMPERATURE = 0.05
ADAPTER_PREFIX = "base_model.model."


def new_model(
    base: str | Path,
    out: str | Path,
    *,
    positions: Literal["native", "sequential"] = "native",
    deepstack: bool = True,
    max_pixels: int | None = None,
) -> Path:
    """Make a U-MARVEL checkpoint of any vision-language model: bidirectional, mean pooling.

    Three tokens are added; their embedding rows are the mean of the rows before them, so the same base gives the same
    checkpoint. The language-model head is left out.

    Args:
        base: Folder or Hub id of a model that ``AutoModel`` and ``AutoProcessor`` load.
        out: Folder to write; it may exist, but must be empty.
        positions: The backbone's own position ids, or those of published checkpoints (recipe.md §1.4).
        deepstack: Whether a backbone that has DeepStack uses it; published checkpoints do not (§1.5).
        max_pixels: Larger pictures are scaled down to so many; None: as the base's processor says.

    Returns:
        ``out``.

    Raises:
        FileExistsError: ``out`` holds files.
        ValueError: ``base`` has no multimodal processor, or one without a limit of pixels though one is given; it is a
            re-ranker, or a U-MARVEL checkpoint already.
        FileNotFoundError, PermissionError, ConnectionError: As in :func:`umarvel_hf.hub.local_folder`.
    """
    out = empty_folder(out)
    source = local_folder(base)
    refuse_ours(source)
    processor = base_processor(source)
    if max_pixels is not None:
        limit_pixels(processor.image_processor, max_pixels)
    config = AutoConfig.from_pretrained(source)
    if not deepstack:
        without_deepstack(config)
    vlm = AutoModel.from_pretrained(source, config=config)
    known = set(processor.tokenizer.get_vocab()) & set(TOKENS)
    ids = add_tokens(processor)
    fill_rows(vlm, [ids[token] for token in TOKENS if token not in known], len(processor.tokenizer))
    processor.chat_template = make_template(processor, generation_prompt=False)
    model = assemble(vlm, ids, positions=positions)
    card = embedder_card(
        model,
        base=str(base),
        made_by=f"umarvel new {name_of(base)}",
        license=told_by_card(source, "license"),
        limits=[UNTRAINED],
    )
    write_checkpoint(model, processor, out, card)
    return out


def copy_model(src: Path, out: str | Path, *, max_pixels: int | None = None) -> Path:
    """Copy a U-MARVEL checkpoint, with a limit of pixels where one is given; ValueError as :func:`limit_pixels`."""
    shutil.copytree(src, out)
    if max_pixels is not None:
        processor = load_processor(out)
        limit_pixels(processor.image_processor, max_pixels)
        processor.save_pretrained(out)
    return Path(out)


def knows_pixels(image_processor: Any) -> bool:
    """Whether an image processor has a limit of pixels."""
    return "max_pixels" in getattr(getattr(image_processor, "valid_kwargs", None), "__annotations__", {})


def limit_pixels(image_processor: Any, limit: int) -> None:
    """Have an image processor shrink pictures to at most ``limit`` pixels.

    Raises:
        ValueError: It knows no limit of pixels, or its lower limit is above this one.
    """
    if not knows_pixels(image_processor):
        raise ValueError(
            f"max_pixels is {limit}, but {type(image_processor).__name__} has no limit of pixels. Leave max_pixels "
            "out: pictures are as large as this model always takes them."
        )
    if limit < (least := image_processor.size.shortest_edge):
        raise ValueError(
            f"max_pixels is {limit:,}, below the {least:,} pixels to which {type(image_processor).__name__} enlarges "
            f"small pictures. Give at least {least:,}."
        )
    image_processor.size = replace(image_processor.size, longest_edge=limit)


def without_deepstack(config: PretrainedConfig) -> None:
    """Have a backbone leave its DeepStack out, if it has one (recipe.md §1.5)."""
    if getattr(getattr(config, "vision_config", None), "deepstack_visual_indexes", None):
        config.vision_config.deepstack_visual_indexes = []


def assemble(
    vlm: PreTrainedModel, ids: dict[str, int], *, init_temperature: float = REFERENCE_TEMPERATURE, **fields: Any
) -> UMarvelModel:
    """A U-MARVEL model around a backbone that is there already.

    Args:
        ids: Of our tokens; one that is missing is not used by this model's text.
        fields: Of :class:`UMarvelConfig`.
    """
    vlm.config._name_or_path = ""  # where the base lies on this machine is nothing for a checkpoint to carry along
    config = UMarvelConfig(
        vlm_config=vlm.config,
        emb_token_id=ids.get(EMB),
        instruction_start_token_id=ids.get(INSTRUCTION_START),
        instruction_end_token_id=ids.get(INSTRUCTION_END),
        init_temperature=init_temperature,
        dtype=vlm.dtype,
        **fields,
    )
    with torch.device("meta"):  # the backbone is there already; a second, random one would only cost memory
        model = UMarvelModel(config)
    model.vlm, model.similarity = vlm, Similarity(init_temperature)
    return model


def base_processor(source: Path) -> Any:
    """The processor of what an embedder can be made of; ValueError where that is a re-ranker or reads no pictures."""
    settings = source / "config_sentence_transformers.json"
    if settings.is_file() and json.loads(settings.read_text(encoding="utf-8")).get("model_type") == "CrossEncoder":
        raise ValueError(f"{source} is a re-ranker. Give an embedder's checkpoint, or the model that it was made of.")
    return load_processor(source)


def load_processor(source: str | Path) -> Any:
    """The processor of texts and pictures; ValueError where there is none, or one of a single modality."""
    try:
        processor = AutoProcessor.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError) as error:
        reason = str(error).partition(". ")[0]  # what follows is for those who meant a Hub id
        raise ValueError(
            f"{source} has no processor of text and images ({reason}); name a vision-language model with one."
        ) from error
    if not hasattr(processor, "tokenizer"):
        raise ValueError(
            f"{source} has a {type(processor).__name__}, which processes one modality; name a vision-language model "
            "with a processor of text and images."
        )
    return processor


def add_tokens(processor: Any) -> dict[str, int]:
    """Ids of our tokens, added in the reference's order where they are missing (recipe.md §2.4)."""
    tokenizer = processor.tokenizer
    for token in TOKENS:
        if token not in tokenizer.get_vocab():
            tokenizer.add_tokens([token])
    # From now on read as they are spelled: where a tokenizer looks for them in normalised text, and that folds case, a
    # user's <EMB> would be one of them, and the template knows one spelling only.
    control = set(control_tokens(processor))
    for token in list(tokenizer.added_tokens_decoder.values()):
        if token.normalized and token.content in control:
            tokenizer.add_tokens(
                AddedToken(**token.__getstate__() | {"normalized": False}), special_tokens=token.special
            )
    return {token: tokenizer.convert_tokens_to_ids(token) for token in TOKENS}


@torch.no_grad()
def fill_rows(vlm: PreTrainedModel, ids: list[int], tokens: int) -> None:
    """Give each row in ``ids`` the mean of all rows before it; grow the matrix if ``tokens`` do not fit."""
    if tokens > len(_rows(vlm)):
        vlm.resize_token_embeddings(tokens, mean_resizing=False)
    weight = _rows(vlm)
    for row in sorted(ids):
        weight[row] = weight[:row].float().mean(dim=0).to(weight.dtype)


def _rows(vlm: PreTrainedModel) -> torch.Tensor:
    embedding: Any = vlm.get_input_embeddings()
    return embedding.weight


def base_of(adapter: Path) -> str:
    """Folder or Hub id of what an adapter was trained on; ValueError where it does not say."""
    base = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8")).get("base_model_name_or_path")
    if not base:
        raise ValueError(f"{adapter} is an adapter and does not name its base; pass base=FOLDER (--base FOLDER).")
    return base


def is_ours(source: Path) -> bool:
    """Whether a folder holds a U-MARVEL checkpoint."""
    path = source / "config.json"
    return path.is_file() and UMarvelConfig.get_config_dict(path)[0].get("model_type") == UMarvelConfig.model_type


def refuse_ours(source: Path) -> None:
    """Raise ValueError where a folder is a U-MARVEL checkpoint already."""
    if is_ours(source):
        raise ValueError(f"{source} is a U-MARVEL checkpoint already; load it as it is.")


def empty_folder(out: str | Path) -> Path:
    """The folder, which need not be there; FileExistsError where it holds files."""
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} exists and is not an empty folder; name another one or remove it.")
    return out


def write_checkpoint(model: UMarvelModel, processor: Any, out: Path, card: str) -> None:
    """Write a checkpoint that three libraries load, with its card."""
    model.save_pretrained(out)
    processor.save_pretrained(out)
    (out / "README.md").write_text(card, encoding="utf-8")
