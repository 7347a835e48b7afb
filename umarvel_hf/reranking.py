"""Recall, then re-rank: a second model's answers added to the scores of the search, with a weight."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from umarvel_hf.data import Item, Query, as_item, format_string
from umarvel_hf.fingerprint import weights_digest
from umarvel_hf.hub import local_folder
from umarvel_hf.progress import Progress
from umarvel_hf.search import Ranking, best_first
from umarvel_hf.store import whole_file

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder

WEIGHTS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0)


class Reranker(Protocol):
    """Anything that judges pairs, such as a ``CrossEncoder`` over Yes and No; its answers are probabilities, 0 to 1."""

    def predict(
        self,
        inputs: Sequence[tuple[Item, Item]],
        *,
        show_progress_bar: bool | None = None,
    ) -> np.ndarray:
        """Return (N,): for every pair of query and candidate the probability, 0 to 1, that the candidate answers."""
        ...


@dataclass(frozen=True)
class Fusion:
    """How the re-ranker's answers are added: ``score = cosine + weight · P(Yes)`` (recipe.md §8).

    Args:
        weight: Fitted by ``evaluation.reranked.fit_fusion``; finite, from 0.
        split: The split it was fitted on.
        top: How many candidates of each list the re-ranker judged.
        qids: By task, the queries it was fitted on.
        curve: The mean score over the tasks, 0 to 1, with each weight that was tried.
        reranker: Its name.

    Raises:
        ValueError: The weight is negative or not finite, or ``top`` below 1.
    """

    weight: float
    split: str
    top: int
    qids: dict[str, list[str]]
    curve: dict[str, float]
    reranker: str

    def __post_init__(self) -> None:
        if not 0 <= self.weight < float("inf") or self.top < 1:
            raise ValueError(f"weight is {self.weight}, top is {self.top}; give a finite weight from 0 and top from 1.")

    def refuse_fitted_on(self, split: str, qids: Mapping[str, Sequence[str]]) -> None:
        """Raise ValueError where the weight was fitted on what it is to be judged by."""
        if self.split == split:
            raise ValueError(
                f"The fusion weight {self.weight} was fitted on split {self.split!r}, which is the one to evaluate. "
                "Fit it on another split: a weight chosen on the test queries makes their score too high."
            )
        for task, own in self.qids.items():
            if shared := sorted(set(own) & set(qids.get(task, ()))):
                raise ValueError(
                    f"The fusion weight {self.weight} was fitted on {len(shared):,} of the {len(qids[task]):,} queries "
                    f"of {task} to evaluate, {shared[0]!r} the first of them. Fit it on other queries."
                )

    def save(self, path: str | Path) -> None:
        """Write it as JSON."""
        with whole_file(Path(path)) as file:
            file.write(json.dumps(asdict(self), indent=1, ensure_ascii=False).encode())

    @classmethod
    def load(cls, path: str | Path) -> "Fusion":
        """Read what :meth:`save` wrote.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It holds no fusion weight.
        """
        try:
            return cls(**json.loads(Path(path).read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"{path} holds no fusion weight ({error}). Pass the fusion.json of an evaluation."
            ) from error


class PairJudge:
    """A ``CrossEncoder`` that takes items as the encoder does, and runs once what the pairs of a query share.

    Pairs with a film, a query's only pair and all pairs of a model that ``prefix.shares_prefixes`` refuses go to
    ``CrossEncoder.predict``; the answers are the same.
    """

    def __init__(self, model: "CrossEncoder") -> None:
        self.model = model

    def predict(self, inputs: Sequence[tuple[Item, Item]], *, show_progress_bar: bool | None = None) -> np.ndarray:
        """Return (N,) float32: for every pair of query and candidate P(Yes)."""
        if not self.model.supports("message"):
            return self._plain(list(inputs), show_progress_bar)
        from umarvel_hf import prefix

        pairs = [(as_parts(query), as_parts(candidate)) for query, candidate in inputs]
        answers = np.full(len(pairs), np.nan, dtype=np.float32)
        shared = prefix.by_query(pairs) if prefix.shares_prefixes(self.model) else []
        for at in Progress(shared, "re-ranking", show=show_progress_bar):
            answers[at] = prefix.judge_query(self.model, [pairs[one] for one in at])
        if rest := sorted(set(range(len(pairs))).difference(*shared)):
            answers[rest] = self._plain([pairs[one] for one in rest], show_progress_bar)
        return answers

    def _plain(self, pairs: list[Any], show_progress_bar: bool | None) -> np.ndarray:
        answers: np.ndarray = self.model.predict(pairs, show_progress_bar=show_progress_bar)
        return answers


def as_parts(item: Item) -> dict[str, Any]:
    """An item as a ``CrossEncoder`` must get it: it would open a text that is a picture's address, and no ``Path``."""
    parts = item if isinstance(item, dict) else {"text": item}
    return {kind: str(value) if isinstance(value, Path) else value for kind, value in parts.items()}


