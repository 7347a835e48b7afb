"""The command ``umarvel``: one verb, one function; an option is a parameter of that function."""

import argparse
import logging
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from umarvel_hf.search import Encoder

# Nothing heavy is imported here: `umarvel --help` answers at once.


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb.

    Returns:
        0; 1 where `audit` found defects; 2 where the input was wrong, and one line on stderr says what to do.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    options = vars(_parser().parse_args(arguments))
    if "command" in options:  # results tell how they were made
        options["command"] = shlex.join(["umarvel", *arguments])
    verb: Callable[..., int | None] = options.pop("verb")
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("umarvel_hf").setLevel(logging.INFO)
    try:
        return verb(**options) or 0
    except KeyboardInterrupt:
        print("umarvel: stopped", file=sys.stderr)
        return 130
    except Exception as error:
        from safetensors import SafetensorError

        if not isinstance(error, ValueError | TypeError | OSError | ImportError | SafetensorError):
            raise
        damaged = "a weights file is damaged; copy it again: " if isinstance(error, SafetensorError) else ""
        print(f"umarvel: {damaged}{' '.join(str(error).split())}", file=sys.stderr)
        return 2


def demo(*, out: Path, train: bool) -> None:
    """Evaluate the shipped model on the embedded benchmark, search a little, write report.html."""
    from umarvel_hf.demo import run_demo

    run_demo(out, train=train)


def data(*, out: Path) -> None:
    """Write the embedded benchmark in M-BEIR's layout to a folder."""
    from umarvel_hf.emoji import write_benchmark

    print(write_benchmark(out))


def new(*, base: str, out: Path) -> None:
    """Make a U-MARVEL checkpoint of any vision-language model."""
    from umarvel_hf.checkpoint import new_model

    print(new_model(base, out))


def convert(*, src: str, out: Path, base: str | None, generation_prompt: str, instruction_rows: str | None) -> None:
    """Turn a checkpoint of the reference implementation into a U-MARVEL checkpoint."""
    from umarvel_hf.conversion import convert

    report = convert(
        src,
        out,
        base=base,
        generation_prompt=generation_prompt == "on",
        instruction_rows=instruction_rows,  # type: ignore[arg-type]
    )
    print(report)
    print(out)


def train(*, recipe: str, out: Path | None, data: Path | None, max_steps: int | None, dry_run: bool) -> None:
    """Train a model as a recipe says; the same command again goes on where it stopped."""
    from umarvel_hf.data import MBeir
    from umarvel_hf.emoji import benchmark_dir
    from umarvel_hf.trainer.estimate import describe
    from umarvel_hf.trainer.recipe_reader import read_recipe
    from umarvel_hf.trainer.run import train

    plan = read_recipe(recipe)  # a misspelt one is refused before the benchmark is written
    root = data or plan.benchmark or benchmark_dir()
    here = plan.needs_benchmark and not (dry_run and data is None and not Path(root).is_dir())
    benchmark = MBeir(root) if here else None
    # A trial has a folder of its own: it is finished, and would stand in the way of the real run.
    name = Path(recipe).stem if max_steps is None else f"{Path(recipe).stem}-{max_steps}-steps"
    folder = out or Path("runs") / name
    if dry_run:
        print(describe(recipe, folder, benchmark=benchmark, max_steps=max_steps))
    else:
        print(train(recipe, folder, benchmark=benchmark, max_steps=max_steps))


def mine(
    *, model: str | None, table: Path | None, data: Path | None, out: Path, pools: list[str], depth: int, share: float,
    seed: int, batch_tokens: int | None, device: list[str] | None, dtype: str | None, qids: list[str] | None, show: int,
) -> None:  # fmt: skip
    """Rank the training pools for every training query, or show a table of such lists."""
    from umarvel_hf.data import MBeir
    from umarvel_hf.emoji import benchmark_dir
    from umarvel_hf.mining import mine_benchmark, show_lists
    from umarvel_hf.negatives import NegativeTable

    if (model is None) == (table is None):
        raise ValueError("give a model that mines, or --table, a table that was mined; not both.")
    benchmark = MBeir(data or benchmark_dir())
    if table is not None:
        tables = {table.stem: NegativeTable.open(table)}
    else:
        with _encoder(str(model), device, dtype, batch_tokens) as (encoder, tokens):
            tables = mine_benchmark(
                encoder, benchmark, out, pools=pools, depth=depth, share=share, seed=seed, batch_tokens=tokens
            )
    for name, lists in tables.items():
        print(f"{name}: {len(lists):,} lists" + (f" in {out / name}.parquet" if table is None else ""))
        print(show_lists(lists, benchmark, qids=qids or lists.qids[:show]))


