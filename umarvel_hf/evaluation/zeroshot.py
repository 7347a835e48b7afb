"""Evaluate an encoder on any zero-shot set of ``evaluation/suites.py``: read, encode, rank, measure."""

import hashlib
import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from umarvel_hf.data import Item
from umarvel_hf.evaluation.metrics import judge, measure
from umarvel_hf.evaluation.results import MODEL, PoolScore, Result, TaskResult, versions
from umarvel_hf.evaluation.retrieval import DEPTH, MEMORY, vectors_folder
from umarvel_hf.evaluation.suite_files import Record, below, checked
from umarvel_hf.evaluation.suites import ZERO_SHOT, Shape, Source, SuiteTask, task_name
from umarvel_hf.fingerprint import fingerprint
from umarvel_hf.progress import Progress
from umarvel_hf.records import format_string
from umarvel_hf.search import SCALE, Encoder, Search, encode_store, exact_scores, search_store
from umarvel_hf.store import VectorStore, whole_file

POOL = "local"  # as other results call the candidates of one task
SHARD_ROWS = 1_024  # items that are encoded again, at most, where a run was killed
logger = logging.getLogger(__name__)


@dataclass
class Side:
    """What is encoded: items by id, in order, each with its instruction (None: without)."""

    items: dict[str, Any] = field(default_factory=dict)
    instructions: list[str | None] = field(default_factory=list)

    def add(self, name: str, item: Item, instruction: str | None) -> None:
        """Keep the first item of every id."""
        if name not in self.items:
            self.items[name] = item
            self.instructions.append(instruction)


@dataclass
class Questions:
    """A task as its files ask it.

    Args:
        right: By query, its right answers; empty where the split names none.
        targets: By query, the one answer it was written for; empty where a set names none apart.
        galleries: By query, the numbers of the candidates it chooses from, the right one first, (C,) int32; empty where
            it is asked of all.
        excluded: By query, candidates that do not count; only queries that have some.
        left_out: Why records are not asked.
    """

    queries: Side = field(default_factory=Side)
    candidates: Side = field(default_factory=Side)
    right: dict[str, list[str]] = field(default_factory=dict)
    targets: dict[str, str] = field(default_factory=dict)
    galleries: list[np.ndarray] = field(default_factory=list)
    excluded: dict[str, list[str]] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Answers:
    """What was found for a task.

    Args:
        lists: By query, the best candidates, best first; of a choice, the right one behind all that have its score.
        ahead: (Q,) int64, of a choice: how many candidates are not worse than the right one.
    """

    task: SuiteTask
    questions: Questions
    lists: list[list[str]]
    ahead: np.ndarray | None = None

    def values(self) -> dict[str, list[float]]:
        """By metric of the task, one value from 0 to 1 a query, to six decimals."""
        if self.ahead is not None:
            depths = {name: 1 if name == "accuracy" else int(name.partition("@")[2]) for name in self.task.metrics}
            return {name: (self.ahead < depth).astype(float).tolist() for name, depth in depths.items()}
        values = {}
        judged = judge(self.lists, list(self.questions.right.values()))
        targets = (
            judge(self.lists, [[did] for did in self.questions.targets.values()]) if self.questions.targets else judged
        )
        for name in self.task.metrics:
            known = name.removeprefix("target_")
            (found,) = measure(judged if known == name else targets, [known]).values()
            values[name] = found.round(6).tolist()
        return values


