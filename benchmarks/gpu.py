"""What a GPU reaches on Qwen2-VL of 2 and 7 billion weights, random, made on the device; nothing is downloaded.

    python benchmarks/gpu.py
    python benchmarks/gpu.py --shapes 2b --repetitions 3

In bfloat16: tokens a second and MFU (the share of the matrix-product rate measured in the same run) of encoding, padded
by torch's scaled dot product, packed by its varlen attention, and by flash attention where that is installed; of a
contrastive step with an adapter on the decoder, in the two passes of gradient caching; and peak memory by batch, inputs
of all batches included. A batch is a mix of texts of 16 to 512 tokens and of pictures of 256 visual tokens with texts;
a step has texts only.

Without a GPU it runs the same program on shapes of the same form with a hundredth of the width, in float32, to show
that it runs; its numbers then say nothing of a GPU. There, packed attention is a loop over sequences.
"""

import argparse
import statistics
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

from umarvel_hf._torchvision import ensure_torchvision

ensure_torchvision()
import numpy as np
import torch
from measure import Products, interleaved, machine, table
from operations import Operations
from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from transformers import Qwen2VLConfig

from umarvel_hf.modeling.configuration_umarvel import UMarvelConfig
from umarvel_hf.modeling.modeling_umarvel import UMarvelModel
from umarvel_hf.packing import embed_packed, packed_attention
from umarvel_hf.planning import plan
from umarvel_hf.vision import patches_as_products

PICTURE, VIDEO, PAD = 100, 101, 0  # tokens that stand for media, and the one that fills
PICTURE_TOKENS = 256
TEMPERATURE, CHUNK = 0.05, 8


