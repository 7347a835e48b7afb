"""Make U-MARVEL checkpoints: from any vision-language model, or from a checkpoint of the reference implementation."""

import json
import logging
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import snapshot_download
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from umarvel_hf._torchvision import ensure_torchvision

ensure_torchvision()
from peft import PeftModel
from transformers import (
    AddedToken,
    AutoConfig,
    AutoModel,
    AutoProcessor,
    PretrainedConfig,
    PreTrainedModel,
)

from umarvel_hf.chat_template import (
    EMB,
    INSTRUCTION_END,
    INSTRUCTION_START,
    control_tokens,
    make_template,
)
from umarvel_hf.modeling.configuration_umarvel import UMarvelConfig
from umarvel_hf.modeling.modeling_umarvel import Similarity, UMarvelModel

logger = logging.getLogger(__name__)

TOKENS = (EMB, INSTRUCTION_START, INSTRUCTION_END)
REFERENCE_TEMPERATURE = 0.05
DROPPED = ("lm_head.weight", "sim.temp")
# transformers takes a vision tower below `model.` for a part of the decoder where it knows an older layout as well.
RENAMED = {r"^model\.visual\.": "visual."}
DEEPSTACK = "deepstack_merger_list."
ADAPTER_PREFIX = "base_model.model."

InstructionRows = Literal["mean", "stored"]


