"""All 16 configurations of M-BEIR in exactly its layout, tiny, and an encoder whose vectors are known."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from colours import write_lines
from umarvel_hf.data import TASK_TYPES
from umarvel_hf.evaluation.results import MBEIR_TASKS

DATASETS = ("visualnews", "fashion200k", "webqa", "edis", "nights", "oven", "infoseek", "fashioniq", "cirr", "mscoco")
DIMENSION = 16


class KnownVectors:
    """Gives every item the vector that was drawn for its content; an instruction turns it a little."""

    def __init__(self, vectors: dict[str, np.ndarray]) -> None:
        self.vectors = vectors
        self.encoded: list[str] = []

    def encode(
        self,
        inputs: Sequence[Any],
        *,
        prompt: str | None = None,
        show_progress_bar: bool | None = None,
    ) -> np.ndarray:
        keys = [content(one) for one in inputs]
        self.encoded += keys
        rows = np.stack([self.vectors[key] for key in keys])
        if prompt is not None:
            rows = rows + 0.3 * drawn(prompt)
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


class DrawnVectors(KnownVectors):
    """Gives every item a vector that follows from its content."""

    def __init__(self) -> None:
        super().__init__(_Drawn())


class _Drawn(dict[str, np.ndarray]):
    def __missing__(self, name: str) -> np.ndarray:
        return drawn(name)


def content(item: Any) -> str:
    """What an item shows, in words: its picture's name and its text."""
    if isinstance(item, str):
        return item
    return f"{item['image'].stem}|{item.get('text', '')}"


def drawn(name: str) -> np.ndarray:
    """(D,) unit vector that depends on the name alone."""
    vector = np.random.default_rng(list(name.encode())).normal(size=DIMENSION)
    return vector / np.linalg.norm(vector)


def write_mbeir(root: Path, *, queries: int = 12, pool: int = 40) -> KnownVectors:
    """Write queries, pools, qrels and instructions; every third query has two right answers."""
    vectors: dict[str, np.ndarray] = {}
    union: list[dict[str, Any]] = []
    instructions = ["query_modality\tcand_modality\tname\tdataset_id\tprompt_1\tprompt_2\tprompt_3"]
    counts: dict[int, int] = {}
    for task in MBEIR_TASKS:
        number, name = DATASETS.index(task.dataset), f"mbeir_{task.name}"
        asked, wanted = (words.replace("+", ",") for words in TASK_TYPES[task.task_id].split(" → "))
        first = counts.setdefault(number, 0)
        counts[number] += 1000
        instructions.append(
            "\t".join(
                [asked, wanted, task.dataset, str(number), *(f"{way} {task.name}" for way in ("Find", "Show", "Get"))]
            )
        )
        candidates = [entry(root, "did", f"{number}:{first + at}", wanted) for at in range(pool)]
        rows = [entry(root, "qid", f"{number}:{first + at}", asked) for at in range(queries)]
        for at, candidate in enumerate(candidates):
            vectors[key_of(candidate)] = drawn(f"{task.name} candidate {at}")
        qrels = []
        for at, row in enumerate(rows):
            right = [candidates[at], candidates[at + queries]] if at % 3 == 0 else [candidates[at]]
            vectors[key_of(row)] = vectors[key_of(right[-1])] + 1.1 * drawn(f"{task.name} query {at}")
            row |= {"pos_cand_list": [one["did"] for one in right], "neg_cand_list": [], "task_id": task.task_id}
            qrels += [f"{row['qid']} 0 {one['did']} 1 {task.task_id}" for one in right]
        of_split = "_test" if task.dataset == "mscoco" else ""
        write_lines(root / f"query/test/{name}_test.jsonl", rows)
        write_lines(root / f"qrels/test/{name}_test_qrels.txt", qrels)
        write_lines(root / f"cand_pool/local/{name}{of_split}_cand_pool.jsonl", candidates)
        union += candidates
    write_lines(root / "cand_pool/global/mbeir_union_test_cand_pool.jsonl", union)
    write_lines(root / "instructions/query_instructions.tsv", instructions)
    return KnownVectors(vectors)


def entry(root: Path, kind: str, name: str, modality: str) -> dict[str, Any]:
    """A line of a query file (``kind`` "qid") or of a pool ("did"), and its picture."""
    text = f"The text of {kind} {name}." if "text" in modality else None
    image = f"mbeir_images/{kind}_{name.replace(':', '_')}.png" if "image" in modality else None
    if image:
        (root / image).parent.mkdir(parents=True, exist_ok=True)
        colour = tuple(hashlib.sha256(image.encode()).digest()[:3])  # no two pictures alike
        Image.new("RGB", (2, 2), colour).save(root / image)
    if kind == "did":
        return {"did": name, "txt": text, "img_path": image, "modality": modality, "src_content": None}
    return {
        "qid": name,
        "query_txt": text,
        "query_img_path": image,
        "query_modality": modality,
        "query_src_content": None,
    }


def key_of(line: dict[str, Any]) -> str:
    """What :func:`content` says of the line's item."""
    text = line.get("txt", line.get("query_txt")) or ""
    image = line.get("img_path", line.get("query_img_path"))
    return f"{Path(image).stem}|{text}" if image else text
