"""Reader of a folder in M-BEIR's published layout: queries, pools, relevance files (qrels) and instructions."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

Item = str | dict[str, Any]  # what `encode` takes

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
MODALITIES = ("text", "image", "image,text")


def format_string(text: str | None) -> str:
    """Normalise a text as the reference does: no quotes around it, a capital first, a full stop last; None is ""."""
    text = (text or "").replace("\r", "").strip().strip('"')
    if not text:
        return ""
    text = text[0].upper() + text[1:]
    return text if text[-1] in ".?!" else text + "."


def format_query(text: str | None) -> str:
    """Normalise the text that follows an instruction.

    The reference formats ``<instruction> text`` as one string, so its text keeps the case of its first letter and
    whatever stands before it.
    """
    return format_string(f"<> {text or ''}")[len("<> ") :]


@dataclass(frozen=True, slots=True)
class Query:
    """One query; ``positives`` are the dids its line names (the training signal; evaluation reads the qrels)."""

    qid: str
    text: str
    image: Path | None
    modality: str
    positives: tuple[str, ...]
    task_id: int

    @property
    def item(self) -> Item:
        """What ``encode`` takes: the text, or a dict with the picture's path and the text, if there is one."""
        return as_item(self.text, self.image)


@dataclass(frozen=True, slots=True)
class Candidate:
    did: str
    text: str
    image: Path | None
    modality: str

    @property
    def item(self) -> Item:
        """What ``encode`` takes: the text, or a dict with the picture's path and the text, if there is one."""
        return as_item(self.text, self.image)


Pool = Mapping[str, Candidate]  # by did, in the order of the file


