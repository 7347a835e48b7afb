"""Verbs of training: recipes and the negatives that they learn from."""

from pathlib import Path
from typing import Annotated, Any

import typer

from umarvel_hf.cli.command import Told, verb
from umarvel_hf.cli.options import BatchTokens, Data, Device, Dtype, Names, PoolNames, Seed


@verb("umarvel train emoji-full --max-steps 1")
def train(
    *,
    recipe: Annotated[str, typer.Argument(help="Name of a shipped recipe, or path of a YAML file.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run (default: runs/RECIPE, or runs/RECIPE-N-steps).")
    ] = None,
    data: Data = None,
    max_steps: Annotated[
        int | None, typer.Option(help="A trial: so many steps a stage, on a small part of the benchmark.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would run: rows, steps, memory.")] = False,
) -> Told:
    """Train a model as a recipe says; the same command again goes on where it stopped."""
    from umarvel_hf.data import MBeir
    from umarvel_hf.emoji import benchmark_dir
    from umarvel_hf.trainer.estimate import describe
    from umarvel_hf.trainer.recipe_reader import read_recipe
    from umarvel_hf.trainer.run import train as follow

    plan = read_recipe(recipe)  # a misspelt one is refused before the benchmark is written
    root = data or plan.benchmark or benchmark_dir()
    here = plan.needs_benchmark and not (dry_run and data is None and not Path(root).is_dir())
    benchmark = MBeir(root) if here else None
    # A trial has a folder of its own: it is finished, and would stand in the way of the real run.
    name = Path(recipe).stem if max_steps is None else f"{Path(recipe).stem}-{max_steps}-steps"
    folder = out or Path("runs") / name
    if dry_run:
        told = describe(recipe, folder, benchmark=benchmark, max_steps=max_steps)
        return Told(told, {"out": folder, "plan": told.splitlines()})
    model = follow(recipe, folder, benchmark=benchmark, max_steps=max_steps)
    return Told(str(model), {"out": folder, "model": model})


@verb("umarvel mine my-embedder --data my-data --out mined")
def mine(
    *,
    model: Annotated[str | None, typer.Argument(help="Folder or Hub id of a checkpoint.")] = None,
    table: Annotated[Path | None, typer.Option(help="Show the lists of a file that was mined.")] = None,
    data: Data = None,
    out: Annotated[
        Path, typer.Option(help="Folder of the lists and vectors; the same command again goes on there.")
    ] = Path("umarvel-mined"),
    pools: Annotated[
        PoolNames, typer.Option(parser=PoolNames, metavar="NAME,…", help="local, union or both.")
    ] = "local,union",  # type: ignore[assignment]
    depth: Annotated[int, typer.Option(help="Candidates a list.")] = 100,
    share: Annotated[float, typer.Option(help="Of the queries, 0 to 1.")] = 1.0,
    seed: Seed = 0,
    qids: Annotated[Names | None, typer.Option(parser=Names, metavar="QID,…", help="Whose lists to show.")] = None,
    show: Annotated[int, typer.Option(help="How many lists to show.")] = 2,
    batch_tokens: BatchTokens = None,
    device: Device = None,
    dtype: Dtype = None,
) -> Told:
    """Rank the training pools for every training query, or show a table of such lists."""
    from umarvel_hf.data import MBeir
    from umarvel_hf.devices import open_encoder
    from umarvel_hf.emoji import benchmark_dir
    from umarvel_hf.mining import mine_benchmark, show_lists
    from umarvel_hf.negatives import NegativeTable

    if (model is None) == (table is None):
        raise ValueError("give a model that mines, or --table, a table that was mined; not both.")
    benchmark = MBeir(data or benchmark_dir())
    if table is not None:
        tables = {table.stem: NegativeTable.open(table)}
    else:
        with open_encoder(str(model), device, dtype, batch_tokens) as (encoder, tokens):
            tables = mine_benchmark(
                encoder, benchmark, out, pools=pools, depth=depth, share=share, seed=seed, batch_tokens=tokens
            )
    lines, facts = [], dict[str, Any]()
    for name, lists in tables.items():
        path = table or out / f"{name}.parquet"
        facts[name] = {"table": path, "lists": len(lists)}
        lines.append(f"{name}: {len(lists):,} lists" + (f" in {path}" if table is None else ""))
        lines.append(show_lists(lists, benchmark, qids=qids or lists.qids[:show]))
    return Told("\n".join(lines), facts)
