"""Texts that are too long to train on, cut."""

from typing import Any

from transformers import PreTrainedTokenizerBase


def cut_text(text: str, tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> str:
    """The text up to its ``max_tokens``-th token; characters of several tokens are kept whole or not at all."""
    if len(text.encode()) <= max_tokens:  # a token is a byte at least
        return text
    spans = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True).offset_mapping
    return text if len(spans) <= max_tokens else text[: min(spans[max_tokens - 1][1], spans[max_tokens][0])]


def cut_item(item: Any, tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> Any:
    """An item, as ``encode`` takes it, with every text cut; an instruction stays whole."""
    if isinstance(item, str):
        return cut_text(item, tokenizer, max_tokens)
    if isinstance(item, list):
        return [cut_item(part, tokenizer, max_tokens) for part in item]
    if isinstance(item, dict) and item.get("role") != "system":
        return item | {key: cut_item(item[key], tokenizer, max_tokens) for key in ("text", "content") if key in item}
    return item