def load_reranker(model: str | Path, *, revision: str | None = None, **kwargs: Any) -> PairJudge:
    """Load a ``CrossEncoder`` (folder or Hub id; ``kwargs`` as there) whose scores are probabilities.

    Args:
        revision: Branch, tag or commit of a repository.

    Returns:
        What takes pairs of items, as the encoder takes them, and answers (N,) float32, P(Yes), 0 to 1.

    Raises:
        FileNotFoundError, PermissionError, ConnectionError: As in :func:`umarvel_hf.hub.local_folder`.
    """
    from umarvel_hf._torchvision import ensure_torchvision

    ensure_torchvision()
    import torch
    from sentence_transformers import CrossEncoder

    folder = local_folder(model, revision=revision, code=True)
    loaded = CrossEncoder(str(folder), trust_remote_code=True, activation_fn=torch.nn.Sigmoid(), **kwargs)
    return PairJudge(loaded)


def reranker_fingerprint(reranker: Reranker) -> str:
    """A checksum of its weights, 16 characters; of what holds none, the name of its class."""
    model: Any = getattr(reranker, "model", reranker)
    return weights_digest(model) if hasattr(model, "state_dict") else type(reranker).__qualname__


def judge_pairs(reranker: Reranker, queries: Sequence[Item], candidates: Sequence[Sequence[Item]]) -> list[np.ndarray]:
    """Ask the re-ranker about the candidates of every query. Returns (C,) float32 per query, 0 to 1."""
    pairs = [(query, one) for query, found in zip(queries, candidates, strict=True) for one in found]
    answers = np.asarray(reranker.predict(pairs, show_progress_bar=False), dtype=np.float32)
    if answers.shape != (len(pairs),):
        raise ValueError(
            f"{type(reranker).__name__}.predict returned an array of shape {answers.shape} for {len(pairs):,} pairs. "
            "It must return one number per pair, (N,)."
        )
    wrong = ~((answers >= 0) & (answers <= 1))  # so that a NaN is wrong too
    if wrong.any():
        raise ValueError(
            f"{type(reranker).__name__}.predict returned {answers[wrong][0]} for pair {int(np.argmax(wrong))}. It must "
            "return probabilities, from 0 to 1."
        )
    return np.split(answers, np.cumsum([len(found) for found in candidates])[:-1])


def reranker_query(query: Query, instruction: str) -> Item:
    """The query as the re-ranker reads it: the instruction before the text, without marks (recipe.md §7.1)."""
    return as_item(format_string(f"{instruction} {query.text}"), query.image)


def fuse(ranking: Ranking, answers: np.ndarray, weight: float, ids: np.ndarray) -> Ranking:
    """Order anew by ``cosine + weight · answer``; equal scores by id descending.

    Args:
        answers: (Q, k), 0 where the re-ranker was not asked; so these stay behind all it was asked about.
        ids: (N,) bytes, the store's.
    """
    return best_first(Ranking(ranking.positions, ranking.scores + np.float32(weight) * answers), ids)
