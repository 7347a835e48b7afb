"""Re-ranked rows: what a second model says of the candidates found, and the weight of its answers."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from umarvel_hf.data import MBeir
from umarvel_hf.evaluation.metrics import judge, measure
from umarvel_hf.evaluation.results import RERANKED, own_metric
from umarvel_hf.evaluation.retrieval import (
    DEPTH,
    MEMORY,
    Found,
    Prompting,
    Retrieval,
    Systems,
    choose_tasks,
    retrieve_all,
)
from umarvel_hf.progress import Progress
from umarvel_hf.reranking import WEIGHTS, Fusion, Reranker, fuse, judge_pairs, reranker_query
from umarvel_hf.search import Encoder, Ranking

QUERY_BLOCK = 64  # queries whose candidates are read for the re-ranker at a time


def fit_fusion(
    encoder: Encoder,
    reranker: Reranker,
    benchmark: MBeir,
    *,
    suite: str = "emoji",
    tasks: Sequence[str] | None = None,
    split: str = "val",
    top: int = DEPTH,
    name: str = "",
    gold_modality: bool = True,
    vectors: str | Path | None = None,
    memory: int = MEMORY,
    batch_tokens: int | None = None,
    show_progress: bool = False,
) -> Fusion:
    """Find the weight of the re-ranker's answers that gives the best mean over the tasks of a validation split.

    One weight for all tasks and pools, from ``reranking.WEIGHTS``, by each task's own metric on local pools; of equal
    ones the smallest.

    Args:
        suite, tasks, gold_modality, vectors, memory, batch_tokens: As in
            :func:`umarvel_hf.evaluation.benchmark.evaluate_benchmark`.
        split: Whose queries the weight is fitted on; no evaluation of this split takes it.
        top: Candidates of each list that the re-ranker judges, at most 50, and more than the tasks' metrics count.
        name: The re-ranker's, to be stored with the weight; "": the name of its class.

    Raises:
        ValueError: ``top`` is out of range (to order five candidates anew changes no R@5); unknown suite or task; an
            answer is no probability.
        FileNotFoundError: The folder lacks a file of the layout.
    """
    chosen = choose_tasks(benchmark, suite, tasks, split)
    counted = max(int(own_metric(task).partition("@")[2]) for task in chosen)
    if not counted < top <= DEPTH:
        raise ValueError(
            f"top is {top}; let the re-ranker judge {counted + 1} to {DEPTH} candidates a query, more than the first "
            f"{counted} that the tasks' metrics count, whose order changes nothing."
        )
    retrieval = retrieve_all(
        encoder,
        benchmark,
        tasks=chosen,
        split=split,
        pools=["local"],
        prompting=Prompting(gold_modality=gold_modality),
        vectors=Path(vectors) if vectors is not None else None,
        memory=memory,
        batch_tokens=batch_tokens,
        show_progress=show_progress,
    )
    scores: dict[float, list[float]] = {weight: [] for weight in WEIGHTS}
    for found in Progress(retrieval.found, "fitting the weight", show=show_progress):
        answers = _ask(reranker, retrieval, found, top)
        for weight, means in scores.items():
            lists = retrieval.dids(_fused(retrieval, found, answers, weight)["local"])
            metric = own_metric(found.task)
            means.append(float(measure(judge(lists, found.right), [metric])[metric].mean()))
    curve = {weight: float(np.mean(means)) for weight, means in scores.items()}
    return Fusion(
        weight=max(curve, key=lambda weight: (curve[weight], -weight)),
        split=split,
        top=top,
        qids={found.task.name: [query.qid for query in found.queries] for found in retrieval.found},
        curve={str(weight): score for weight, score in curve.items()},
        reranker=name or type(reranker).__name__,
    )


def add_reranked(
    reranker: Reranker,
    fusion: Fusion,
    retrieval: Retrieval,
    systems: list[Systems],
    *,
    show_progress: bool,
) -> None:
    """Put the re-ranked lists beside the model's."""
    bar = Progress(retrieval.found, "re-ranking", show=show_progress)
    for found, rankings in zip(bar, systems, strict=True):
        answers = _ask(reranker, retrieval, found, fusion.top)
        rankings[RERANKED] = _fused(retrieval, found, answers, fusion.weight)


def _ask(reranker: Reranker, retrieval: Retrieval, found: Found, top: int) -> dict[str, np.ndarray]:
    """By pool, (Q, DEPTH): what the re-ranker says of the first ``top``, 0 behind them. A pair is judged once."""
    first = retrieval.candidates.first
    rankings = {pool: np.where(one.positions < 0, -1, first[one.positions]) for pool, one in found.rankings[0].items()}
    answers = {pool: np.zeros(positions.shape, dtype=np.float32) for pool, positions in rankings.items()}
    for start in range(0, len(found.queries), QUERY_BLOCK):
        rows = range(start, min(start + QUERY_BLOCK, len(found.queries)))
        positions = [
            np.unique([at for ranking in rankings.values() for at in ranking[row, :top] if at >= 0]) for row in rows
        ]
        queries = [reranker_query(found.queries[row], found.instructions[0][row]) for row in rows]
        candidates = [[one.item for one in retrieval.candidates.at(at)] for at in positions]
        said = judge_pairs(reranker, queries, candidates)
        for row, at, values in zip(rows, positions, said, strict=True):
            for pool, ranking in rankings.items():
                own = ranking[row, :top]
                own = own[own >= 0]
                answers[pool][row, : len(own)] = values[np.searchsorted(at, own)]
    return answers


def _fused(retrieval: Retrieval, found: Found, answers: dict[str, np.ndarray], weight: float) -> dict[str, Ranking]:
    dids = retrieval.candidates.dids
    return {pool: fuse(ranking, answers[pool], weight, dids) for pool, ranking in found.rankings[0].items()}
