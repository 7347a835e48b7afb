"""Chats for rows of data: an item with an instruction of its own.

An item that is to be encoded needs none of this: ``encode`` brings it to a chat by the code that travels with the
checkpoint (``modeling/messages_umarvel.py``). A row of training data carries its instruction along, as a system
message.
"""

from typing import Any

from umarvel_hf.modeling.messages_umarvel import MEDIA, ItemError, Message, load_image

__all__ = ["ItemError", "Message", "chat", "load_image"]


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
