"""Evaluate an encoder on a folder in M-BEIR's layout: every measure, local and union pools, baselines, re-ranking."""

import logging
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
from tqdm import tqdm

from umarvel_hf.data import MODALITIES, MBeir, Task
from umarvel_hf.evaluation.baselines import BASELINES, ranked
from umarvel_hf.evaluation.metrics import judge, measure, ranked_ids
from umarvel_hf.evaluation.results import (
    MBEIR_TASKS,
    METRICS,
    MODEL,
    POOLS,
    RERANKED,
    WRONG_MODALITY,
    PoolScore,
    Result,
    TaskResult,
    against_best,
    compare_types,
)
from umarvel_hf.evaluation.retrieval import DEPTH, Found, Instructions, Prompting, Retrieval, retrieve_all
from umarvel_hf.evaluation.significance import corrected
from umarvel_hf.evaluation.trec import read_qrels, read_run, write_qrels, write_run
from umarvel_hf.reranking import WEIGHTS, Fusion, Reranker, fuse, judge_pairs, reranker_query
from umarvel_hf.search import Encoder, Ranking

MEMORY = 8 << 30
SUITES = ("m-beir", "emoji")
QUERY_BLOCK = 64  # queries whose candidates are read for the re-ranker at a time
logger = logging.getLogger(__name__)


def evaluate_benchmark(
    encoder: Encoder,
    benchmark: MBeir,
    *,
    suite: str = "emoji",
    tasks: Sequence[str] | None = None,
    split: str = "test",
    pools: Sequence[str] = POOLS,
    instructions: Instructions = "first",
    seed: int = 0,
    gold_modality: bool = True,
    baselines: bool | None = None,
    reranker: Reranker | None = None,
    fusion: Fusion | None = None,
    vectors: str | Path | None = None,
    runs: str | Path | None = None,
    memory: int = MEMORY,
    batch_size: int = 32,
    show_progress: bool = False,
    settings: Mapping[str, str] | None = None,
) -> Result:
    """Rank the local and the union pool for every query of every task.

    Each candidate is encoded once. The union pool is the concatenation of all local pools (and of what the union file
    adds to them), each did once.

    Args:
        suite: ``m-beir``: the 16 configurations, means over all of them. ``emoji``: every task of the folder, means by
            data set.
        tasks: Names such as ``mscoco_task0``; None: all.
        pools: ``local``, ``union`` or both; without ``union`` only the pools of the given tasks are encoded.
        instructions, seed, gold_modality: Which prompt a query gets (``retrieval.Prompting``).
        baselines: Whether chance, BM25 and pixel neighbours stand beside the model; None: on ``emoji`` only, they hold
            every candidate in memory.
        reranker, fusion: What judges the first ``fusion.top`` candidates anew, and the weight of its answers.
        vectors: Folder of the vector stores, to go on after an interruption; None: a temporary one.
        runs: Folder for TREC run and qrels files; None: none are written.
        memory: Bytes that the search may take: queries, results and blocks of candidates.
        settings: What else is needed to reproduce the result, such as the model's name; stored with it.

    Raises:
        ValueError: Unknown suite, task or pool; a fusion weight that was fitted on these queries.
        FileNotFoundError: The folder lacks a file of the layout.
    """
    chosen = choose_tasks(benchmark, suite, tasks, split)
    if unknown := [pool for pool in pools if pool not in POOLS]:
        raise ValueError(f"pools are {list(pools)}; {unknown[0]!r} is none of {', '.join(POOLS)}.")
    if (reranker is None) != (fusion is None):
        raise ValueError("reranker and fusion belong together: fit_fusion gives the weight of a re-ranker's answers.")
    if reranker is not None and instructions == "all":
        raise ValueError(
            "A re-ranker judges the candidates of one search: with it, choose --instructions first or seeded."
        )
    if fusion is not None:
        fusion.refuse_fitted_on(split, {one.name: [q.qid for q in benchmark.queries(one, split)] for one in chosen})
    prompting = Prompting(instructions, seed, gold_modality)
    retrieval = retrieve_all(
        encoder,
        benchmark,
        tasks=chosen,
        split=split,
        pools=[pool for pool in POOLS if pool in pools],
        prompting=prompting,
        vectors=Path(vectors) if vectors is not None else None,
        memory=memory,
        batch_size=batch_size,
        show_progress=show_progress,
    )
    started = time.perf_counter()
    rankings = [{MODEL: found.rankings[0]} for found in retrieval.found]
    if reranker is not None and fusion is not None:
        bar = tqdm(retrieval.found, "re-ranking", disable=not show_progress)
        for found, systems in zip(bar, rankings, strict=True):
            answers = _answers(reranker, retrieval, found, fusion.top, batch_size)
            systems[RERANKED] = _fused(retrieval, found, answers, fusion.weight)
    reranked = time.perf_counter()
    if baselines if baselines is not None else suite == "emoji":
        _add_baselines(retrieval, rankings, show_progress)
    compared = time.perf_counter()
    results = [_score(retrieval, found, systems) for found, systems in zip(retrieval.found, rankings, strict=True)]
    if runs is not None:
        _write_runs(Path(runs), retrieval, rankings)
    comparisons = iter(corrected([one.comparison for one in results if one.comparison is not None]))
    results = [replace(one, comparison=next(comparisons)) if one.comparison else one for one in results]
    seconds = {"re-ranking": reranked - started, "baselines": compared - reranked}
    return Result(
        suite=suite,
        tasks=results,
        types=compare_types(results),
        settings={
            **(settings or {}),
            "suite": suite,
            "data": str(benchmark.root),
            "split": split,
            "instructions": f"seeded, {seed}" if instructions == "seeded" else instructions,
            "candidate modality": "of the right answer" if gold_modality else "of the task",
            "batch size": str(batch_size),
            **retrieval.made_by,
            **_versions(),
        },
        counts={
            "tasks": len(chosen),
            "queries": sum(len(one.qids) for one in results),
            "candidates": len(retrieval.candidates.distinct),
        },
        seconds={**retrieval.seconds, **{what: took for what, took in seconds.items() if took > 0.01}},
        fusion=asdict(fusion) if fusion else None,
    )


