"""What needs no model: chance, shared words, similar pixels. A model that does not beat these has learned nothing.

Every baseline scores all candidates of a list at once, ``scores(query) -> (N,)``; :func:`ranked` turns scores into the
best k and breaks ties in a random order of its own for every query, so the order of a file never helps.
"""

import hashlib
import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from umarvel_hf.data import Candidate, Query
from umarvel_hf.search import top_k


class Baseline(Protocol):
    """A system that scores the candidates of a pool for a query without a model."""

    def __init__(self, candidates: Sequence[Candidate]) -> None: ...

    def scores(self, query: Query) -> np.ndarray:
        """Return (N,) float32, one score per candidate."""
        ...


class Chance:
    """Knows nothing: every candidate ties."""

    def __init__(self, candidates: Sequence[Candidate]) -> None:
        self._scores = np.zeros(len(candidates), dtype=np.float32)

    def scores(self, query: Query) -> np.ndarray:
        """(N,) scores, all alike: the order is drawn."""
        return self._scores


class BM25:
    """Okapi BM25 over the candidates' texts. Without text, on either side, the score is zero."""

    def __init__(self, candidates: Sequence[Candidate], *, k1: float = 1.2, b: float = 0.75) -> None:
        counts = [Counter(words(candidate.text)) for candidate in candidates]
        lengths = np.array([count.total() for count in counts])
        average = lengths[lengths > 0].mean() if lengths.any() else 1.0
        found: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
        for at, count in enumerate(counts):
            for word, times in count.items():
                found[word].append((at, times))
        self._size = len(candidates)
        self._weights: dict[str, tuple[np.ndarray, np.ndarray]] = {}  # word: positions, weights
        texts = int((lengths > 0).sum())
        for word, pairs in found.items():
            at, times = np.array(pairs).T
            rarity = math.log(1 + (texts - len(at) + 0.5) / (len(at) + 0.5))
            self._weights[word] = at, rarity * times * (k1 + 1) / (times + k1 * (1 - b + b * lengths[at] / average))

    def scores(self, query: Query) -> np.ndarray:
        """(N,) scores of the candidates' texts; 0 without a text on either side."""
        scores = np.zeros(self._size, dtype=np.float32)
        for word in words(query.text):
            if word in self._weights:
                at, weights = self._weights[word]
                scores[at] += weights
        return scores


class PixelNeighbours:
    """Cosine of 16 x 16 RGB thumbnails, each less its own mean. Without an image a candidate comes last."""

    def __init__(self, candidates: Sequence[Candidate]) -> None:
        self._at = np.array([at for at, one in enumerate(candidates) if one.image is not None], dtype=np.int64)
        images = [one.image for one in candidates if one.image is not None]
        self._pixels = np.stack([thumbnail(image) for image in images]) if images else np.zeros((0, 768), np.float32)
        self._size = len(candidates)

    def scores(self, query: Query) -> np.ndarray:
        """(N,) cosines; -2 for a candidate without a picture, all 0 if the query has none."""
        if query.image is None:
            return np.zeros(self._size, dtype=np.float32)
        scores = np.full(self._size, -2, dtype=np.float32)
        scores[self._at] = self._pixels @ thumbnail(query.image)
        return scores


BASELINES: dict[str, type[Baseline]] = {"random": Chance, "BM25": BM25, "pixel kNN": PixelNeighbours}


def words(text: str) -> list[str]:
    """Lower-cased words of a text."""
    return re.findall(r"\w+", text.lower())


def thumbnail(path: Path) -> np.ndarray:
    """(768,) float32 of length one (zero for an image of one colour); transparency becomes white."""
    try:
        with Image.open(path) as image:
            colours = image.convert("RGBA")
    except OSError as error:
        raise ValueError(f"{path}: the image cannot be read ({error}). Copy it again or remove its line.") from error
    white = Image.new("RGBA", colours.size, "white")
    small = Image.alpha_composite(white, colours).convert("RGB").resize((16, 16), Image.Resampling.BOX)
    pixels = np.asarray(small, dtype=np.float32).ravel()
    pixels -= pixels.mean()
    return pixels / max(float(np.linalg.norm(pixels)), 1e-6)


def ranked(scores: np.ndarray, k: int, qid: str) -> np.ndarray:
    """Positions of the k best of (N,) scores; ties in a random order that depends on the query's id alone."""
    seed = int.from_bytes(hashlib.sha256(qid.encode()).digest()[:8])
    order = np.random.default_rng(seed).permutation(len(scores))
    return order[top_k(scores[order][None], k)[0]]
