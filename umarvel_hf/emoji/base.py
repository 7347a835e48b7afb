"""A tiny Qwen3-VL with a vocabulary of its own, to be trained from scratch on the embedded benchmark."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from umarvel_hf._torchvision import ensure_torchvision

ensure_torchvision()
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen3VLConfig,
    Qwen3VLModel,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from umarvel_hf.data import MBeir

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
MERGE = 2  # patches a visual token, per side
# The least a chat can say: sequences are short here, and every token costs.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' if message.role == 'user' else '<|im_end|>' }}"
    "{% for part in message.content %}{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part.type == 'video' %}<|vision_start|><|video_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endfor %}"
)


@dataclass(frozen=True)
class BaseSize:
    """Sizes of the base; the defaults are those of the shipped model."""

    vocabulary: int = 3072
    hidden: int = 128
    layers: int = 4
    heads: int = 4
    intermediate: int = 384
    vision_hidden: int = 128
    vision_layers: int = 3
    vision_heads: int = 4
    vision_mlp_ratio: int = 4
    patch: int = 8
    image_side: int = 64
    initializer_range: float = 0.06


def build_base(benchmark: MBeir, out: Path, size: BaseSize, seed: int) -> Path:
    """Write a randomly initialised base checkpoint, tokenizer trained on the texts of the training split."""
    tokenizer = train_tokenizer(training_texts(benchmark), size.vocabulary)
    torch.manual_seed(seed)
    ids = {token: int(tokenizer.convert_tokens_to_ids(token)) for token in SPECIAL_TOKENS}  # type: ignore[arg-type]
    Qwen3VLModel(base_config(size, len(tokenizer), ids)).save_pretrained(out)
    _processor(size, tokenizer).save_pretrained(out)
    return out


def training_texts(benchmark: MBeir) -> list[str]:
    """Every text that training shows: instructions, queries, candidates."""
    texts = [prompt for prompts in benchmark.instructions.values() for prompt in prompts]
    texts += [query.text for query in benchmark.train_queries()]
    texts += [candidate.text for candidate in benchmark.union_pool("train").values()]
    return [text for text in texts if text]


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> Qwen2Tokenizer:
    """A lower-casing byte-level BPE with the backbone's special tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(SPECIAL_TOKENS),
        min_frequency=2,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    wrapped = Qwen2Tokenizer(tokenizer_object=tokenizer)
    wrapped.add_special_tokens(
        {
            "pad_token": SPECIAL_TOKENS[0],
            "eos_token": SPECIAL_TOKENS[2],
            "additional_special_tokens": list(SPECIAL_TOKENS),
        }
    )
    return wrapped


def base_config(size: BaseSize, vocabulary: int, ids: Mapping[str, int]) -> Qwen3VLConfig:
    """The configuration of a base whose tokenizer has so many tokens, the special ones at these ids."""
    half = size.hidden // size.heads // 2
    rotary = [half - 2 * (3 * half // 8), 3 * half // 8, 3 * half // 8]
    patches = size.image_side // size.patch
    return Qwen3VLConfig(
        text_config={
            "vocab_size": vocabulary,
            "hidden_size": size.hidden,
            "intermediate_size": size.intermediate,
            "num_hidden_layers": size.layers,
            "num_attention_heads": size.heads,
            "num_key_value_heads": size.heads,
            "head_dim": size.hidden // size.heads,
            "max_position_embeddings": 2048,
            "initializer_range": size.initializer_range,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": rotary,
                "mrope_interleaved": True,
            },
            "tie_word_embeddings": True,
            "bos_token_id": None,
            "eos_token_id": ids["<|im_end|>"],
            "pad_token_id": ids["<|endoftext|>"],
        },
        vision_config={
            "depth": size.vision_layers,
            "hidden_size": size.vision_hidden,
            "out_hidden_size": size.hidden,
            "num_heads": size.vision_heads,
            "intermediate_size": size.vision_mlp_ratio * size.vision_hidden,
            "patch_size": size.patch,
            "temporal_patch_size": 2,
            "spatial_merge_size": MERGE,
            "num_position_embeddings": patches**2,
            "deepstack_visual_indexes": [],  # a merger for each would be a sixth of all weights
            "initializer_range": size.initializer_range,
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )


def _processor(size: BaseSize, tokenizer: Any) -> Qwen3VLProcessor:
    pixels = {"shortest_edge": size.image_side**2, "longest_edge": size.image_side**2}
    vision: dict[str, Any] = {"patch_size": size.patch, "temporal_patch_size": 2, "merge_size": MERGE, "size": pixels}
    return Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(**vision),
        video_processor=Qwen3VLVideoProcessor(**vision),
        tokenizer=tokenizer,
        chat_template=CHAT_TEMPLATE,
    )