def choose_tasks(benchmark: MBeir, suite: str, names: Sequence[str] | None, split: str) -> list[Task]:
    """The tasks to evaluate: those of the suite that the folder holds, or those named.

    Raises:
        ValueError: The suite is unknown, a named task is not there, or none of the suite's tasks is.
    """
    if suite not in SUITES:
        raise ValueError(f"suite is {suite!r}; choose one of {', '.join(SUITES)}.")
    there = benchmark.tasks(split)
    if suite == "m-beir":
        there = [task for task in MBEIR_TASKS if task in there]
        if not there:
            raise ValueError(
                f"{benchmark.root} holds no {split} queries of any of M-BEIR's 16 configurations, only of "
                f"{', '.join(task.name for task in benchmark.tasks(split))}. Pass another folder or another suite."
            )
    if names is None:
        return there
    if unknown := sorted(set(names) - {task.name for task in there}):
        raise ValueError(
            f"{benchmark.root} has no {split} queries for {', '.join(unknown)}; it has "
            f"{', '.join(task.name for task in there)}."
        )
    return [task for task in there if task.name in names]


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
    vectors: str | Path | None = None,
    memory: int = MEMORY,
    batch_size: int = 32,
    show_progress: bool = False,
) -> Fusion:
    """Find the weight of the re-ranker's answers that gives the best mean over the tasks of a validation split.

    One weight for all tasks and pools, from ``reranking.WEIGHTS``, by each task's own metric on local pools; of equal
    ones the smallest.

    Args:
        top: Candidates of each list that the re-ranker judges, at most 50.
        name: The re-ranker's, to be stored with the weight.
    """
    if not 1 <= top <= DEPTH:
        raise ValueError(f"top is {top}; the re-ranker judges 1 to {DEPTH} candidates a query.")
    retrieval = retrieve_all(
        encoder,
        benchmark,
        tasks=choose_tasks(benchmark, suite, tasks, split),
        split=split,
        pools=["local"],
        prompting=Prompting(),
        vectors=Path(vectors) if vectors is not None else None,
        memory=memory,
        batch_size=batch_size,
        show_progress=show_progress,
    )
    scores: dict[float, list[float]] = {weight: [] for weight in WEIGHTS}
    for found in tqdm(retrieval.found, "fitting the weight", disable=not show_progress):
        answers = _answers(reranker, retrieval, found, top, batch_size)
        for weight, means in scores.items():
            lists = _dids(retrieval, _fused(retrieval, found, answers, weight)["local"])
            means.append(
                float(measure(judge(lists, found.right), [own_metric(found.task)])[own_metric(found.task)].mean())
            )
    curve = {weight: float(np.mean(means)) for weight, means in scores.items()}
    return Fusion(
        weight=max(curve, key=lambda weight: (curve[weight], -weight)),
        split=split,
        top=top,
        qids={found.task.name: [query.qid for query in found.queries] for found in retrieval.found},
        curve={str(weight): score for weight, score in curve.items()},
        reranker=name or type(reranker).__name__,
    )


def evaluate_run(run: str | Path, qrels: str | Path) -> Result:
    """Measure a TREC run file, of whatever system, against a TREC qrels file.

    Every query of the qrels counts: one that the run lacks has found nothing.

    Raises:
        ValueError: A bad line, or a query of the run that the qrels do not know.
    """
    right = {qid: {did: to for did, to in dids.items() if to > 0} for qid, dids in read_qrels(qrels).items()}
    right = {qid: dids for qid, dids in right.items() if dids}
    found = read_run(run)
    if unknown := sorted(found.keys() - right.keys()):
        raise ValueError(
            f"{run}: {len(unknown):,} of {len(found):,} queries have no right answer in {qrels}, {unknown[0]!r} the "
            "first of them. Pass the qrels that belong to this run."
        )
    lists = [ranked_ids(found.get(qid, {})) for qid in right]
    values = measure(judge(lists, list(right.values())), METRICS)
    task = TaskResult(
        dataset=Path(qrels).stem,
        task_id=None,
        metric="hit@5",
        qids=list(right),
        pool_sizes={"local": len({did for dids in lists for did in dids})},
        scores={MODEL: {"local": PoolScore({name: one.round(6).tolist() for name, one in values.items()})}},
        top={"local": [dids[:10] for dids in lists]},
    )
    settings = {"run": str(run), "qrels": str(qrels), "split": "", **_versions()}
    counts = {"tasks": 1, "queries": len(right), "queries without a list": len(right.keys() - found.keys())}
    return Result("trec", [task], [], settings, counts, {})


