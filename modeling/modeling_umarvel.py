"""The U-MARVEL embedder: a vision-language backbone read in both directions, pooled outside the instruction."""

import json
import shutil
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput, cached_file, can_return_tuple

from .configuration_umarvel import UMarvelConfig

SENTENCE_TRANSFORMERS_CODE = ("sentence_transformers_umarvel.py", "messages_umarvel.py")
PROMPTS = {
    "query": "",
    "document": "",
    "text-to-image": "Find an image that matches the given text.",
    "text-to-text": "Find a text that answers or paraphrases the given text.",
    "text-to-image-text": "Find an image with text that matches the given text.",
    "image-to-text": "Find a text that describes the given image.",
    "image-to-image": "Find an image that shows the same as the given image.",
    "image-to-image-text": "Find an image with text that goes with the given image.",
    "image-text-to-text": "Find a text that answers the question about the given image.",
    "image-text-to-image": "Find an image that shows the given image with the described change.",
    "image-text-to-image-text": "Find an image with text that answers the question about the given image.",
}


@dataclass
class UMarvelOutput(ModelOutput):
    """What a forward pass returns.

    Args:
        pooler_output: (B, D) float32, one embedding a row, of length 1 (unless the config says ``normalize=False``).
        last_hidden_state: (B, T, D), the decoder's states after its final norm, in the model's dtype.
    """

    pooler_output: Tensor | None = None
    last_hidden_state: Tensor | None = None


class Similarity(nn.Module):
    """Cosine over a learned temperature, held as its logarithm so that it can never reach zero (recipe.md §4.1)."""

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.log_temperature = nn.Parameter(torch.tensor(float(temperature)).log())

    @property
    def temperature(self) -> Tensor:
        """The temperature, a 0-d tensor above 0."""
        return self.log_temperature.float().exp()

    def forward(self, queries: Tensor, candidates: Tensor) -> Tensor:
        """Logits (Q, C) float32 of unit vectors ``queries`` (Q, D) and ``candidates`` (C, D)."""
        with torch.autocast(queries.device.type, enabled=False):
            return queries.float() @ candidates.float().T / self.temperature


def instruction_span(input_ids: Tensor, start_id: int, end_id: int) -> Tensor:
    """Mark every token from ``start_id`` to ``end_id``, both included (recipe.md §2.4).

    Args:
        input_ids: (B, T) int64. Spans may repeat; an unclosed span runs to the end of its row.

    Returns:
        (B, T) bool.
    """
    opened = (input_ids == start_id).cumsum(dim=1)
    closed = (input_ids == end_id).cumsum(dim=1)
    # A closing token belongs to the span it closes; one that closes nothing is an ordinary token.
    return (opened > closed) | ((input_ids == end_id) & (opened == closed))


def sequential_positions(attention_mask: Tensor, axes: int | None) -> Tensor:
    """Positions 0, 1, 2, … over the tokens that are not padding (recipe.md §1.4).

    Args:
        attention_mask: (B, T), 1 where a token is.
        axes: Number of rotary axes of a multimodal rotary embedding; None for a plain one.

    Returns:
        (axes, B, T) int64, every axis alike, or (B, T).
    """
    positions = (attention_mask.long().cumsum(dim=-1) - 1).clamp(min=0)
    return positions if axes is None else positions.expand(axes, -1, -1)


