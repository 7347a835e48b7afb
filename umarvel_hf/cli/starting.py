"""Verbs of the first minutes: the demo and the embedded benchmark."""

from pathlib import Path
from typing import Annotated

import typer

from umarvel_hf.cli.command import Told, verb


@verb("umarvel demo --out umarvel-demo")
def demo(
    *,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("umarvel-demo"),
    train: Annotated[
        bool, typer.Option("--train", help="Train the model again from nothing first (about an hour and a half).")
    ] = False,
) -> Told:
    """Evaluate the shipped model on the embedded benchmark, search a little, write report.html."""
    from umarvel_hf.demo import run_demo

    shown = run_demo(out, train=train)
    searches = {query: [one.facts() for one in found] for query, found in shown.searches.items()}
    return Told(str(shown), {"report": shown.report, "result": out / "result.json", "searches": searches})


@verb("umarvel data emoji-benchmark")
def data(*, out: Annotated[Path, typer.Argument(help="Folder to write; must not exist yet.")]) -> Told:
    """Write the embedded benchmark in M-BEIR's layout to a folder."""
    from umarvel_hf.emoji import write_benchmark

    written = write_benchmark(out)
    return Told(str(written), {"out": written})
