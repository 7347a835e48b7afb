"""The journeys of a search: encode a collection, search it by a text, a picture or both, judge what was found."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from umarvel_hf.approximate import FACTS as INDEX_FACTS
from umarvel_hf.approximate import INDEX, ApproximateIndex
from umarvel_hf.corpus import FACTS, EncodedCorpus, encode_corpus, kind_of, open_corpus, read_corpus
from umarvel_hf.data import CANDIDATE_MODALITY, Item, MBeir, as_item
from umarvel_hf.devices import open_encoder
from umarvel_hf.emoji import INSTRUCTIONS, benchmark_dir, model_dir
from umarvel_hf.emoji.cache import cache_dir
from umarvel_hf.encoding import load
from umarvel_hf.evaluation.pools import Candidates
from umarvel_hf.fingerprint import fingerprint
from umarvel_hf.index import FlatIndex, Hit, build_index
from umarvel_hf.messages import load_image
from umarvel_hf.reranking import load_reranker
from umarvel_hf.search import Search, embed, search_store

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

MEMORY = 2 << 30  # bytes that an exact search may hold


@dataclass(frozen=True)
class Found:
    """One item that was found or judged: what it is, and how well it answers."""

    id: str
    score: float
    item: Item

    def __str__(self) -> str:
        parts = self.item if isinstance(self.item, dict) else {"text": self.item}
        return "  ".join(
            [f"{self.score:.3f}", self.id, *(str(parts[kind]) for kind in ("image", "text") if kind in parts)]
        )

    def facts(self) -> dict[str, Any]:
        """``id``, ``score``, and ``text`` and ``image`` where it has them."""
        parts = self.item if isinstance(self.item, dict) else {"text": self.item}
        told = {kind: str(Path(value).absolute()) if kind == "image" else value for kind, value in parts.items()}
        return {"id": self.id, "score": self.score, **told}


def encode_collection(
    items: str | Path,
    out: str | Path,
    *,
    model: str | Path | None = None,
    instruction: str | None = None,
    device: Sequence[str] | None = None,
    dtype: str | None = None,
    batch_tokens: int | None = None,
    show_progress: bool = False,
) -> EncodedCorpus:
    """Encode the items of a folder or table into a store; stopped anywhere and called again, it goes on.

    Args:
        items: As in :func:`umarvel_hf.corpus.read_corpus`.
        out: Folder of the store, and of what could not be read.
        model: Folder or Hub id of a U-MARVEL checkpoint; None: the one that ships.
        instruction: Of all items; candidates have none.
        device, dtype, batch_tokens: As in :func:`umarvel_hf.devices.open_encoder`.

    Raises:
        FileNotFoundError, ValueError: As in :func:`umarvel_hf.corpus.read_corpus` and ``encode_corpus``.
    """
    corpus = read_corpus(items)
    model = model or model_dir()
    model = str(Path(model).absolute() if Path(model).is_dir() else model)  # it is searched from other folders, too
    with open_encoder(model, device, dtype, batch_tokens) as (encoder, tokens):
        return encode_corpus(
            encoder, corpus, out, model=model, instruction=instruction, batch_tokens=tokens, show_progress=show_progress
        )


def search(
    text: str | None = None,
    *,
    image: str | Path | None = None,
    index: str | Path | None = None,
    images: str | Path | None = None,
    model: str | Path | None = None,
    instruction: str | None = None,
    k: int = 5,
    device: str | None = None,
    dtype: str | None = None,
    show_progress: bool = False,
) -> list[Found]:
    """Search by a text, a picture or both.

    Args:
        text, image: The query; at least one.
        index: Folder that :func:`encode_collection` or ``build_approximate`` wrote.
        images: Folder or table that is encoded just for this search. Neither: the pictures of the embedded benchmark.
        model: Folder or Hub id of a checkpoint; None: what encoded ``index``, or the one that ships.
        instruction: What to look for; None: the checkpoint's own for this kind of query and of items.
        k: How many to find.
        device, dtype: As in :func:`umarvel_hf.encoding.load`.

    Returns:
        The best first.

    Raises:
        ValueError: Neither text nor picture; both ``index`` and ``images``; another model than that of ``index``.
        FileNotFoundError: A picture, folder or table that is not there.
    """
    query = _query(text, image, k, "search for")
    if index is not None and images is not None:
        raise ValueError(f"both an index ({index}) and images to encode ({images}) are given; give one.")
    chosen = model or (_model_of(Path(index)) if index is not None else model_dir())
    encoder = load(str(chosen), device=device, dtype=dtype)
    items: Any
    found: Any
    if index is not None:
        found, corpus = _open_index(Path(index), encoder)
        items, kinds = corpus.items, corpus.kinds
    elif images is not None:
        items = read_corpus(images).items
        kinds = {kind_of(item) for item in items.values()}
        found = build_index(encoder, list(items), list(items.values()), show_progress_bar=show_progress)
    else:
        found, pictures = embedded_index(encoder, MBeir(benchmark_dir()), show_progress=show_progress)
        items, kinds = {name: {"image": path} for name, path in pictures.items()}, {"image"}
    if instruction is None:
        prompts = INSTRUCTIONS if model is None and index is None else _prompts(encoder, kinds)
        instruction = prompts.get(kind_of(query))
    vector = embed(encoder, [query], instruction=instruction)
    return [Found(hit.id, hit.score, items[hit.id]) for hit in found.search(vector, k)[0]]


def rerank(
    model: str | Path, items: str | Path, text: str | None = None, *, image: str | Path | None = None, k: int = 5
) -> list[Found]:
    """Have a re-ranker judge every item against a query.

    Args:
        model: Folder or Hub id of a ``CrossEncoder`` over Yes and No.
        items: As in :func:`umarvel_hf.corpus.read_corpus`, or the folder of a store.
        text, image: The query; at least one.
        k: How many to return.

    Returns:
        The best first, with the probability, 0 to 1, that the item answers.

    Raises:
        ValueError, FileNotFoundError: As in :func:`search`.
    """
    query = _query(text, image, k, "judge by")
    given = open_corpus(items).items if (Path(items) / FACTS).is_file() else read_corpus(items).items
    answers = load_reranker(model).predict([(query, item) for item in given.values()])
    judged = [Found(name, float(answer), item) for (name, item), answer in zip(given.items(), answers, strict=True)]
    return sorted(judged, key=lambda one: (one.score, one.id), reverse=True)[:k]


def embedded_index(
    encoder: "SentenceTransformer", benchmark: MBeir, *, show_progress: bool = False
) -> tuple[FlatIndex, dict[str, Path]]:
    """All pictures of the embedded test pools and their index; their vectors stand in the cache, also for the demo."""
    tasks = [task for task in benchmark.tasks("test") if CANDIDATE_MODALITY[task.task_id] == "image"]
    candidates = Candidates(benchmark, tasks, "test", union=False)
    made_by = fingerprint(encoder)  # reads all weights: once
    store = candidates.encode(encoder, cached_vectors(made_by, benchmark), made_by=made_by, show_progress=show_progress)
    pictures = {one.did: one.image for one in candidates.at(candidates.distinct) if one.image is not None}
    return FlatIndex.from_store(store, candidates.distinct), pictures


def cached_vectors(made_by: dict[str, str], benchmark: MBeir) -> Path:
    """Where the cache keeps the vectors that a model of this fingerprint gives the embedded benchmark."""
    digest = hashlib.sha256(repr(sorted(made_by.items())).encode()).hexdigest()
    return cache_dir() / f"{benchmark.root.name}-vectors-{digest[:12]}"


class _Exact:
    """Exact search in a store that stays on disk."""

    def __init__(self, corpus: EncodedCorpus) -> None:
        self._store = corpus.store

    def search(self, embeddings: np.ndarray, k: int) -> list[list[Hit]]:
        found = search_store(
            self._store, {"": Search(embeddings, {"": None})}, k=min(k, len(self._store)), memory=MEMORY
        )[""][""]
        rows = zip(found.positions, found.scores, strict=True)
        return [
            [Hit(self._store.ids[at].decode(), round(float(one), 6)) for at, one in zip(*row, strict=True)]
            for row in rows
        ]


def _query(text: str | None, image: str | Path | None, k: int, purpose: str) -> Item:
    if not text and image is None:
        raise ValueError(f"there is nothing to {purpose}; give a text, a picture (--image), or both.")
    if k < 1:
        raise ValueError(f"k is {k}; it must be at least 1.")
    if image is not None:
        load_image(image)  # what is wrong with it is known before a model is loaded
    return as_item(text or "", Path(image) if image is not None else None)


def _open_index(folder: Path, encoder: "SentenceTransformer") -> tuple[Any, EncodedCorpus]:
    made_by = fingerprint(encoder)
    if (folder / INDEX).is_file():
        approximate = ApproximateIndex.open(folder, made_by=made_by)
        return approximate, approximate.corpus
    corpus = open_corpus(folder, made_by=made_by)
    return _Exact(corpus), corpus


def _model_of(folder: Path) -> str:
    """What encoded the vectors of a store or of an index of one."""
    if (folder / INDEX_FACTS).is_file():
        folder = Path(json.loads((folder / INDEX_FACTS).read_text(encoding="utf-8"))["vectors"])
    if not (folder / FACTS).is_file():
        raise FileNotFoundError(f"{folder} holds nothing to search; fill it first: `umarvel encode ITEMS {folder}`.")
    return str(json.loads((folder / FACTS).read_text(encoding="utf-8"))["model"])


def _prompts(encoder: "SentenceTransformer", kinds: set[str]) -> dict[str, str]:
    """By kind of query, the checkpoint's instruction for what these items are (pictures, where they are mixed)."""
    target = next(iter(kinds)) if len(kinds) == 1 else "image"
    return {kind: encoder.prompts.get(f"{kind}-to-{target}") or "" for kind in ("text", "image", "image-text")}