@dataclass(frozen=True, slots=True, order=True)
class Task:
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
    """A folder in M-BEIR's layout. Files are read on first use and kept."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        if not self.root.is_dir():
            raise FileNotFoundError(f"{self.root} is not a folder. Pass the folder that holds query/ and cand_pool/.")
        self._instructions_path = self.root / "instructions" / "query_instructions.tsv"
        self._queries: dict[Path, list[Query]] = {}
        self._pools: dict[Path, Pool] = {}
        self._qrels: dict[Path, dict[str, tuple[str, ...]]] = {}

    def tasks(self, split: str = "test") -> list[Task]:
        """The tasks that have a query file, ordered by dataset and task id."""
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
        if path not in self._queries:
            queries = self._read_queries(path)
            if not queries:
                raise ValueError(f"{path} is empty: {task.name} has no {split} queries. Copy it again or remove it.")
            if repeated := first_repeated([query.qid for query in queries]):
                raise ValueError(f"{path}: qid {repeated!r} stands on two lines. Remove one of them.")
            self._queries[path] = queries
        return self._queries[path]

    def train_queries(self) -> list[Query]:
        """The union of all training queries; M-BEIR repeats some rows on purpose."""
        path = self.root / "query" / "union_train" / "mbeir_union_up_train.jsonl"
        if path not in self._queries:
            self._queries[path] = self._read_queries(path)
        return self._queries[path]

    def pool(self, task: Task, split: str = "test") -> Pool:
        """The task's own (local) pool."""
        folder = self.root / "cand_pool" / "local"
        of_split = folder / f"mbeir_{task.name}_{split}_cand_pool.jsonl"  # only MSCOCO has one per split
        return self._pool(of_split if of_split.exists() else folder / f"mbeir_{task.name}_cand_pool.jsonl")

    def union_pool(self, split: str = "test") -> Pool:
        """All candidates of a split, each did once."""
        return self._pool(self.root / "cand_pool" / "global" / f"mbeir_union_{split}_cand_pool.jsonl")

    def qrels(self, task: Task, split: str = "test") -> dict[str, tuple[str, ...]]:
        """The right answers of every query of a task, all of them in its local pool."""
        path = self.root / "qrels" / split / f"mbeir_{task.name}_{split}_qrels.txt"
        if path not in self._qrels:
            self._qrels[path] = self._read_qrels(path, task, split)
        return self._qrels[path]

    @cached_property
    def instructions(self) -> dict[str, tuple[str, ...]]:
        """All prompts by ``"dataset id, query modality, candidate modality"``."""
        prompts: dict[str, tuple[str, ...]] = {}
        for where, line in list(_lines(self._instructions_path))[1:]:
            columns = line.split("\t")
            if len(columns) < 5 or not any(prompt.strip() for prompt in columns[4:]):
                raise ValueError(
                    f"{where}: {len(columns)} tab-separated columns {columns!r}; needed are query modality, candidate "
                    "modality, name, dataset id and at least one prompt."
                )
            key = f"{columns[3]}, {columns[0]}, {columns[1]}"
            if key in prompts:
                raise ValueError(f"{where}: a second line for {key!r}. Put all its prompts on one line.")
            prompts[key] = tuple(format_string(prompt) for prompt in columns[4:] if prompt.strip())
        return prompts

    def prompts(self, query: Query, candidate_modality: str) -> tuple[str, ...]:
        """All prompts for this query when it looks for candidates of a modality; at least one."""
        key = f"{query.qid.split(':')[0]}, {query.modality}, {candidate_modality}"
        if key not in self.instructions:
            raise ValueError(
                f"{self._instructions_path}: query {query.qid!r} needs prompts for {key!r}; the file has them for "
                f"{'; '.join(sorted(self.instructions))}. Add a line."
            )
        return self.instructions[key]

    def instruction(self, query: Query, candidate_modality: str, index: int = 0) -> str:
        """The ``index``-th prompt for this query when it looks for candidates of a modality."""
        prompts = self.prompts(query, candidate_modality)
        if index >= len(prompts):
            raise ValueError(
                f"{self._instructions_path}: query {query.qid!r} needs prompt number {index} for candidates of "
                f"modality {candidate_modality!r}, but there are {len(prompts)}, counted from 0. Add it to the file."
            )
        return prompts[index]

    def _image(self, path: str | None) -> Path | None:
        return self.root / path if path else None

    def _pool(self, path: Path) -> Pool:
        if path not in self._pools:
            pool: dict[str, Candidate] = {}
            for where, record in _records(path, ("did", "txt", "img_path", "modality")):
                did = record["did"]
                if did in pool:
                    raise ValueError(f"{where}: did {did!r} stands on an earlier line too. Remove one of them.")
                pool[did] = Candidate(
                    did=did,
                    text=format_string(record["txt"]),
                    image=self._image(record["img_path"]),
                    modality=record["modality"],
                )
                _check_content(where, did, pool[did])
            self._pools[path] = pool
        return self._pools[path]

    def _read_queries(self, path: Path) -> list[Query]:
        fields = ("qid", "query_txt", "query_img_path", "query_modality", "pos_cand_list", "task_id")
        queries = []
        for where, record in _records(path, fields):
            query = Query(
                qid=record["qid"],
                text=format_query(record["query_txt"]),
                image=self._image(record["query_img_path"]),
                modality=record["query_modality"],
                positives=tuple(record["pos_cand_list"]),
                task_id=int(record["task_id"]),
            )
            _check_content(where, query.qid, query)
            queries.append(query)
        return queries

    def _read_qrels(self, path: Path, task: Task, split: str) -> dict[str, tuple[str, ...]]:
        queries = {query.qid for query in self.queries(task, split)}
        pool = self.pool(task, split)
        right: dict[str, list[str]] = {}
        for where, line in _lines(path):
            columns = line.split()
            if len(columns) != 5 or not columns[3].lstrip("-").isdigit():
                raise ValueError(f"{where}: {line!r} is not of the form 'qid 0 did relevance task_id' (five columns).")
            qid, _, did, relevance, _ = columns
            if qid not in queries:
                raise ValueError(f"{where}: query {qid!r} is not among the {len(queries):,} of {task.name} ({split}).")
            if did not in pool:
                raise ValueError(
                    f"{where}: answer {did!r} of query {qid!r} is not among the {len(pool):,} candidates of "
                    f"{task.name}'s local pool. Use the qrels that were written for this pool."
                )
            if int(relevance) > 0:
                right.setdefault(qid, []).append(did)
        if unanswered := sorted(queries - right.keys()):
            raise ValueError(
                f"{path}: {len(unanswered):,} of {len(queries):,} queries have no right answer, {unanswered[0]!r} the "
                "first of them. Complete the file or remove these queries."
            )
        return {qid: tuple(dids) for qid, dids in right.items()}


def first_repeated(ids: Sequence[str]) -> str | None:
    """The first id that stood earlier in the list."""
    seen: set[str] = set()
    for one in ids:
        if one in seen:
            return one
        seen.add(one)
    return None


def _check_content(where: str, name: str, one: Query | Candidate) -> None:
    if one.modality not in MODALITIES:
        raise ValueError(f"{where}: {name!r} has modality {one.modality!r}, which is none of {MODALITIES}.")
    if not one.text and one.image is None:
        raise ValueError(f"{where}: {name!r} has neither text nor image. Give it one or remove the line.")


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yield ``file:line`` and the text of every line that is not blank."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist. It belongs to M-BEIR's layout: complete the folder.")
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                text = line.decode().rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise ValueError(f"{path}:{number}: not UTF-8 ({error}). Is the file cut short?") from error
            if text.strip():
                yield f"{path}:{number}", text


def _records(path: Path, fields: tuple[str, ...]) -> Iterator[tuple[str, dict[str, Any]]]:
    for where, line in _lines(path):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{where}: not JSON ({error}): {line[:80]!r}. Is the file cut short?") from error
        if not isinstance(record, dict) or (missing := [field for field in fields if field not in record]):
            problem = f"lacks {', '.join(missing)}" if isinstance(record, dict) else "is not an object"
            raise ValueError(f"{where}: the record {problem}; needed are {', '.join(fields)} (null where empty).")
        yield where, record
