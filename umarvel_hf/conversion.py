"""Turn checkpoints of the reference implementation, and those of other families, into U-MARVEL checkpoints."""

import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from umarvel_hf._torchvision import ensure_torchvision

ensure_torchvision()
from peft import PeftModel
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel

from umarvel_hf.cards import embedder_card, told_by_card
from umarvel_hf.chat_template import INSTRUCTION_END, INSTRUCTION_START, make_template
from umarvel_hf.checkpoint import (
    ADAPTER_PREFIX,
    REFERENCE_TEMPERATURE,
    TOKENS,
    add_tokens,
    assemble,
    base_of,
    empty_folder,
    fill_rows,
    load_processor,
    refuse_ours,
    without_deepstack,
    write_checkpoint,
)
from umarvel_hf.families import FAMILIES, NAMES, REFERENCE, Family, family_template, find_family
from umarvel_hf.hub import local_folder, name_of
from umarvel_hf.modeling.modeling_umarvel import UMarvelModel

DROPPED = ("lm_head.weight", "sim.temp")
# transformers takes a vision tower below `model.` for a part of the decoder where it knows an older layout as well.
RENAMED = {r"^model\.visual\.": "visual."}
DEEPSTACK = "deepstack_merger_list."

FamilyName = Literal["u-marvel", "lamra", "gme", "vlm2vec", "qwen3-vl-embedding"]
InstructionRows = Literal["mean", "stored"]


@dataclass(frozen=True)
class ConversionReport:
    """What :func:`convert` found and did; ``instruction_rows`` and ``generation_prompt`` are U-MARVEL's alone.

    Args:
        source: The folder that was converted.
        base: The folder of the weights that an adapter was merged into; None: it was no adapter.
        model_type, architecture, dtype: Of the backbone.
        attention: ``bidirectional`` or ``causal``.
        pooling: ``mean`` or ``last``.
        temperature_from: Where the temperature was found, in words.
        token_ids: Of U-MARVEL's tokens; empty for other families than U-MARVEL.
        dropped: Names of the weights left out.
    """

    source: str
    family: str
    base: str | None
    model_type: str
    architecture: str
    dtype: str
    attention: str
    pooling: str
    positions: str
    temperature: float
    temperature_from: str
    instruction_rows: InstructionRows | None
    generation_prompt: bool | None
    token_ids: dict[str, int]
    dropped: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        known = {name: value for name, value in asdict(self).items() if name != "dropped" and value not in (None, {})}
        lines = [f"{name.replace('_', ' ')}: {value}" for name, value in known.items()]
        return "\n".join([*lines, f"dropped: {', '.join(self.dropped) or 'nothing'}"])


def convert(
    src: str | Path,
    out: str | Path,
    *,
    family: FamilyName | None = None,
    base: str | Path | None = None,
    generation_prompt: bool | None = None,
    instruction_rows: InstructionRows | None = None,
) -> ConversionReport:
    """Turn a checkpoint of the reference implementation (recipe.md §12.2), or of another family, into ours.

    The language-model head is left out. What a family means by a vector stands in :mod:`umarvel_hf.families`.

    Args:
        src: Folder or Hub id of a merged checkpoint, or of an adapter of one.
        out: Folder to write; it may exist, but must be empty.
        family: Whose embedder it is: ``u-marvel``, ``lamra``, ``gme``, ``vlm2vec`` or ``qwen3-vl-embedding``. None: as
            its Hub id or files tell.
        base: For an adapter, the checkpoint it was trained on (default: the one its configuration names). For a merged
            checkpoint without processor files, where to take them from.
        generation_prompt: Of U-MARVEL: close the text with the opening of one more assistant turn, as for the published
            numbers. None: yes.
        instruction_rows: Of U-MARVEL: embedding rows of the two instruction tokens, ``"mean"`` of all rows before
            them, or as ``"stored"``. None: stored if tokenizer and configuration carry the tokens, else mean
            (recipe.md §2.4).

    Returns:
        What was found and done; printed, a line a fact.

    Raises:
        FileExistsError: ``out`` holds files.
        ValueError: The family cannot be told and is not given; unknown or missing weights, all listed; an adapter
            without its base; pickled weights; a U-MARVEL checkpoint of ours; ``generation_prompt`` or
            ``instruction_rows`` for another family.
        FileNotFoundError, PermissionError, ConnectionError: As in :func:`umarvel_hf.hub.local_folder`.
    """
    if instruction_rows not in (None, "mean", "stored"):
        raise ValueError(f"instruction_rows is {instruction_rows!r}; it must be 'mean', 'stored' or None.")
    if family not in (None, *NAMES):
        raise ValueError(f"family is {family!r}; it must be one of {', '.join(NAMES)}, or None.")
    out = empty_folder(out)
    source = _Source.find(src, base)
    chosen = family or find_family(str(src), source.config.architectures or (), is_reference=source.is_reference)
    if chosen != REFERENCE and (generation_prompt, instruction_rows) != (None, None):
        raise ValueError(
            f"{src} is of family {chosen}; generation_prompt ({generation_prompt}) and instruction_rows "
            f"({instruction_rows}) are U-MARVEL's. Leave them out."
        )
    made_by = f"umarvel convert {name_of(src)}"
    if chosen == REFERENCE:
        made = _of_reference(source, out, made_by, generation_prompt is not False, instruction_rows)
    else:
        made = _of_family(source, out, f"{made_by} --family {chosen}", FAMILIES[chosen])
    return replace(made, family=chosen)