def search(
    *, query: str | None, image: Path | None, text: str | None, images: Path | None, model: str | None,
    instruction: str | None, k: int,
) -> None:  # fmt: skip
    """Search pictures by a text, a picture, or both."""
    from umarvel_hf.demo import search_pictures

    if query is not None and text is not None:
        raise ValueError(f"two texts are given, {query!r} and --text {text!r}; give one.")
    for line in search_pictures(
        text=query or text, image=image, images=images, model=model, instruction=instruction, k=k
    ):
        print(line)


def evaluate(
    *, model: str | None, suite: str, data: Path | None, out: Path, tasks: list[str] | None, split: str,
    pools: list[str], instructions: Any, seed: int, gold_modality: bool, baselines: bool | None, rerank: str | None,
    top: int | None, fusion: Path | None, run: Path | None, qrels: Path | None, frontier: bool,
    pixels: list[int] | None, memory: int, batch_tokens: int | None, device: list[str] | None, dtype: str | None,
    json: bool, command: str,
) -> None:  # fmt: skip
    """Measure how well a model retrieves: local and union pools, every metric, a report."""
    plain = set(pools) == {"local", "union"} and instructions == "first" and gold_modality
    for wrong, told in (
        (
            (model is None) == (run is None) or (run is None) != (qrels is None),
            "give a model, or --run and --qrels to score a TREC run file; not both.",
        ),
        (
            rerank is None and (fusion is not None or top is not None),
            "--fusion and --top belong to a re-ranker; give --rerank, too.",
        ),
        (
            frontier and device is not None and len(device) > 1,
            f"--frontier times one device, and {len(device or ())} are given; name one.",
        ),
        (fusion is not None and top is not None, f"{fusion} says how many candidates are re-ranked; leave --top out."),
        (
            frontier and not plain,
            "--frontier measures both pools, with the first prompt by the gold modality; leave those out.",
        ),
        (pixels is not None and not frontier, "--pixels are limits that --frontier tries; give --frontier, too."),
        (
            run is None and data is None and suite != "emoji",
            f"--suite {suite} needs --data, a folder in M-BEIR's layout.",
        ),
    ):
        if wrong:
            raise ValueError(told)
    if run is not None and qrels is not None:
        _score_run(run, qrels, out, json)
        return
    from umarvel_hf.data import MBeir
    from umarvel_hf.demo import DATASETS
    from umarvel_hf.emoji import benchmark_dir
    from umarvel_hf.evaluation.benchmark import evaluate_benchmark
    from umarvel_hf.evaluation.frontier import measure_frontier, save_frontier
    from umarvel_hf.evaluation.reranked import fit_fusion
    from umarvel_hf.report import write_report
    from umarvel_hf.reranking import Fusion, load_reranker

    benchmark = MBeir(data or benchmark_dir())
    with _encoder(str(model), device, dtype, batch_tokens) as (encoder, tokens):
        common: dict[str, Any] = {
            "suite": suite, "tasks": tasks, "vectors": out / "vectors", "memory": memory, "batch_tokens": tokens,
            "show_progress": sys.stderr.isatty(),
        }  # fmt: skip
        reranker = weight = None
        if rerank is not None:
            reranker = load_reranker(rerank)
            weight = (
                Fusion.load(fusion)
                if fusion
                else fit_fusion(
                    encoder,
                    reranker,
                    benchmark,
                    top=50 if top is None else top,
                    name=rerank,
                    gold_modality=gold_modality,
                    **common,
                )
            )
        settings = {"model": str(model), "command": command}
        shutil.rmtree(out / "runs", ignore_errors=True)  # of an earlier evaluation
        result = evaluate_benchmark(
            encoder, benchmark, split=split, pools=pools, instructions=instructions, seed=seed,
            gold_modality=gold_modality, baselines=baselines, reranker=reranker, fusion=weight, runs=out / "runs",
            settings=settings, **common,
        )  # fmt: skip
        for stale in ("fusion.json", "frontier.json"):
            (out / stale).unlink(missing_ok=True)
        if weight is not None:
            weight.save(out / "fusion.json")
        result.save(out / "result.json")
        (out / "table.txt").write_text(result.table() + "\n", encoding="utf-8")
        points = None
        if frontier:
            points = measure_frontier(encoder, benchmark, split=split, max_pixels=pixels, **common)
            save_frontier(points, out / "frontier.json")
        page = write_report(result, benchmark, out / "report.html", descriptions=DATASETS, frontier=points)
        print(result.as_json() if json else f"{result.table()}\n\nreport: {page.resolve()}")


