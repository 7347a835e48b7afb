"""Teacher scores: what a re-ranker says of mined lists, and their cosines, in one (recipe.md §7.5)."""

import hashlib
import logging
import random
import shutil
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
from accelerate import PartialState

from umarvel_hf.data import Item, MBeir, Query
from umarvel_hf.negatives import MinedList, NegativeTable
from umarvel_hf.reranking import Reranker, judge_pairs, reranker_fingerprint, reranker_query

logger = logging.getLogger(__name__)

PART = 256  # lists that are judged, and then written, at a time


def score_table(
    table: NegativeTable,
    reranker: Reranker,
    benchmark: MBeir,
    *,
    top: int,
    weight: float,
    out: str | Path,
) -> NegativeTable:
    """Judge the positives and the first ``top`` candidates of every list.

    A teacher's score is twice the weighted mean of cosine and answer,
    ``2 · (cosine + weight · P(Yes)) / (1 + weight)``: at weight 1 their sum, as in the original. :class:`DistillKL`
    halves it. A plain sum, so halved, would at a small weight teach little but half the student's own cosines.

    Finished parts lie in ``<out>.parts`` until the table is whole: stopped anywhere and called again, it goes on with
    the part that was broken off. Ranks share the parts among them.

    Args:
        table: Lists mined for training queries of ``benchmark``.
        top: Candidates of a list that are judged, from 1.
        weight: From ``evaluation.reranked.fit_fusion`` on the validation split; finite, from 0.
        out: The file to write.

    Returns:
        The table in ``out``: the lists as they were, with answers and teacher scores.

    Raises:
        ValueError: ``top`` or ``weight`` is out of range; ``out`` or a part of it was made otherwise; a list is of no
            training query; an answer is no probability.
    """
    if top < 1 or not 0 <= weight < float("inf"):
        raise ValueError(f"top is {top}, weight is {weight}; give top from 1 and a finite weight from 0.")
    out = Path(out)
    with table.path.open("rb") as file:
        facts = {**table.facts, "mined": hashlib.file_digest(file, "sha256").hexdigest()[:16]}
    facts |= {"reranker": reranker_fingerprint(reranker), "top": str(top), "weight": str(weight)}
    state, folder = PartialState(), out.with_name(f"{out.name}.parts")
    if not out.is_file():
        queries = {query.qid: query for query in benchmark.train_queries()}
        if unknown := [qid for qid in table.qids if qid not in queries]:
            raise ValueError(
                f"{table.path}: {len(unknown):,} of {len(table):,} lists are of no training query of {benchmark.root}, "
                f"{unknown[0]!r} the first of them. Pass the data that the table was mined from."
            )
        parts = [folder / f"{at:08d}-{min(at + PART, len(table)):08d}.parquet" for at in range(0, len(table), PART)]
        lists = iter(table)
        for number, path in enumerate(parts):
            part = list(islice(lists, PART))
            if number % state.num_processes != state.process_index:
                continue
            if path.is_file():
                NegativeTable.open(path, facts)  # refused now, and not once all others are judged
            else:
                answers = _ask(reranker, benchmark, part, [queries[one.qid] for one in part], top)
                NegativeTable.write(path, map(_scored, part, answers, [weight] * len(part)), facts)
            logger.info("%s: part %s of %s is judged", out, f"{number + 1:,}", f"{len(parts):,}")
        state.wait_for_everyone()
        if state.is_main_process:
            NegativeTable.write(out, (one for path in parts for one in NegativeTable.open(path, facts)), facts)
        state.wait_for_everyone()
    if state.is_main_process:
        shutil.rmtree(folder, ignore_errors=True)
    return NegativeTable.open(out, facts)


def _ask(
    reranker: Reranker, benchmark: MBeir, lists: list[MinedList], queries: list[Query], top: int
) -> list[np.ndarray]:
    """(P + A,) answers a list, about its positives and its first candidates."""
    pool = benchmark.union_pool("train")
    asked: list[Item] = []
    shown: list[list[Item]] = []
    for one, query in zip(lists, queries, strict=True):
        candidates = [pool[did] for did in (*one.positives, *one.dids[:top])]
        prompts = benchmark.prompts(query, candidates[0].modality)
        asked.append(reranker_query(query, random.Random(one.qid).choice(prompts)))
        shown.append([candidate.item for candidate in candidates])
    return judge_pairs(reranker, asked, shown)


def _scored(one: MinedList, answers: np.ndarray, weight: float) -> MinedList:
    def fused(cosines: np.ndarray, answers: np.ndarray) -> np.ndarray:
        return (2 * (cosines + weight * answers) / (1 + weight)).astype(np.float32)

    right, rest = np.split(answers, [len(one.positives)])
    return replace(
        one,
        positive_answers=right,
        answers=rest,
        positive_teacher_scores=fused(one.positive_scores, right),
        teacher_scores=fused(one.scores[: len(rest)], rest),
    )
