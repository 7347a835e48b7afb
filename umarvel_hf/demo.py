"""What a newcomer sees first: the shipped model on the embedded benchmark, a few searches, a report."""

import hashlib
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from umarvel_hf.data import CANDIDATE_MODALITY, MBeir
from umarvel_hf.emoji import benchmark_dir, model_dir
from umarvel_hf.emoji.cache import cache_dir
from umarvel_hf.encoding import load
from umarvel_hf.evaluation.benchmark import evaluate_benchmark
from umarvel_hf.evaluation.pools import Candidates
from umarvel_hf.fingerprint import fingerprint
from umarvel_hf.index import FlatIndex, Hit, build_index, retrieve
from umarvel_hf.report import write_report

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

logger = logging.getLogger(__name__)

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
QUERIES = ("a red heart", "a poodle to the left of a guitar", "a rocket above a banana")
INSTRUCTIONS = {
    "text": "Find the emoji picture that matches this description.",
    "image": "Find the same emoji drawn by another artist.",
    "image,text": "Find the picture after the requested change.",
}
DATASETS = {
    "scenes": "two or three emoji on one canvas; pairs never seen together in training, every pool full of near-misses",
    "emojiseen": "S: single emoji that training showed, in a drawing style it never saw",
    "emojiunseen": "U: single emoji that training never showed",
}


def run_demo(out: Path, *, train: bool = False) -> None:
    """Evaluate, search, and write ``out/report.html`` and ``out/result.json``.

    Args:
        train: Train the model again from nothing first, into ``out/run``; it goes on where it was stopped.
    """
    out.mkdir(parents=True, exist_ok=True)
    logger.info("1/4 the embedded benchmark")
    benchmark = MBeir(benchmark_dir())
    logger.info("2/4 the model")
    folder = _train(out / "run", benchmark) if train else model_dir()
    model = load(str(folder), device="cpu")
    logger.info("3/4 evaluation: every pool encoded once, eight task types, three baselines beside the model")
    settings = {"model": "shipped with the package", "command": "umarvel demo"}
    if train:
        settings = {"model": "trained just now", "command": "umarvel demo --train"}
    vectors = _vectors(fingerprint(model), benchmark)
    result = evaluate_benchmark(model, benchmark, vectors=vectors, show_progress=sys.stderr.isatty(), settings=settings)
    result.save(out / "result.json")
    print(result.table())
    logger.info("4/4 a few searches and the report")
    index, pictures = _embedded_index(model, benchmark)
    for query in QUERIES:
        print(f"\n{query!r}")
        for hit in retrieve(model, index, query, instruction=INSTRUCTIONS["text"], k=3):
            print("   ", _line(hit, pictures))
    report = write_report(result, benchmark, out / "report.html", descriptions=DATASETS)
    print(f"\nreport: {report.resolve()}")


def search_pictures(
    *, text: str | None, image: Path | None, images: Path | None, model: str | None, instruction: str | None, k: int
) -> list[str]:
    """Search pictures by a text, a picture or both.

    Args:
        text, image: The query; at least one.
        images: Folder of pictures, sub-folders included; None: the pictures of the embedded benchmark's test pools.
        model: Folder or Hub id of a checkpoint; None: the shipped one.
        instruction: What to look for; None: an instruction of the embedded benchmark that fits the query.
        k: How many to show.

    Returns:
        One line a picture, best first: score, name, path.

    Raises:
        ValueError: Neither text nor picture; a folder without pictures.
        FileNotFoundError: A picture or folder that is not there.
    """
    if not text and image is None:
        raise ValueError("there is nothing to search for; give a text, --image, or both.")
    query: dict[str, str | Path] = {**({"image": image} if image else {}), **({"text": text} if text else {})}
    if instruction is None:
        instruction = INSTRUCTIONS["image,text" if len(query) == 2 else next(iter(query))]
    encoder = load(model or str(model_dir()))
    if images is None:
        index, pictures = _embedded_index(encoder, MBeir(benchmark_dir()))
    else:
        pictures = _pictures_in(images)
        index = build_index(encoder, list(pictures), [{"image": path} for path in pictures.values()])
    return [_line(hit, pictures) for hit in retrieve(encoder, index, query, instruction=instruction, k=k)]


def _train(out: Path, benchmark: MBeir) -> Path:
    from umarvel_hf.trainer.run import train

    return train("emoji", out, benchmark=benchmark)


def _pictures_in(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise FileNotFoundError(f"the folder {str(folder)!r} does not exist; check --images.")
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in PICTURES)
    if not found:
        raise ValueError(f"{str(folder)!r} holds no picture ({', '.join(PICTURES)}); name another folder.")
    return {str(path.relative_to(folder)): path for path in found}


def _embedded_index(encoder: "SentenceTransformer", benchmark: MBeir) -> tuple[FlatIndex, dict[str, Path]]:
    """All pictures of the test pools and their index; their vectors stand in the cache, also for `demo`."""
    tasks = [task for task in benchmark.tasks("test") if CANDIDATE_MODALITY[task.task_id] == "image"]
    candidates = Candidates(benchmark, tasks, "test", union=False)
    made_by = fingerprint(encoder)  # reads all weights: once
    store = candidates.encode(
        encoder,
        _vectors(made_by, benchmark),
        made_by=made_by,
        show_progress=sys.stderr.isatty(),
    )
    pictures = {one.did: one.image for one in candidates.at(candidates.distinct) if one.image is not None}
    return FlatIndex.from_store(store, candidates.distinct), pictures


def _vectors(made_by: dict[str, str], benchmark: MBeir) -> Path:
    """Where the cache keeps the vectors that a model of this fingerprint gives the embedded benchmark."""
    digest = hashlib.sha256(repr(sorted(made_by.items())).encode()).hexdigest()
    return cache_dir() / f"{benchmark.root.name}-vectors-{digest[:12]}"


def _line(hit: Hit, pictures: dict[str, Path]) -> str:
    return f"{hit.score:.3f}  {hit.id}  {pictures[hit.id]}"
