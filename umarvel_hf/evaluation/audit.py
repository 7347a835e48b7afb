"""Audit a folder in M-BEIR's layout: every file is read, compared with the others, and every image opened."""

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from umarvel_hf.data import TASK_TYPES
from umarvel_hf.evaluation.audit_reader import INSTRUCTIONS, KINDS, LISTS, File, Finding, Reader
from umarvel_hf.progress import Progress
from umarvel_hf.records import CANDIDATE_FIELDS, MODALITIES, QUERY_FIELDS, id_array, judgement_of


@dataclass(frozen=True)
class Audit:
    """All findings, defects first; ``counts`` says how much was read."""

    root: str
    counts: dict[str, int]
    findings: tuple[Finding, ...]

    @property
    def sound(self) -> bool:
        """Whether there is no defect; notes are allowed."""
        return all(one.severity == "note" for one in self.findings)

    def text(self) -> str:
        """Plain text for a terminal."""
        notes = sum(one.severity == "note" for one in self.findings)
        lines = [
            f"{self.root}: {', '.join(f'{count:,} {name}' for name, count in self.counts.items())}",
            f"{'sound' if self.sound else 'NOT SOUND'}: {len(self.findings) - notes} defects, {notes} notes",
        ]
        for one in self.findings:
            lines += ["", f"{one.severity}: {one.kind} ({one.count:,}), {one.where}", f"    {one.meaning}"]
            lines += [f"    - {example}" for example in one.examples]
        return "\n".join(lines)

    def as_json(self) -> str:
        """All of it, and ``sound``."""
        return json.dumps({"sound": self.sound, **asdict(self)}, ensure_ascii=False)


