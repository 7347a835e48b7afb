"""Tiny random vision-language models as their families publish them: weights, processor, chat template, on disk.

``FAMILIES[name](folder)`` writes one. Their weights are drawn wide, so that vectors of different items differ.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    AutoModelForImageTextToText,
    LlavaOnevisionConfig,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    Qwen2_5_VLConfig,
    Qwen2_5_VLProcessor,
    Qwen2VLConfig,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLConfig,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
    SmolVLMConfig,
    SmolVLMImageProcessor,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
)

WIDTH, SPREAD = 32, 0.3
SENTENCES = (
    "You are a helpful assistant.",
    "a dog and a woman are playing on the bench",
    "Find an image that matches the given text.",
    "user assistant User: Assistant: system",
)

QWEN_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
QWEN_PLAIN_TOKENS = ("<tool_call>", "</tool_call>")
SMOLVLM_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<fake_token_around_image>",
    "<global-img>",
    "<row_1_col_1>",
    "<row_1_col_2>",
    "<row_2_col_1>",
    "<row_2_col_2>",
    "<image>",
    "<end_of_utterance>",
)
LLAVA_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>")

QWEN2_VL_TEMPLATE = """\
{% set image_count = namespace(value=0) %}{% set video_count = namespace(value=0) %}{% for message in messages %}\
{% if loop.first and message['role'] != 'system' %}<|im_start|>system
You are a helpful assistant.<|im_end|>
{% endif %}<|im_start|>{{ message['role'] }}
{% if message['content'] is string %}{{ message['content'] }}<|im_end|>
{% else %}{% for content in message['content'] %}\
{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}\
{% set image_count.value = image_count.value + 1 %}\
{% if add_vision_id %}Picture {{ image_count.value }}: {% endif %}<|vision_start|><|image_pad|><|vision_end|>\
{% elif content['type'] == 'video' or 'video' in content %}{% set video_count.value = video_count.value + 1 %}\
{% if add_vision_id %}Video {{ video_count.value }}: {% endif %}<|vision_start|><|video_pad|><|vision_end|>\
{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>
{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

QWEN3_VL_TEMPLATE = """\
{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].content is string %}
        {{- messages[0].content }}
    {%- else %}
        {%- for content in messages[0].content %}
            {%- if 'text' in content %}
                {{- content.text }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
    {{- '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'user' or message.role == 'assistant' %}
        {{- '<|im_start|>' + message.role + '\\n' }}
        {%- if message.content is string %}
            {{- message.content }}
        {%- else %}
            {%- for content in message.content %}
                {%- if content.type == 'image' or 'image' in content or 'image_url' in content %}
                    {{- '<|vision_start|><|image_pad|><|vision_end|>' }}
                {%- elif content.type == 'video' or 'video' in content %}
                    {{- '<|vision_start|><|video_pad|><|vision_end|>' }}
                {%- elif 'text' in content %}
                    {{- content.text }}
                {%- endif %}
            {%- endfor %}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

SMOLVLM_TEMPLATE = """\
<|im_start|>{% for message in messages %}{{message['role'] | capitalize}}\
{% if message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}{% endif %}\
{% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}\
{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>
{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"""

LLAVA_TEMPLATE = """\
{% for message in messages %}{{'<|im_start|>' + message['role'] + ' '}}{# Render all images first #}\
{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>' }}{% endfor %}\
{# Render all video then #}\
{% for content in message['content'] | selectattr('type', 'equalto', 'video') %}{{ '<video>' }}{% endfor %}\
{# Render all text next #}{% if message['role'] != 'assistant' %}\
{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ '\\n' + content['text'] }}\
{% endfor %}{% else %}{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}\
{% generation %}{{ '\\n' + content['text'] }}{% endgeneration %}{% endfor %}{% endif %}\
{{'<|im_end|>'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""


def byte_tokenizer(
    special: Sequence[str],
    plain: Sequence[str] = (),
    normalizer: normalizers.Normalizer | None = None,
    match_normalized: bool = False,
    **names: str,
) -> PreTrainedTokenizerFast:
    """A byte-level BPE of a few merges; ``match_normalized`` looks for its tokens in normalised text, as few do."""
    core = Tokenizer(models.BPE())
    core.normalizer = normalizer or normalizers.NFC()
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        SENTENCES, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    )
    core.add_tokens([AddedToken(token, special=True, normalized=match_normalized) for token in special])
    core.add_tokens([AddedToken(token, special=False, normalized=match_normalized) for token in plain])
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<|endoftext|>", **names)


def qwen2_vl(folder: Path) -> Path:
    tokenizer = byte_tokenizer(QWEN_TOKENS, QWEN_PLAIN_TOKENS, eos_token="<|im_end|>")
    processor = Qwen2VLProcessor(**_qwen_media(), tokenizer=tokenizer, chat_template=QWEN2_VL_TEMPLATE)
    vision = {"depth": 2, "embed_dim": 16, "hidden_size": WIDTH, "num_heads": 2, "mlp_ratio": 2}
    return _write(folder, Qwen2VLConfig(**_qwen_config(tokenizer, vision, mrope_section=[1, 1, 2])), processor)


def qwen2_5_vl(folder: Path) -> Path:
    tokenizer = byte_tokenizer(QWEN_TOKENS, QWEN_PLAIN_TOKENS, eos_token="<|im_end|>")
    processor = Qwen2_5_VLProcessor(**_qwen_media(), tokenizer=tokenizer, chat_template=QWEN2_VL_TEMPLATE)
    vision = {"depth": 2, "hidden_size": 16, "out_hidden_size": WIDTH, "num_heads": 2, "intermediate_size": 32}
    vision |= {"fullatt_block_indexes": [1], "window_size": 56, "tokens_per_second": 2}
    return _write(folder, Qwen2_5_VLConfig(**_qwen_config(tokenizer, vision, mrope_section=[1, 1, 2])), processor)


def qwen3_vl(folder: Path) -> Path:
    tokenizer = byte_tokenizer(QWEN_TOKENS, QWEN_PLAIN_TOKENS, eos_token="<|im_end|>")
    size = {"patch_size": 16, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    image = Qwen2VLImageProcessor(size={"shortest_edge": 32 * 32, "longest_edge": 64 * 96}, **size)
    video = Qwen3VLVideoProcessor(size={"shortest_edge": 2 * 32 * 32, "longest_edge": 8 * 64 * 64}, **size)
    processor = Qwen3VLProcessor(image, tokenizer=tokenizer, video_processor=video, chat_template=QWEN3_VL_TEMPLATE)
    vision = {"depth": 3, "hidden_size": 16, "out_hidden_size": WIDTH, "num_heads": 2, "intermediate_size": 32}
    vision |= {"deepstack_visual_indexes": [0, 1], "num_position_embeddings": 64, "patch_size": 16}
    config = _qwen_config(tokenizer, vision, mrope_section=[2, 1, 1], mrope_interleaved=True)
    config["text_config"]["head_dim"] = 8
    return _write(folder, Qwen3VLConfig(**config), processor)


def smolvlm(folder: Path) -> Path:
    tokenizer = byte_tokenizer(SMOLVLM_TOKENS, bos_token="<|im_start|>", eos_token="<end_of_utterance>")
    size = {"size": {"longest_edge": 64}, "max_image_size": {"longest_edge": 32}}
    video = SmolVLMVideoProcessor(
        video_sampling={"max_frames": 8, "fps": 1, "video_size": {"longest_edge": 32}}, **size
    )
    processor = SmolVLMProcessor(
        SmolVLMImageProcessor(**size), tokenizer, video, image_seq_len=4, chat_template=SMOLVLM_TEMPLATE
    )
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision |= {"image_size": 32, "patch_size": 8, "initializer_range": SPREAD}
    config = SmolVLMConfig(
        text_config=_decoder(tokenizer, model_type="llama"),
        vision_config=vision,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
    )
    return _write(folder, config, processor)


def llava_onevision(folder: Path) -> Path:
    return _llava_onevision(folder, byte_tokenizer(LLAVA_TOKENS, eos_token="<|im_end|>"), LLAVA_TEMPLATE)


def without_template(folder: Path) -> Path:
    """A base model that never learned to chat, under a tokenizer that folds case, its own tokens' included."""
    folding = byte_tokenizer(LLAVA_TOKENS, normalizer=normalizers.Lowercase(), match_normalized=True)
    return _llava_onevision(folder, folding, None)


FAMILIES: dict[str, Callable[[Path], Path]] = {
    "qwen2_vl": qwen2_vl,
    "qwen2_5_vl": qwen2_5_vl,
    "qwen3_vl": qwen3_vl,
    "smolvlm": smolvlm,
    "llava_onevision": llava_onevision,
    "without_template": without_template,
}


def _write(folder: Path, config: PreTrainedConfig, processor: ProcessorMixin) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForImageTextToText.from_config(config)
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 and "norm" not in name:
                torch.nn.init.normal_(parameter, std=SPREAD)  # biases start at zero and would prove nothing
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _decoder(tokenizer: PreTrainedTokenizerFast, **more: Any) -> dict[str, Any]:
    """Sizes of a decoder; its embedding has rows to spare, as published ones have."""
    return {
        "vocab_size": len(tokenizer) + 8,
        "hidden_size": WIDTH,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "initializer_range": SPREAD,
        "tie_word_embeddings": False,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        **more,
    }


def _qwen_config(tokenizer: PreTrainedTokenizerFast, vision: dict[str, Any], **rotary: Any) -> dict[str, Any]:
    named = {"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>"}
    named |= {"vision_start_token_id": "<|vision_start|>", "vision_end_token_id": "<|vision_end|>"}
    rope = {"rope_type": "default", "rope_theta": 10_000.0, **rotary}
    return {
        "text_config": _decoder(tokenizer, rope_parameters=rope),
        "vision_config": {"initializer_range": SPREAD, **vision},
        "tie_word_embeddings": False,
        **{name: tokenizer.convert_tokens_to_ids(token) for name, token in named.items()},
    }


def _qwen_media() -> dict[str, Any]:
    image = Qwen2VLImageProcessor(size={"shortest_edge": 28 * 28, "longest_edge": 56 * 84})
    video = Qwen2VLVideoProcessor(size={"shortest_edge": 28 * 28, "longest_edge": 56 * 56})
    return {"image_processor": image, "video_processor": video}


def _llava_onevision(folder: Path, tokenizer: PreTrainedTokenizerFast, template: str | None) -> Path:
    grids = [[32, 32], [32, 64], [64, 32], [64, 64]]
    size = {"size": {"height": 32, "width": 32}}
    processor = LlavaOnevisionProcessor(
        LlavaOnevisionImageProcessor(image_grid_pinpoints=grids, **size),
        tokenizer,
        LlavaOnevisionVideoProcessor(**size),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        chat_template=template,
    )
    vision = {"model_type": "siglip_vision_model", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    vision |= {"num_attention_heads": 2, "image_size": 32, "patch_size": 8, "vision_use_head": False}
    config = LlavaOnevisionConfig(
        text_config=_decoder(tokenizer, model_type="qwen2"),
        vision_config=vision,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=grids,
    )
    return _write(folder, config, processor)
