"""Encode and search: for every query of every task the best candidates of its local pool and of the union."""

import hashlib
import logging
import random
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from umarvel_hf.data import CANDIDATE_MODALITY, MBeir, Query, Task
from umarvel_hf.evaluation.pools import Candidates
from umarvel_hf.evaluation.results import MBEIR_TASKS
from umarvel_hf.fingerprint import fingerprint
from umarvel_hf.progress import Progress
from umarvel_hf.search import Encoder, Ranking, Search, encode_store, search_store

SUITES = ("m-beir", "emoji")
MEMORY = 8 << 30
DEPTH = 50  # candidates kept for every query, as in the reference (recipe.md §9.3)
Instructions = Literal["first", "seeded", "all"]
Systems = dict[str, dict[str, Ranking]]  # rankings by name of the system, by pool
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prompting:
    """How a query gets its instruction.

    Args:
        instructions: ``first``: the first prompt of its key. ``seeded``: one drawn by seed and qid. ``all``: every
            prompt, one search for each.
        seed: Of ``seeded``.
        gold_modality: Look the prompt up by the modality of the query's first right answer, as the reference does
            (recipe.md §2.2), which tells the model something about the answer. False: by the modality that the task
            looks for.
    """

    instructions: Instructions = "first"
    seed: int = 0
    gold_modality: bool = True

    def __post_init__(self) -> None:
        if self.instructions not in ("first", "seeded", "all"):
            raise ValueError(f"instructions is {self.instructions!r}; choose first, seeded or all.")

    def choose(
        self, benchmark: MBeir, task: Task, queries: Sequence[Query], modalities: Sequence[str]
    ) -> list[list[str]]:
        """The instruction of every query, once for each search to make.

        Args:
            modalities: Of every query's first right answer.

        Raises:
            ValueError: ``all``, and two queries of the task have different numbers of prompts.
        """
        wanted = modalities if self.gold_modality else [CANDIDATE_MODALITY[task.task_id]] * len(queries)
        prompts = [benchmark.prompts(query, one) for query, one in zip(queries, wanted, strict=True)]
        if self.instructions == "first":
            return [[own[0] for own in prompts]]
        if self.instructions == "seeded":
            pairs = zip(queries, prompts, strict=True)
            return [[random.Random(f"{self.seed}-{query.qid}").choice(own) for query, own in pairs]]
        counts = [len(own) for own in prompts]
        if len(set(counts)) > 1:
            most, least = queries[int(np.argmax(counts))], queries[int(np.argmin(counts))]
            raise ValueError(
                f"{task.name}: query {most.qid!r} has {max(counts)} prompts, {least.qid!r} has {min(counts)}. With "
                "--instructions all every query of a task needs as many: complete instructions/query_instructions.tsv."
            )
        return [[own[number] for own in prompts] for number in range(counts[0])]


@dataclass(frozen=True)
class Found:
    """What the model found for one task.

    Args:
        right: For every query its right answers and their relevance, by did.
        instructions: For each search, the instruction of every query.
        rankings: For each search, by pool.
    """

    task: Task
    queries: list[Query]
    right: list[dict[str, int]]
    instructions: list[list[str]]
    rankings: list[dict[str, Ranking]]


@dataclass(frozen=True)
class Retrieval:
    """What the model found for all tasks of a split, and in what."""

    candidates: Candidates
    found: list[Found]
    made_by: dict[str, str]
    seconds: dict[str, float]

    def dids(self, ranking: Ranking) -> list[list[str]]:
        """The ids of a ranking, one list a query."""
        dids = self.candidates.dids
        return [[did.decode() for did in dids[row[row >= 0]]] for row in ranking.positions]


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
    if not names:
        raise ValueError(f"No task is named; {benchmark.root} has {', '.join(task.name for task in there)}.")
    if unknown := sorted(set(names) - {task.name for task in there}):
        raise ValueError(
            f"{benchmark.root} has no {split} queries for {', '.join(unknown)}; it has "
            f"{', '.join(task.name for task in there)}."
        )
    return [task for task in there if task.name in names]