@dataclass(frozen=True)
class Shape:
    """Sizes of a Qwen2-VL, as its family publishes them."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    groups: int
    vocabulary: int = 152_064
    vision_width: int = 1_280
    vision_layers: int = 32
    vision_heads: int = 16


SHAPES = {"2b": Shape(1_536, 8_960, 28, 12, 2), "7b": Shape(3_584, 18_944, 28, 28, 4)}
SMALL = {
    "2b": Shape(64, 192, 4, 2, 1, 512, 64, 2, 2),
    "7b": Shape(128, 384, 4, 4, 2, 512, 64, 2, 2),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--items", type=int, default=256, help="default: %(default)s")
    parser.add_argument("--tokens", type=int, nargs="+", default=[4_096, 16_384, 65_536], help="of a batch")
    parser.add_argument("--repetitions", type=int, default=5, help="default: %(default)s")
    arguments = parser.parse_args()
    repetitions = arguments.repetitions
    device, dtype = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)
    products = Products(dtype, device)
    rate = products.rate(timed(products, repetitions))
    del products  # before peaks of memory are told
    print(machine())
    print(f"{device}, {dtype}, matrix products at {rate / 1e12:.2f} TFLOP/s" + (", small shapes" * (device == "cpu")))
    header = ["shape", "work", "batch tokens", "tokens/s (range)", "padding", "MFU", "peak memory"]
    for name in arguments.shapes:
        model = build((SHAPES if device == "cuda" else SMALL)[name], device, dtype)
        lengths = draw_lengths(arguments.items)
        works: list[tuple[str, str, Callable[[], list[str]]]] = [
            (f"encode, {way}", f"{tokens:,}", partial(encoding, model, way, lengths, tokens, rate, repetitions))
            for way in ways()
            for tokens in arguments.tokens
        ]
        works.append(("contrastive step", f"{CHUNK} rows", partial(training, model, lengths[:64], rate, repetitions)))
        rows = []
        for work, batch, run in works:
            try:
                rows.append([name, work, batch, *run()])
            except torch.OutOfMemoryError:
                rows.append([name, work, batch, *["out of memory"] * (len(header) - 3)])
        print(table(header, rows), flush=True)
        del model, works, run  # before the next is built


def ways() -> list[str]:
    flash = torch.cuda.is_available() and find_spec("flash_attn") is not None
    return ["padded sdpa", "packed varlen", *["packed flash"] * flash]


def build(shape: Shape, device: str, dtype: torch.dtype) -> UMarvelModel:
    """A model of random weights, made where it runs."""
    config = Qwen2VLConfig(
        text_config={
            "hidden_size": shape.hidden,
            "intermediate_size": shape.intermediate,
            "num_hidden_layers": shape.layers,
            "num_attention_heads": shape.heads,
            "num_key_value_heads": shape.groups,
            "vocab_size": shape.vocabulary,
            "bos_token_id": None,
            "eos_token_id": PAD,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": _sections(shape)},
        },
        vision_config={
            "depth": shape.vision_layers,
            "embed_dim": shape.vision_width,
            "hidden_size": shape.hidden,
            "num_heads": shape.vision_heads,
        },
        image_token_id=PICTURE,
        video_token_id=VIDEO,
    )
    torch.manual_seed(0)
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return UMarvelModel(UMarvelConfig(vlm_config=config)).eval()
    finally:
        torch.set_default_dtype(default)


def _sections(shape: Shape) -> list[int]:
    half = shape.hidden // shape.heads // 2
    return [half - 2 * (3 * half // 8), 3 * half // 8, 3 * half // 8]


def draw_lengths(items: int) -> np.ndarray:
    """Of each item the tokens of its text, (N,); every second one has a picture, too."""
    return np.random.default_rng(0).integers(16, 513, items)


def features_of(model: UMarvelModel, lengths: np.ndarray, pictured: np.ndarray) -> dict[str, Any]:
    """A batch as a processor makes it: random tokens and pixels."""
    whole = lengths + PICTURE_TOKENS * pictured
    ids = torch.full((len(whole), int(whole.max())), PAD)
    generator = torch.Generator().manual_seed(int(whole.sum()))
    for row, (length, picture) in enumerate(zip(whole, pictured, strict=True)):
        ids[row, :length] = torch.randint(102, 500, (int(length),), generator=generator)
        ids[row, : PICTURE_TOKENS * picture] = PICTURE
    positions = torch.arange(ids.shape[1])
    features = {"input_ids": ids, "attention_mask": (positions < torch.tensor(whole)[:, None]).long()}
    if pictured.any():
        side = 2 * int(PICTURE_TOKENS**0.5)
        count = int(pictured.sum())
        features |= {
            "image_grid_thw": torch.tensor([[1, side, side]] * count),
            "pixel_values": torch.randn(count * side**2, 1176, generator=generator).to(model.dtype),
            "mm_token_type_ids": (ids == PICTURE).int(),
        }
    return {name: one.to(model.device) for name, one in features.items()}


def operations(model: UMarvelModel, lengths: np.ndarray, pictured: np.ndarray) -> tuple[float, float]:
    """Of the decoder and of the vision tower."""
    needed, whole = Operations(model.vlm), (lengths + PICTURE_TOKENS * pictured).astype(float)
    read = needed.of_tokens(whole.sum(), (whole**2).sum())
    return read, needed.of_patches([4 * PICTURE_TOKENS] * int(pictured.sum()))


def timed(work: Callable[[], object], repetitions: int) -> list[float]:
    return interleaved({"work": work}, repetitions)[0]["work"]


def encoding(
    model: UMarvelModel, way: str, lengths: np.ndarray, tokens: int, rate: float, repetitions: int
) -> list[str]:
    """Tokens a second, padding, MFU and peak memory of encoding in a way."""
    packed, pictured = way.startswith("packed"), np.arange(len(lengths)) % 2
    model.set_attn_implementation("flash_attention_2" if way == "packed flash" else "sdpa")
    whole = lengths + PICTURE_TOKENS * pictured
    batches = [features_of(model, lengths[at], pictured[at]) for at in plan(whole, tokens, packed=packed)]
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()

    def work() -> None:
        with (
            torch.inference_mode(),
            patches_as_products(model.vlm),
            packed_attention(model) if packed else nullcontext(),
        ):
            for features in batches:
                embed_packed(model, features) if packed else model(**features)

    seconds = timed(work, repetitions)
    slots = whole.sum() if packed else sum(one["input_ids"].numel() for one in batches)
    return _told(seconds, int(whole.sum()), sum(operations(model, lengths, pictured)), rate, int(slots))


def training(model: UMarvelModel, lengths: np.ndarray, rate: float, repetitions: int) -> list[str]:
    """The same of a contrastive step of texts: two passes, the second with gradients of an adapter."""
    model.set_attn_implementation("sdpa")
    model.requires_grad_(False)
    inject_adapter_in_model(LoraConfig(r=16, target_modules=r".*language_model\.layers\..*_proj"), model.vlm)
    order, none = np.argsort(-lengths), np.zeros(CHUNK, dtype=int)
    chunks = [features_of(model, lengths[at], none[: len(at)]) for at in np.array_split(order, len(order) // CHUNK)]
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()

    rows = [len(one["input_ids"]) for one in chunks]

    def step() -> None:
        with torch.no_grad():
            embeddings = torch.cat([model(**features).pooler_output for features in chunks])
        queries, candidates = embeddings.requires_grad_().chunk(2)
        logits = queries @ candidates.T / TEMPERATURE
        nn.functional.cross_entropy(logits, torch.arange(len(logits), device=logits.device)).backward()
        assert embeddings.grad is not None
        for features, gradient in zip(chunks, embeddings.grad.split(rows), strict=True):
            (model(**features).pooler_output * gradient).sum().backward()

    model.train()
    seconds = timed(step, repetitions)
    model.eval()
    read, _ = operations(model, lengths, np.zeros(len(lengths), dtype=int))
    slots = sum(one["input_ids"].numel() for one in chunks)
    return _told(seconds, int(lengths.sum()), 3 * read, rate, slots)


def _told(seconds: list[float], tokens: int, needed: float, rate: float, slots: int) -> list[str]:
    middle = statistics.median(seconds)
    memory = f"{torch.cuda.max_memory_allocated() / 1e9:.1f} GB" if torch.cuda.is_available() else "not measured"
    speeds = f"{tokens / middle:,.0f} ({tokens / max(seconds):,.0f}–{tokens / min(seconds):,.0f})"
    return [speeds, f"{1 - tokens / slots:.1%}", f"{needed / middle / rate:.0%}", memory]


if __name__ == "__main__":
    main()
