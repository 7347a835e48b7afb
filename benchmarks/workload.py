"""The model and the inputs of the benchmarks: random weights of a real shape, items drawn from the embedded data set.

Nothing is downloaded: texts are those of the embedded benchmark, pictures are noise of real sizes drawn by a seed, so
that every run and every peer gets the same bytes.
"""

import random
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from umarvel_hf._torchvision import ensure_torchvision

ensure_torchvision()
import numpy as np
import torch
from operations import Operations
from PIL import Image
from sentence_transformers import SentenceTransformer
from transformers import (
    AutoModelForImageTextToText,
    Qwen2VLConfig,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
)
from transformers.utils import logging

from umarvel_hf.checkpoint import new_model
from umarvel_hf.data import MBeir
from umarvel_hf.emoji import benchmark_dir
from umarvel_hf.emoji.base import SPECIAL_TOKENS, train_tokenizer, training_texts

logging.disable_progress_bar()

SIZES = ((224, 224), (448, 448), (640, 480), (320, 240), (300, 500))  # of pictures, width and height
MOST_PIXELS, MOST_PIXELS_OF_A_FRAME = 448 * 448, 224 * 224
TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}<|im_start|>system\n"
    "You are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>{% else %}{{ part['text'] }}"
    "{% endif %}{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_base(out: Path) -> Path:
    """A Qwen2-VL of 41 million random weights with its processor, as its family publishes them."""
    tokenizer = train_tokenizer(training_texts(MBeir(benchmark_dir())), 8192)
    ids = {token: int(tokenizer.convert_tokens_to_ids(token)) for token in SPECIAL_TOKENS}
    config = Qwen2VLConfig(
        text_config={
            "vocab_size": len(tokenizer) + 8,
            "hidden_size": 512,
            "intermediate_size": 1536,
            "num_hidden_layers": 8,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "max_position_embeddings": 4096,
            "bos_token_id": None,
            "eos_token_id": ids["<|im_end|>"],
            "pad_token_id": tokenizer.pad_token_id,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [8, 12, 12]},
        },
        vision_config={"depth": 6, "embed_dim": 384, "hidden_size": 512, "num_heads": 6, "mlp_ratio": 4},
        tie_word_embeddings=True,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    torch.manual_seed(0)
    AutoModelForImageTextToText.from_config(config).save_pretrained(out)
    Qwen2VLProcessor(
        Qwen2VLImageProcessor(size={"shortest_edge": 56 * 56, "longest_edge": MOST_PIXELS}),
        tokenizer,
        Qwen2VLVideoProcessor(
            size={"shortest_edge": 56 * 56, "longest_edge": MOST_PIXELS_OF_A_FRAME}, cap_pixels_per_frame=False
        ),
        chat_template=TEMPLATE,
    ).save_pretrained(out)
    return out


def write_checkpoint(out: Path) -> Path:
    """A fresh U-MARVEL checkpoint of :func:`write_base`."""
    return new_model(write_base(out.with_name(f"{out.name}-base")), out)


@cache
def captions() -> list[str]:
    """The texts of the embedded benchmark's training queries."""
    return [query.text for query in MBeir(benchmark_dir()).train_queries() if query.text]


class Draw:
    """Texts, pictures and films by a seed."""

    def __init__(self, seed: int = 0) -> None:
        self._random = random.Random(seed)
        self._pixels = np.random.default_rng(seed)
        self._texts = captions()

    def text(self, sentences: Sequence[int] = (1, 1)) -> str:
        """So many captions of the embedded benchmark, about 8 tokens each."""
        return ". ".join(self._random.choice(self._texts) for _ in range(self._random.randint(*sentences)))

    def picture(self, size: tuple[int, int] | None = None) -> Image.Image:
        width, height = size or self._random.choice(SIZES)
        noise = self._pixels.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
        return Image.fromarray(noise).resize((width, height))

    def film(self, frames: int = 8, size: tuple[int, int] = (320, 240)) -> dict[str, Any]:
        return {"video": np.stack([np.asarray(self.picture(size)) for _ in range(frames)])}

    def mix(self, count: int) -> list[Any]:
        """Of ten items four short texts, two long ones, two pictures, two pictures with a text."""
        makers = (
            *4 * (self.text,),
            *2 * (lambda: self.text((5, 25)),),
            *2 * (lambda: {"image": self.picture()},),
            *2 * (lambda: {"image": self.picture(), "text": self.text()},),
        )
        return [self._random.choice(makers)() for _ in range(count)]

    def skewed(self, count: int) -> list[Any]:
        """Of a hundred items 95 short texts, the others large pictures and films of eight frames."""
        rare = (lambda: {"image": self.picture((896, 896))}, self.film)
        return [self._random.choice(rare)() if at % 20 == 0 else self.text() for at in range(count)]


def operations(model: SentenceTransformer, items: Sequence[Any]) -> tuple[int, float, float]:
    """Tokens of items; the operations of the decoder and of the vision tower."""
    needed, lengths, patches = Operations(model[0].model.vlm), [], []
    for item in items:
        features = model.preprocess([item])
        lengths.append(features["input_ids"].shape[1])
        for name in {"image_grid_thw", "video_grid_thw"} & set(features):
            for frames, height, width in features[name].tolist():
                patches += [height * width] * frames
    read = needed.of_tokens(sum(lengths), sum(length**2 for length in lengths))
    return sum(lengths), read, needed.of_patches(patches)