def retrieve_all(
    encoder: Encoder,
    benchmark: MBeir,
    *,
    tasks: Sequence[Task],
    split: str,
    pools: Sequence[str],
    prompting: Prompting,
    vectors: Path | None,
    memory: int,
    batch_tokens: int | None,
    show_progress: bool,
) -> Retrieval:
    """Encode every candidate and query once, then search all pools in one pass over the candidates' vectors.

    Args:
        vectors: Folder of the vector stores. One store a pool and a task, each finished shard by shard: the same call
            again goes on where it was stopped. None: a temporary folder.
        memory: Bytes that queries, results and blocks of the search may take together.
    """
    started = time.perf_counter()
    candidates = Candidates(benchmark, tasks, split, union="union" in pools)
    found = [ask(benchmark, candidates, task, split, prompting) for task in tasks]  # bad data show before hours of work
    made_by = fingerprint(encoder)
    opened = time.perf_counter()
    with vectors_folder(vectors) as folder:
        store = candidates.encode(
            encoder, folder, made_by=made_by, batch_tokens=batch_tokens, show_progress=show_progress
        )
        if vectors is not None:
            logger.info("vectors of %d candidates stand in %s", len(candidates.distinct), folder)
        encoded = time.perf_counter()
        searches = {}
        for asked in Progress(found, "queries", show=show_progress):
            at = {"local": candidates.local(asked.task), "union": candidates.distinct}
            for number, instructions in enumerate(asked.instructions):
                queries = encode_queries(encoder, benchmark, asked, instructions, folder, made_by, split, batch_tokens)
                searches[f"{asked.task.name} {number}"] = Search(queries, {pool: at[pool] for pool in pools})
        asked_at = time.perf_counter()
        taken = sum(search.queries.nbytes for search in searches.values())
        if memory <= taken:
            raise ValueError(f"memory is {memory:,} bytes, but the queries alone take {taken:,}. Allow more.")
        rankings = search_store(store, searches, k=DEPTH, memory=memory - taken)
    for asked in found:
        asked.rankings.extend(rankings[f"{asked.task.name} {number}"] for number in range(len(asked.instructions)))
    ended = time.perf_counter()
    seconds = {
        "reading": opened - started,
        "encoding candidates": encoded - opened,
        "encoding queries": asked_at - encoded,
        "searching": ended - asked_at,
    }
    return Retrieval(candidates, found, made_by, seconds)


def ask(benchmark: MBeir, candidates: Candidates, task: Task, split: str, prompting: Prompting) -> Found:
    """Read the queries of a task, their right answers and their instructions; nothing is found yet."""
    queries, qrels = benchmark.queries(task, split), benchmark.qrels(task, split)
    right = [qrels[query.qid] for query in queries]
    modalities = [candidates.modality(next(iter(answers))) for answers in right]
    return Found(task, queries, right, prompting.choose(benchmark, task, queries, modalities), [])


def encode_queries(
    encoder: Encoder,
    benchmark: MBeir,
    asked: Found,
    instructions: list[str],
    folder: Path,
    made_by: Mapping[str, str],
    split: str,
    batch_tokens: int | None,
) -> np.ndarray:
    """Encode the queries of a task into a store below ``folder``. Returns (Q, D) float16."""
    prompt = hashlib.sha256("\n".join(instructions).encode()).hexdigest()[:12]
    store = encode_store(
        encoder,
        folder / f"mbeir_{asked.task.name}_{split}-{prompt}",
        [query.qid for query in asked.queries],
        [query.item for query in asked.queries],
        instructions=instructions,
        made_by={**made_by, "prompt": prompt},
        root=benchmark.root,
        batch_tokens=batch_tokens,
    )
    return np.concatenate([np.array(block) for _, block in store.blocks(len(store))])


@contextmanager
def vectors_folder(vectors: Path | None) -> Iterator[Path]:
    """The folder of the vector stores; a temporary one for None."""
    if vectors is not None:
        yield vectors
        return
    with tempfile.TemporaryDirectory(prefix="umarvel-vectors-") as temporary:
        yield Path(temporary)
