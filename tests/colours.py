"""A tiny benchmark in M-BEIR's layout whose right answers follow from colours, an encoder that sees them, a recipe."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 200, 40),
    "blue": (30, 40, 220),
    "yellow": (230, 220, 20),
    "purple": (140, 30, 160),
    "cyan": (20, 210, 220),
}

TRAINING: dict[str, Any] = {
    "per_device_train_batch_size": 6,
    "learning_rate": 2e-3,
    "use_cpu": True,
    "dataloader_pin_memory": False,
    "dataloader_drop_last": True,
    "logging_steps": 1,
    "save_steps": 4,
    "report_to": "none",
}
# For the training split below; its keys are those of the recipes that are shipped.
TINY_RECIPE: dict[str, Any] = {
    "name": "tiny",
    "seed": 3,
    "start": {
        "tiny": {
            "vocabulary": 300,
            "hidden": 32,
            "layers": 2,
            "heads": 2,
            "intermediate": 48,
            "vision_hidden": 32,
            "vision_layers": 1,
            "vision_heads": 2,
            "vision_mlp_ratio": 2,
            "patch": 7,
            "image_side": 28,
        },
    },
    "stages": [
        {
            "name": "instructions",
            "kind": "contrastive",
            "data": [{"mbeir": "all"}],
            "batches": 2,
            "attn_implementation": "eager",
            "augmentation": {"shift": 0.1, "scale": 0.1, "colour": 0.3, "greyscale": 0.1},
            # two epochs of six steps, and two more
            "training": {**TRAINING, "max_steps": 14, "temperature_learning_rate": 1e-2},
        },
    ],
}


class ColourEncoder:
    """Encodes a text by the colours it names and an image by its mean colour; remembers how it was called."""

    def __init__(self) -> None:
        self.calls: list[tuple[str | None, list[Any]]] = []

    def encode(
        self,
        inputs: Sequence[Any],
        *,
        prompt: str | None = None,
        show_progress_bar: bool | None = None,
    ) -> np.ndarray:
        self.calls.append((prompt, list(inputs)))
        vectors = np.array([self._colour(one) for one in inputs], dtype=np.float32) - 128
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def _colour(self, item: Any) -> np.ndarray:
        if isinstance(item, str):
            named = [np.array(rgb) for name, rgb in COLOURS.items() if name in item.lower()]
            return np.mean(named, axis=0) if named else np.array((200, 128, 128))
        with Image.open(item["image"]) as image:
            return np.asarray(image.convert("RGB"), dtype=np.float32).mean(axis=(0, 1))


def write_benchmark(root: Path) -> Path:
    """Write three tasks over two data sets: ``plain`` text → image and image → text, ``dark`` image → image."""
    images = {}
    for name, rgb in COLOURS.items():
        for tone, factor in (("plain", 1.0), ("dark", 0.8)):
            pixels = np.zeros((12, 12, 3), dtype=np.uint8) + np.array(
                [int(one * factor) for one in rgb], dtype=np.uint8
            )
            pixels[:3] //= 2
            images[name, tone] = path = f"mbeir_images/{tone}_{name}.png"
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(root / path)
    names = list(COLOURS)
    pictures = [_candidate(f"1:{at}", None, images[name, "plain"]) for at, name in enumerate(names)]
    captions = [_candidate(f"1:{at + 10}", f"a {name} square", None) for at, name in enumerate(names)]
    shades = [_candidate(f"2:{at}", None, images[name, "dark"]) for at, name in enumerate(names)]
    tasks = {
        ("plain", 0): ([_query(f"1:{at}", name, None, f"1:{at}", 0) for at, name in enumerate(names)], pictures),
        ("plain", 3): (
            [_query(f"1:{at + 10}", None, images[name, "plain"], f"1:{at + 10}", 3) for at, name in enumerate(names)],
            captions,
        ),
        ("dark", 4): (
            [_query(f"2:{at}", None, images[name, "plain"], f"2:{at}", 4) for at, name in enumerate(names)],
            shades,
        ),
    }
    for (dataset, task_id), (queries, pool) in tasks.items():
        name = f"mbeir_{dataset}_task{task_id}"
        write_lines(root / f"query/test/{name}_test.jsonl", queries)
        write_lines(root / f"cand_pool/local/{name}_cand_pool.jsonl", pool)
        qrels = [f"{query['qid']} 0 {query['pos_cand_list'][0]} 1 {task_id}" for query in queries]
        write_lines(root / f"qrels/test/{name}_test_qrels.txt", qrels)
    write_lines(root / "cand_pool/global/mbeir_union_test_cand_pool.jsonl", pictures + captions + shades)
    write_lines(root / "cand_pool/global/mbeir_union_train_cand_pool.jsonl", pictures)
    write_lines(root / "query/union_train/mbeir_union_up_train.jsonl", tasks["plain", 0][0])
    instructions = [
        "query_modality\tcand_modality\tname\tdataset_id\tprompt_1\tprompt_2",
        "text\timage\tplain\t1\tfind its picture\tshow it\t",
        "image\ttext\tplain\t1\tName this colour.",
        "image\timage\tdark\t2\tFind a darker one.",
    ]
    write_lines(root / "instructions/query_instructions.tsv", instructions)
    return root


def write_lines(path: Path, lines: Sequence[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))


def _candidate(did: str, text: str | None, image: str | None) -> dict[str, Any]:
    return {"did": did, "txt": text, "img_path": image, "modality": _modality(text, image), "src_content": None}


def _query(qid: str, text: str | None, image: str | None, answer: str, task_id: int) -> dict[str, Any]:
    return {
        "qid": qid,
        "query_txt": text,
        "query_img_path": image,
        "query_modality": _modality(text, image),
        "query_src_content": None,
        "pos_cand_list": [answer],
        "neg_cand_list": [],
        "task_id": task_id,
    }


def _modality(text: str | None, image: str | None) -> str:
    return ",".join(name for name, content in (("image", image), ("text", text)) if content)


def write_training_split(root: Path, repeats: int = 1) -> Path:
    """Give the benchmark of :func:`write_benchmark` a training split of three tasks, two pictures of every colour.

    Args:
        repeats: How often every query stands there, each time under a qid of its own.
    """
    candidates: list[dict[str, Any]] = []
    queries: dict[int, list[dict[str, Any]]] = {0: [], 3: [], 7: []}
    for at, name in enumerate(COLOURS):
        plain, dark = (f"mbeir_images/{tone}_{name}.png" for tone in ("plain", "dark"))
        candidates += [_candidate(f"1:{at}", None, plain), _candidate(f"1:{at + 10}", None, dark)]
        candidates += [_candidate(f"1:{at + 20}", f"a {name} square", None)]
        for repeat in range(repeats):
            number = 100 * repeat + at
            queries[0].append(_query(f"1:{number}", name, None, f"1:{at}", 0))
            queries[0][-1]["pos_cand_list"].append(f"1:{at + 10}")
            queries[3].append(_query(f"1:{number + 20}", None, dark, f"1:{at + 20}", 3))
            queries[7].append(_query(f"2:{number}", "darker", plain, f"1:{at + 10}", 7))
    write_lines(root / "query/union_train/mbeir_union_up_train.jsonl", [*queries[0], *queries[3], *queries[7]])
    write_lines(root / "cand_pool/global/mbeir_union_train_cand_pool.jsonl", candidates)
    with (root / "instructions/query_instructions.tsv").open("a") as file:
        file.write("image,text\timage\tdark\t2\tMake the change.\tChange it so.\n")
    return root
