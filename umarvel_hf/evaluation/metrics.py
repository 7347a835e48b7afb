"""Measures over ranked ids, in plain numpy."""

from collections.abc import Collection, Sequence

import numpy as np


def first_hits(ranked: Sequence[Sequence[str]], positives: Sequence[Collection[str]]) -> np.ndarray:
    """Rank, counted from 1, of the first right answer of every query; 0 where its list holds none. Returns (Q,)."""
    if len(ranked) != len(positives):
        raise ValueError(f"{len(ranked):,} ranked lists for {len(positives):,} sets of right answers; they must match.")
    pairs = zip(ranked, positives, strict=True)
    ranks = [next((rank for rank, did in enumerate(dids, 1) if did in right), 0) for dids, right in pairs]
    return np.array(ranks, dtype=np.int64)


def hits_at(first: np.ndarray, k: int) -> np.ndarray:
    """Whether any right answer stands among the first k: what M-BEIR calls recall@k. Returns (Q,) bool."""
    return (first > 0) & (first <= k)
