"""What the pairs of one query share from the start, the prompt and the query with its pictures, runs once.

A re-ranker reads prompt, query and candidate, in this order, and looks back only. So the keys and values of all that
stands before the candidates are the same for each of them: they are computed once, and the candidates' tokens follow
in batches.
"""

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, takewhile
from typing import Any

from umarvel_hf._torchvision import ensure_torchvision

ensure_torchvision()
import torch
from sentence_transformers import CrossEncoder
from sentence_transformers.base.modules.transformer import Transformer
from sentence_transformers.cross_encoder.modules import LogitScore
from sentence_transformers.util import batch_to_device
from torch import Tensor
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer

PAIRS = 32  # of one forward
TOKENS = 32_768  # of one forward, the shared ones counted in every row: a layer lays out keys and values of so many
SHARED = {"text", "image"}  # what an item may consist of
PLAIN = {"text": {"truncation": False}}  # settings of a re-ranker that reads its inputs as they are

Pair = tuple[dict[str, Any], dict[str, Any]]  # query and candidate, as ``as_parts`` makes them


class SharedLayer(DynamicLayer):
    """Keys and values of what came first, kept for any rows that follow it; those of the rows are not kept."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """(B, heads, T, D) each, once (1, heads, P, D), then behind these: (B, heads, P + T, D)."""
        if self.keys is None or self.values is None:
            return super().update(key_states, value_states)
        return _behind(self.keys, key_states), _behind(self.values, value_states)


def _behind(first: Tensor, rows: Tensor) -> Tensor:
    return torch.cat([first.expand(len(rows), -1, -1, -1), rows], dim=-2)


@dataclass(frozen=True)
class Tokens:
    """Tokens and, in their order, the pictures that stand among them.

    Args:
        ids: T of them.
        pixels: Of every picture its patches, (patches, values of one).
        grids: (pictures, 3) int64, how many patches a picture has in time, height and width.
    """

    ids: list[int]
    pixels: list[Tensor]
    grids: Tensor

    def __len__(self) -> int:
        return len(self.ids)


NOTHING = Tokens([], [], torch.empty(0, 3, dtype=torch.int64))


def shares_prefixes(model: CrossEncoder) -> bool:
    """Whether a re-ranker's pairs can be taken apart.

    It answers by a token behind the pair and reads its inputs as they are; a picture is a row of patches; positions
    follow from tokens and grids; every layer looks at all that came before, and at nothing else.
    """
    module = model[0]
    if not isinstance(module, Transformer) or not isinstance(model[-1], LogitScore):
        return False
    positions, config = getattr(module.model.base_model, "get_rope_index", None), module.model.config
    return (
        module.processing_kwargs == PLAIN
        and model.default_prompt_name is None
        and positions is not None
        and {"mm_token_type_ids", "image_grid_thw"} <= inspect.signature(positions).parameters.keys()
        and module.processor.image_processor.model_input_names == ["pixel_values", "image_grid_thw"]
        and hasattr(module.processor, "replace_image_token")  # transformers 5.23 has it, the oldest we take may not
        and all(type(layer) is DynamicLayer for layer in DynamicCache(config=config).layers)
        and getattr(config.get_text_config(), "is_causal", True)
    )


def by_query(pairs: Sequence[Pair]) -> list[list[int]]:
    """Where the pairs of every query stand that has two or more; pairs with a film are left out.

    Texts are compared, and addresses of pictures; of pictures in memory it counts whether they are the same object.
    """
    found: dict[Any, list[int]] = {}
    for at, (query, candidate) in enumerate(pairs):
        if query.keys() | candidate.keys() <= SHARED:
            key = tuple((kind, value if isinstance(value, str) else id(value)) for kind, value in query.items())
            found.setdefault(key, []).append(at)
    return [positions for positions in found.values() if len(positions) > 1]


@torch.inference_mode()
def judge_query(model: CrossEncoder, pairs: Sequence[Pair]) -> Tensor:
    """Answer pairs of one query. Returns (N,) float32.

    At most ``PAIRS`` are in one forward, fewer where they would be more than ``TOKENS`` tokens. Pixels of twice as many
    candidates lie in memory at once: as many pictures as of pairs that share nothing.
    """
    model.eval()
    module: Any = model[0]
    processor = module.processor
    chats = module.input_formatter.parse_inputs(pairs)[1]["message"]
    rows, pictures = token_ids(processor, chats), [_pictures(chat) for chat in chats]
    of_query = _pictures(chats[0][:1])
    shared = shared_length(rows, processor.image_token_id, len(of_query))
    prefix = with_pictures(processor, [rows[0][:shared]], [of_query])[0]
    cache = Cache(layer_class_to_replicate=SharedLayer)
    forward(model, NOTHING, [prefix], cache)
    answers = torch.empty(len(pairs))
    for start in range(0, len(pairs), 2 * PAIRS):
        part = slice(start, start + 2 * PAIRS)
        own = [row[shared:] for row in rows[part]], [row[len(of_query) :] for row in pictures[part]]
        rests = with_pictures(processor, *own)
        for batch in batches([len(rest) for rest in rests], len(prefix)):
            answers[part][batch] = forward(model, prefix, [rests[at] for at in batch], cache).cpu()
    return answers


def token_ids(processor: Any, chats: Sequence[Any]) -> list[list[int]]:
    """Of every chat the tokens; a picture is one."""
    texts, tokenizer = processor.apply_chat_template(chats, tokenize=False), processor.tokenizer
    begun = tokenizer.bos_token is not None and texts[0].startswith(tokenizer.bos_token)
    ids: list[list[int]] = tokenizer(texts, add_special_tokens=not begun)["input_ids"]
    return ids


def _pictures(chat: Sequence[dict[str, Any]]) -> list[Any]:
    return [part["image"] for message in chat for part in message["content"] if part["type"] == "image"]


def shared_length(rows: Sequence[list[int]], picture: int, pictures: int) -> int:
    """How many tokens all rows begin with, at most ``pictures`` of them pictures; one or more is left to each row."""
    first, last = min(rows), max(rows)  # what these two begin with, all between them do
    same = sum(1 for _ in takewhile(lambda two: two[0] == two[1], zip(first, last, strict=False)))
    others = [at for at, token in enumerate(first) if token == picture][pictures:]
    return min([same, min(map(len, rows)) - 1, *others])


def with_pictures(processor: Any, rows: Sequence[list[int]], pictures: Sequence[list[Any]]) -> list[Tokens]:
    """Put as many tokens as a picture has in the place of each token that stands for one."""
    images = list(chain.from_iterable(pictures))
    if not images:
        return [Tokens(row, [], NOTHING.grids) for row in rows]
    seen = processor.image_processor(processor.image_processor.fetch_images(images), return_tensors="pt")
    texts = [processor.replace_image_token(seen, image_idx=at) for at in range(len(images))]
    long = iter(processor.tokenizer(texts, add_special_tokens=False)["input_ids"])
    grids = seen["image_grid_thw"]
    pixels = iter(seen["pixel_values"].split(grids.prod(dim=1).tolist()))
    picture = processor.image_token_id
    return [
        Tokens(
            list(chain.from_iterable(next(long) if token == picture else [token] for token in row)),
            [next(pixels) for _ in own],
            own_grids,
        )
        for row, own, own_grids in zip(rows, pictures, grids.split([len(own) for own in pictures]), strict=True)
    ]


def batches(lengths: Sequence[int], shared: int) -> Iterator[list[int]]:
    """Positions, those of long rows first, in batches of ``PAIRS`` or of no more than ``TOKENS`` tokens."""
    order = sorted(range(len(lengths)), key=lambda at: -lengths[at])
    while order:
        rows = min(PAIRS, max(1, TOKENS // (shared + lengths[order[0]])))
        yield order[:rows]
        order = order[rows:]


def forward(model: CrossEncoder, before: Tokens, rows: Sequence[Tokens], cache: Cache) -> Tensor:
    """Answer rows of tokens that stand behind others, whose keys and values are in the cache. Returns (B,) float32."""
    module: Any = model[0]
    width = max(map(len, rows))
    padded = [before.ids + [model.tokenizer.pad_token_id] * (width - len(row)) + row.ids for row in rows]
    ids = torch.tensor(padded)  # (B, P + T), padded between the two
    mask = torch.tensor([[1] * len(before) + [0] * (width - len(row)) + [1] * len(row) for row in rows])
    kinds = torch.tensor(module.processor.create_mm_token_type_ids(padded)) * mask
    grids = torch.cat([one.grids for row in rows for one in (before, row)])
    positions, _ = module.model.base_model.get_rope_index(
        ids, mm_token_type_ids=kinds, image_grid_thw=grids, attention_mask=mask
    )
    features = {
        "modality": "message",
        "input_ids": ids[:, len(before) :],
        "attention_mask": mask,
        "position_ids": positions[..., len(before) :],
        "mm_token_type_ids": kinds[:, len(before) :],
        "past_key_values": cache,
        "use_cache": True,
        "logits_to_keep": 1,
    }
    if pixels := [one for row in rows for one in row.pixels]:
        features |= {"pixel_values": torch.cat(pixels), "image_grid_thw": torch.cat([row.grids for row in rows])}
    probability: Any = model.activation_fn
    answers: Tensor = probability(model(batch_to_device(features, model.device))["scores"].float())
    return answers.squeeze(-1)
