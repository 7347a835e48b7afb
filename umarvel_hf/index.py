"""A flat index in memory that knows its ids, and the search for one query."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from umarvel_hf.data import Item
from umarvel_hf.search import MARGIN, SCALE, Encoder, embed, exact_scores, product_error
from umarvel_hf.store import Vectors, VectorStore, as_ids, check_unit

ADDED_AT_ONCE = 8_192


@dataclass(frozen=True, slots=True)
class Hit:
    """A candidate that was found: its id, and the inner product with the query, -1 to 1."""

    id: str
    score: float


class FlatIndex:
    """Exact inner-product search in memory over unit vectors (N, D) with string ids.

    Vectors are rounded to half precision, as they are stored, so a saved index answers as before.

    Raises:
        ValueError: ``dimension`` is below 1.
    """

    def __init__(self, dimension: int) -> None:
        if dimension < 1:
            raise ValueError(f"dimension is {dimension}; it must be at least 1.")
        self._index: faiss.Index = faiss.IndexFlatIP(dimension)
        self._ids: list[str] = []
        self._known: set[str] = set()

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def dimension(self) -> int:
        """Dimension D of an embedding."""
        return int(self._index.d)

    @property
    def ids(self) -> tuple[str, ...]:
        """All ids, in the order of adding."""
        return tuple(self._ids)

    def add(self, ids: Sequence[str], embeddings: np.ndarray) -> None:
        """Append embeddings, (N, D) float32 and of unit length, under ids not used before. All are added or none.

        Raises:
            TypeError: ``embeddings`` are no numpy float32.
            ValueError: Another dimension, vectors not of unit length, other numbers of ids and vectors, an id that is
                empty or comes twice.
        """
        self._check(embeddings)
        if len(ids) != len(embeddings):
            raise ValueError(f"{len(ids):,} ids for {len(embeddings):,} embeddings. Pass one id per embedding.")
        as_ids(ids)
        if known := next((one for one in ids if one in self._known), None):
            raise ValueError(f"id {known!r} is already among the {len(self):,} of this index. Ids must be unique.")
        self._append(ids, embeddings)

    def search(self, embeddings: np.ndarray, k: int = 10) -> list[list[Hit]]:
        """The k best of every row (all where there are fewer), best first; of equal scores the higher id first.

        Args:
            embeddings: (Q, D) float32, of unit length.

        Raises:
            TypeError: ``embeddings`` are no numpy float32.
            ValueError: Another dimension, vectors not of unit length, ``k`` below 1.
        """
        self._check(embeddings)
        if k < 1:
            raise ValueError(f"k is {k}; it must be at least 1.")
        if not len(self):
            return [[] for _ in embeddings]
        embeddings = np.ascontiguousarray(embeddings)
        scores, positions = self._index.search(embeddings, min(k + 1, len(self)))
        return [self._hits(*row, k) for row in zip(embeddings, scores, positions, strict=True)]

    def save(self, folder: str | Path, *, made_by: Mapping[str, str] | None = None) -> None:
        """Write a :class:`VectorStore`; a crash leaves either what was there before or this index, never a mixture."""
        vectors = self._index.reconstruct_n(0, len(self)) if len(self) else np.empty((0, self.dimension), np.float32)
        VectorStore.write(folder, self._ids, vectors, made_by=made_by or {})

    @classmethod
    def open(cls, folder: str | Path, *, made_by: Mapping[str, str] | None = None) -> "FlatIndex":
        """Read what :meth:`save` wrote, or any other store, after checking that its files are whole.

        Raises:
            FileNotFoundError, ValueError: As in :meth:`VectorStore.open`.
        """
        return cls.from_store(VectorStore.open(folder, made_by=made_by))

    @classmethod
    def from_store(cls, store: Vectors, positions: np.ndarray | None = None) -> "FlatIndex":
        """Index a store, or the vectors at some of its positions, in memory."""
        index = cls(store.dimension)
        positions = np.arange(len(store)) if positions is None else np.asarray(positions, dtype=np.int64)
        for start in range(0, len(positions), ADDED_AT_ONCE):
            part = positions[start : start + ADDED_AT_ONCE]
            index._append([one.decode() for one in store.ids[part]], store.take(part))
        return index

    def _append(self, ids: Sequence[str], embeddings: np.ndarray) -> None:
        self._index.add(embeddings.astype(np.float16).astype(np.float32))
        self._ids.extend(ids)
        self._known.update(ids)

    def _check(self, embeddings: np.ndarray) -> None:
        if not isinstance(embeddings, np.ndarray) or embeddings.dtype != np.float32:
            found = getattr(embeddings, "dtype", type(embeddings).__name__)
            raise TypeError(f"embeddings are {found}; the index takes numpy float32. Convert with .astype('float32').")
        if embeddings.ndim != 2 or embeddings.shape[1] != self.dimension:
            raise ValueError(
                f"embeddings have shape {embeddings.shape}; the index takes (N, {self.dimension}). "
                "Encode with the model that built the index."
            )
        check_unit(embeddings, "Divide each by its length: the index compares by inner product.")

    def _hits(self, query: np.ndarray, scores: np.ndarray, positions: np.ndarray, k: int) -> list[Hit]:
        # Go deeper while what was not fetched may still belong to the k best.
        unsure = 2 * product_error(self.dimension) + MARGIN
        while k < len(scores) < len(self) and scores[k - 1] - scores[-1] <= unsure:
            found, at = self._index.search(query[None], min(2 * len(scores), len(self)))
            scores, positions = found[0], at[0]
        return exact_hits(query, self._index.reconstruct_batch(positions), [self._ids[at] for at in positions], k)


def exact_hits(query: np.ndarray, vectors: np.ndarray, ids: Sequence[str], k: int) -> list[Hit]:
    """The k best of the candidates proposed for a query, by exact scores; of equal scores the higher id first.

    Args:
        query: (D,) float32.
        vectors: (N, D), of ``ids``.
    """
    exact = exact_scores(query[None], vectors, np.zeros(len(vectors), dtype=np.int64), np.arange(len(vectors)))
    rounded = np.rint(SCALE * exact) / SCALE
    hits = [Hit(name, float(score)) for name, score in zip(ids, rounded, strict=True)]
    return sorted(hits, key=lambda hit: (hit.score, hit.id), reverse=True)[:k]


def build_index(encoder: Encoder, ids: Sequence[str], items: Sequence[Item], **encoding: Any) -> FlatIndex:
    """Encode items and index them under their ids.

    Args:
        ids: N unique strings.
        items: N items, as :func:`umarvel_hf.encoding.encode` takes them; all N vectors are in memory.
        encoding: ``instruction``, ``batch_tokens`` and ``show_progress_bar``, as :func:`umarvel_hf.search.embed` takes
            them.

    Raises:
        ValueError: There are no items, other numbers of ids and items, an id twice; an item that cannot be read (an
            ``ItemError``, which names its place); vectors that are not of unit length.
    """
    if not items:
        raise ValueError("There is nothing to index: the list of items is empty.")
    embeddings = embed(encoder, items, **encoding)
    index = FlatIndex(embeddings.shape[1])
    index.add(ids, embeddings)
    return index


def retrieve(
    encoder: Encoder, index: FlatIndex, query: Item, *, instruction: str | None = None, k: int = 10
) -> list[Hit]:
    """Find what answers one query.

    Args:
        query: An item, as :func:`umarvel_hf.encoding.encode` takes it.
        instruction: What to look for; None: the encoder's own default, if it has one.
        k: How many.

    Returns:
        The k best, or all where there are fewer, best first; of equal scores the higher id first.

    Raises:
        ValueError: ``k`` below 1, another dimension than the index's, or a query that cannot be read.
    """
    return index.search(embed(encoder, [query], instruction=instruction), k)[0]