@dataclass(frozen=True)
class Ranked:
    """What :func:`rank_suite` found, to be measured, or to be handed in where the set's authors keep the answers."""

    suite: str
    split: str
    answers: list[Answers]
    settings: dict[str, str]
    seconds: dict[str, float]

    @property
    def hidden(self) -> bool:
        """Whether the answers of this split are kept by the set's authors."""
        return self.split == ZERO_SHOT[self.suite].hidden

    def measure(self, settings: Mapping[str, str] | None = None) -> Result:
        """The set's metrics, by query from 0 to 1.

        Args:
            settings: What else is needed to reproduce the result, such as the model's name; stored with it.

        Raises:
            ValueError: The answers are not public.
        """
        if self.hidden:
            raise ValueError(
                f"{self.suite} keeps the answers of its split {self.split!r}; save_submission writes yours."
            )
        left_out = [why for one in self.answers for why in one.questions.left_out]
        return Result(
            suite=self.suite,
            tasks=[self._task(one) for one in self.answers],
            types=[],
            settings={
                **(settings or {}), **self.settings, **({"left out": "; ".join(left_out)} if left_out else {}),
                **versions(),
            },
            counts={
                "tasks": len(self.answers),
                "queries": sum(len(one.lists) for one in self.answers),
                "candidates": sum(len(one.questions.candidates.items) for one in self.answers),
                "left out": len(left_out),
            },
            seconds=self.seconds,
        )  # fmt: skip

    def save_submission(self, path: str | Path) -> Path:
        """Write, as JSON, of every query the ids of the 50 best candidates, best first: what CIRCO's authors take."""
        lists = {
            qid: [int(did) for did in dids]
            for one in self.answers
            for qid, dids in zip(one.questions.queries.items, one.lists, strict=True)
        }
        with whole_file(Path(path)) as file:
            file.write(json.dumps(lists).encode())
        return Path(path)

    def _task(self, one: Answers) -> TaskResult:
        galleries = one.questions.galleries
        size = max(map(len, galleries)) if galleries else len(one.questions.candidates.items)
        return TaskResult(
            dataset=self.suite,
            task_id=None,
            metric=one.task.metrics[0],
            qids=list(one.questions.queries.items),
            pool_sizes={POOL: size},
            scores={MODEL: {POOL: PoolScore(one.values())}},
            top={POOL: [dids[:10] for dids in one.lists]},
            part=one.task.part,
            shape=one.task.type,
        )


@dataclass(frozen=True)
class Asked:
    """A set as its files ask it: read and checked, nothing encoded yet."""

    suite: str
    split: str
    root: Path
    tasks: list[tuple[SuiteTask, Questions]]
    seconds: float


def rank_suite(
    encoder: Encoder,
    suite: str,
    root: str | Path,
    *,
    tasks: Sequence[str] | None = None,
    split: str | None = None,
    vectors: str | Path | None = None,
    memory: int = MEMORY,
    batch_tokens: int | None = None,
    show_progress: bool = False,
) -> Ranked:
    """Rank the candidates of a zero-shot set for all of its queries (recipe.md §10).

    Candidates are encoded once, as are both sides of sets that are asked in both directions; vectors are rounded to
    half precision and scores compared to six decimals, as on M-BEIR.

    Args:
        suite: A key of ``suites.ZERO_SHOT``, such as ``flickr30k``.
        root: The folder that holds the files of all sets, at the paths of the documentation.
        tasks: Such as ``sugarcrepe_swap_att``; None: all of the set.
        split: None: the set's own.
        vectors: Folder of the vector stores, to go on after an interruption; None: a temporary one.
        memory: Bytes that a search may take.
        batch_tokens: As in :func:`umarvel_hf.encoding.encode`; for U-MARVEL checkpoints alone.

    Raises:
        ValueError: Unknown suite, task or split, or a wrong record, whose file and line are named.
        FileNotFoundError: A file is missing.
    """
    asked = read_suite(suite, root, tasks=tasks, split=split)
    return rank_asked(
        encoder, asked, vectors=vectors, memory=memory, batch_tokens=batch_tokens, show_progress=show_progress
    )


def read_suite(suite: str, root: str | Path, *, tasks: Sequence[str] | None = None, split: str | None = None) -> Asked:
    """Read and check the files of a set; arguments and errors as in :func:`rank_suite`."""
    chosen, split = _chosen(suite, tasks, split)
    started = time.perf_counter()
    asked = [(task, read_questions(task, Path(root), split)) for task in chosen]
    return Asked(suite, split, Path(root), asked, time.perf_counter() - started)


def rank_asked(
    encoder: Encoder,
    asked: Asked,
    *,
    vectors: str | Path | None = None,
    memory: int = MEMORY,
    batch_tokens: int | None = None,
    show_progress: bool = False,
) -> Ranked:
    """Encode and rank what was read; arguments as in :func:`rank_suite`."""
    started = time.perf_counter()
    made_by = fingerprint(encoder)
    answers = []
    with vectors_folder(Path(vectors) if vectors is not None else None) as folder:

        def encode(side: Side, kind: str) -> VectorStore:
            prompts = hashlib.sha256(json.dumps(side.instructions).encode()).hexdigest()[:12]
            name = f"{asked.suite}-{asked.split}-{kind}-{prompts}"
            with Progress(total=len(side.items), desc=f"{asked.suite} {kind}", show=show_progress) as bar:
                return encode_store(
                    encoder, folder / name, list(side.items), list(side.items.values()),
                    instructions=side.instructions, made_by={**made_by, "prompt": prompts}, root=asked.root,
                    batch_tokens=batch_tokens, shard_rows=SHARD_ROWS, bar=bar,
                )  # fmt: skip

        for task, questions in asked.tasks:
            kinds = [f"{task.part}-queries".lstrip("-"), f"{task.part}-candidates".lstrip("-")]
            if task.relation == "pairs":  # both directions share what they encode under one instruction
                kinds = ["texts" if shape.text else "media" for shape in (task.query, task.candidate)]
            queries, candidates = map(encode, (questions.queries, questions.candidates), kinds)
            if questions.galleries:
                answers.append(_rank_choices(task, questions, queries, candidates))
            else:
                answers.append(_rank_pool(task, questions, queries, candidates, memory))
    seconds = {"reading": asked.seconds, "encoding and searching": time.perf_counter() - started}
    settings = {
        "suite": asked.suite, "data": str(asked.root), "split": asked.split,
        "batch tokens": str(batch_tokens or "by device"),
    }  # fmt: skip
    return Ranked(asked.suite, asked.split, answers, settings | made_by, seconds)


