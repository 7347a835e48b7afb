"""The journey of an evaluation: a model on a benchmark, with a re-ranker or a frontier, down to a page of results."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from umarvel_hf.cards import list_scores
from umarvel_hf.data import MBeir
from umarvel_hf.devices import open_encoder
from umarvel_hf.emoji import DATASETS, benchmark_dir
from umarvel_hf.evaluation.benchmark import QRELS_FOLDER, RUN_FOLDERS, evaluate_benchmark, evaluate_run
from umarvel_hf.evaluation.frontier import load_frontier, measure_frontier, save_frontier
from umarvel_hf.evaluation.overview import read_results
from umarvel_hf.evaluation.reranked import fit_fusion
from umarvel_hf.evaluation.results import POOLS, Result
from umarvel_hf.evaluation.retrieval import SUITES
from umarvel_hf.evaluation.suites import ZERO_SHOT
from umarvel_hf.evaluation.zeroshot import Ranked, rank_asked, read_suite
from umarvel_hf.report import write_overview, write_report
from umarvel_hf.reranking import Fusion, Reranker, load_reranker

MEMORY = 8_000_000_000
TOP = 50


@dataclass(frozen=True)
class Evaluation:
    """What :func:`evaluate` found, and the page it wrote; none of a run file.

    Args:
        submission: Where the authors of a set keep the answers: the file to hand in to them, and there is no result.
    """

    result: Result | None
    report: Path | None = None
    submission: Path | None = None

    def __str__(self) -> str:
        if self.result is None:
            return str(self.submission)
        return self.result.table() + (f"\n\nreport: {self.report.resolve()}" if self.report else "")

    def as_json(self) -> str | dict[str, Any]:
        """The result, or where the file to hand in is."""
        return {"submission": self.submission} if self.result is None else self.result.as_json()


def evaluate(
    model: str | Path | None = None,
    *,
    suite: str = "emoji",
    data: str | Path | None = None,
    out: str | Path,
    tasks: Sequence[str] | None = None,
    split: str | None = None,
    pools: Sequence[str] = POOLS,
    instructions: Literal["first", "seeded", "all"] = "first",
    seed: int = 0,
    gold_modality: bool = True,
    baselines: bool | None = None,
    rerank: str | None = None,
    top: int | None = None,
    fusion: str | Path | None = None,
    run: str | Path | None = None,
    qrels: str | Path | None = None,
    frontier: bool = False,
    pixels: Sequence[int] | None = None,
    memory: int = MEMORY,
    batch_tokens: int | None = None,
    device: Sequence[str] | None = None,
    dtype: str | None = None,
    command: str = "",
    show_progress: bool = False,
) -> Evaluation:
    """Measure how well a model retrieves and write results, runs, vectors and a page; called again, it goes on.

    Args:
        model: Folder or Hub id of a checkpoint; None: ``run`` and ``qrels`` are scored.
        suite: ``m-beir``, ``emoji``, the embedded benchmark, or a zero-shot set of ``evaluation/suites.py``.
        data: Folder in M-BEIR's layout, or with the files of the zero-shot sets; None: the embedded benchmark.
        out: Folder of the results and vectors.
        split: None: ``test``, or a zero-shot set's own.
        tasks, pools, instructions, seed, gold_modality, baselines, memory, batch_tokens: As in
            :func:`umarvel_hf.evaluation.benchmark.evaluate_benchmark`.
        rerank: Folder or Hub id of a ``CrossEncoder`` that judges the best candidates anew.
        top: How many of them; None: 50, or as ``fusion`` says.
        fusion: ``fusion.json`` of an earlier evaluation; None: the weight is fitted on the val split.
        run, qrels: TREC files of whatever system, in place of a model.
        frontier: Also measure quality by dimension, precision and pixels, and latency.
        pixels: Limits of pixels that the frontier tries.
        device, dtype: As in :func:`umarvel_hf.devices.open_encoder`.
        command: What the results say made them.

    Raises:
        ValueError: Arguments contradict each other, or what ``evaluate_benchmark`` refuses.
    """
    _refuse_contradictions(
        model, run, qrels, suite, data, rerank, top, fusion, frontier, pixels, baselines, device,
        plain=set(pools) == set(POOLS) and instructions == "first" and gold_modality,
    )  # fmt: skip
    out = Path(out)
    if run is not None and qrels is not None:
        if (out / "vectors").exists():
            raise ValueError(f"{out} holds the evaluation of a model; name another --out for the run file.")
        result = evaluate_run(run, qrels)
        result.save(out / "result.json")
        return Evaluation(result)
    settings = {"model": str(model), "command": command}
    if suite in ZERO_SHOT:
        asked = read_suite(suite, str(data), tasks=tasks, split=split)  # before a model is loaded
        with open_encoder(str(model), device, dtype, batch_tokens) as (encoder, tokens):
            ranked = rank_asked(
                encoder, asked, vectors=out / "vectors", memory=memory, batch_tokens=tokens, show_progress=show_progress
            )
        return _zero_shot(ranked, out, settings)
    benchmark, split = MBeir(data or benchmark_dir()), "test" if split is None else split
    with open_encoder(str(model), device, dtype, batch_tokens) as (encoder, tokens):
        common: dict[str, Any] = {
            "suite": suite, "tasks": tasks, "vectors": out / "vectors", "memory": memory, "batch_tokens": tokens,
            "show_progress": show_progress,
        }  # fmt: skip
        reranker, weight = None, None
        if rerank is not None:
            reranker = load_reranker(rerank)
            weight = _weight(encoder, reranker, rerank, benchmark, fusion, top, gold_modality, common)
        for stale in (QRELS_FOLDER, *RUN_FOLDERS.values()):  # of an earlier evaluation
            shutil.rmtree(out / "runs" / stale, ignore_errors=True)
        result = evaluate_benchmark(
            encoder, benchmark, split=split, pools=pools, instructions=instructions, seed=seed,
            gold_modality=gold_modality, baselines=baselines, reranker=reranker, fusion=weight, runs=out / "runs",
            settings=settings, **common,
        )  # fmt: skip
        for stale in ("fusion.json", "frontier.json"):
            (out / stale).unlink(missing_ok=True)
        if weight is not None:
            weight.save(out / "fusion.json")
        _save(result, out)
        if frontier:
            points = measure_frontier(encoder, benchmark, split=split, max_pixels=pixels, **common)
            save_frontier(points, out / "frontier.json")
    return Evaluation(result, report([out], data=benchmark.root))


def report(
    results: Sequence[str | Path],
    *,
    data: str | Path | None = None,
    out: str | Path | None = None,
    card: str | Path | None = None,
) -> Path:
    """Write a page of results, and their scores into a model card.

    One evaluation in M-BEIR's layout gets the page that shows all of it; anything else one that sets results side by
    side, beside what papers print.

    Args:
        results: Folders of evaluations, their ``result.json``, or results of mteb: a JSON file, or a folder of them.
        data: The data evaluated on; None: where they were. The page of one evaluation shows pictures only where they
            are found.
        out: HTML file to write; None: ``report.html`` in the folder of the one evaluation, or ``umarvel-results.html``.
        card: Folder of the checkpoint that was evaluated, whose card shall tell the scores.

    Raises:
        ValueError, FileNotFoundError: There is no result, or one is given twice; a given ``data`` is no folder, or is
            not shown on this page.
    """
    measured = read_results(results)
    alone = len(measured.results) == 1 and not measured.mteb
    detailed = alone and measured.results[0].result.suite not in ZERO_SHOT
    if data is not None and not detailed:
        raise ValueError("--data are shown on the page of one evaluation in M-BEIR's layout; leave them out.")
    if card is not None:
        found = [one.result for one in measured.results]
        if measured.mteb or len({result.settings.get("model") for result in found}) > 1:
            raise ValueError("--card tells what evaluations of one model found; leave out mteb's and those of others.")
        listed = [one for result in found for one in result.listed()]
        list_scores(Path(card), listed, "\n\n".join(result.table() for result in found))
    if not alone:
        return write_overview(measured, Path(out or "umarvel-results.html"))
    path, result = measured.results[0].path, measured.results[0].result
    folder = path if path.is_dir() else path.parent
    page = Path(out or folder / "report.html")
    if not detailed:
        return write_overview(measured, page)
    root = data or result.settings.get("data")
    points = load_frontier(folder / "frontier.json") if (folder / "frontier.json").is_file() else None
    benchmark = MBeir(root) if root and (data or Path(root).is_dir()) else None
    return write_report(result, benchmark, page, descriptions=DATASETS, frontier=points)


def _zero_shot(ranked: Ranked, out: Path, settings: dict[str, str]) -> Evaluation:
    if ranked.hidden:
        return Evaluation(None, submission=ranked.save_submission(out / "submission.json"))
    result = ranked.measure(settings)
    _save(result, out)
    return Evaluation(result, report([out]))


def _save(result: Result, out: Path) -> None:
    result.save(out / "result.json")
    (out / "table.txt").write_text(result.table() + "\n", encoding="utf-8")


def _weight(
    encoder: Any, reranker: Reranker, name: str, benchmark: MBeir, fusion: str | Path | None, top: int | None,
    gold_modality: bool, common: dict[str, Any],
) -> Fusion:  # fmt: skip
    if fusion is not None:
        return Fusion.load(fusion)
    depth = TOP if top is None else top
    return fit_fusion(encoder, reranker, benchmark, top=depth, name=name, gold_modality=gold_modality, **common)


def _refuse_contradictions(
    model: Any, run: Any, qrels: Any, suite: str, data: Any, rerank: Any, top: Any, fusion: Any, frontier: bool,
    pixels: Any, baselines: bool | None, device: Sequence[str] | None, *, plain: bool,
) -> None:  # fmt: skip
    devices, benchmarks = len(device or ()), suite not in ZERO_SHOT
    layout = "in M-BEIR's layout" if benchmarks else "that holds the files of the zero-shot sets"
    for wrong, told in (
        (
            suite not in (*SUITES, *ZERO_SHOT),
            f"suite is {suite!r}; choose one of {', '.join((*SUITES, *ZERO_SHOT))}.",
        ),
        (
            (model is None) == (run is None) or (run is None) != (qrels is None),
            "give a model, or --run and --qrels to score a TREC run file; not both.",
        ),
        (
            rerank is None and (fusion is not None or top is not None),
            "--fusion and --top belong to a re-ranker; give --rerank, too.",
        ),
        (frontier and devices > 1, f"--frontier times one device, and {devices} are given; name one."),
        (fusion is not None and top is not None, f"{fusion} says how many candidates are re-ranked; leave --top out."),
        (
            frontier and not plain,
            "--frontier measures both pools, with the first prompt by the gold modality; leave those out.",
        ),
        (pixels is not None and not frontier, "--pixels are limits that --frontier tries; give --frontier, too."),
        (
            run is None and data is None and suite != "emoji",
            f"--suite {suite} needs --data, a folder {layout}.",
        ),
        (
            not benchmarks and (rerank is not None or frontier or bool(baselines) or not plain),
            f"--suite {suite} has one pool and one prompt a task, and no re-ranker, baselines or frontier; leave "
            "those options out.",
        ),
    ):
        if wrong:
            raise ValueError(told)
