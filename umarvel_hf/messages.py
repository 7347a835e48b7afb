"""Chats for rows of data: an item with an instruction of its own.

An item that is to be encoded needs none of this: ``encode`` brings it to a chat by the code that travels with the
checkpoint (``modeling/messages_umarvel.py``). A row of training data carries its instruction along, as a system
message.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from umarvel_hf.modeling.messages_umarvel import MEDIA, ItemError, Message, load_image

__all__ = ["ItemError", "Message", "chat", "load_image", "placed"]


def chat(item: str | dict[str, Any], instruction: str | None = None) -> list[Message]:
    """The chat of an item: its instruction as a system message, then media, then text.

    Args:
        item: A text, or a dict with ``image``, ``video`` or ``text``; values are passed on as they are, so a path stays
            one.
        instruction: None or "": no system message.
    """
    if isinstance(item, str):
        item = {"text": item}
    parts = [{"type": kind, kind: item[kind]} for kind in (*MEDIA, "text") if item.get(kind)]
    system = [{"role": "system", "content": [{"type": "text", "text": instruction}]}] if instruction else []
    return [*system, {"role": "user", "content": parts}]


@contextmanager
def placed(items: Sequence[Any], places: Sequence[int]) -> Iterator[None]:
    """Let the error of an item name its place among all items, where only those at some places are prepared.

    Raises:
        ItemError: In place of one that names a place among ``places``.
    """
    try:
        yield
    except ValueError as error:
        index = getattr(error, "index", None)
        if index is None:
            raise
        # Its class is the checkpoint's copy of ours, and it may have found the item in a list of a caller's.
        found = getattr(error, "item", None)
        place = places[next((at for at, place in enumerate(places) if items[place] is found), index)]
        raise ItemError(place, items[place], getattr(error, "reason", str(error))) from error
