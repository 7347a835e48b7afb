"""Exact search over embeddings: a FAISS flat index that knows its ids, and the top k of a block of scores."""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import faiss
import numpy as np

from umarvel_hf.data import Item, first_repeated

UNIT_TOLERANCE = 1e-3  # half-precision embeddings that were normalised before they were rounded still pass


class Encoder(Protocol):
    """Anything that turns items into embeddings, such as a ``SentenceTransformer``."""

    def encode(
        self,
        inputs: Sequence[Item],
        *,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
    ) -> np.ndarray:
        """Return (N, D) float32 unit vectors, one per item and in their order; ``prompt`` is the instruction."""
        ...


@dataclass(frozen=True, slots=True)
class Hit:
    id: str
    score: float


def embed(
    encoder: Encoder,
    items: Sequence[Item],
    *,
    instruction: str | None = None,
    batch_size: int = 32,
    show_progress_bar: bool | None = False,
) -> np.ndarray:
    """Encode items and check what came back. Returns (N, D) float32."""
    embeddings = encoder.encode(
        list(items), prompt=instruction, batch_size=batch_size, show_progress_bar=show_progress_bar
    )
    embeddings = np.asarray(embeddings, dtype=np.float32)
    if embeddings.ndim != 2 or len(embeddings) != len(items):
        raise ValueError(
            f"{type(encoder).__name__}.encode returned an array of shape {embeddings.shape} for {len(items):,} items. "
            "It must return one row per item, (N, D)."
        )
    _check_unit(embeddings, "Normalise them in the encoder.")
    return embeddings


def top_k(scores: np.ndarray, k: int) -> np.ndarray:
    """Positions of the k highest scores of every row, best first; equal scores in the order of their position.

    Args:
        scores: (Q, N).

    Returns:
        (Q, min(k, N)) int64.
    """
    k = min(k, scores.shape[1])
    threshold = np.partition(scores, -k, axis=1)[:, -k]  # (Q,): the k-th highest
    best = np.empty((len(scores), k), dtype=np.int64)
    for row, at_least, out in zip(scores, threshold, best, strict=True):
        kept = np.flatnonzero(row >= at_least)
        out[:] = kept[np.argsort(-row[kept], kind="stable")[:k]]
    return best