class UMarvelModel(PreTrainedModel):
    """Any vision-language backbone of ``AutoModel`` as an embedder.

    The forward pass takes what the checkpoint's processor returns and nothing else: the instruction span is found from
    the token ids, attention is bidirectional by configuration, and padding, batching and order never change a vector.
    """

    config_class = UMarvelConfig
    base_model_prefix = "vlm"
    main_input_name = "input_ids"
    accepts_loss_kwargs = False
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    # In bfloat16 a temperature moves in steps of half a per cent, coarser than a training step.
    _keep_in_fp32_modules_strict = {"similarity"}

    def __init__(self, config: UMarvelConfig) -> None:
        super().__init__(config)
        config.check_fields()  # once more: `from_pretrained(…, pooling="max")` sets the field after its own check
        # Here and not in the configuration: an adapter carries no config.json, and `from_pretrained(…,
        # bidirectional=False)` sets the field after the configuration was built.
        config.get_text_config().is_causal = not config.bidirectional
        _never_cache(config)
        self.vlm = AutoModel.from_config(config.vlm_config)
        self.similarity = Similarity(config.init_temperature)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, Similarity):
            module.log_temperature.fill_(torch.tensor(float(self.config.init_temperature)).log())
        else:
            super()._init_weights(module)

    def get_input_embeddings(self) -> nn.Module:
        """The backbone's token embedding."""
        return self.vlm.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the backbone's token embedding."""
        self.vlm.set_input_embeddings(value)

    @can_return_tuple
    def forward(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> UMarvelOutput:
        """Embed a processed batch.

        Args:
            input_ids: (B, T) int64.
            attention_mask: (B, T), 1 where a token is, 0 where padding; None: nothing is padded.
            kwargs: Whatever else the processor returned (pixels, grids, token types), passed to the backbone.

        Raises:
            ValueError: No ``input_ids``, or a row in which no token is left to pool.
        """
        if input_ids is None:
            raise ValueError("input_ids is None; the instruction span is found from token ids, so pass them.")
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        kwargs["use_cache"] = False
        if self.config.positions == "sequential":
            kwargs["position_ids"] = sequential_positions(attention_mask, self._rotary_axes())
        hidden = self.vlm(input_ids=input_ids, attention_mask=attention_mask, **kwargs).last_hidden_state  # (B, T, D)
        return UMarvelOutput(pooler_output=self.pool(hidden, input_ids, attention_mask), last_hidden_state=hidden)

    def pool(self, hidden: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Pool states (B, T, D) into embeddings (B, D) float32, over tokens outside padding and instruction."""
        kept = attention_mask.bool()
        if self.config.instruction_start_token_id is not None:
            kept = kept & ~instruction_span(
                input_ids, self.config.instruction_start_token_id, self.config.instruction_end_token_id
            )
        if not kept.any(dim=1).all():
            row = int((~kept.any(dim=1)).nonzero()[0])
            raise ValueError(
                f"Row {row} of {len(kept)} has no token outside padding and instruction; pass some content."
            )
        hidden = hidden.float()
        if self.config.pooling == "mean":
            weights = kept.unsqueeze(-1).float()  # (B, T, 1)
            embedding = (hidden * weights).sum(dim=1) / weights.sum(dim=1)  # (B, D)
        else:
            positions = torch.arange(kept.shape[1], device=kept.device)
            last = positions.masked_fill(~kept, -1).max(dim=1).values  # (B,)
            embedding = hidden[torch.arange(len(hidden), device=hidden.device), last]
        return nn.functional.normalize(embedding, dim=-1) if self.config.normalize else embedding

    def _rotary_axes(self) -> int | None:
        text_config = self.config.get_text_config()
        rotary = getattr(text_config, "rope_parameters", None) or getattr(text_config, "rope_scaling", None) or {}
        return len(rotary["mrope_section"]) if "mrope_section" in rotary else None

    def save_pretrained(self, save_directory: str | Path, *args: Any, **kwargs: Any) -> None:  # type: ignore[override]
        """Save weights, configuration, this code, and what Sentence Transformers reads beside them.

        Files of Sentence Transformers that are already in the folder (its own prompts, say) are kept.
        """
        super().save_pretrained(save_directory, *args, **kwargs)
        if not kwargs.get("is_main_process", True):
            return
        folder = Path(save_directory)
        for name in SENTENCE_TRANSFORMERS_CODE:
            source = self._code_file(name)
            if source.resolve() != (folder / name).resolve():
                shutil.copyfile(source, folder / name)
        for name, content in sentence_transformers_files(self.config.normalize).items():
            path = folder / name
            if not path.is_file():
                path.parent.mkdir(exist_ok=True)
                path.write_text(content, encoding="utf-8")

    def _code_file(self, name: str) -> Path:
        """Our own file ``name``: beside this one when installed, else in the checkpoint that this model came from."""
        beside = Path(__file__).with_name(name)
        return beside if beside.is_file() else Path(str(cached_file(self.config._name_or_path, name)))


def _never_cache(config: PreTrainedConfig) -> None:
    """Turn caches off in all parts, as Sentence Transformers does too: so either library writes the same file."""
    if hasattr(config, "use_cache"):
        config.use_cache = False
    for name in config.sub_configs:
        if getattr(config, name, None) is not None:
            _never_cache(getattr(config, name))


def sentence_transformers_files(normalize: bool) -> dict[str, str]:
    """Name and content of the files that make a saved model a ``SentenceTransformer``, as that itself saves them."""
    forward = {"method": "forward", "method_output_name": "pooler_output"}
    modules = [("", "sentence_transformers_umarvel.UMarvelTransformer")]
    if normalize:
        modules.append(("1_Normalize", "sentence_transformers.base.modules.normalize.Normalize"))
    module = {
        "transformer_task": "feature-extraction",
        "modality_config": {
            "text": forward,
            "image": forward,
            "video": forward,
            "message": {**forward, "format": "structured"},
        },
        "module_output_name": "sentence_embedding",
        # Flattened batches carry no padding mask, and with it the span and the rows would be lost.
        "unpad_inputs": False,
    }
    model = {
        "__version__": _versions(),
        "model_type": "SentenceTransformer",
        "prompts": PROMPTS,
        "default_prompt_name": None,
        "similarity_fn_name": "cosine",
    }
    files = {
        "modules.json": json.dumps(
            [{"idx": at, "name": str(at), "path": path, "type": kind} for at, (path, kind) in enumerate(modules)],
            indent=2,
        ),
        "sentence_bert_config.json": json.dumps(module, indent=4),
        "config_sentence_transformers.json": json.dumps(model, indent=2, sort_keys=True),
    }
    if normalize:
        keys = {"module_input_name": "sentence_embedding", "module_output_name": "sentence_embedding"}
        files["1_Normalize/config.json"] = json.dumps(keys, indent=4)
    return files


def _versions() -> dict[str, str]:
    versions = {"transformers": transformers.__version__, "pytorch": torch.__version__}
    with suppress(PackageNotFoundError):  # a model is loaded and saved without it, too
        versions["sentence_transformers"] = version("sentence-transformers")
    return versions


UMarvelModel.register_for_auto_class("AutoModel")
