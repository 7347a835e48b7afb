"""Verbs of measurement: evaluate, compare, audit, report."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from umarvel_hf.cli.command import COMMAND, Told, verb
from umarvel_hf.cli.options import BatchTokens, Device, Dtype, Memory, Names, Numbers, PoolNames, Seed


@verb("umarvel evaluate my-embedder --suite m-beir --data M-BEIR --out run-a")
def evaluate(
    *,
    model: Annotated[str | None, typer.Argument(help="Folder or Hub id of a checkpoint.")] = None,
    suite: Annotated[
        str,
        typer.Option(
            help="emoji, the embedded benchmark; m-beir; or a zero-shot set: flickr30k, coco5k, sharegpt4v, urban1k, "
            "circo, genecis, visdial, vist, mt-fashioniq, cc-neg, sugarcrepe, msr-vtt, msvd, mmeb."
        ),
    ] = "emoji",
    data: Annotated[
        Path | None,
        typer.Option(
            help="Folder in M-BEIR's layout, or with the files of the zero-shot sets (default: the embedded benchmark)."
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Folder of the results and vectors; the same command again goes on there.")
    ] = Path("umarvel-evaluation"),
    tasks: Annotated[
        Names | None, typer.Option(parser=Names, metavar="TASK,…", help="Such as mscoco_task0 (default: all).")
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Whose queries (default: test, or the one that a zero-shot set has).")
    ] = None,
    pools: Annotated[
        PoolNames, typer.Option(parser=PoolNames, metavar="NAME,…", help="local, union or both.")
    ] = "local,union",  # type: ignore[assignment]
    instructions: Annotated[
        Literal["first", "seeded", "all"], typer.Option(help="Which prompt a query gets; all: mean and spread of each.")
    ] = "first",
    seed: Seed = 0,
    gold_modality: Annotated[
        bool, typer.Option(help="Look prompts up by the modality of the right answer, or by that of the task.")
    ] = True,
    baselines: Annotated[
        bool | None,
        typer.Option(help="Also chance, BM25 and pixel neighbours (default: on the embedded benchmark)."),
    ] = None,
    rerank: Annotated[
        str | None, typer.Option(metavar="MODEL", help="A CrossEncoder that judges the best candidates anew.")
    ] = None,
    top: Annotated[int | None, typer.Option(help="How many of them (default: 50, or as in --fusion).")] = None,
    fusion: Annotated[
        Path | None, typer.Option(help="fusion.json of an earlier run (default: fitted on the val split).")
    ] = None,
    run: Annotated[
        Path | None, typer.Option(help="Score this TREC run file in place of a model; needs --qrels.")
    ] = None,
    qrels: Annotated[Path | None, typer.Option(help="TREC qrels of --run.")] = None,
    frontier: Annotated[
        bool, typer.Option("--frontier", help="Also quality by dimension, precision, pixels and latency.")
    ] = False,
    pixels: Annotated[
        Numbers | None,
        typer.Option(parser=Numbers, metavar="N,…", help="Limits that --frontier tries (default: the model's)."),
    ] = None,
    memory: Memory = "8GB",  # type: ignore[assignment]
    batch_tokens: BatchTokens = None,
    device: Device = None,
    dtype: Dtype = None,
) -> Told:
    """Measure how well a model retrieves: local and union pools, every metric, a report."""
    from umarvel_hf.measuring import evaluate as measure

    done = measure(
        model, suite=suite, data=data, out=out, tasks=tasks, split=split, pools=pools, instructions=instructions,
        seed=seed, gold_modality=gold_modality, baselines=baselines, rerank=rerank, top=top, fusion=fusion, run=run,
        qrels=qrels, frontier=frontier, pixels=pixels, memory=memory, batch_tokens=batch_tokens, device=device,
        dtype=dtype, command=COMMAND.get(), show_progress=True,
    )  # fmt: skip
    return Told(str(done), done.as_json())


@verb("umarvel compare run-a run-b --pool union --plot difference.svg")
def compare(
    *,
    first: Annotated[Path, typer.Argument(help="Folder of an evaluation, or its result.json.")],
    second: Annotated[Path, typer.Argument(help="Another one, on the same data.")],
    metric: Annotated[str | None, typer.Option(help="Such as hit@1 or ndcg@10 (default: each task's own).")] = None,
    pool: Annotated[str, typer.Option(help="local or union.")] = "local",
    system: Annotated[str, typer.Option(help="model, re-ranked or a baseline.")] = "model",
    plot: Annotated[Path | None, typer.Option(help="SVG file to draw the differences in.")] = None,
) -> Told:
    """Say whether one result is better than another, task by task, query by query."""
    from umarvel_hf.evaluation.comparison import compare_results
    from umarvel_hf.evaluation.comparison import plot as draw
    from umarvel_hf.evaluation.results import Result

    results = Result.load(first), Result.load(second)
    found = compare_results(*results, metric=metric, pool=pool, system=system, names=_told_apart(first, second))
    if plot is not None:
        plot.write_text(draw(found.comparisons), encoding="utf-8")
    return Told(found.table(), found.as_json())


@verb("umarvel audit M-BEIR")
def audit(
    *,
    data: Annotated[Path, typer.Argument(help="Folder in M-BEIR's layout.")],
    images: Annotated[bool, typer.Option(help="Open every picture, or only see that it is there.")] = True,
) -> Told:
    """Check a folder in M-BEIR's layout; exit status 1 where its data are not sound."""
    from umarvel_hf.evaluation.audit import audit as examine

    found = examine(data, images=images, show_progress=True)
    return Told(found.text(), found.as_json(), 0 if found.sound else 1)


@verb("umarvel report run-a run-b --out results.html")
def report(
    *,
    results: Annotated[
        list[Path],
        typer.Argument(
            help="Folders of evaluations, their result.json, or results of mteb: JSON files or their folder."
        ),
    ],
    data: Annotated[Path | None, typer.Option(help="The data evaluated on (default: where they were).")] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="HTML file to write (default: report.html in the one folder, else umarvel-results.html)."),
    ] = None,
    card: Annotated[
        Path | None, typer.Option(help="Folder of the checkpoint that was evaluated: its card shall tell the scores.")
    ] = None,
) -> Told:
    """Write the page of an evaluation, or one of several results beside each other and what papers print."""
    from umarvel_hf.measuring import report as write

    page = write(results, data=data, out=out, card=card)
    return Told(str(page), {"report": page})


def _told_apart(first: Path, second: Path) -> tuple[str, str]:
    """The last parts of two paths, as many as tell them apart, without ``result.json``."""
    one, other = ([*path.absolute().parts] for path in (first, second))
    if one[-1] == other[-1] == "result.json":
        one, other = one[:-1], other[:-1]
    shared = next((at for at, pair in enumerate(zip(one[::-1], other[::-1], strict=False)) if pair[0] != pair[1]), 0)
    return "/".join(one[-1 - shared :]), "/".join(other[-1 - shared :])