def _score_run(run: Path, qrels: Path, out: Path, json: bool) -> None:
    from umarvel_hf.evaluation.benchmark import evaluate_run

    if (out / "vectors").exists():
        raise ValueError(f"{out} holds the evaluation of a model; name another --out for the run file.")
    result = evaluate_run(run, qrels)
    result.save(out / "result.json")
    print(result.as_json() if json else result.table())


def compare(
    *, first: Path, second: Path, metric: str | None, pool: str, system: str, plot: Path | None, json: bool
) -> None:
    """Say whether one result is better than another, task by task, query by query."""
    from umarvel_hf.evaluation.comparison import compare_results
    from umarvel_hf.evaluation.comparison import plot as draw
    from umarvel_hf.evaluation.results import Result

    found = compare_results(
        Result.load(first),
        Result.load(second),
        metric=metric,
        pool=pool,
        system=system,
        names=_told_apart(first, second),
    )
    if plot is not None:
        plot.write_text(draw(found.comparisons), encoding="utf-8")
    print(found.as_json() if json else found.table())


def audit(*, data: Path, images: bool, json: bool) -> int:
    """Check a folder in M-BEIR's layout; the exit status is 1 where its data are not sound."""
    from umarvel_hf.evaluation.audit import audit

    found = audit(data, images=images, show_progress=sys.stderr.isatty())
    print(found.as_json() if json else found.text())
    return 0 if found.sound else 1


def report(*, result: Path, data: Path | None, out: Path | None) -> None:
    """Write report.html from the folder of an evaluation."""
    from umarvel_hf.data import MBeir
    from umarvel_hf.demo import DATASETS
    from umarvel_hf.evaluation.frontier import load_frontier
    from umarvel_hf.evaluation.results import Result
    from umarvel_hf.report import write_report

    found = Result.load(result)
    folder = result if result.is_dir() else result.parent
    root = data or (Path(found.settings["data"]) if "data" in found.settings else None)
    points = load_frontier(folder / "frontier.json") if (folder / "frontier.json").is_file() else None
    benchmark = MBeir(root) if root and (data or root.is_dir()) else None
    print(write_report(found, benchmark, out or folder / "report.html", descriptions=DATASETS, frontier=points))


def _told_apart(first: Path, second: Path) -> tuple[str, str]:
    """The last parts of two paths, as many as tell them apart, without ``result.json``."""
    one, other = ([*path.absolute().parts] for path in (first, second))
    if one[-1] == other[-1] == "result.json":
        one, other = one[:-1], other[:-1]
    shared = next((at for at, pair in enumerate(zip(one[::-1], other[::-1], strict=False)) if pair[0] != pair[1]), 0)
    return "/".join(one[-1 - shared :]), "/".join(other[-1 - shared :])


