"""Reads the files of M-BEIR's layout for the audit: ids, digests of contents, and what is wrong with single lines."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from hashlib import blake2b
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from umarvel_hf.data import TASK_TYPES
from umarvel_hf.progress import Progress
from umarvel_hf.records import (
    MODALITIES,
    Fields,
    Ids,
    are_ids,
    format_string,
    id_array,
    lines_of,
    prompts_of,
    record_of,
)

EXAMPLES = 5
ROW = np.dtype([("line", "i4"), ("content", "u8"), ("image", "u8"), ("modality", "i1"), ("dataset", "i4")])
INSTRUCTIONS = "instructions/query_instructions.tsv"
LISTS = {"pos_cand_list": "dangling positive", "neg_cand_list": "dangling negative"}
Parsed = TypeVar("Parsed")

# kind: what it means and what to do; the order is that of the report
DEFECTS = {
    "missing file": "What belongs to it cannot be read or checked: complete the folder.",
    "unreadable line": "The readers refuse the file: copy it again or mend the line.",
    "missing image": "The item cannot be encoded: unpack the images again or remove its lines.",
    "unreadable image": "Pillow cannot decode it: copy it again or remove its lines.",
    "empty text": "The modality promises a text and there is none: mend the modality or remove the line.",
    "unknown task": "M-BEIR has no such task id, and its readers refuse it: mend the line, rename or remove the file.",
    "wrong task id": "The task_id is not that of the file's name: find out which holds.",
    "wrong modality": "The modality is not that of the content; it chooses the instruction: mend it.",
    "repeated id": "One id stands on two lines of a file: remove one of them.",
    "qid of two queries": "Repeated training rows must be alike: give one of them another qid.",
    "did of two candidates": "One did names different candidates in two pools: write the pools anew.",
    "dangling positive": "No pool of the split holds this did: use the pools these queries were written for.",
    "dangling negative": "No pool of the split holds this did: use the pools these queries were written for.",
    "judged query missing": "The qrels name a query that is not asked: use the qrels of these queries.",
    "judged candidate missing": "The answer is not in the task's pool: use the qrels of this pool.",
    "repeated judgement": "Two lines judge one answer to one query; readers refuse them if they differ: remove one.",
    "no right answer": "No system can answer it: complete the qrels or remove the query.",
    "qrels contradict positives": "qrels and pos_cand_list name different right answers: find out which hold.",
    "missing instruction": "Queries of these modalities have no prompt: add a line to the instructions.",
    "query finds itself": "A wrong answer is the query's own picture and ranks first: take it from the pool.",
    "right and wrong alike": "A wrong answer has the content of a right one: judge both alike, or drop one.",
    "alike with other answers": "Queries of one content have different right answers: merge their answers.",
    "union lacks candidates": "Local and union scores rank different things: concatenate the local pools.",
    "union has others": "No local pool of the split holds them: complete those, or write the union anew.",
}
NOTES = {
    "no union pool": "Only local pools can be evaluated, and nothing trained, without it.",
    "file without queries": "No query file of its task is there: something left over, or queries that are missing.",
    "query image in pool": "The picture a query starts from is a wrong answer of its pool, as CIRR wants it.",
    "overlapping pools": "One candidate stands in several local pools; the union has it once.",
    "test query in training": "The same content is asked in training and in the test.",
    "test query as candidate": "A training candidate has the content of a test query.",
}
KINDS = {  # with the severity
    **{kind: ("defect", meaning) for kind, meaning in DEFECTS.items()},
    **{kind: ("note", meaning) for kind, meaning in NOTES.items()},
}


@dataclass(frozen=True)
class Finding:
    """What is wrong in one file, or worth knowing; ``where`` is the first place, relative to the root."""

    kind: str
    severity: str
    where: str
    count: int
    examples: tuple[str, ...]
    meaning: str


class File:
    """One query or pool file.

    Attributes:
        rows: (N,) of ROW; ``content`` digests text and image, ``image`` the image alone; 0: there is none.
        lists: For each of LISTS the positions of queries (P,) and dids (P,).
        first: (N,) where each id stands first; of a repeated one the first line counts.
    """

    def __init__(self, path: Path, name: str, split: str, blocks: Sequence[tuple[np.ndarray, ...]]) -> None:
        self.path, self.name, self.split = path, name, split  # split "": a pool that val and test share
        self.ids, self.rows, *lists = (np.concatenate(column) for column in zip(*blocks, strict=True))
        self.find = Ids(self.ids)
        self.first = self.find.positions(self.ids)
        self.lists = {
            field: (np.repeat(self.first, lengths), dids)
            for field, lengths, dids in zip(LISTS, lists[::2], lists[1::2], strict=True)
        }

    def id(self, row: int) -> str:
        """The qid or did of a row."""
        return str(self.ids[row].decode())


class Reader:
    """Reads files and images, each once, and collects findings.

    Args:
        root: The folder in M-BEIR's layout.
        images: Whether images are decoded and known by their bytes, or must only exist and are known by their path.
        threads: Where images are opened.
        bar: Counts the bytes of the files.
    """

    def __init__(self, root: Path, images: bool, threads: ThreadPoolExecutor, bar: Progress) -> None:
        self.root, self.open_images, self.threads, self.bar = root, images, threads, bar
        self.findings: dict[tuple[str, str], Finding] = {}
        self.images: dict[int, int] = {}  # digest of the path: digest of the bytes
        self.datasets: dict[str, int] = {}  # what stands before the colon of an id: its number
        self.prompts: set[str] = set()

    def found(self, kind: str, path: Path, examples: Iterable[str], line: int = 0, count: int = 1) -> None:
        """Note ``count`` cases in a file, the first of them on ``line``; examples are drawn while there are too few."""
        place = path.relative_to(self.root).as_posix()
        severity, meaning = KINDS[kind]
        new = Finding(kind, severity, f"{place}:{line}" if line else place, 0, (), meaning)
        old = self.findings.get((kind, place), new)
        more = tuple(islice(examples, EXAMPLES - len(old.examples)))
        self.findings[kind, place] = replace(old, count=old.count + count, examples=old.examples + more)

    def rows_found(self, kind: str, file: File, rows: np.ndarray, examples: Iterable[str] | None = None) -> None:
        """Note cases in a file by their rows, (n,)."""
        if len(rows):
            named = (file.id(row) for row in rows) if examples is None else examples
            self.found(kind, file.path, named, int(file.rows["line"][rows[0]]), len(rows))

    def parsed(self, path: Path, parse: Callable[[Path, int, bytes], Parsed]) -> Iterator[tuple[int, Parsed]]:
        """Yield number and content of the lines that can be parsed, and note the others."""
        try:
            for number, _, line in lines_of(path):
                self.bar.update(len(line))
                try:
                    yield number, parse(path, number, line)
                except ValueError as error:
                    self.found("unreadable line", path, [str(error).removeprefix(f"{path}:{number}: ")], number)
        except OSError as error:
            self.found("missing file", path, [str(error)])

    def read_prompts(self) -> None:
        """Read the keys of the instructions."""
        path = self.root / INSTRUCTIONS
        for number, (key, _) in self.parsed(path, lambda *line: prompts_of(*line) if line[1] > 1 else ("", ())):
            if key in self.prompts:
                self.found("unreadable line", path, [f"a second line for {key!r}"], number)
            self.prompts.add(key)

    def read(self, folder: str, pattern: str, fields: Fields) -> list[File]:
        """Read the files of a folder; the groups of the pattern are name and split."""
        paths = sorted((self.root / folder).glob("*.jsonl"))
        matches = [(path, re.fullmatch(rf"mbeir_{pattern}\.jsonl", path.name)) for path in paths]
        return [self.read_file(path, match[1], match[2] or "", fields) for path, match in matches if match]

    def read_file(self, path: Path, name: str, split: str, fields: Fields) -> File:
        """Read a query or pool file, a block of lines at a time, and open the images it names."""
        records = self.parsed(path, lambda path, number, line: _checked(path, number, line, fields))
        task = re.fullmatch(r".+_task(\d+)", name)
        right, wrong = ({int(task[1])}, "wrong task id") if task else (set(TASK_TYPES), "unknown task")
        blocks = [tuple(np.empty(0, dtype) for dtype in ("S1", ROW, *(len(LISTS) * ("i8", "S1"))))]
        while block := list(islice(records, 4096)):
            contents = [(number, *(record[one] for one in list(fields)[:4])) for number, record in block]
            self.look_at_new_images(path, contents)
            for number, record in block if "task_id" in fields else ():
                if record["task_id"] not in right:
                    self.found(wrong, path, [f"{record['qid']} says {record['task_id']}"], number)
            columns = [id_array(one[1] for one in contents), np.array([self.row(path, *one) for one in contents], ROW)]
            for lists in ([record.get(one) or [] for _, record in block] for one in LISTS):
                columns += [np.array([len(dids) for dids in lists]), id_array(did for dids in lists for did in dids)]
            blocks.append(tuple(columns))
        file = File(path, name, split, blocks)
        if not len(file.ids):
            self.found("missing file", path, ["no record can be read from it"])
        repeated, digests = file.find.repeated(), file.rows["content"]
        if path.parent.name == "union_train":  # M-BEIR repeats some rows on purpose
            changed = repeated[digests[repeated] != digests[file.first[repeated]]]
            self.rows_found("qid of two queries", file, changed)
        else:
            self.rows_found("repeated id", file, repeated)
        return file

    def row(self, path: Path, number: int, name: str, text: str, image: str, modality: str) -> tuple[int, ...]:
        """A record as ROW."""
        text = format_string(text)
        actual = ",".join(kind for kind, content in (("image", image), ("text", text)) if content)
        if "text" in modality and not text:
            self.found("empty text", path, [name], number)
        elif actual != modality:
            self.found("wrong modality", path, [f"{name} says {modality} and has {actual or 'nothing'}"], number)
        picture = self.images[_digest(image)] if image else 0
        dataset = self.datasets.setdefault(name.split(":")[0], len(self.datasets))
        return number, _digest(f"{picture} {text}") if actual else 0, picture, MODALITIES.index(modality), dataset

    def look_at_new_images(self, path: Path, contents: Iterable[tuple[Any, ...]]) -> None:
        """Look at the images among (line, id, text, image, modality) that were not seen before."""
        new: dict[int, tuple[int, str, str]] = {}
        for number, name, _, image, _ in contents:
            if image and (key := _digest(image)) not in self.images:
                new.setdefault(key, (number, name, image))
        looks = self.threads.map(self.look, (image for _, _, image in new.values()))
        for (key, (number, name, image)), (digest, problem) in zip(new.items(), looks, strict=True):
            self.images[key] = digest
            if problem:
                self.found(problem, path, [f"{name}: {image}"], number)

    def look(self, image: str) -> tuple[int, str]:
        """The digest of an image, of its path where it is not opened, and the kind of its problem, or ""."""
        path = self.root / image
        if not path.is_file():
            return _digest(image), "missing image"
        if not self.open_images:
            return _digest(image), ""
        try:
            data = path.read_bytes()
            with Image.open(BytesIO(data)) as opened:
                opened.load()
        except Exception:  # Pillow's decoders raise of all kinds, and none may end the audit
            return _digest(image), "unreadable image"
        return _digest(data), ""


def _checked(path: Path, number: int, line: bytes, fields: Fields) -> dict[str, Any]:
    record = record_of(path, number, line, fields)
    if not are_ids(record.get("neg_cand_list") or []):
        raise ValueError(f"{record['qid']!r} has neg_cand_list {record['neg_cand_list']!r:.80}, not a list of dids.")
    return record


def _digest(data: bytes | str) -> int:
    """64 bits, never 0."""
    data = data.encode() if isinstance(data, str) else data
    return int.from_bytes(blake2b(data, digest_size=8).digest()) or 1
