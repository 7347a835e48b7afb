"""What a newcomer sees first: the shipped model on the embedded benchmark, a few searches, a report."""

import logging
from dataclasses import dataclass
from pathlib import Path

from umarvel_hf.data import MBeir
from umarvel_hf.emoji import DATASETS, INSTRUCTIONS, benchmark_dir, model_dir
from umarvel_hf.encoding import load
from umarvel_hf.evaluation.benchmark import evaluate_benchmark
from umarvel_hf.evaluation.results import Result
from umarvel_hf.fingerprint import fingerprint
from umarvel_hf.index import retrieve
from umarvel_hf.report import write_report
from umarvel_hf.searching import Found, cached_vectors, embedded_index

logger = logging.getLogger(__name__)

QUERIES = ("a red heart", "a poodle to the left of a guitar", "a rocket above a banana")


@dataclass(frozen=True)
class Demo:
    """What the demo shows: scores, what each query found, and where the page is."""

    result: Result
    searches: dict[str, list[Found]]
    report: Path

    def __str__(self) -> str:
        lines = [self.result.table()]
        for query, found in self.searches.items():
            lines += ["", f"{query!r}", *(f"    {one}" for one in found)]
        return "\n".join([*lines, "", f"report: {self.report.resolve()}"])


def run_demo(out: Path, *, train: bool = False) -> Demo:
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
    vectors = cached_vectors(fingerprint(model), benchmark)
    result = evaluate_benchmark(model, benchmark, vectors=vectors, show_progress=True, settings=settings)
    result.save(out / "result.json")
    logger.info("4/4 a few searches and the report")
    index, pictures = embedded_index(model, benchmark)
    searches = {}
    for query in QUERIES:
        hits = retrieve(model, index, query, instruction=INSTRUCTIONS["text"], k=3)
        searches[query] = [Found(hit.id, hit.score, {"image": pictures[hit.id]}) for hit in hits]
    return Demo(result, searches, write_report(result, benchmark, out / "report.html", descriptions=DATASETS))


def _train(out: Path, benchmark: MBeir) -> Path:
    from umarvel_hf.trainer.run import train

    return train("emoji", out, benchmark=benchmark)
