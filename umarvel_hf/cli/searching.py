"""Verbs of search: encode a collection, index it, search it, have a re-ranker judge."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from umarvel_hf.cli.command import Told, verb
from umarvel_hf.cli.options import BatchTokens, Device, Dtype, K, Model, Picture, SingleDevice, Text

Items = Annotated[
    Path, typer.Argument(help="Folder of pictures, or table (.jsonl, .csv, .parquet) with id, text, image.")
]
Encoder = Annotated[str | None, typer.Option(help="Folder or Hub id of a checkpoint (default: the shipped one).")]


@verb("umarvel encode ~/pictures my-vectors --model my-embedder")
def encode(
    *,
    items: Items,
    out: Annotated[Path, typer.Argument(help="Folder of the vectors; the same command again goes on there.")],
    model: Encoder = None,
    instruction: Annotated[str | None, typer.Option(help="Of all items; candidates have none.")] = None,
    device: Device = None,
    dtype: Dtype = None,
    batch_tokens: BatchTokens = None,
) -> Told:
    """Encode a folder of pictures, or a table of items, to be searched."""
    from umarvel_hf.searching import encode_collection

    done = encode_collection(
        items, out, model=model, instruction=instruction, device=device, dtype=dtype, batch_tokens=batch_tokens,
        show_progress=True,
    )  # fmt: skip
    count, left_out = len(done.store), done.left_out
    text = f"{count:,} items of {done.store.dimension} dimensions in {out}"
    if left_out:
        text += f"\n{left_out:,} could not be read and are left out; {out / 'quarantine.jsonl'} says which and why"
    return Told(text, {"out": out, "items": count, "dimension": done.store.dimension, "left_out": left_out})


@verb("umarvel index my-vectors my-index --factory HNSW32")
def index(
    *,
    vectors: Annotated[Path, typer.Argument(help="Folder that encode filled; the index needs it where it is.")],
    out: Annotated[Path, typer.Argument(help="Folder of the index.")],
    factory: Annotated[
        str, typer.Option(help="How FAISS keeps the vectors, such as HNSW32 or IVF4096,SQ8.")
    ] = "HNSW32",
) -> Told:
    """Make an approximate index of vectors, for millions of them, and measure what it misses."""
    from umarvel_hf.approximate import build_approximate

    found = build_approximate(vectors, out, factory=factory)
    text = (
        f"{found.count:,} vectors in {out} ({found.factory}, {found.bytes / 1e6:.1f} MB): of the ten best of "
        f"{found.sampled:,} of them it finds {100 * found.recall_at_10:.1f} %, in {found.query_ms:.2f} ms a query"
    )
    return Told(text, {"out": out, **asdict(found)})


@verb('umarvel search "a red heart"')
def search(
    *,
    text: Text = None,
    image: Picture = None,
    index: Annotated[Path | None, typer.Option(help="Folder that encode or index wrote.")] = None,
    images: Annotated[
        Path | None,
        typer.Option(help="Folder or table to encode for this search alone (default: embedded pictures)."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Folder or Hub id of a checkpoint (default: the index's, or the shipped one)."),
    ] = None,
    instruction: Annotated[str | None, typer.Option(help="What to look for (default: the checkpoint's own).")] = None,
    k: K = 5,
    device: SingleDevice = None,
    dtype: Dtype = None,
) -> Told:
    """Search by a text, a picture, or both."""
    from umarvel_hf.searching import search as look

    found = look(
        text, image=image, index=index, images=images, model=model, instruction=instruction, k=k,
        device=device[0] if device else None, dtype=dtype, show_progress=True,
    )  # fmt: skip
    return Told("\n".join(map(str, found)), {"found": [one.facts() for one in found]})


@verb('umarvel rerank my-reranker ~/pictures "a dog" -k 3')
def rerank(*, model: Model, items: Items, text: Text = None, image: Picture = None, k: K = 5) -> Told:
    """Have a re-ranker judge items, or what search --json found, against a text, a picture, or both."""
    from umarvel_hf.searching import rerank as judge

    found = judge(model, items, text, image=image, k=k)
    return Told("\n".join(map(str, found)), {"found": [one.facts() for one in found]})
