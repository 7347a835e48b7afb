"""Reader of a folder in M-BEIR's published layout: queries, pools, relevance files (qrels) and instructions."""

import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, ValuesView
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np

from umarvel_hf.records import (
    CANDIDATE_FIELDS,
    MODALITIES,
    QUERY_FIELDS,
    Ids,
    check_content,
    format_query,
    format_string,
    id_array,
    judgement_of,
    lines_of,
    prompts_of,
    record_of,
)

Item = str | dict[str, Any]  # what `encode` takes
Content = TypeVar("Content")

TASK_TYPES = {
    0: "text → image",
    1: "text → text",
    2: "text → image+text",
    3: "image → text",
    4: "image → image",
    5: "image → image+text",
    6: "image+text → text",
    7: "image+text → image",
    8: "image+text → image+text",
}
ASKED_FIELDS = QUERY_FIELDS | {
    "task_id": (lambda value: type(value) is int and value in TASK_TYPES, f"a number from 0 to {max(TASK_TYPES)}")
}
CANDIDATE_MODALITY = {task_id: words.split(" → ")[1].replace("+", ",") for task_id, words in TASK_TYPES.items()}


@dataclass(frozen=True, slots=True)
class Query:
    """One query; ``positives`` are the dids its line names (the training signal; evaluation reads the qrels).

    Args:
        qid: ``<data set's id>:<number>``.
        text: Formatted as the reference does; "" where there is none.
        image: Below the benchmark's folder; None where there is none.
        modality: ``text``, ``image`` or ``image,text``.
        task_id: 0 to 8, see ``TASK_TYPES``.
    """

    qid: str
    text: str
    image: Path | None
    modality: str
    positives: tuple[str, ...]
    task_id: int

    @property
    def group(self) -> str:
        """Data set and task, such as ``"102 task 7"``."""
        return f"{self.qid.split(':')[0]} task {self.task_id}"

    @property
    def item(self) -> Item:
        """What ``encode`` takes: the text, or a dict with the picture's path and the text, if there is one."""
        return as_item(self.text, self.image)

    def asks_as(self, other: "Query") -> bool:
        """Whether both are the same but for their positives."""
        return self is other or replace(self, positives=other.positives) == other


@dataclass(frozen=True, slots=True)
class Candidate:
    """One candidate; its text is formatted as the reference does, "" where there is none.

    Args:
        did: ``<data set's id>:<number>``.
        image: Below the benchmark's folder; None where there is none.
        modality: ``text``, ``image`` or ``image,text``.
    """

    did: str
    text: str
    image: Path | None
    modality: str

    @property
    def item(self) -> Item:
        """What ``encode`` takes: the text, or a dict with the picture's path and the text, if there is one."""
        return as_item(self.text, self.image)


