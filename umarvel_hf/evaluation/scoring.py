"""Values of every query and metric from what was found, and the baselines beside the model."""

import numpy as np

from umarvel_hf.data import MODALITIES
from umarvel_hf.evaluation.baselines import BASELINES, ranked
from umarvel_hf.evaluation.metrics import judge, measure
from umarvel_hf.evaluation.results import (
    METRICS,
    MODEL,
    WRONG_MODALITY,
    PoolScore,
    TaskResult,
    against_best,
    own_metric,
)
from umarvel_hf.evaluation.retrieval import DEPTH, Found, Retrieval, Systems
from umarvel_hf.progress import Progress
from umarvel_hf.search import Ranking


def score(retrieval: Retrieval, found: Found, systems: Systems) -> TaskResult:
    """Every metric of every system on a task; with several prompts the model's mean over them."""
    scores = {
        system: {pool: PoolScore(_values(retrieval, found, ranking)) for pool, ranking in pools.items()}
        for system, pools in systems.items()
    }
    metric = own_metric(found.task)
    by_prompt: dict[str, list[float]] = {}
    if len(found.rankings) > 1:
        for pool in found.rankings[0]:
            others = [_values(retrieval, found, rankings[pool]) for rankings in found.rankings[1:]]
            each = [scores[MODEL][pool].values, *others]
            mean = {name: np.mean([one[name] for one in each], axis=0).round(6).tolist() for name in each[0]}
            scores[MODEL][pool] = PoolScore(mean)
            by_prompt[pool] = [float(np.mean(one[metric])) for one in each]
    at = {"local": retrieval.candidates.local(found.task), "union": retrieval.candidates.distinct}
    first_pool = next(iter(systems[MODEL]))
    values = {system: np.array(pools[first_pool].values[metric]) for system, pools in scores.items()}
    return TaskResult(
        dataset=found.task.dataset,
        task_id=found.task.task_id,
        metric=metric,
        qids=[query.qid for query in found.queries],
        pool_sizes={pool: len(at[pool]) for pool in systems[MODEL]},
        scores=scores,
        top={pool: [dids[:10] for dids in retrieval.dids(one)] for pool, one in systems[MODEL].items()},
        by_prompt=by_prompt,
        comparison=against_best(found.task.name, metric, values),
    )


def _values(retrieval: Retrieval, found: Found, ranking: Ranking) -> dict[str, list[float]]:
    """By metric, one value a query, to six decimals."""
    values = measure(judge(retrieval.dids(ranking), found.right), METRICS)
    values[WRONG_MODALITY] = _wrong_modality(retrieval, found, ranking)
    return {name: one.round(6).tolist() for name, one in values.items()}


def _wrong_modality(retrieval: Retrieval, found: Found, ranking: Ranking, k: int = 10) -> np.ndarray:
    """Share of the first ``k`` candidates whose modality no right answer of the query has. Returns (Q,)."""
    modalities = retrieval.candidates.modalities
    shares = np.zeros(len(found.queries))
    for at, (positions, answers) in enumerate(zip(ranking.positions[:, :k], found.right, strict=True)):
        shown = modalities[positions[positions >= 0]]
        wanted = [MODALITIES.index(retrieval.candidates.modality(did)) for did in answers]
        shares[at] = 1 - np.isin(shown, wanted).mean()
    return shares


def add_baselines(retrieval: Retrieval, rankings: list[Systems], show_progress: bool) -> None:
    """Rank by chance, BM25 and pixel neighbours, too; every candidate is held in memory."""
    candidates = retrieval.candidates
    # In the order of dids, so that the order of a file decides nothing.
    everything = candidates.distinct[np.argsort(candidates.dids[candidates.distinct])]
    contents = candidates.at(everything)
    for name, kind in BASELINES.items():
        baseline = kind(contents)
        bar = Progress(retrieval.found, name, show=show_progress)
        for found, systems in zip(bar, rankings, strict=True):
            own = np.isin(candidates.dids[everything], candidates.dids[candidates.local(found.task)])
            pools = {"local": np.flatnonzero(own), "union": np.arange(len(everything))}
            rows: dict[str, list[Ranking]] = {pool: [] for pool in systems[MODEL]}
            for query in found.queries:
                scores = baseline.scores(query)
                for pool, best in rows.items():
                    at = pools[pool]
                    order = at[ranked(scores[at], DEPTH, query.qid)]
                    best.append(Ranking(everything[order][None], scores[order][None]))
            systems[name] = {pool: _stacked(best) for pool, best in rows.items()}


def _stacked(rows: list[Ranking]) -> Ranking:
    return Ranking(
        np.concatenate([row.positions for row in rows]), np.concatenate([row.scores for row in rows]).astype(np.float32)
    )
