"""What a frozen vision tower sees of a step, kept from the first pass of gradient caching to the second."""

from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from accelerate.utils import extract_model_from_parallel
from torch import nn

LOOKS = ("get_image_features", "get_video_features")
UNREAD = {"last_hidden_state", "hidden_states", "attentions"}  # of their output, by the decoder


class SeenPictures:
    """Remembers what the vision tower of a ``SentenceTransformer`` made of a mini-batch, where it is frozen.

    Gradient caching embeds a batch twice. A frozen tower, which most recipes have (recipe.md §3), would say the same
    again. What is kept is what the decoder reads: of every visual token as many numbers as the decoder is wide, and as
    many again for each layer of DeepStack.
    """

    def __init__(self, model: nn.Module) -> None:
        bare: Any = extract_model_from_parallel(model)
        self._vlm = bare[0].model.vlm
        self._looks: list[str] = []
        self._kept: dict[Hashable, list[Any]] = {}

    def start(self) -> None:
        """A step begins; what one that was broken off has left is dropped."""
        self._looks = [name for name in LOOKS if hasattr(self._vlm, name)] if self._frozen() else []
        self._kept.clear()

    @contextmanager
    def of(self, mini_batch: Hashable, *, again: bool) -> Iterator[None]:
        """Within it the tower's output is kept under a name, or, ``again``, taken from there."""
        kept = self._kept.pop(mini_batch, []) if again else self._kept.setdefault(mini_batch, [])
        for name in self._looks:
            usual = getattr(self._vlm, name)
            setattr(self._vlm, name, partial(_recalled, kept) if again and kept else partial(_noted, usual, kept))
        try:
            yield
        finally:
            for name in self._looks:
                delattr(self._vlm, name)  # the class's own again

    def _frozen(self) -> bool:
        """Whether the tower gives the same every time: nothing in it is trained, and nothing drawn."""
        decoder = set(self._vlm.get_decoder().modules())
        tower = [one for one in self._vlm.modules() if one not in decoder]
        own = (parameter for one in tower for parameter in one.parameters(recurse=False))
        embedding = self._vlm.get_input_embeddings()
        trained = any(one.requires_grad for one in own if one is not embedding.weight)
        drawn = any(getattr(one, "p", 0) or getattr(one, "attention_dropout", 0) for one in tower)
        return not trained and not drawn


def _noted(look: Any, kept: list[Any], *args: Any, **kwargs: Any) -> Any:
    output = look(*args, **kwargs)
    kept.append(type(output)(**{name: one for name, one in output.items() if name not in UNREAD}))
    return output


def _recalled(kept: list[Any], *args: Any, **kwargs: Any) -> Any:
    return kept.pop(0)