@dataclass
class _Source:
    """A checkpoint to convert: its folder, and that of its weights, which for an adapter is its base's."""

    named: str
    folder: Path
    weights: Path
    config: PretrainedConfig
    processor: Any

    @classmethod
    def find(cls, src: str | Path, base: str | Path | None) -> "_Source":
        folder = local_folder(src)
        adapter = (folder / "adapter_config.json").is_file()
        weights = local_folder(base if base is not None else base_of(folder)) if adapter else folder
        refuse_ours(weights)
        if not any(weights.glob("*.safetensors")):
            raise ValueError(
                f"{weights} holds no *.safetensors; pickled weights are not read, save them as safetensors."
            )
        config = AutoConfig.from_pretrained(weights, trust_remote_code=False)
        own = adapter or base is None or _has_processor(folder)
        return cls(str(src), folder, weights, config, load_processor(weights if own else local_folder(str(base))))

    @property
    def is_adapter(self) -> bool:
        return self.weights != self.folder

    @property
    def is_reference(self) -> bool:
        """Whether it holds what only the reference implementation writes."""
        stored = getattr(self.config, "instruction_start_token_id", None) is not None
        return stored or _temperature(self.folder, self.weights) is not None

    def load(self) -> tuple[PreTrainedModel, list[str]]:
        """The backbone, an adapter merged into it in float32, and the names of the weights left out."""
        vlm, dropped = _load_backbone(self.weights, self.config, torch.float32 if self.is_adapter else "auto")
        if self.is_adapter:
            vlm, left_out = _merge_adapter(vlm, self.folder)
            vlm, dropped = vlm.to(self.config.dtype or torch.float32), dropped + left_out  # type: ignore[arg-type]
        return vlm, dropped

    def card(self, model: UMarvelModel, made_by: str) -> str:
        """The card of what was made of it."""
        return embedder_card(model, base=self.named, made_by=made_by, license=told_by_card(self.folder, "license"))

    def report(self, vlm: PreTrainedModel, **found: Any) -> ConversionReport:
        return ConversionReport(
            source=str(self.folder),
            family="",
            base=str(self.weights) if self.is_adapter else None,
            model_type=self.config.model_type,
            architecture=", ".join(self.config.architectures or ["unknown"]),
            dtype=str(vlm.dtype).removeprefix("torch."),
            **found,
        )


def _of_reference(
    source: _Source, out: Path, made_by: str, generation_prompt: bool, instruction_rows: InstructionRows | None
) -> ConversionReport:
    config, processor = source.config, source.processor
    rows = instruction_rows or ("stored" if _tokens_are_stored(processor, config) else "mean")
    if rows == "stored":
        _check_rows(processor, config, source.folder)
    without_deepstack(config)  # the reference never injects what it gives (recipe.md §1.5)
    vlm, dropped = source.load()
    temperature, temperature_from = _temperature(source.folder, source.weights) or (
        REFERENCE_TEMPERATURE,
        "the reference's initial value; none is stored",  # recipe.md §12.2
    )
    ids = add_tokens(processor)
    fill_rows(vlm, [ids[token] for token in TOKENS[1:]] if rows == "mean" else [], len(processor.tokenizer))
    processor.chat_template = make_template(processor, generation_prompt)
    model = assemble(vlm, ids, positions="sequential", init_temperature=temperature)
    write_checkpoint(model, processor, out, source.card(model, made_by))
    return source.report(
        vlm,
        attention="bidirectional",
        pooling="mean",
        positions="sequential",
        temperature=temperature,
        temperature_from=temperature_from,
        instruction_rows=rows,
        generation_prompt=generation_prompt,
        token_ids=ids,
        dropped=dropped,
    )


def _of_family(source: _Source, out: Path, made_by: str, family: Family) -> ConversionReport:
    processor = source.processor
    vlm, dropped = source.load()
    if family.tokens is not None:
        least, most = (tokens * family.side**2 for tokens in family.tokens)
        images = processor.image_processor
        images.size = replace(images.size, shortest_edge=least, longest_edge=most)
    processor.chat_template = family_template(family.text, processor)
    meaning: dict[str, Any] = {"pooling": "last", "positions": family.positions}
    model = assemble(vlm, {}, bidirectional=False, **meaning)
    write_checkpoint(model, processor, out, source.card(model, made_by))
    return source.report(
        vlm,
        attention="causal",
        temperature=REFERENCE_TEMPERATURE,
        temperature_from="where training on would begin; the family stores none",
        instruction_rows=None,
        generation_prompt=None,
        token_ids={},
        dropped=dropped,
        **meaning,
    )


def _load_backbone(
    source: Path, config: PretrainedConfig, dtype: torch.dtype | str
) -> tuple[PreTrainedModel, list[str]]:
    """The backbone and the names of the weights left out; unknown and missing ones are an error."""
    vlm, info = AutoModel.from_pretrained(
        source, config=config, dtype=dtype, output_loading_info=True, key_mapping=RENAMED, trust_remote_code=False
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


def _temperature(*folders: Path) -> tuple[float, str] | None:
    """The stored temperature of the first folder that has one, and where it stands."""
    for folder in folders:
        for path in sorted(folder.glob("*.safetensors")):
            with safe_open(path, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 (not a dict)
                    if name.removeprefix(ADAPTER_PREFIX) == "sim.temp":
                        value = float(tensors.get_tensor(name))
                        if value <= 0:
                            raise ValueError(f"{path}: the stored temperature {name} is {value}; it must be above 0.")
                        return value, f"{name} in {path.name}"
    return None


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
