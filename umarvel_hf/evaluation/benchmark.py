"""Evaluate an encoder on a folder in M-BEIR's layout: local and union pools from one encoding pass, and baselines."""

import logging
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version

import numpy as np
from tqdm import tqdm

from umarvel_hf._torchvision import ensure_torchvision
from umarvel_hf.data import Candidate, MBeir, Query, Task
from umarvel_hf.evaluation.baselines import BASELINES, Baseline, ranked
from umarvel_hf.evaluation.metrics import first_hits
from umarvel_hf.evaluation.results import KS, MODEL, PoolScore, Result, TaskResult, compare, compare_types, corrected
from umarvel_hf.search import Encoder, embed, top_k

QUERY_BLOCK = 256
logger = logging.getLogger(__name__)

Metric = Callable[[list[list[str]], list[tuple[str, ...]]], dict[str, float]]
Best = dict[str, list[np.ndarray]]  # by pool: for every query the positions of the best candidates


@dataclass(frozen=True)
class _Run:
    """What every task needs: all candidates once, sorted by did, their embeddings and the baselines over them."""

    benchmark: MBeir
    split: str
    encoder: Encoder
    batch_size: int
    candidates: dict[str, Candidate]
    embeddings: np.ndarray  # (N, D), in the order of candidates
    baselines: dict[str, Baseline]
    hit_rate: Metric


def evaluate_benchmark(
    encoder: Encoder,
    benchmark: MBeir,
    *,
    split: str = "test",
    batch_size: int = 32,
    show_progress: bool = False,
    settings: Mapping[str, str] | None = None,
) -> Result:
    """Rank the local and the union pool for every query of every task, by the model and by three baselines.

    Each candidate is encoded once, each query with the first instruction for its data set and modalities. The candidate
    modality in that lookup is the one of the query's right answer, as in the reference.

    Args:
        settings: what else is needed to reproduce the result, such as the model's name; stored with it.
    """
    started = time.perf_counter()
    tasks = benchmark.tasks(split)
    candidates = _all_candidates(benchmark, tasks, split)
    items = [candidate.item for candidate in candidates.values()]
    embeddings = embed(encoder, items, batch_size=batch_size, show_progress_bar=show_progress)
    encoded = time.perf_counter()
    logger.info("encoded %d candidates in %.1f s", len(candidates), encoded - started)
    pool = list(candidates.values())
    baselines = {name: baseline(pool) for name, baseline in BASELINES.items()}
    run = _Run(benchmark, split, encoder, batch_size, candidates, embeddings, baselines, _hit_rate())
    prepared = time.perf_counter()
    results = [_evaluate_task(run, task) for task in tqdm(tasks, "tasks", disable=not show_progress)]
    comparisons = corrected([result.comparison for result in results])
    results = [replace(result, comparison=one) for result, one in zip(results, comparisons, strict=True)]
    ended = time.perf_counter()
    return Result(
        tasks=results,
        types=compare_types(results),
        settings={**(settings or {}), "split": split, "batch size": str(batch_size), **_versions()},
        counts={"tasks": len(tasks), "queries": sum(len(one.qids) for one in results), "candidates": len(candidates)},
        seconds={
            "encoding candidates": encoded - started,
            "preparing baselines": prepared - encoded,
            "queries and ranking": ended - prepared,
        },
    )


def _all_candidates(benchmark: MBeir, tasks: Sequence[Task], split: str) -> dict[str, Candidate]:
    """The union pool and whatever local pools add to it, each did once, sorted by did so that position breaks ties."""
    found = dict(benchmark.union_pool(split))
    for task in tasks:
        for did, candidate in benchmark.pool(task, split).items():
            if found.setdefault(did, candidate) != candidate:
                raise ValueError(
                    f"did {did!r} is {candidate} in the local pool of {task.name} and {found[did]} in another pool. "
                    "One did must name one candidate: write the pools anew."
                )
    return {did: found[did] for did in sorted(found)}


def _hit_rate() -> Metric:
    ensure_torchvision()  # evaluate imports transformers
    from umarvel_hf.evaluation.hit_rate import HitRate

    metric = HitRate(keep_in_memory=True)
    return lambda ranked, right: metric.compute(predictions=ranked, references=right, ks=KS)


def _evaluate_task(run: _Run, task: Task) -> TaskResult:
    queries = run.benchmark.queries(task, run.split)
    qrels = run.benchmark.qrels(task, run.split)
    right = [qrels[query.qid] for query in queries]
    dids = list(run.candidates)
    position = {did: at for at, did in enumerate(dids)}
    columns = {  # positions of each pool's candidates, in the order of their dids
        "local": np.array(sorted(position[did] for did in run.benchmark.pool(task, run.split))),
        "union": np.array(sorted(position[did] for did in run.benchmark.union_pool(run.split))),
    }
    best = {MODEL: _model_best(run, _encode_queries(run, queries, right), columns)}
    best |= {name: _baseline_best(baseline, queries, columns) for name, baseline in run.baselines.items()}
    scores: dict[str, dict[str, PoolScore]] = {}
    for system, pools in best.items():
        lists = {pool: [[dids[at] for at in row] for row in rows] for pool, rows in pools.items()}
        scores[system] = {
            pool: PoolScore(run.hit_rate(ids, right), first_hits(ids, right).tolist()) for pool, ids in lists.items()
        }
    return TaskResult(
        dataset=task.dataset,
        task_id=task.task_id,
        qids=[query.qid for query in queries],
        pool_sizes={pool: len(at) for pool, at in columns.items()},
        scores=scores,
        top=[[dids[at] for at in row[:5]] for row in best[MODEL]["local"]],
        comparison=compare(task.name, {system: pools["local"].first_hits for system, pools in scores.items()}),
    )


def _encode_queries(run: _Run, queries: Sequence[Query], right: Sequence[tuple[str, ...]]) -> np.ndarray:
    """Encode the queries of a task, one call per instruction. Returns (Q, D)."""
    by_instruction: dict[str, list[int]] = {}
    for at, (query, answers) in enumerate(zip(queries, right, strict=True)):
        instruction = run.benchmark.instruction(query, run.candidates[answers[0]].modality)
        by_instruction.setdefault(instruction, []).append(at)
    embeddings = np.empty((len(queries), run.embeddings.shape[1]), dtype=np.float32)
    for instruction, rows in by_instruction.items():
        items = [queries[row].item for row in rows]
        embeddings[rows] = embed(run.encoder, items, instruction=instruction, batch_size=run.batch_size)
    return embeddings


def _model_best(run: _Run, embeddings: np.ndarray, columns: dict[str, np.ndarray]) -> Best:
    best: Best = {}
    for pool, at in columns.items():
        candidates = run.embeddings[at]  # (N, D)
        blocks = (embeddings[start : start + QUERY_BLOCK] for start in range(0, len(embeddings), QUERY_BLOCK))
        best[pool] = [at[row] for block in blocks for row in top_k(block @ candidates.T, max(KS))]
    return best


def _baseline_best(baseline: Baseline, queries: Sequence[Query], columns: dict[str, np.ndarray]) -> Best:
    best: Best = {pool: [] for pool in columns}
    for query in queries:
        scores = baseline.scores(query)
        for pool, at in columns.items():
            best[pool].append(at[ranked(scores[at], max(KS), query.qid)])
    return best


def _versions() -> dict[str, str]:
    """The versions of what decides the numbers."""
    found = {"python": platform.python_version()}
    for package in ("umarvel_hf", "torch", "transformers", "sentence-transformers", "numpy", "Pillow"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