def own_metric(task: Task) -> str:
    """What M-BEIR reports of a task: ``hit@5``, on Fashion200K and FashionIQ ``hit@10``."""
    return f"hit@{MBEIR_TASKS.get(task, 5)}"


def _score(retrieval: Retrieval, found: Found, systems: dict[str, dict[str, Ranking]]) -> TaskResult:
    scores = {
        system: {pool: PoolScore(_values(retrieval, found, ranking)) for pool, ranking in pools.items()}
        for system, pools in systems.items()
    }
    metric = own_metric(found.task)
    by_prompt: dict[str, list[float]] = {}
    if len(found.rankings) > 1:
        for pool in found.rankings[0]:
            each = [_values(retrieval, found, rankings[pool]) for rankings in found.rankings]
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
        top={pool: [dids[:10] for dids in _dids(retrieval, one)] for pool, one in systems[MODEL].items()},
        by_prompt=by_prompt,
        comparison=against_best(found.task.name, metric, values),
    )


def _values(retrieval: Retrieval, found: Found, ranking: Ranking) -> dict[str, list[float]]:
    """By metric, one value a query, to six decimals."""
    values = measure(judge(_dids(retrieval, ranking), found.right), METRICS)
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


def _dids(retrieval: Retrieval, ranking: Ranking) -> list[list[str]]:
    dids = retrieval.candidates.dids
    return [[did.decode() for did in dids[row[row >= 0]]] for row in ranking.positions]


def _answers(
    reranker: Reranker, retrieval: Retrieval, found: Found, top: int, batch_size: int
) -> dict[str, np.ndarray]:
    """By pool, (Q, DEPTH): what the re-ranker says of the first ``top``, 0 behind them. A pair is judged once."""
    rankings = found.rankings[0]
    answers = {pool: np.zeros(ranking.scores.shape, dtype=np.float32) for pool, ranking in rankings.items()}
    for start in range(0, len(found.queries), QUERY_BLOCK):
        rows = range(start, min(start + QUERY_BLOCK, len(found.queries)))
        positions = [
            np.unique([at for ranking in rankings.values() for at in ranking.positions[row, :top] if at >= 0])
            for row in rows
        ]
        queries = [reranker_query(found.queries[row], found.instructions[0][row]) for row in rows]
        candidates = [[one.item for one in retrieval.candidates.at(at)] for at in positions]
        said = judge_pairs(reranker, queries, candidates, batch_size=batch_size)
        for row, at, values in zip(rows, positions, said, strict=True):
            for pool, ranking in rankings.items():
                own = ranking.positions[row, :top]
                own = own[own >= 0]
                answers[pool][row, : len(own)] = values[np.searchsorted(at, own)]
    return answers


def _fused(retrieval: Retrieval, found: Found, answers: dict[str, np.ndarray], weight: float) -> dict[str, Ranking]:
    dids = retrieval.candidates.dids
    return {pool: fuse(ranking, answers[pool], weight, dids) for pool, ranking in found.rankings[0].items()}


def _add_baselines(retrieval: Retrieval, rankings: list[dict[str, dict[str, Ranking]]], show_progress: bool) -> None:
    candidates = retrieval.candidates
    # In the order of dids, so that the order of a file decides nothing.
    everything = candidates.distinct[np.argsort(candidates.dids[candidates.distinct])]
    contents = candidates.at(everything)
    for name, kind in BASELINES.items():
        baseline = kind(contents)
        bar = tqdm(retrieval.found, name, disable=not show_progress)
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


def _write_runs(folder: Path, retrieval: Retrieval, rankings: list[dict[str, dict[str, Ranking]]]) -> None:
    """``<pool>/<task>.txt`` for the model, ``<pool>-re-ranked/…`` behind a re-ranker, and ``qrels/<task>.txt``."""
    for found, systems in zip(retrieval.found, rankings, strict=True):
        qids = [query.qid for query in found.queries]
        write_qrels(folder / "qrels" / f"{found.task.name}.txt", dict(zip(qids, found.right, strict=True)))
        for system in (MODEL, RERANKED):
            for pool, ranking in systems.get(system, {}).items():
                name = pool if system == MODEL else f"{pool}-{RERANKED}"
                scores = [row[at >= 0] for row, at in zip(ranking.scores, ranking.positions, strict=True)]
                out = folder / name / f"{found.task.name}.txt"
                write_run(out, qids, _dids(retrieval, ranking), scores, tag=system)


def _versions() -> dict[str, str]:
    """The versions of what decides the numbers."""
    found = {"python": platform.python_version()}
    for package in ("umarvel_hf", "torch", "transformers", "sentence-transformers", "numpy", "Pillow"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