def read_questions(task: SuiteTask, root: Path, split: str) -> Questions:
    """Read and check the files of a task.

    Raises:
        ValueError: A wrong record, whose file and line are named, or none.
        FileNotFoundError: A file is missing.
    """
    asked = Questions()
    if task.pool is not None:
        for record in _records(task.pool, root, split):
            did = str(record.value["did"])
            if did in asked.candidates.items:
                raise ValueError(f"{record.place}: candidate {did!r} stands earlier in the file, too. Remove one.")
            asked.candidates.add(did, *_item(task.candidate, record.value, record.place, root))
    numbers: dict[tuple[str, str], int] = {}
    for number, record in enumerate(_records(task.source, root, split)):
        if record.left_out:
            asked.left_out.append(f"{record.place}: {record.left_out}")
        elif task.relation == "pairs":
            qid, did = (_shown(shape, record.value)[0] or str(number) for shape in (task.query, task.candidate))
            asked.queries.add(qid, *_item(task.query, record.value, record.place, root))
            asked.candidates.add(did, *_item(task.candidate, record.value, record.place, root))
            asked.right.setdefault(qid, []).append(did)
        else:
            _ask(task, asked, str(record.value.get("qid", number)), record, numbers, root)
    file = root / task.source.path.format(split=split)
    if not asked.queries.items:
        raise ValueError(f"{file}: {asked.left_out[0] if asked.left_out else 'holds no query'}. Copy it again.")
    if not asked.candidates.items:
        raise ValueError(f"{root / task.pool.path if task.pool else file}: holds no candidate. Copy it again.")
    for line in asked.left_out:
        logger.warning("left out: %s", line)
    return asked


def _chosen(suite: str, tasks: Sequence[str] | None, split: str | None) -> tuple[list[SuiteTask], str]:
    if suite not in ZERO_SHOT:
        raise ValueError(f"suite is {suite!r}; there are {', '.join(ZERO_SHOT)}.")
    found = ZERO_SHOT[suite]
    names = {task_name(suite, task.part): task for task in found.tasks}
    if tasks is not None and not tasks:
        raise ValueError(f"No task is named; {suite} has {', '.join(names)}.")
    if unknown := [name for name in tasks or () if name not in names]:
        raise ValueError(f"tasks name {unknown[0]!r}; {suite} has {', '.join(names)}.")
    split = found.splits[0] if split is None else split
    if split not in found.splits:
        raise ValueError(f"split is {split!r}; {suite} has {' and '.join(found.splits)}.")
    return [task for name, task in names.items() if tasks is None or name in tasks], split


def _records(source: Source, root: Path, split: str) -> Iterator[Record]:
    """Records whose values are the fields that shapes and relations name."""
    for number, record in enumerate(source.read(root / source.path.format(split=split))):
        value = checked(record, source.schema)
        if source.fields is not None:
            value = source.fields(number, value)
        elif isinstance(source.schema, dict):
            value = {name: value[name] for name in source.schema}
        yield replace(record, value=value)


def _shown(shape: Shape, fields: Mapping[str, Any]) -> tuple[str, str]:
    """The name of the file and the text of an item, "" for none; of a chat neither."""
    if shape.chat:
        return "", ""
    text = shape.text.format(**fields)
    name = shape.image.format(**fields) or shape.video.format(**fields)
    return name, format_string(text) if shape.formatted else text


