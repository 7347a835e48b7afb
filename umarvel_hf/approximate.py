"""An approximate FAISS index of a store, for collections where a pass over all vectors takes too long."""

import hashlib
import json
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import faiss
import numpy as np

from umarvel_hf.corpus import EncodedCorpus, open_corpus
from umarvel_hf.index import Hit, exact_hits
from umarvel_hf.search import Search, search_store
from umarvel_hf.store import MANIFEST, whole_file

INDEX, FACTS = "index.faiss", "index.json"
BLOCK, SAMPLE, TRAINED_ON = 65_536, 500, 262_144
DEEPER = 4  # times as many are fetched as are asked for, and scored exactly
MEMORY = 2 << 30


@dataclass(frozen=True)
class IndexReport:
    """What was built, and how well it finds.

    Args:
        vectors: The folder of the store, and ``store``, a checksum of what it holds.
        recall_at_10: Of the ten best of each of ``sampled`` stored vectors, the share that it finds, 0 to 1.
        query_ms: Milliseconds a query, asked together, on this machine.
    """

    vectors: str
    store: str
    factory: str
    count: int
    bytes: int
    sampled: int
    recall_at_10: float
    query_ms: float


class ApproximateIndex:
    """A FAISS index in a folder beside the store that it was made of: FAISS proposes, exact scores decide."""

    def __init__(self, index: "faiss.Index", corpus: EncodedCorpus) -> None:
        if index.ntotal != len(corpus.store) or index.d != corpus.store.dimension:
            raise ValueError(
                f"the index has {index.ntotal:,} vectors of {index.d} dimensions, its store {len(corpus.store):,} of "
                f"{corpus.store.dimension}. Build it anew: `umarvel index`."
            )
        self._index, self.corpus = index, corpus

    @classmethod
    def open(cls, folder: str | Path, *, made_by: Mapping[str, str] | None = None) -> "ApproximateIndex":
        """Read what :func:`build_approximate` wrote.

        Args:
            made_by: What must have made the vectors; None: whatever did.

        Raises:
            FileNotFoundError: There is no index, or its store is gone.
            ValueError: It does not belong to its store, or something else made the vectors.
        """
        folder = Path(folder)
        if not (folder / INDEX).is_file():
            raise FileNotFoundError(f"{folder} holds no index; make one: `umarvel index VECTORS {folder}`.")
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        corpus = open_corpus(facts["vectors"], made_by=made_by)
        if (found := _checksum(corpus)) != facts["store"]:
            raise ValueError(
                f"{folder} was made of other vectors than {facts['vectors']} holds now (checksum {facts['store']}, now "
                f"{found}). Build it anew: `umarvel index {facts['vectors']} {folder}`."
            )
        content = np.frombuffer((folder / INDEX).read_bytes(), dtype=np.uint8)
        return cls(faiss.deserialize_index(content), corpus)

    def search(self, embeddings: np.ndarray, k: int = 10) -> list[list[Hit]]:
        """The best of what FAISS proposes for each of (Q, D) float32, best first; of equal scores the higher id."""
        if k < 1:
            raise ValueError(f"k is {k}; it must be at least 1.")
        store = self.corpus.store
        _, proposed = self._index.search(np.ascontiguousarray(embeddings), min(DEEPER * k, len(store)))
        return [
            self._hits(one, positions[positions >= 0], k) for one, positions in zip(embeddings, proposed, strict=True)
        ]

    def _hits(self, query: np.ndarray, positions: np.ndarray, k: int) -> list[Hit]:
        store = self.corpus.store
        return exact_hits(query, store.take(positions), [one.decode() for one in store.ids[positions]], k)


def build_approximate(vectors: str | Path, out: str | Path, *, factory: str = "HNSW32") -> IndexReport:
    """Index the vectors of a store, and measure on some of them what the index misses.

    Args:
        vectors: Folder that :func:`umarvel_hf.corpus.encode_corpus` filled; the index needs it where it is.
        out: Folder to write.
        factory: How FAISS keeps them, in FAISS's words, such as ``HNSW32`` or ``IVF4096,SQ8``.

    Raises:
        ValueError: FAISS does not know the factory, or there are too few vectors to train it.
    """
    out, corpus = Path(out), open_corpus(vectors)
    store = corpus.store
    try:
        index = faiss.index_factory(store.dimension, factory, faiss.METRIC_INNER_PRODUCT)
        if not index.is_trained:
            chosen = np.random.default_rng(0).permutation(len(store))[:TRAINED_ON]
            index.train(store.take(np.sort(chosen)))
        for _, half in store.blocks(BLOCK):
            index.add(half.astype(np.float32))
    except RuntimeError as error:
        told = str(error).rpartition("Error: ")[2].splitlines()[0]
        raise ValueError(
            f"FAISS cannot make an index {factory!r} of {len(store):,} vectors ({told}); give another factory, such as "
            "HNSW32 or Flat."
        ) from error
    if (lists := faiss.try_extract_index_ivf(index)) is not None:
        lists.nprobe = math.ceil(math.sqrt(lists.nlist))  # FAISS itself looks into one of them; it is stored along
    found = ApproximateIndex(index, corpus)
    sample = store.take(np.sort(np.random.default_rng(1).permutation(len(store))[:SAMPLE]))
    best = search_store(store, {"sample": Search(sample, {"all": None})}, k=min(10, len(store)), memory=MEMORY)
    started = time.perf_counter()
    hits = found.search(sample, k=min(10, len(store)))
    seconds = time.perf_counter() - started
    exact = [{store.ids[at].decode() for at in row} for row in best["sample"]["all"].positions]
    shares = [len(right & {hit.id for hit in row}) / len(right) for right, row in zip(exact, hits, strict=True)]
    content = faiss.serialize_index(index)
    with whole_file(out / INDEX) as file:
        file.write(content.data)
    report = IndexReport(
        vectors=str(Path(vectors).absolute()),
        store=_checksum(corpus),
        factory=factory,
        count=len(store),
        bytes=len(content),
        sampled=len(sample),
        recall_at_10=float(np.mean(shares)),
        query_ms=1000 * seconds / len(sample),
    )
    with whole_file(out / FACTS) as file:
        file.write(json.dumps(asdict(report), indent=1).encode())
    return report


def _checksum(corpus: EncodedCorpus) -> str:
    """Of the manifest of a store, which has the checksums of all its files."""
    return hashlib.sha256((corpus.store.folder / MANIFEST).read_bytes()).hexdigest()[:16]
