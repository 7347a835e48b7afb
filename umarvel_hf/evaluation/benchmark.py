"""Evaluate an encoder on a folder in M-BEIR's layout: every measure, local and union pools, baselines, re-ranking."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from umarvel_hf.data import MBeir
from umarvel_hf.evaluation.metrics import judge, measure, ranked_ids
from umarvel_hf.evaluation.reranked import add_reranked
from umarvel_hf.evaluation.results import (
    METRICS,
    MODEL,
    POOLS,
    RERANKED,
    PoolScore,
    Result,
    TaskResult,
    compare_types,
    versions,
)
from umarvel_hf.evaluation.retrieval import (
    MEMORY,
    Instructions,
    Prompting,
    Retrieval,
    Systems,
    choose_tasks,
    retrieve_all,
)
from umarvel_hf.evaluation.scoring import add_baselines, score
from umarvel_hf.evaluation.significance import corrected
from umarvel_hf.evaluation.trec import read_qrels, read_run, write_qrels, write_run
from umarvel_hf.reranking import Fusion, Reranker
from umarvel_hf.search import Encoder

QRELS_FOLDER = "qrels"
RUN_FOLDERS = {(MODEL, pool): pool for pool in POOLS} | {(RERANKED, pool): f"{pool}-{RERANKED}" for pool in POOLS}


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
    batch_tokens: int | None = None,
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
        split: Whose queries and right answers are read: ``test`` or ``val``.
        pools: ``local``, ``union`` or both; without ``union`` only the pools of the given tasks are encoded.
        instructions, seed, gold_modality: Which prompt a query gets (``retrieval.Prompting``).
        baselines: Whether chance, BM25 and pixel neighbours stand beside the model; None: on ``emoji`` only, they hold
            every candidate in memory.
        reranker, fusion: What judges the first ``fusion.top`` candidates anew, and the weight of its answers.
        vectors: Folder of the vector stores, to go on after an interruption; None: a temporary one.
        runs: Folder for TREC run and qrels files; None: none are written.
        memory: Bytes that the search may take: queries, results and blocks of candidates.
        batch_tokens: As in :func:`umarvel_hf.encoding.encode`; for U-MARVEL checkpoints alone.
        settings: What else is needed to reproduce the result, such as the model's name; stored with it.

    Returns:
        Every measure, by query from 0 to 1, of the model, the re-ranked lists and the baselines.

    Raises:
        ValueError: Unknown suite, task or pool; a fusion weight that was fitted on these queries; one of ``reranker``
            and ``fusion`` without the other, or both with ``instructions="all"``; a bad line in the folder.
        FileNotFoundError: The folder lacks a file of the layout.
    """
    chosen = choose_tasks(benchmark, suite, tasks, split)
    _refuse_contradictions(pools, instructions, reranker, fusion)
    if fusion is not None:
        fusion.refuse_fitted_on(split, {one.name: [q.qid for q in benchmark.queries(one, split)] for one in chosen})
    retrieval = retrieve_all(
        encoder,
        benchmark,
        tasks=chosen,
        split=split,
        pools=[pool for pool in POOLS if pool in pools],
        prompting=Prompting(instructions, seed, gold_modality),
        vectors=Path(vectors) if vectors is not None else None,
        memory=memory,
        batch_tokens=batch_tokens,
        show_progress=show_progress,
    )
    systems: list[Systems] = [{MODEL: found.rankings[0]} for found in retrieval.found]
    started = time.perf_counter()
    if reranker is not None and fusion is not None:
        add_reranked(reranker, fusion, retrieval, systems, show_progress=show_progress)
        retrieval.seconds["re-ranking"] = time.perf_counter() - started
    started = time.perf_counter()
    if baselines if baselines is not None else suite == "emoji":
        add_baselines(retrieval, systems, show_progress=show_progress)
        retrieval.seconds["baselines"] = time.perf_counter() - started
    if runs is not None:
        _write_runs(Path(runs), retrieval, systems)
    results = [score(retrieval, found, rankings) for found, rankings in zip(retrieval.found, systems, strict=True)]
    comparisons = iter(corrected([one.comparison for one in results if one.comparison is not None]))
    results = [replace(one, comparison=next(comparisons)) if one.comparison else one for one in results]
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
            "batch tokens": str(batch_tokens or "by device"),
            **retrieval.made_by,
            **versions(),
        },
        counts={
            "tasks": len(chosen),
            "queries": sum(len(one.qids) for one in results),
            "candidates": len(retrieval.candidates.distinct),
        },
        seconds=retrieval.seconds,
        fusion=asdict(fusion) if fusion else None,
    )


def _refuse_contradictions(
    pools: Sequence[str], instructions: str, reranker: Reranker | None, fusion: Fusion | None
) -> None:
    if not pools or set(pools) - set(POOLS):
        raise ValueError(f"pools are {list(pools)}; name one or both of {', '.join(POOLS)}.")
    if (reranker is None) != (fusion is None):
        raise ValueError("reranker and fusion belong together: fit_fusion gives the weight of a re-ranker's answers.")
    if reranker is not None and instructions == "all":
        raise ValueError("A re-ranker judges the candidates of one search; with it, instructions are first or seeded.")


def evaluate_run(run: str | Path, qrels: str | Path) -> Result:
    """Measure a TREC run file, of whatever system, against a TREC qrels file.

    Every query of the qrels counts: one that the run lacks has found nothing. What the pool was, the files do not say;
    its size is given as the number of right answers.

    Raises:
        ValueError: A bad line, or a query of the run that has no right answer in the qrels.
        FileNotFoundError: One of the files is not there.
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
        pool_sizes={"local": len({did for dids in right.values() for did in dids})},
        scores={MODEL: {"local": PoolScore({name: one.round(6).tolist() for name, one in values.items()})}},
        top={"local": [dids[:10] for dids in lists]},
    )
    settings = {"run": str(run), "qrels": str(qrels), "split": "", **versions()}
    counts = {"tasks": 1, "queries": len(right), "queries without a list": len(right.keys() - found.keys())}
    return Result("trec", [task], [], settings, counts, {})


def _write_runs(folder: Path, retrieval: Retrieval, rankings: list[Systems]) -> None:
    """``<pool>/<task>.txt`` for the model, ``<pool>-re-ranked/…`` behind a re-ranker, and ``qrels/<task>.txt``."""
    for found, systems in zip(retrieval.found, rankings, strict=True):
        qids = [query.qid for query in found.queries]
        write_qrels(folder / QRELS_FOLDER / f"{found.task.name}.txt", dict(zip(qids, found.right, strict=True)))
        for system in (MODEL, RERANKED):
            for pool, ranking in systems.get(system, {}).items():
                scores = [row[at >= 0] for row, at in zip(ranking.scores, ranking.positions, strict=True)]
                out = folder / RUN_FOLDERS[system, pool] / f"{found.task.name}.txt"
                write_run(out, qids, retrieval.dids(ranking), scores, tag=system)
