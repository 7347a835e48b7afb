"""Several embedders as a teacher: their mean cosine stands where a re-ranker would say how probable Yes is."""

from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from umarvel_hf.data import Item
from umarvel_hf.search import Encoder, embed

NO_INSTRUCTION = ""


class Ensemble:
    """A :class:`umarvel_hf.reranking.Reranker` made of embedders.

    Args:
        encoders: Their embeddings have length 1.
        instructions: Those with which queries may begin, as a re-ranker is asked.
    """

    def __init__(self, encoders: Sequence[Encoder], instructions: Iterable[str]) -> None:
        self.encoders = list(encoders)
        self.instructions = sorted(instructions, key=len, reverse=True)  # one may begin with another

    def predict(self, inputs: Sequence[tuple[Item, Item]], *, show_progress_bar: bool | None = None) -> np.ndarray:
        """Return (N,) float64: the mean cosine of every pair, below 0 as 0."""
        queries, candidates = {repr(one): one for one, _ in inputs}, {repr(one): one for _, one in inputs}
        asked = {name: self.parted(one) for name, one in queries.items()}
        shown = {name: (NO_INSTRUCTION, one) for name, one in candidates.items()}
        cosines = np.zeros(len(inputs))
        for encoder in self.encoders:
            left, right = (_encoded(encoder, items) for items in (asked, shown))
            cosines += [float(left[repr(query)] @ right[repr(candidate)]) for query, candidate in inputs]
        return np.clip(cosines / len(self.encoders), 0.0, 1.0)

    def parted(self, query: Item) -> tuple[str, Item]:
        """The instruction with which a query begins, and the rest of it.

        Raises:
            ValueError: It begins with none of the instructions.
        """
        text = query if isinstance(query, str) else str(query.get("text", ""))
        for instruction in self.instructions:
            if text.startswith(instruction):
                rest = text.removeprefix(instruction).strip()
                return instruction, rest if isinstance(query, str) else _with_text(query, rest)
        raise ValueError(f"{text!r} begins with none of {len(self.instructions)} instructions.")


def _with_text(item: dict[str, object], text: str) -> Item:
    others = {kind: value for kind, value in item.items() if kind != "text"}
    return {**others, "text": text} if text else others


def _encoded(encoder: Encoder, items: dict[str, tuple[str, Item]]) -> dict[str, np.ndarray]:
    """The embedding of every item with its instruction."""
    names: defaultdict[str, list[str]] = defaultdict(list)
    for name, (instruction, _) in items.items():
        names[instruction].append(name)
    found: dict[str, np.ndarray] = {}
    for instruction, own in names.items():
        prompt = instruction or None
        vectors = embed(encoder, [items[name][1] for name in own], instruction=prompt)
        found |= dict(zip(own, vectors, strict=True))
    return found