def _parser() -> argparse.ArgumentParser:
    from importlib.metadata import PackageNotFoundError, version

    try:
        number = version("umarvel_hf")
    except PackageNotFoundError:
        number = "not installed"
    parser = argparse.ArgumentParser(
        prog="umarvel", description="Universal multimodal retrieval: one embedder for text, pictures and both."
    )
    parser.add_argument("--version", action="version", version=f"umarvel_hf {number}")
    verbs = parser.add_subparsers(metavar="VERB", required=True)

    verb = _verb(verbs, demo, "umarvel demo")
    verb.add_argument(
        "--out", type=Path, default=Path("umarvel-demo"), help="folder of the results (default: %(default)s)"
    )
    verb.add_argument("--train", action="store_true", help="train the model again from nothing first (about an hour)")

    verb = _verb(verbs, data, "umarvel data emoji-benchmark")
    verb.add_argument("out", type=Path, help="folder to write; must not exist yet")

    verb = _verb(verbs, new, "umarvel new Qwen/Qwen2-VL-2B-Instruct my-embedder")
    verb.add_argument("base", help="folder or Hub id of a vision-language model")
    verb.add_argument("out", type=Path, help="folder to write")

    verb = _verb(verbs, convert, "umarvel convert TencentBAC/U-MARVEL-Qwen2VL-7B-Instruct u-marvel-7b")
    verb.add_argument("src", help="folder or Hub id of a merged checkpoint or a LoRA adapter")
    verb.add_argument("out", type=Path, help="folder to write")
    verb.add_argument("--base", help="what an adapter was trained on (default: what its configuration names)")
    verb.add_argument(
        "--generation-prompt", choices=("on", "off"), default="on", help="close the text with one more assistant turn"
    )
    verb.add_argument(
        "--instruction-rows",
        choices=("mean", "stored"),
        help="embedding rows of the instruction tokens (default: detected)",
    )

    verb = _verb(verbs, train, "umarvel train emoji")
    verb.add_argument("recipe", help="name of a shipped recipe, or path of a YAML file")
    verb.add_argument("--out", type=Path, help="folder of the run (default: runs/RECIPE, or runs/RECIPE-N-steps)")
    verb.add_argument("--data", type=Path, help="folder in M-BEIR's layout (default: the embedded benchmark)")
    verb.add_argument("--max-steps", type=int, help="a trial: so many steps a stage, on a small part of the benchmark")
    verb.add_argument("--dry-run", action="store_true", help="only say what would run: rows, steps, memory")

    verb = _verb(verbs, mine, "umarvel mine my-embedder --data M-BEIR --out mined")
    verb.add_argument("model", nargs="?", help="folder or Hub id of a checkpoint")
    verb.add_argument("--table", type=Path, help="show the lists of a file that was mined")
    verb.add_argument("--data", type=Path, help="folder in M-BEIR's layout (default: the embedded benchmark)")
    verb.add_argument(
        "--out", type=Path, default=Path("umarvel-mined"),
        help="folder of the lists and vectors; the same command again goes on there (default: %(default)s)",
    )  # fmt: skip
    verb.add_argument(
        "--pools", nargs="+", default=["local", "union"], choices=("local", "union"), help="default: both"
    )
    verb.add_argument("--depth", type=int, default=100, help="candidates a list (default: %(default)s)")
    verb.add_argument("--share", type=float, default=1.0, help="of the queries, 0 to 1 (default: all)")
    verb.add_argument("--seed", type=int, default=0, help="of prompts and of the share (default: %(default)s)")
    verb.add_argument("--qids", nargs="+", metavar="QID", help="whose lists to show")
    verb.add_argument("--show", type=int, default=2, help="how many lists to show (default: %(default)s)")
    verb.add_argument("--batch-tokens", type=int, help="tokens encoded at a time (default: what suits the device)")
    _add_hardware(verb)

    verb = _verb(verbs, evaluate, "umarvel evaluate my-embedder --suite m-beir --data M-BEIR")
    verb.set_defaults(command="")
    verb.add_argument("model", nargs="?", help="folder or Hub id of a checkpoint")
    verb.add_argument(
        "--suite", default="emoji", help="m-beir, or emoji, the embedded benchmark (default: %(default)s)"
    )
    verb.add_argument("--data", type=Path, help="folder in M-BEIR's layout (default: the embedded benchmark)")
    verb.add_argument(
        "--out", type=Path, default=Path("umarvel-evaluation"),
        help="folder of the results and vectors; the same command again goes on there (default: %(default)s)",
    )  # fmt: skip
    verb.add_argument("--tasks", nargs="+", metavar="TASK", help="such as mscoco_task0 (default: all)")
    verb.add_argument("--split", default="test", help="default: %(default)s")
    verb.add_argument(
        "--pools", nargs="+", default=["local", "union"], choices=("local", "union"), help="default: both"
    )
    verb.add_argument(
        "--instructions", default="first", choices=("first", "seeded", "all"),
        help="which prompt a query gets; all: every one, mean and spread (default: %(default)s)",
    )  # fmt: skip
    verb.add_argument("--seed", type=int, default=0, help="of --instructions seeded (default: %(default)s)")
    verb.add_argument(
        "--gold-modality", action=argparse.BooleanOptionalAction, default=True,
        help="look prompts up by the modality of the right answer, as M-BEIR's code does, or by that of the task",
    )  # fmt: skip
    verb.add_argument(
        "--baselines", action=argparse.BooleanOptionalAction,
        help="chance, BM25 and pixel neighbours beside the model (default: on the embedded benchmark only)",
    )  # fmt: skip
    verb.add_argument("--rerank", metavar="MODEL", help="a CrossEncoder that judges the best candidates anew")
    verb.add_argument("--top", type=int, help="how many of them (default: 50, or as in --fusion)")
    verb.add_argument("--fusion", type=Path, help="fusion.json of an earlier run (default: fitted on the val split)")
    verb.add_argument("--run", type=Path, help="score this TREC run file in place of a model; needs --qrels")
    verb.add_argument("--qrels", type=Path, help="TREC qrels of --run")
    verb.add_argument(
        "--frontier", action="store_true", help="also quality by dimension, precision, pixels and latency"
    )
    verb.add_argument(
        "--pixels", nargs="+", type=int, help="image pixel limits of --frontier (default: the model's own)"
    )
    verb.add_argument("--memory", type=_bytes, default="8GB", help="for the search (default: %(default)s)")
    verb.add_argument("--batch-tokens", type=int, help="tokens encoded at a time (default: what suits the device)")
    _add_hardware(verb)
    verb.add_argument("--json", action="store_true", help="print JSON instead of a table")

    verb = _verb(verbs, compare, "umarvel compare run-a run-b --pool union --plot difference.svg")
    verb.add_argument("first", type=Path, help="result.json of an evaluation, or its folder")
    verb.add_argument("second", type=Path, help="another one, on the same data")
    verb.add_argument("--metric", help="such as hit@1 or ndcg@10 (default: each task's own)")
    verb.add_argument("--pool", default="local", help="local or union (default: %(default)s)")
    verb.add_argument("--system", default="model", help="model, re-ranked or a baseline (default: %(default)s)")
    verb.add_argument("--plot", type=Path, help="SVG file to draw the differences in")
    verb.add_argument("--json", action="store_true", help="print JSON instead of a table")

    verb = _verb(verbs, audit, "umarvel audit M-BEIR")
    verb.add_argument("data", type=Path, help="folder in M-BEIR's layout")
    verb.add_argument(
        "--images",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="open every picture, or only see that it is there",
    )
    verb.add_argument("--json", action="store_true", help="print JSON instead of text")

    verb = _verb(verbs, report, "umarvel report umarvel-evaluation")
    verb.add_argument("result", type=Path, help="folder of an evaluation, or its result.json")
    verb.add_argument("--data", type=Path, help="the data evaluated on (default: where they were)")
    verb.add_argument("--out", type=Path, help="HTML file to write (default: report.html in the folder)")

    verb = _verb(verbs, search, 'umarvel search "a red heart"')
    verb.add_argument("query", nargs="?", help="a text")
    verb.add_argument("--image", type=Path, help="a picture")
    verb.add_argument("--text", help="a text that goes with the picture")
    verb.add_argument("--images", type=Path, help="folder of pictures to search (default: the embedded ones)")
    verb.add_argument("--model", help="folder or Hub id of a checkpoint (default: the shipped one)")
    verb.add_argument("--instruction", help="what to look for (default: one that fits the query)")
    verb.add_argument("-k", type=int, default=5, help="how many to show (default: %(default)s)")
    return parser