class Pool(Mapping[str, Candidate]):
    """Candidates by did, in the order of their file, read from it when they are asked for.

    Opening reads the file through once and checks every line. Kept are ids, offsets, modalities and digests: some 60
    bytes a candidate. A file that has changed since is refused when a candidate is read from it.

    Args:
        path: A candidate pool of M-BEIR's layout.
        root: The folder that image paths are relative to.

    Attributes:
        dids: (N,) numpy bytes.
        modalities: (N,) int8, index into ``MODALITIES``.
        digests: (N,) uint64, of text and image path as the file has them (null as "") and modality: two candidates
            of one digest are alike.

    Raises:
        ValueError: There is no candidate, a line is none, or its did stands on an earlier line too; file, line and did
            are named.
    """

    def __init__(self, path: Path, root: Path) -> None:
        self.path, self._root = path, root
        offsets, modalities, digests = array("q"), array("b"), array("Q")
        self.dids = id_array(self._scan(offsets, modalities, digests))
        if not len(self.dids):
            raise ValueError(f"{path} has no candidates. Copy it again or remove it.")
        self.modalities, self.digests, self._offsets = np.array(modalities), np.array(digests), np.array(offsets)
        self._ids = Ids(self.dids)
        if len(repeated := self._ids.repeated()):
            number = next(number for number, offset, _ in lines_of(path) if offset == self._offsets[repeated[0]])
            did = self.dids[repeated[0]].decode()
            raise ValueError(f"{path}:{number}: did {did!r} stands on an earlier line too. Remove one of them.")

    def __len__(self) -> int:
        return len(self.dids)

    def __iter__(self) -> Iterator[str]:
        return (did.decode() for did in self.dids)

    def __contains__(self, did: object) -> bool:
        return isinstance(did, str) and bool(self.positions([did])[0] >= 0)

    def __getitem__(self, did: str) -> Candidate:
        if (position := self.positions([did])[0]) < 0:
            raise KeyError(f"did {did!r} is not among the {len(self):,} candidates of {self.path}.")
        return self.at([position])[0]

    def values(self) -> ValuesView[Candidate]:
        """All candidates, read a block at a time."""
        return _Values(self)

    def positions(self, dids: Sequence[str] | np.ndarray) -> np.ndarray:
        """Return (n,) int64, where in the file each did stands, counted from 0; -1 for those it does not hold."""
        return self._ids.positions(dids)

    def at(self, positions: Iterable[int]) -> list[Candidate]:
        """Read the candidates at these positions, in this order.

        Raises:
            IndexError: A position is below 0 or none of the pool's.
            ValueError: The file has changed since it was opened.
        """
        with self.path.open("rb") as file:
            return [self._read(file, position) for position in positions]

    def subset(self, positions: np.ndarray) -> "Pool":
        """A pool of the candidates at these positions alone, in this order, read from the same file."""
        part = copy(self)
        part.dids, part.modalities = self.dids[positions], self.modalities[positions]
        part.digests = self.digests[positions]
        part._offsets, part._ids = self._offsets[positions], Ids(self.dids[positions])
        return part

    def _scan(self, offsets: "array[int]", modalities: "array[int]", digests: "array[int]") -> Iterator[str]:
        for number, offset, line in lines_of(self.path):
            record = record_of(self.path, number, line, CANDIDATE_FIELDS)
            check_content(self.path, number, record["did"], record["txt"], record["img_path"])
            offsets.append(offset)
            modalities.append(MODALITIES.index(record["modality"]))
            content = "\0".join((record["modality"], record["img_path"] or "", record["txt"] or ""))
            digests.append(int.from_bytes(blake2b(content.encode(), digest_size=8).digest()))
            yield record["did"]

    def _read(self, file: BinaryIO, position: int) -> Candidate:
        if position < 0:
            raise IndexError(f"Position {position} is none in {self.path}: they are counted from 0.")
        did = self.dids[position].decode()
        file.seek(self._offsets[position])
        try:
            record = record_of(self.path, position + 1, file.readline(), CANDIDATE_FIELDS)
        except ValueError:
            record = {"did": None}
        if record["did"] != did:
            raise ValueError(
                f"{self.path} has changed since it was opened: where {did!r} stood is now "
                f"{record['did'] or 'no candidate'!r}. Open it again, and encode anew what was encoded from it."
            )
        return Candidate(
            did=did,
            text=format_string(record["txt"]),
            image=self._root / record["img_path"] if record["img_path"] else None,
            modality=record["modality"],
        )


class _Values(ValuesView[Candidate]):
    _mapping: Pool

    def __iter__(self) -> Iterator[Candidate]:
        for start in range(0, len(self), 4096):
            yield from self._mapping.at(range(start, min(start + 4096, len(self))))


@dataclass(frozen=True, slots=True, order=True)
class Task:
    """One data set and what it asks for: ``task_id`` is 0 to 8, see ``TASK_TYPES``."""

    dataset: str
    task_id: int

    @property
    def name(self) -> str:
        """As the files spell it, such as ``mscoco_task0``."""
        return f"{self.dataset}_task{self.task_id}"

    @property
    def type(self) -> str:
        """In words, such as ``text → image``."""
        return TASK_TYPES[self.task_id]