class FlatIndex:
    """Exact inner-product search in memory over unit vectors (N, D) with string ids."""

    def __init__(self, dimension: int) -> None:
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
        """Append embeddings, (N, D) float32 and of unit length, under ids not used before. All are added or none."""
        self._check(embeddings)
        if len(ids) != len(embeddings):
            raise ValueError(f"{len(ids):,} ids for {len(embeddings):,} embeddings. Pass one id per embedding.")
        if (repeated := first_repeated(ids)) is not None:
            raise ValueError(f"id {repeated!r} occurs twice among the {len(ids):,} ids to add. Ids must be unique.")
        if known := next((one for one in ids if one in self._known), None):
            raise ValueError(f"id {known!r} is already among the {len(self):,} of this index. Ids must be unique.")
        self._index.add(np.ascontiguousarray(embeddings))
        self._ids.extend(ids)
        self._known.update(ids)

    def search(self, embeddings: np.ndarray, k: int = 10) -> list[list[Hit]]:
        """The k best of every row (all where there are fewer), best first; equal scores in the order of their ids."""
        self._check(embeddings)
        if k < 1:
            raise ValueError(f"k is {k}; it must be at least 1.")
        if not len(self):
            return [[] for _ in embeddings]
        embeddings = np.ascontiguousarray(embeddings)
        scores, positions = self._index.search(embeddings, min(k + 1, len(self)))
        return [self._hits(*row, k) for row in zip(embeddings, scores, positions, strict=True)]

    def save(self, folder: str | Path) -> None:
        """Write the index; a crash leaves either what was there before or the new index, never a mixture."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        contents = {
            "vectors": faiss.serialize_index(self._index).tobytes(),
            "ids": json.dumps(self._ids, ensure_ascii=False).encode(),
        }
        checksums = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
        for name, content in contents.items():
            _write(folder / _file_name(name, checksums[name]), content)
        # The manifest names the files, so replacing it is the one step that makes them the index.
        manifest = {"format": 1, "dimension": self.dimension, "count": len(self), "sha256": checksums}
        _write(folder / "manifest.json", json.dumps(manifest, indent=1).encode())
        for stale in _index_files(folder, checksums):
            stale.unlink()

    @classmethod
    def open(cls, folder: str | Path) -> "FlatIndex":
        """Read an index that :meth:`save` wrote, after checking that its files are whole."""
        manifest_path = Path(folder) / "manifest.json"
        if not manifest_path.is_file():
            raise FileNotFoundError(f"{manifest_path} does not exist. Pass a folder that FlatIndex.save wrote.")
        manifest = json.loads(manifest_path.read_text(encoding="utf-8"))
        if manifest.get("format") != 1:
            raise ValueError(
                f"{manifest_path} has format {manifest.get('format')!r}; this version reads 1. Build it anew."
            )
        contents = {name: _read_checked(manifest_path, name, manifest["sha256"][name]) for name in ("vectors", "ids")}
        index = cls(manifest["dimension"])
        index._index = faiss.deserialize_index(np.frombuffer(contents["vectors"], dtype=np.uint8))
        index._ids = json.loads(contents["ids"])
        index._known = set(index._ids)
        stored = (index.dimension, index._index.ntotal, len(index._ids), len(index._known))
        expected = (manifest["dimension"], *[manifest["count"]] * 3)
        if stored != expected:
            raise ValueError(
                f"{manifest_path}: dimension, vectors, ids and distinct ids are {stored}, expected {expected}. "
                "Build the index anew."
            )
        return index

    def _check(self, embeddings: np.ndarray) -> None:
        if not isinstance(embeddings, np.ndarray) or embeddings.dtype != np.float32:
            found = getattr(embeddings, "dtype", type(embeddings).__name__)
            raise TypeError(f"embeddings are {found}; the index takes numpy float32. Convert with .astype('float32').")
        if embeddings.ndim != 2 or embeddings.shape[1] != self.dimension:
            raise ValueError(
                f"embeddings have shape {embeddings.shape}; the index takes (N, {self.dimension}). "
                "Encode with the model that built the index."
            )
        _check_unit(embeddings, "Divide each by its length: the index compares by inner product.")

    def _hits(self, query: np.ndarray, scores: np.ndarray, positions: np.ndarray, k: int) -> list[Hit]:
        # Go deeper while a tie reaches beyond what was fetched: the id decides, not the order of adding.
        while k < len(scores) < len(self) and scores[k - 1] == scores[-1]:
            found, at = self._index.search(query[None], min(2 * len(scores), len(self)))
            scores, positions = found[0], at[0]
        hits = [Hit(self._ids[at], float(score)) for at, score in zip(positions, scores, strict=True)]
        return sorted(hits, key=lambda hit: (-hit.score, hit.id))[:k]


def build_index(encoder: Encoder, ids: Sequence[str], items: Sequence[Item], **encoding: Any) -> FlatIndex:
    """Encode items and index them under their ids; ``encoding`` goes to :func:`embed`."""
    if not items:
        raise ValueError("There is nothing to index: the list of items is empty.")
    embeddings = embed(encoder, items, **encoding)
    index = FlatIndex(embeddings.shape[1])
    index.add(ids, embeddings)
    return index


def retrieve(
    encoder: Encoder, index: FlatIndex, query: Item, *, instruction: str | None = None, k: int = 10
) -> list[Hit]:
    """Find what answers one query, best first."""
    return index.search(embed(encoder, [query], instruction=instruction), k)[0]


def _check_unit(embeddings: np.ndarray, remedy: str) -> None:
    lengths = np.linalg.norm(embeddings, axis=1)
    wrong = ~(np.abs(lengths - 1) <= UNIT_TOLERANCE)  # so that a NaN is wrong too
    if wrong.any():
        first = int(np.argmax(wrong))
        raise ValueError(
            f"{int(wrong.sum()):,} of {len(embeddings):,} embeddings are not of unit length, the first of them number "
            f"{first} with length {lengths[first]:.4g}. {remedy}"
        )


def _file_name(name: str, checksum: str) -> str:
    return {"vectors": f"vectors-{checksum[:12]}.faiss", "ids": f"ids-{checksum[:12]}.json"}[name]


def _index_files(folder: Path, checksums: dict[str, str]) -> Iterator[Path]:
    """The files of earlier saves."""
    current = {_file_name(name, checksum) for name, checksum in checksums.items()}
    for pattern in ("vectors-*.faiss", "ids-*.json"):
        yield from (path for path in sorted(folder.glob(pattern)) if path.name not in current)


def _write(path: Path, content: bytes) -> None:
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _read_checked(manifest: Path, name: str, checksum: str) -> bytes:
    path = manifest.with_name(_file_name(name, checksum))
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist, but {manifest} names it. Build the index anew.")
    content = path.read_bytes()
    if (found := hashlib.sha256(content).hexdigest()) != checksum:
        raise ValueError(
            f"{path} has sha256 {found}, {manifest} says {checksum}. The file changed: build the index anew."
        )
    return content
