"""Verbs that make, move and examine checkpoints."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from umarvel_hf.cli.command import Told, verb
from umarvel_hf.cli.options import Model, Out, SingleDevice


@verb("umarvel new Qwen/Qwen2-VL-2B-Instruct my-embedder")
def new(
    *,
    base: Annotated[str, typer.Argument(help="Folder or Hub id of a vision-language model.")],
    out: Out,
    reranker: Annotated[bool, typer.Option("--reranker", help="Make a re-ranker in place of an embedder.")] = False,
    max_pixels: Annotated[int | None, typer.Option(help="Scale larger pictures down (default: as the base).")] = None,
) -> Told:
    """Make an embedder, or a re-ranker, of any vision-language model."""
    from umarvel_hf.checkpoint import new_model
    from umarvel_hf.reranker_checkpoint import new_reranker

    made = (new_reranker if reranker else new_model)(base, out, max_pixels=max_pixels)
    return Told(str(made), {"out": made})


@verb("umarvel convert TencentBAC/U-MARVEL-Qwen2VL-7B-Instruct u-marvel-7b")
def convert(
    *,
    src: Annotated[str, typer.Argument(help="Folder or Hub id of a merged checkpoint or an adapter.")],
    out: Out,
    family: Annotated[
        Literal["u-marvel", "lamra", "gme", "vlm2vec", "qwen3-vl-embedding"] | None,
        typer.Option(help="Whose embedder it is (default: as its Hub id or files tell)."),
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="What an adapter was trained on (default: what its configuration names).")
    ] = None,
    generation_prompt: Annotated[
        bool | None, typer.Option(help="U-MARVEL: close the text with one more assistant turn (default: yes).")
    ] = None,
    instruction_rows: Annotated[
        Literal["mean", "stored"] | None,
        typer.Option(help="U-MARVEL: embedding rows of the instruction tokens (default: detected)."),
    ] = None,
) -> Told:
    """Turn a published embedder (U-MARVEL, LamRA, GME, VLM2Vec, Qwen3-VL-Embedding) into a U-MARVEL checkpoint."""
    from umarvel_hf.conversion import convert as turn

    report = turn(
        src,
        out,
        family=family,
        base=base,
        generation_prompt=generation_prompt,
        instruction_rows=instruction_rows,
    )
    return Told(f"{report}\n{out}", {"out": out, **asdict(report)})


@verb("umarvel export my-embedder my-backbone --bare")
def export(
    *,
    model: Model,
    out: Out,
    bare: Annotated[bool, typer.Option("--bare", help="The backbone alone, for AutoModel.")] = False,
    base: Annotated[
        str | None, typer.Option(help="Folder or Hub id of the language model whose head is restored.")
    ] = None,
) -> Told:
    """Give an embedder's backbone back, without code of ours."""
    from umarvel_hf.exporting import export as give

    written = give(model, out, bare=bare, base=base)
    return Told(str(written), {"out": written})


@verb("umarvel push my-embedder me/my-embedder --private")
def push(
    *,
    folder: Annotated[Path, typer.Argument(help="Folder of a checkpoint, a re-ranker or an adapter.")],
    repo: Annotated[str, typer.Argument(help="Repository on the Hub, OWNER/NAME; made where there is none.")],
    private: Annotated[bool | None, typer.Option(help="Of a new repository (default: as the account has it).")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, made where there is none (default: main).")] = None,
    message: Annotated[str | None, typer.Option(help="Of the commit.")] = None,
) -> Told:
    """Push the folder of a checkpoint to the Hub."""
    from umarvel_hf.hub import push as send

    commit = send(folder, repo, private=private, revision=revision, message=message)
    return Told(commit, {"commit": commit})


@verb("umarvel doctor my-embedder")
def doctor(
    *,
    model: Annotated[
        str | None, typer.Argument(help="Folder or Hub id of a checkpoint (default: the shipped one).")
    ] = None,
    device: SingleDevice = None,
) -> Told:
    """Check this machine and a checkpoint, and say what to do; exit status 1 where something is wrong."""
    from umarvel_hf.doctor import examine

    found = examine(model, device=device[0] if device else None)
    return Told(str(found), json.dumps(asdict(found) | {"sound": found.sound}), 0 if found.sound else 1)