def as_item(text: str, image: Path | None) -> Item:
    """Text alone as a string, otherwise a dict; the image stays a path until it is encoded."""
    if image is None:
        return text
    return {"image": image, "text": text} if text else {"image": image}


class MBeir:
    """A folder in M-BEIR's layout (recipe.md §9.1). Files are read on first use and kept.

    Raises:
        FileNotFoundError: ``root`` is no folder; later, a file of the layout is not there.
        ValueError: Later, a line that is wrong, with its file and number.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        if not self.root.is_dir():
            raise FileNotFoundError(f"{self.root} is not a folder. Pass the folder that holds query/ and cand_pool/.")
        self._instructions_path = self.root / "instructions" / "query_instructions.tsv"
        self._kept: dict[Path, Any] = {}  # what was read, by its file

    def tasks(self, split: str = "test") -> list[Task]:
        """The tasks that have a query file, ordered by dataset and task id.

        Raises:
            FileNotFoundError: There is none.
            ValueError: A file is named for a task id that M-BEIR does not have.
        """
        folder = self.root / "query" / split
        pattern = re.compile(rf"mbeir_(.+)_task(\d+)_{re.escape(split)}\.jsonl")
        found = (pattern.fullmatch(path.name) for path in folder.glob("*.jsonl"))
        tasks = sorted(Task(match[1], int(match[2])) for match in found if match)
        if not tasks:
            raise FileNotFoundError(f"{folder} holds no mbeir_<dataset>_task<n>_{split}.jsonl: no {split} queries.")
        if unknown := [task.name for task in tasks if task.task_id not in TASK_TYPES]:
            raise ValueError(f"{folder}: {', '.join(unknown)}: M-BEIR's task ids are 0 to {max(TASK_TYPES)}.")
        return tasks

    def queries(self, task: Task, split: str = "test") -> list[Query]:
        """The queries of a task, in the order of the file; no qid comes twice."""
        path = self.root / "query" / split / f"mbeir_{task.name}_{split}.jsonl"
        return self._once(path, lambda: self._checked_queries(path, task, split))

    @property
    def train_path(self) -> Path:
        """The file of all training queries."""
        return self.root / "query" / "union_train" / "mbeir_union_up_train.jsonl"

    def train_queries(self) -> list[Query]:
        """The union of all training queries; M-BEIR repeats some rows on purpose."""
        return self._once(self.train_path, lambda: list(self._read_queries(self.train_path)))

    def pool(self, task: Task, split: str = "test") -> Pool:
        """The task's own (local) pool."""
        folder = self.root / "cand_pool" / "local"
        of_split = folder / f"mbeir_{task.name}_{split}_cand_pool.jsonl"  # only MSCOCO has one per split
        return self._pool(of_split if of_split.exists() else folder / f"mbeir_{task.name}_cand_pool.jsonl")

    def union_pool(self, split: str = "test") -> Pool:
        """All candidates of a split, each did once."""
        return self._pool(self._union_path(split))

    def has_union_pool(self, split: str = "test") -> bool:
        """Whether the union pool is there; some folders hold local pools only."""
        return self._union_path(split).is_file()

    def qrels(self, task: Task, split: str = "test") -> dict[str, dict[str, int]]:
        """The relevance (above 0) of every right answer, by qid and did; all of them are in the task's local pool."""
        path = self.root / "qrels" / split / f"mbeir_{task.name}_{split}_qrels.txt"
        return self._once(path, lambda: self._read_qrels(path, task, split))

    @cached_property
    def instructions(self) -> dict[str, tuple[str, ...]]:
        """All prompts by ``"dataset id, query modality, candidate modality"``."""
        found: dict[str, tuple[str, ...]] = {}
        for number, _, line in islice(lines_of(self._instructions_path), 1, None):
            key, prompts = prompts_of(self._instructions_path, number, line)
            if key in found:
                raise ValueError(
                    f"{self._instructions_path}:{number}: a second line for {key!r}. Put all its prompts on one line."
                )
            found[key] = prompts
        return found

    def prompts(self, query: Query, candidate_modality: str) -> tuple[str, ...]:
        """All prompts for this query when it looks for candidates of a modality; at least one.

        Raises:
            ValueError: The file of instructions has none for them.
        """
        key = f"{query.qid.split(':')[0]}, {query.modality}, {candidate_modality}"
        if key not in self.instructions:
            raise ValueError(
                f"{self._instructions_path}: query {query.qid!r} needs prompts for {key!r}; the file has them for "
                f"{'; '.join(sorted(self.instructions))}. Add a line."
            )
        return self.instructions[key]

    def _union_path(self, split: str) -> Path:
        return self.root / "cand_pool" / "global" / f"mbeir_union_{split}_cand_pool.jsonl"

    def _once(self, path: Path, read: Callable[[], Content]) -> Content:
        if path not in self._kept:
            self._kept[path] = read()
        kept: Content = self._kept[path]
        return kept

    def _pool(self, path: Path) -> Pool:
        return self._once(path, lambda: Pool(path, self.root))

    def _checked_queries(self, path: Path, task: Task, split: str) -> list[Query]:
        queries = list(self._read_queries(path))
        if not queries:
            raise ValueError(f"{path} is empty: {task.name} has no {split} queries. Copy it again or remove it.")
        if repeated := first_repeated([query.qid for query in queries]):
            raise ValueError(f"{path}: qid {repeated!r} stands on two lines. Remove one of them.")
        return queries

    def _read_queries(self, path: Path) -> Iterator[Query]:
        for number, _, line in lines_of(path):
            yield query_of(self.root, path, number, line)

    def _read_qrels(self, path: Path, task: Task, split: str) -> dict[str, dict[str, int]]:
        queries = {query.qid for query in self.queries(task, split)}
        pool = self.pool(task, split)
        right: dict[str, dict[str, int]] = {}
        judged: dict[tuple[str, str], int] = {}
        for number, _, line in lines_of(path):
            qid, did, relevance = judgement_of(path, number, line)
            if qid not in queries:
                raise ValueError(
                    f"{path}:{number}: query {qid!r} is not among the {len(queries):,} of {task.name} ({split})."
                )
            if did not in pool:
                raise ValueError(
                    f"{path}:{number}: answer {did!r} of query {qid!r} is not among the {len(pool):,} candidates of "
                    f"{task.name}'s local pool. Use the qrels that were written for this pool."
                )
            if (first := judged.setdefault((qid, did), relevance)) != relevance:
                raise ValueError(
                    f"{path}:{number}: answer {did!r} of query {qid!r} has relevance {relevance} here and {first} on "
                    "an earlier line. Remove one of them."
                )
            if relevance > 0:
                right.setdefault(qid, {})[did] = relevance
        if unanswered := sorted(queries - right.keys()):
            raise ValueError(
                f"{path}: {len(unanswered):,} of {len(queries):,} queries have no right answer, {unanswered[0]!r} the "
                "first of them. Complete the file or remove these queries."
            )
        return right


def query_of(root: Path, path: Path, number: int, line: bytes) -> Query:
    """The query on a line of a file; ``root`` is the folder that image paths are relative to."""
    record = record_of(path, number, line, ASKED_FIELDS)
    text, image = format_query(record["query_txt"]), record["query_img_path"]
    check_content(path, number, record["qid"], text, image)
    return Query(
        qid=record["qid"],
        text=text,
        image=root / image if image else None,
        modality=record["query_modality"],
        positives=tuple(record["pos_cand_list"]),
        task_id=record["task_id"],
    )


def first_repeated(ids: Sequence[str]) -> str | None:
    """The first id that stood earlier in the list."""
    seen: set[str] = set()
    for one in ids:
        if one in seen:
            return one
        seen.add(one)
    return None
