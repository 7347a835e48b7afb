"""Measures over ranked ids, in plain numpy; each agrees with trec_eval's of the same name, if it has one."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from umarvel_hf.data import first_repeated

NAME = re.compile(r"(hit|recall|precision|ndcg|mrr|map|capped_map)@([1-9]\d*)|(ndcg|mrr|map)")
KNOWN = "hit@k, recall@k, precision@k, ndcg@k, mrr@k, map@k, capped_map@k (k from 1), ndcg, mrr and map"


@dataclass(frozen=True)
class Judged:
    """What Q ranked lists are worth.

    Args:
        gains: (Q, K) float64, relevance of the answer at each rank; 0 where it is wrong or the list has ended.
        ideal: (Q, R) float64, relevance of all right answers, highest first, then zeros.
    """

    gains: np.ndarray
    ideal: np.ndarray


def judge(ranked: Sequence[Sequence[str]], right: Sequence[Mapping[str, int] | Collection[str]]) -> Judged:
    """Look up every answer.

    Args:
        ranked: Ids per query, best first; an empty list for a query that was not answered.
        right: Right answers per query: their ids, or relevance by id, where 0 and less are wrong.

    Raises:
        ValueError: A list holds an id twice, or a query has no right answer.
    """
    if len(ranked) != len(right):
        raise ValueError(f"{len(ranked):,} ranked lists for {len(right):,} sets of right answers; they must match.")
    gains, ideal = [], []
    for at, (dids, answers) in enumerate(zip(ranked, right, strict=True)):
        graded = answers if isinstance(answers, Mapping) else dict.fromkeys(answers, 1)
        relevance = {did: gain for did, gain in graded.items() if gain > 0}
        if not relevance:
            raise ValueError(f"Query {at}, counted from 0, has no right answer. Judge it or leave it out.")
        if len(set(dids)) < len(dids):
            raise ValueError(f"The ranked list of query {at}, counted from 0, holds {first_repeated(dids)!r} twice.")
        gains.append([relevance.get(did, 0) for did in dids])
        ideal.append(sorted(relevance.values(), reverse=True))
    return Judged(_filled(gains), _filled(ideal))


def measure(judged: Judged, names: Iterable[str]) -> dict[str, np.ndarray]:
    """One value per query and metric, by name: (Q,) float64 from 0 to 1.

    ``hit@k``: is any of the first k right (what M-BEIR calls recall@k); ``recall@k``: the share of the right answers
    among them; ``precision@k``: right ones among them, over k; ``ndcg``: gain = relevance, discounted by
    log2(rank + 1); ``mrr``: one over the rank of the first right answer; ``map``: mean precision at the right answers,
    those not found counting 0; ``capped_map@k``: the same, of at most k right answers, as CIRCO counts it. Without
    ``@k`` the whole list counts.
    """
    values = {}
    for name in names:
        found = NAME.fullmatch(name)
        if found is None:
            raise ValueError(f"{name!r} is no metric; there are {KNOWN}.")
        values[name] = _values(judged, found[1] or found[3], int(found[2]) if found[2] else None)
    return values


def ranked_ids(scores: Mapping[str, float]) -> list[str]:
    """Ids by score in single precision, highest first; ties go by id, descending. All of it as trec_eval does."""
    return sorted(scores, key=lambda did: (np.float32(scores[did]), did), reverse=True)


def _values(judged: Judged, kind: str, k: int | None) -> np.ndarray:
    gains = judged.gains[:, :k]
    right = gains > 0
    total = (judged.ideal > 0).sum(axis=1)
    ranks = np.arange(1, gains.shape[1] + 1)
    match kind:
        case "hit":
            return np.minimum(right.sum(axis=1), 1.0)
        case "recall":
            return right.sum(axis=1) / total
        case "precision":
            return right.sum(axis=1) / k
        case "ndcg":
            return _discounted(gains) / _discounted(judged.ideal[:, :k])
        case "mrr":
            return (right / ranks).max(axis=1, initial=0)
        case _:  # map, capped_map
            most = total if kind == "map" or k is None else np.minimum(total, k)
            return (right * right.cumsum(axis=1) / ranks).sum(axis=1) / most


def _discounted(gains: np.ndarray) -> np.ndarray:
    return gains @ (1 / np.log2(np.arange(2, gains.shape[1] + 2)))


def _filled(rows: list[list[int]]) -> np.ndarray:
    """(Q, longest) float64, short rows filled with 0."""
    filled = np.zeros((len(rows), max(map(len, rows), default=0)))
    for at, row in enumerate(rows):
        filled[at, : len(row)] = row
    return filled