def audit(root: str | Path, *, images: bool = True, show_progress: bool = False) -> Audit:
    """Look for whatever makes scores on this folder wrong; a problem never ends the audit.

    Records are held as ids and 64-bit digests: a few GB for the whole of M-BEIR.

    Args:
        root: The folder that holds query/ and cand_pool/.
        images: Whether every image is decoded, and known by its bytes; otherwise it must exist and is known by its
            path, which takes seconds instead of hours on millions of images.

    Raises:
        FileNotFoundError: ``root`` is not a folder.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is not a folder. Pass the folder that holds query/ and cand_pool/.")
    size = sum(path.stat().st_size for folder in ("query", "cand_pool") for path in root.glob(f"{folder}/*/*.jsonl"))
    with ThreadPoolExecutor() as threads, Progress(total=size, unit="B", unit_scale=True, show=show_progress) as bar:
        return _Auditor(root, images, threads, bar).run()


class _Auditor(Reader):
    def run(self) -> Audit:
        """Read everything, compare, and tell."""
        self.read_prompts()
        local = self.read("cand_pool/local", r"(.+?)(?:_(train|val|test))?_cand_pool", CANDIDATE_FIELDS)
        unions = self.read("cand_pool/global", r"(union)_(train|val|test)_cand_pool", CANDIDATE_FIELDS)
        asked = self.read("query/val", r"(.+_task\d+)_(val)", QUERY_FIELDS)
        asked += self.read("query/test", r"(.+_task\d+)_(test)", QUERY_FIELDS)
        taught = self.read("query/train", r"(.+)_(train)", QUERY_FIELDS)
        taught += self.read("query/union_train", r"(union)_up_(train)", QUERY_FIELDS)
        if not asked + taught:
            self.found("missing file", self.root / "query", ["no query file of M-BEIR's layout"])
        self.check_names(asked, local)
        self.check_pools(local, unions)
        union = {pool.split: pool for pool in unions}
        for split in sorted({queries.split for queries in asked + taught} & {"train", "test"} - union.keys()):
            self.found("no union pool", self.root / "cand_pool/global", [f"mbeir_union_{split}_cand_pool.jsonl"])
        for queries in taught:
            self.check_answers(queries, union.get("train"), [union["train"]] if "train" in union else [])
        for queries in asked:
            self.check_task(queries, _of_split(local, queries.split), union.get(queries.split))
        self.check_leaks([one for one in asked if one.split == "test"], taught[-1:], union.get("train"))
        read = {
            "queries": asked,
            "training queries": taught[-1:],
            "local candidates": local,
            "union candidates": unions,
        }
        counts = {name: sum(len(file.ids) for file in files) for name, files in read.items()}
        findings = sorted(self.findings.values(), key=lambda one: (list(KINDS).index(one.kind), one.where))
        return Audit(str(self.root), counts | {"images": len(self.images)}, tuple(findings))

    def check_names(self, asked: Sequence[File], local: Sequence[File]) -> None:
        """The tasks are M-BEIR's, and each local pool and qrels file belongs to one; a pool may be of one split."""
        for queries in asked:
            if (task_id := int(queries.name.rpartition("_task")[2])) not in TASK_TYPES:
                known = f"{min(TASK_TYPES)} to {max(TASK_TYPES)}"
                self.found("unknown task", queries.path, [f"task id {task_id}; there are {known}"])
        names = {queries.name for queries in asked}
        left = [pool.path for pool in local if pool.name not in names]
        named = {f"mbeir_{queries.name}_{queries.split}_qrels.txt" for queries in asked}
        for split in ("val", "test"):
            left += [path for path in sorted((self.root / "qrels" / split).glob("*.txt")) if path.name not in named]
        for path in left:
            self.found("file without queries", path, ["no query file names its task"])

    def check_pools(self, local: Sequence[File], unions: Sequence[File]) -> None:
        """One did names one candidate, and a union holds what its local pools hold."""
        if not (files := [*local, *unions]):
            return
        starts = np.cumsum([0, *(len(file.ids) for file in files)])
        number = np.repeat(np.arange(len(files)), np.diff(starts))
        ids = np.concatenate([file.ids for file in files])
        contents = np.concatenate([file.rows["content"] for file in files])
        _, places, inverse = np.unique(ids, return_index=True, return_inverse=True)
        first = places[inverse]
        again = np.flatnonzero(number[first] != number)  # an earlier file has the did
        same = contents[first[again]] == contents[again]
        for at, file in enumerate(files):
            here = again[~same & (number[again] == at)]
            texts = (f"{ids[one].decode()}: another in {files[number[first[one]]].path.name}" for one in here)
            self.rows_found("did of two candidates", file, here - starts[at], texts)
        splits = np.array([file.split for file in files])
        one, other = number[first[again]], number[again]
        of_one_split = (splits[one] == splits[other]) | (splits[one] == "") | (splits[other] == "")
        pairs = np.flatnonzero(same & of_one_split & (other < len(local)))
        if len(pairs):
            texts = (
                f"{ids[again[at]].decode()}: {files[one[at]].path.name}, {files[other[at]].path.name}" for at in pairs
            )
            self.found("overlapping pools", local[0].path.parent, texts, count=len(pairs))
        for union in unions:
            if union.split != "train" and (parts := _of_split(local, union.split)):
                for part in parts:
                    self.rows_found("union lacks candidates", part, np.flatnonzero(union.find.positions(part.ids) < 0))
                held = np.concatenate([part.ids for part in parts])
                self.rows_found("union has others", union, np.flatnonzero(~np.isin(union.ids, held)))

    def check_task(self, queries: File, pools: list[File], union: File | None) -> None:
        """Check the queries of a task against its own pool, which is among the ``pools`` of the split."""
        pool = next((pool for pool in pools if pool.name == queries.name), None)
        if pool is None:
            self.found("missing file", self.root / "cand_pool/local", [f"mbeir_{queries.name}_cand_pool.jsonl"])
        owners, places = self.check_answers(queries, pool, [*pools, *([union] if union else [])])
        if pool is not None:
            self.check_contents(queries, pool, owners, places)

    def check_answers(self, queries: File, pool: File | None, pools: list[File]) -> tuple[np.ndarray, np.ndarray]:
        """Compare queries, qrels and pools; returns the right answers, (P,) positions of queries and of candidates."""
        gone = {}
        for field, kind in LISTS.items():
            owners, dids = queries.lists[field]
            lost = np.full(len(dids), bool(pools))
            for held in pools:
                lost[lost] = held.find.positions(dids[lost]) < 0
            texts = (f"{queries.id(owners[at])}: {dids[at].decode()}" for at in np.flatnonzero(lost))
            self.rows_found(kind, queries, owners[lost], texts)
            gone[field] = owners[lost]
        owners, dids = queries.lists["pos_cand_list"]
        if pool is None:
            return owners[:0], owners[:0]
        places = pool.find.positions(dids)
        path = self.root / "qrels" / queries.split / f"mbeir_{queries.name}_{queries.split}_qrels.txt"
        if path.exists():
            size = len(pool.ids) + 1
            listed = owners * size + places + 1
            owners, places, unclear = self.read_qrels(path, queries, pool)
            against = np.setxor1d(listed, owners * size + places + 1) // size
            unclear = np.concatenate([unclear, gone["pos_cand_list"], np.setdiff1d(queries.first, owners)])
            self.rows_found("qrels contradict positives", queries, np.setdiff1d(against, unclear))
        elif queries.split != "train":
            self.found("missing file", path, ["there are no qrels"])
        self.rows_found("no right answer", queries, np.flatnonzero(~np.isin(queries.first, owners)))
        owners, places = owners[places >= 0], places[places >= 0]
        self.check_prompts(queries, pool, owners, places)
        return owners, places

    def read_qrels(self, path: Path, queries: File, pool: File) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Right answers, (P,) positions of queries and candidates, and queries with an answer that is not there."""
        lines = list(self.parsed(path, judgement_of))
        owners = queries.find.positions(id_array(qid for _, (qid, _, _) in lines))
        places = pool.find.positions(id_array(did for _, (_, did, _) in lines))
        unplaced = (owners >= 0) & (places < 0)
        first: dict[tuple[str, str], int] = {}
        again = np.array([first.setdefault(one[:2], at) != at for at, (_, one) in enumerate(lines)], dtype=bool)
        kinds = {
            "judged query missing": owners < 0,
            "judged candidate missing": unplaced,
            "repeated judgement": again,
        }
        for kind, those in kinds.items():
            if those.any():
                texts = (f"{lines[at][1][0]}: {lines[at][1][1]}" for at in np.flatnonzero(those))
                self.found(kind, path, texts, lines[int(those.argmax())][0], int(those.sum()))
        right = (owners >= 0) & np.array([relevance > 0 for _, (_, _, relevance) in lines], dtype=bool)
        return owners[right], places[right], owners[unplaced]

    def check_prompts(self, queries: File, pool: File, owners: np.ndarray, places: np.ndarray) -> None:
        """Every data set has prompts for the modalities of its queries and their right answers."""
        asked, found = queries.rows[owners], pool.rows["modality"][places]
        kinds = asked["dataset"] * 9 + asked["modality"] * 3 + found
        for kind, first in zip(*np.unique(kinds, return_index=True), strict=True):
            key = f"{list(self.datasets)[kind // 9]}, {MODALITIES[kind // 3 % 3]}, {MODALITIES[kind % 3]}"
            if self.prompts and key not in self.prompts:
                where = f"{queries.id(owners[first])} of {queries.path.name}"
                self.found("missing instruction", self.root / INSTRUCTIONS, [f"{key!r} for {where}"])
                self.prompts.add(key)  # once is enough

    def check_contents(self, queries: File, pool: File, owners: np.ndarray, places: np.ndarray) -> None:
        """Look for wrong answers that cannot be told from the query or from a right answer."""
        right = owners * len(pool.ids) + places

        def wrong(asked: np.ndarray, found: np.ndarray) -> np.ndarray:
            return ~np.isin(asked * len(pool.ids) + pool.first[found], right)

        asked, found = _alike(queries.rows["image"], pool.rows["image"])
        alone = (queries.rows["modality"][asked] == 1) & (pool.rows["modality"][found] == 1)
        for kind, those in (("query finds itself", alone), ("query image in pool", ~alone)):
            at = np.flatnonzero(those & wrong(asked, found))
            texts = (f"{queries.id(asked[i])}: {pool.id(found[i])}" for i in at)
            self.rows_found(kind, queries, asked[at], texts)
        pair, found = _alike(pool.rows["content"][places], pool.rows["content"])
        at = np.flatnonzero(wrong(owners[pair], found))
        pairs = ((queries.id(owners[pair[i]]), pool.id(places[pair[i]]), pool.id(found[i])) for i in at)
        texts = (f"{did} is right for {qid}, {other} is not" for qid, did, other in pairs)
        self.rows_found("right and wrong alike", pool, found[at], texts)
        answers: dict[int, set[int]] = {}
        for owner, content in zip(owners.tolist(), pool.rows["content"][places].tolist(), strict=True):
            answers.setdefault(owner, set()).add(content)
        first: dict[int, int] = {}
        contents = queries.rows["content"].tolist()
        others = [one for one in answers if answers[first.setdefault(contents[one], one)] != answers[one]]
        texts = (f"{queries.id(one)}: as {queries.id(first[contents[one]])}" for one in others)
        self.rows_found("alike with other answers", queries, np.array(others, dtype=np.int64), texts)

    def check_leaks(self, tests: list[File], taught: list[File], pool: File | None) -> None:
        """What the test asks is neither asked nor found in training."""
        asked = np.concatenate([np.empty(0, "u8"), *(queries.rows["content"] for queries in tests)])
        files = [("test query in training", file) for file in taught]
        files += [("test query as candidate", pool)] if pool else []
        for kind, file in files:
            contents = file.rows["content"]
            self.rows_found(kind, file, np.flatnonzero((contents != 0) & np.isin(contents, asked)))


def _of_split(local: Sequence[File], split: str) -> list[File]:
    """The local pools of a split; one of its own goes before the one that splits share."""
    own = [pool for pool in local if pool.split == split]
    return own + [pool for pool in local if not pool.split and pool.name not in {one.name for one in own}]


def _alike(left: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All (i, j) with left[i] == right[j], in the order of i; 0 is like nothing."""
    order = np.argsort(right, kind="stable")
    start, end = (np.searchsorted(right, left, side=side, sorter=order) for side in ("left", "right"))
    counts = np.where(left == 0, 0, end - start)
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.repeat(np.arange(len(left)), counts), order[np.repeat(start, counts) + within]