def _item(shape: Shape, fields: Mapping[str, Any], place: str, root: Path) -> tuple[Any, str | None]:
    """The item, and its instruction."""
    instruction = shape.instruction.format(**fields) or None
    if shape.chat:
        parts = [
            {"type": kind, kind: value if kind == "text" else below(root, place, shape.image.format(value))}
            for kind, value in fields[shape.chat]
        ]
        if not any(part["type"] == "image" or part["text"].strip() for part in parts):
            raise ValueError(f"{place}: there is neither text nor picture in what shall be encoded.")
        return [{"role": "user", "content": parts}], instruction
    name, text = _shown(shape, fields)
    sides = (("text", shape.text, text.strip()), ("file", shape.image or shape.video, name))
    lacking = [kind for kind, template, filled in sides if template and not filled]
    if len(lacking) > shape.either:
        raise ValueError(f"{place}: there is no {' and no '.join(lacking)} to encode.")
    if not name:
        return text, instruction
    file = below(root, place, name)
    media: dict[str, Any] = {"video": {"path": file, **shape.frames}} if shape.video else {"image": file}
    return media | ({"text": text} if text.strip() else {}), instruction


def _ask(
    task: SuiteTask, asked: Questions, qid: str, record: Record, numbers: dict[tuple[str, str], int], root: Path
) -> None:
    """Add a query that has a pool, or candidates of its own, each of which is a number that its content has."""
    if qid in asked.queries.items:
        raise ValueError(f"{record.place}: query {qid!r} stands earlier in the file, too. Remove one of them.")
    fields, place = record.value, record.place
    asked.queries.add(qid, *_item(task.query, fields, place, root))
    if task.relation == "pool":
        if "right" in fields:
            _keep_answers(asked, qid, fields, place, task)
        return
    if len(fields["options"]) < 2:
        raise ValueError(f"{place}: there is no wrong candidate to choose from.")
    gallery = []
    for option in fields["options"]:
        content = _shown(task.candidate, option)
        if content not in numbers:
            numbers[content] = len(numbers)
            asked.candidates.add(str(numbers[content]), *_item(task.candidate, option, place, root))
        gallery.append(numbers[content])
    asked.galleries.append(np.array(gallery, dtype=np.int32))


def _keep_answers(asked: Questions, qid: str, fields: Mapping[str, Any], place: str, task: SuiteTask) -> None:
    right = [str(did) for did in fields["right"]]
    targets = [str(fields["target"])] if "target" in fields else []
    if unknown := [did for did in (*right, *targets) if did not in asked.candidates.items]:
        raise ValueError(
            f"{place}: the right answer {unknown[0]!r} is not among the {len(asked.candidates.items):,} candidates of "
            f"{task.pool.path if task.pool else ''}."
        )
    if not right:
        raise ValueError(f"{place}: the query has no right answer.")
    asked.right[qid] = list(dict.fromkeys(right))
    if targets:
        asked.targets[qid] = targets[0]
    if fields.get("excluded"):
        asked.excluded[qid] = fields["excluded"]


def _rank_pool(
    task: SuiteTask, asked: Questions, queries: VectorStore, candidates: VectorStore, memory: int
) -> Answers:
    vectors = queries.take(np.arange(len(queries)))
    most = max(map(len, asked.excluded.values()), default=0)
    if memory <= vectors.nbytes:
        raise ValueError(f"memory is {memory:,} bytes, but the queries alone take {vectors.nbytes:,}. Allow more.")
    searches = {"": Search(vectors, {POOL: None})}
    ranking = search_store(candidates, searches, k=DEPTH + most, memory=memory - vectors.nbytes)[""][POOL]
    names = list(asked.candidates.items)
    lists = []
    for qid, positions in zip(asked.queries.items, ranking.positions, strict=True):
        excluded = asked.excluded.get(qid, ())
        lists.append([did for at in positions if at >= 0 and (did := names[at]) not in excluded][:DEPTH])
    return Answers(task, asked, lists)


def _rank_choices(task: SuiteTask, asked: Questions, queries: VectorStore, candidates: VectorStore) -> Answers:
    """Compare every query with its own candidates; one that has the score of the right one stands before it."""
    names = [_described(item) for item in asked.candidates.items.values()]
    lists, ahead = [], []
    for number, gallery in enumerate(asked.galleries):
        query, own = queries.take(np.array([number])), np.arange(len(gallery))
        scores = np.rint(exact_scores(query, candidates.take(gallery), np.zeros_like(own), own) * SCALE)
        ahead.append(int((scores[1:] >= scores[0]).sum()))
        order = np.lexsort((own == 0, -scores))  # the right one last among equals
        lists.append([names[gallery[one]] for one in order[:DEPTH]])
    return Answers(task, asked, lists, np.array(ahead))


def _described(item: Item) -> str:
    """Text, or the name of the file, or both."""
    if isinstance(item, str):
        return item
    return " | ".join(part if isinstance(part, str) else part.name for part in item.values())