@dataclass(frozen=True)
class ConversionReport:
    """What :func:`convert` found and did."""

    source: str
    base: str | None
    model_type: str
    architecture: str
    dtype: str
    temperature: float
    temperature_from: str
    instruction_rows: InstructionRows
    generation_prompt: bool
    token_ids: dict[str, int]
    dropped: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{name.replace('_', ' ')}: {value}" for name, value in asdict(self).items() if name != "dropped"]
        return "\n".join([*lines, f"dropped: {', '.join(self.dropped) or 'nothing'}"])


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
        ValueError: ``base`` has no multimodal processor, or one without a limit of pixels though one is given.
    """
    out = empty_folder(out)
    source = local_folder(base)
    _refuse_ours(source)
    processor = base_processor(source)
    if max_pixels is not None:
        limit_pixels(processor.image_processor, max_pixels)
    config = AutoConfig.from_pretrained(source)
    if not deepstack:
        _without_deepstack(config)
    vlm = AutoModel.from_pretrained(source, config=config)
    known = set(processor.tokenizer.get_vocab()) & set(TOKENS)
    ids = _add_tokens(processor)
    _fill_rows(vlm, [ids[token] for token in TOKENS if token not in known], len(processor.tokenizer))
    processor.chat_template = make_template(processor, generation_prompt=False)
    model = _wrap(vlm, ids, positions=positions, init_temperature=REFERENCE_TEMPERATURE)
    _write(model, processor, out, base=str(base), made_by=f"umarvel new {Path(base).name}")
    return out


def convert(
    src: str | Path,
    out: str | Path,
    *,
    base: str | Path | None = None,
    generation_prompt: bool = True,
    instruction_rows: InstructionRows | None = None,
) -> ConversionReport:
    """Turn a checkpoint of the reference implementation into ours (recipe.md §12.2, without the language-model head).

    Args:
        src: Folder or Hub id of a merged checkpoint (``Qwen2VLRet…``, ``Qwen2_5_VLRet…``, ``Qwen3VLRet…``), or of a
            LoRA adapter of one.
        out: Folder to write; it may exist, but must be empty.
        base: For an adapter, the checkpoint it was trained on (default: the one its configuration names). For a merged
            checkpoint without processor files, where to take them from.
        generation_prompt: Close the text with the opening of one more assistant turn, as for the published numbers.
        instruction_rows: Embedding rows of the two instruction tokens: ``"mean"`` of all rows before them, or as
            ``"stored"``. Default: stored if tokenizer and configuration carry the tokens, else mean (recipe.md §2.4).

    Raises:
        FileExistsError: ``out`` holds files.
        ValueError: Unknown or missing weights, all listed; an adapter without its base; pickled weights.
    """
    if instruction_rows not in (None, "mean", "stored"):
        raise ValueError(f"instruction_rows is {instruction_rows!r}; it must be 'mean', 'stored' or None.")
    out = empty_folder(out)
    src = local_folder(src)
    adapter = (src / "adapter_config.json").is_file()
    weights = local_folder(base if base is not None else base_of(src)) if adapter else src
    _refuse_ours(weights)
    if not any(weights.glob("*.safetensors")):
        raise ValueError(f"{weights} holds no *.safetensors; pickled weights are not read, save them as safetensors.")
    config = AutoConfig.from_pretrained(weights)
    processor = load_processor(weights if adapter or base is None or _has_processor(src) else local_folder(base))
    rows = instruction_rows or ("stored" if _tokens_are_stored(processor, config) else "mean")
    if rows == "stored":
        _check_rows(processor, config, src)
    _without_deepstack(config)  # the reference never injects what it gives (recipe.md §1.5)
    vlm, dropped = _load_backbone(weights, config, dtype=torch.float32 if adapter else "auto")
    temperature, temperature_from = _temperature(src, weights)
    if adapter:
        vlm, left_out = _merge_adapter(vlm, src)
        vlm, dropped = vlm.to(config.dtype or torch.float32), dropped + left_out  # type: ignore[arg-type]
    ids = _add_tokens(processor)
    _fill_rows(vlm, [ids[token] for token in TOKENS[1:]] if rows == "mean" else [], len(processor.tokenizer))
    processor.chat_template = make_template(processor, generation_prompt)
    model = _wrap(vlm, ids, positions="sequential", init_temperature=temperature)
    _write(model, processor, out, base=str(src), made_by=f"umarvel convert {src.name}")
    return ConversionReport(
        source=str(src),
        base=str(weights) if adapter else None,
        model_type=config.model_type,
        architecture=", ".join(config.architectures or ["unknown"]),
        dtype=str(vlm.dtype).removeprefix("torch."),
        temperature=temperature,
        temperature_from=temperature_from,
        instruction_rows=rows,
        generation_prompt=generation_prompt,
        token_ids=ids,
        dropped=dropped,
    )


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


def _without_deepstack(config: PretrainedConfig) -> None:
    if getattr(getattr(config, "vision_config", None), "deepstack_visual_indexes", None):
        config.vision_config.deepstack_visual_indexes = []


def _wrap(vlm: PreTrainedModel, ids: dict[str, int], init_temperature: float, **fields: Any) -> UMarvelModel:
    vlm.config._name_or_path = ""  # where the base lies on this machine is nothing for a checkpoint to carry along
    config = UMarvelConfig(
        vlm_config=vlm.config,
        emb_token_id=ids[EMB],
        instruction_start_token_id=ids[INSTRUCTION_START],
        instruction_end_token_id=ids[INSTRUCTION_END],
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


def _add_tokens(processor: Any) -> dict[str, int]:
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
def _fill_rows(vlm: PreTrainedModel, ids: list[int], tokens: int) -> None:
    """Give each row in ``ids`` the mean of all rows before it; grow the matrix if ``tokens`` do not fit."""
    if tokens > len(_rows(vlm)):
        vlm.resize_token_embeddings(tokens, mean_resizing=False)
    weight = _rows(vlm)
    for row in sorted(ids):
        weight[row] = weight[:row].float().mean(dim=0).to(weight.dtype)


def _rows(vlm: PreTrainedModel) -> torch.Tensor:
    embedding: Any = vlm.get_input_embeddings()
    return embedding.weight


def _load_backbone(
    source: Path, config: PretrainedConfig, dtype: torch.dtype | str
) -> tuple[PreTrainedModel, list[str]]:
    """The backbone and the names of the weights left out; unknown and missing ones are an error."""
    vlm, info = AutoModel.from_pretrained(
        source, config=config, dtype=dtype, output_loading_info=True, key_mapping=RENAMED
    )
    unexpected = sorted(info["unexpected_keys"])
    unknown = [name for name in unexpected if name not in DROPPED and DEEPSTACK not in name]
    problems = {
        "unknown weights": unknown,
        "missing weights": sorted(info["missing_keys"]),
        "weights of another shape": sorted(str(entry) for entry in info["mismatched_keys"]),
    }
    if any(problems.values()):
        told = "; ".join(f"{what}: {', '.join(names)}" for what, names in problems.items() if names)
        raise ValueError(f"{source} is not a checkpoint of a known reference class. {told}.")
    return vlm, unexpected


def _merge_adapter(vlm: PreTrainedModel, adapter: Path) -> tuple[PreTrainedModel, list[str]]:
    """Merge a LoRA adapter trained on a reference class, whose module names are older than the backbone's.

    Returns:
        The merged backbone, and the names of the weights left out.
    """
    rename, modules = _renaming(vlm), dict(vlm.named_modules())
    weights, targets, dropped, unknown = {}, set(), [], []
    for name, tensor in _adapter_weights(adapter).items():
        inner = name.removeprefix(ADAPTER_PREFIX)
        if inner in DROPPED or DEEPSTACK in inner:
            dropped.append(name)
            continue
        module, lora, _ = rename(inner).partition(".lora_")
        if not lora or module not in modules:
            unknown.append(name)
        weights[ADAPTER_PREFIX + rename(inner)] = tensor
        targets.add(module)
    if unknown:
        raise ValueError(f"{adapter}: the adapter holds weights that the base has no module for: {', '.join(unknown)}.")
    settings = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    settings["target_modules"] = sorted(targets)
    settings["modules_to_save"] = None  # the similarity; its temperature is read apart
    for name in ("rank_pattern", "alpha_pattern"):
        settings[name] = {rename(module): value for module, value in (settings.get(name) or {}).items()}
    with tempfile.TemporaryDirectory() as folder:
        save_file(weights, Path(folder) / "adapter_model.safetensors")
        (Path(folder) / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")
        return PeftModel.from_pretrained(vlm, folder).merge_and_unload(safe_merge=True), sorted(dropped)


def _renaming(vlm: PreTrainedModel) -> Callable[[str], str]:
    """From module names of a reference class to those of the backbone (recipe.md §12.1, §12.2 item 2)."""
    modules = dict(vlm.named_modules())

    def rename(name: str) -> str:
        module, dot, rest = name.partition(".lora_")
        candidates = [module, module.removeprefix("model."), "language_model." + module.removeprefix("model.")]
        return next((found for found in candidates if found in modules), module) + dot + rest

    return rename


def _adapter_weights(adapter: Path) -> dict[str, torch.Tensor]:
    path = adapter / "adapter_model.safetensors"
    if not path.is_file():
        raise ValueError(
            f"{adapter} has no adapter_model.safetensors; pickled weights are not read, save it as safetensors."
        )
    return load_file(path)


def _temperature(*folders: Path) -> tuple[float, str]:
    """The stored temperature of the first folder that has one, else the reference's initial one (recipe.md §12.2)."""
    for folder in folders:
        for path in sorted(folder.glob("*.safetensors")):
            with safe_open(path, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 (not a dict)
                    if name.removeprefix(ADAPTER_PREFIX) == "sim.temp":
                        value = float(tensors.get_tensor(name))
                        if value <= 0:
                            raise ValueError(f"{path}: the stored temperature {name} is {value}; it must be above 0.")
                        return value, f"{name} in {path.name}"
    return REFERENCE_TEMPERATURE, "the reference's initial value; none is stored"


def _tokens_are_stored(processor: Any, config: PretrainedConfig) -> bool:
    vocabulary = processor.tokenizer.get_vocab()
    fields = {INSTRUCTION_START: "instruction_start_token_id", INSTRUCTION_END: "instruction_end_token_id"}
    return all(
        token in vocabulary and getattr(config, name, None) == vocabulary[token] for token, name in fields.items()
    )


def _check_rows(processor: Any, config: PretrainedConfig, source: Path) -> None:
    """Refuse to read stored rows of tokens that the embedding matrix has no rows for."""
    missing = [token for token in TOKENS if token not in processor.tokenizer.get_vocab()]
    rows, needed = config.get_text_config().vocab_size, len(processor.tokenizer) + len(missing)
    if needed > rows:
        raise ValueError(
            f"{source}: instruction_rows='stored', but its embedding has {rows} rows and its tokens would need "
            f"{needed}; use instruction_rows='mean'."
        )


def _has_processor(folder: Path) -> bool:
    return (folder / "preprocessor_config.json").is_file() or (folder / "processor_config.json").is_file()


def base_of(adapter: Path) -> str:
    """Folder or Hub id of what an adapter was trained on; ValueError where it does not say."""
    base = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8")).get("base_model_name_or_path")
    if not base:
        raise ValueError(f"{adapter} is an adapter and does not name its base; pass base=FOLDER (--base FOLDER).")
    return base


def local_folder(source: str | Path) -> Path:
    """The folder, or that of the downloaded Hub repository; ValueError where it is a run's."""
    path = Path(source)
    if path.is_dir():
        if not (path / "config.json").is_file() and (path / "model" / "config.json").is_file():
            raise ValueError(f"{path} is the folder of a run, not a checkpoint. Give {path / 'model'}.")
        return path
    if path.is_absolute() or str(source).startswith("."):
        raise FileNotFoundError(f"The folder {str(source)!r} does not exist; give a checkpoint's folder or its Hub id.")
    return Path(
        snapshot_download(str(source), allow_patterns=["*.json", "*.safetensors", "*.txt", "*.jinja", "*.model"])
    )


def is_ours(source: Path) -> bool:
    """Whether a folder holds a U-MARVEL checkpoint."""
    path = source / "config.json"
    return path.is_file() and UMarvelConfig.get_config_dict(path)[0].get("model_type") == UMarvelConfig.model_type


def _refuse_ours(source: Path) -> None:
    if is_ours(source):
        raise ValueError(f"{source} is a U-MARVEL checkpoint already; load it as it is.")


def empty_folder(out: str | Path) -> Path:
    """The folder, which need not be there; FileExistsError where it holds files."""
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} exists and is not an empty folder; name another one or remove it.")
    return out


def _write(model: UMarvelModel, processor: Any, out: Path, *, base: str, made_by: str) -> None:
    model.save_pretrained(out)
    processor.save_pretrained(out)
    (out / "README.md").write_text(model_card(model, base=base, made_by=made_by), encoding="utf-8")


def model_card(model: UMarvelModel, *, base: str, made_by: str, notes: str = "") -> str:
    """A model card: what the model is, what it was made from, and how to use it."""
    template = (Path(__file__).parent / "model_card.md").read_text(encoding="utf-8")
    config = model.config
    return template.format(
        base=Path(base).name,
        made_by=made_by,
        model_type=config.vlm_config.model_type,
        parameters=f"{sum(parameter.numel() for parameter in model.parameters()):,}",
        dimension=config.hidden_size,
        attention="bidirectional" if config.bidirectional else "causal",
        pooling=config.pooling,
        positions=config.positions,
        notes=notes,
    )