def _bytes(text: str) -> int:
    """``8GB`` or ``512MiB`` as a number."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT]?)(i?)B", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no amount of memory; write it like 8GB or 512MiB")
    return int(float(found[1]) * (1024 if found[3] else 1000) ** " KMGT".index(found[2] or " "))


def _devices(text: str) -> list[str]:
    """The names of devices, once a number was there and back."""
    import torch

    for name in (names := text.split(",")):
        try:
            torch.zeros(1, device=name).cpu()
        except (AssertionError, ImportError, RuntimeError) as error:
            told = f"{name!r} cannot be used here ({str(error).splitlines()[0]}); name another, such as cpu"
            raise argparse.ArgumentTypeError(told) from error
    return names


def _add_hardware(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--device", type=_devices, help="such as cuda:0, or cuda:0,cuda:1 (default: the best there is)")
    verb.add_argument(
        "--dtype", choices=("auto", "float32", "bfloat16", "float16"),
        help="of the weights; auto: what the device multiplies fastest (default: as they are stored)",
    )  # fmt: skip


@contextmanager
def _encoder(
    model: str, devices: list[str] | None, dtype: str | None, batch_tokens: int | None
) -> "Iterator[tuple[Encoder, int | None]]":
    """A model on its device or devices, and the tokens of a batch where it is told them by each call."""
    from umarvel_hf.devices import DeviceEncoder
    from umarvel_hf.encoding import load

    if devices is None or len(devices) == 1:
        yield cast("Encoder", load(model, device=devices[0] if devices else None, dtype=dtype)), batch_tokens
        return
    with DeviceEncoder(model, devices, batch_tokens=batch_tokens, dtype=dtype) as encoder:
        yield encoder, None


def _verb(verbs: Any, function: Callable[..., int | None], example: str) -> argparse.ArgumentParser:
    told = (function.__doc__ or "").strip()
    parser: argparse.ArgumentParser = verbs.add_parser(
        function.__name__, help=told, description=told, epilog=f"example: {example}"
    )
    parser.set_defaults(verb=function)
    return parser


if __name__ == "__main__":
    sys.exit(main())
