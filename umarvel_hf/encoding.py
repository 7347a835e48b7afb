"""From items to vectors."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


def encode(
    model: "SentenceTransformer | str | Path",
    items: Sequence[Any] | np.ndarray,
    *,
    prompt: str | None = None,
    prompt_name: str | None = None,
    batch_size: int = 32,
    show_progress_bar: bool | None = None,
) -> np.ndarray:
    """Embed items: the vectors of ``SentenceTransformer.encode``, always (N, D).

    Args:
        model: A loaded U-MARVEL checkpoint, or its folder or Hub id.
        items: Each a str (text), a ``pathlib.Path``, a PIL image, a uint8 array, a dict with ``text``, ``image`` or
            ``video``, or a chat; mixed as one likes. An array of str or of objects counts as a list.
        prompt: The instruction of all items.
        prompt_name: The name of an instruction that the checkpoint holds, such as ``"text-to-image"``.
        batch_size: Items a batch; it changes memory and speed, never a vector.
        show_progress_bar: None: as the host's log level says.

    Returns:
        (N, D) float32, one vector of length 1 an item, in order; (0, D) for no items.

    Raises:
        ItemError (a ValueError): Names the index in ``items`` of the item that cannot be read, and what to do.
    """
    if isinstance(model, str | Path):
        model = load(model)
    if isinstance(items, np.ndarray) and items.dtype.kind in "UO":
        items = items.tolist()
    # An array of pixels would fall into its rows, a set has no order.
    single = isinstance(items, str | dict) or hasattr(items, "__array__")
    if single or not hasattr(items, "__len__") or not hasattr(items, "__getitem__"):
        raise TypeError(f"items is a {type(items).__name__}; give a list of items, also for a single one.")
    items = list(items)
    if not items:
        return np.zeros((0, model.get_embedding_dimension() or 0), dtype=np.float32)
    # A list of chats is not one chat: the host reads a list that begins with a message as a single item.
    if isinstance(items[0], dict) and "role" in items[0]:
        items[0] = [items[0]]
    from umarvel_hf.modeling.messages_umarvel import ItemError

    try:
        return model.encode(
            items,
            prompt=prompt,
            prompt_name=prompt_name,
            batch_size=batch_size,
            show_progress_bar=show_progress_bar,
        )
    except ValueError as error:
        index = getattr(error, "index", None)
        if index is None:
            raise
        # Its class is the checkpoint's copy of ours.
        raise ItemError(index, getattr(error, "item", None), getattr(error, "reason", str(error))) from error


def load(model: str | Path, **kwargs: Any) -> "SentenceTransformer":
    """Load a U-MARVEL checkpoint (folder or Hub id) as ``SentenceTransformer``; ``kwargs`` as there.

    Raises:
        ValueError: It is another kind of model.
    """
    from umarvel_hf._torchvision import ensure_torchvision

    ensure_torchvision()
    from sentence_transformers import SentenceTransformer

    embedder = SentenceTransformer(str(model), trust_remote_code=True, **kwargs)
    kind = getattr(getattr(getattr(embedder[0], "model", None), "config", None), "model_type", None)
    if kind != "umarvel":
        raise ValueError(
            f"{model} is no U-MARVEL checkpoint (its model type is {kind!r}). Make one of it: "
            f"`umarvel new {model} OUT`."
        )
    return embedder
