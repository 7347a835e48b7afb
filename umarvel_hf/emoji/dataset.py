"""Collects queries and candidates of one dataset and writes them in M-BEIR's files."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TASKS = {
    0: ("text", "image"),
    1: ("text", "text"),
    2: ("text", "image,text"),
    3: ("image", "text"),
    4: ("image", "image"),
    6: ("image,text", "text"),
    7: ("image,text", "image"),
    8: ("image,text", "image,text"),
}
SPLITS = ("train", "val", "test")


def modality(txt: str | None, img_path: str | None) -> str:
    """What a line holds, as M-BEIR spells it: ``image``, ``text`` or ``image,text``."""
    return ",".join(name for name, value in (("image", img_path), ("text", txt)) if value is not None)


@dataclass
class Dataset:
    """Queries by split and task, candidates by content, pools by task ("train": all training candidates)."""

    name: str
    id: int
    queries: dict[tuple[str, int], list[dict[str, Any]]] = field(default_factory=dict)
    candidates: dict[tuple[str | None, str | None], dict[str, Any]] = field(default_factory=dict)
    pools: dict[int | str, dict[str, dict[str, Any]]] = field(default_factory=dict)

    def add_candidate(self, pool: int | str, about: str, txt: str | None = None, img_path: str | None = None) -> str:
        """Put a candidate in a pool and return its did. The same content has the same did in every pool."""
        entry = self.candidates.setdefault(
            (txt, img_path),
            {
                "did": f"{self.id}:{len(self.candidates) + 1}",
                "txt": txt,
                "img_path": img_path,
                "modality": modality(txt, img_path),
                "src_content": about,
            },
        )
        did: str = entry["did"]
        self.pools.setdefault(pool, {})[did] = entry
        return did

    def add_query(
        self, split: str, task: int, positives: Iterable[str], txt: str | None = None, img_path: str | None = None
    ) -> None:
        """Add a query whose right answers are ``positives``, dids of its pool."""
        dids = list(dict.fromkeys(positives))
        pool = self.pools["train" if split == "train" else task]
        asked, found = TASKS[task]
        assert modality(txt, img_path) == asked, f"task {task} asks with {asked}"
        assert dids and all(pool[did]["modality"] == found for did in dids), f"task {task} finds {found}"
        number = 1 + sum(len(rows) for rows in self.queries.values())
        self.queries.setdefault((split, task), []).append(
            {
                "qid": f"{self.id}:{number}",
                "query_txt": txt,
                "query_img_path": img_path,
                "query_modality": TASKS[task][0],
                "query_src_content": None,
                "pos_cand_list": dids,
                "neg_cand_list": [],
                "task_id": task,
            }
        )

    def train_queries(self) -> list[dict[str, Any]]:
        """All training queries, task by task."""
        return [query for task in TASKS for query in self.queries.get(("train", task), [])]

    def write(self, root: Path) -> None:
        """Write queries, qrels and local pools below ``root``."""
        for split in ("val", "test"):
            for task in TASKS:
                stem, rows = f"mbeir_{self.name}_task{task}_{split}", self.queries[split, task]
                write_jsonl(root / "query" / split / f"{stem}.jsonl", rows)
                write_qrels(root / "qrels" / split / f"{stem}_qrels.txt", rows)
        for task in TASKS:
            pool = root / "cand_pool" / "local" / f"mbeir_{self.name}_task{task}_cand_pool.jsonl"
            write_jsonl(pool, self.pools[task].values())
        if train := self.train_queries():
            write_jsonl(root / "query" / "train" / f"mbeir_{self.name}_train.jsonl", train)
            write_qrels(root / "qrels" / "train" / f"mbeir_{self.name}_train_qrels.txt", train)


def write_union(root: Path, datasets: list[Dataset]) -> None:
    """Write the training queries of all datasets, and the unions of all training and of all local pools."""
    queries = [query for dataset in datasets for query in dataset.train_queries()]
    write_jsonl(root / "query" / "union_train" / "mbeir_union_up_train.jsonl", queries)
    for split, names in (("train", ("train",)), ("test", tuple(TASKS))):
        union = {}
        for dataset in datasets:
            for name in names:
                union.update(dataset.pools.get(name, {}))
        write_jsonl(root / "cand_pool" / "global" / f"mbeir_union_{split}_cand_pool.jsonl", union.values())


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write rows as JSON lines."""
    write_lines(path, (json.dumps(row, ensure_ascii=False, separators=(",", ":")) for row in rows))


def write_qrels(path: Path, queries: Iterable[dict[str, Any]]) -> None:
    """Write a line for every right answer of every query."""
    pairs = ((query, did) for query in queries for did in query["pos_cand_list"])
    write_lines(path, (f"{query['qid']} 0 {did} 1 {query['task_id']}" for query, did in pairs))


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write lines with one kind of line break on every system; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(f"{line}\n" for line in lines)
