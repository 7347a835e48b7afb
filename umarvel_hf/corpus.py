"""Items to be searched: read from a folder of pictures or a table, encoded into a store that says what they are."""

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from umarvel_hf.data import Item, as_item
from umarvel_hf.fingerprint import fingerprint
from umarvel_hf.pictures import picture_problems
from umarvel_hf.records import Ids, id_array
from umarvel_hf.search import Encoder, encode_store
from umarvel_hf.store import MANIFEST, VectorStore, whole_file

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
TABLES = (".jsonl", ".csv", ".parquet")
ITEMS, FACTS, QUARANTINE = "items.parquet", "corpus.json", "quarantine.jsonl"
COLUMNS = ("id", "text", "image")


@dataclass(frozen=True)
class Corpus:
    """Items under unique ids, in the order of their source; see :func:`read_corpus`."""

    source: Path
    items: Mapping[str, Item]


@dataclass(frozen=True)
class EncodedCorpus:
    """A store of vectors and what its ids stand for.

    Args:
        items: By id.
        kinds: What they are: ``text``, ``image``, ``image-text``.
        model: Folder or Hub id of what encoded them.
        left_out: Items that could not be read, as ``quarantine.jsonl`` beside the store lists them.
    """

    store: VectorStore
    items: Mapping[str, Item]
    kinds: set[str]
    model: str
    left_out: int


def read_corpus(source: str | Path) -> Corpus:
    """Read items.

    Args:
        source: A folder, all pictures of which are items, those of sub-folders included, their paths their ids. Or a
            table (``.jsonl``, ``.csv`` or ``.parquet``) with the columns ``text`` or ``image`` or both, and ``id``
            (without it: the number of the row, from 0). Pictures are paths that count from the table's folder. Or the
            ``.json`` that ``umarvel search --json`` printed.

    Raises:
        FileNotFoundError: There is nothing at ``source``.
        ValueError: It holds no items, another kind of file, or a row that is no item, which is named.
    """
    path = Path(source)
    if path.is_dir():
        found = sorted(one for one in path.rglob("*") if one.suffix.lower() in PICTURES and one.is_file())
        if not found:
            raise ValueError(f"{str(path)!r} holds no picture ({', '.join(PICTURES)}); name another folder.")
        return Corpus(path, {one.relative_to(path).as_posix(): {"image": one} for one in found})
    if not path.is_file():
        raise FileNotFoundError(f"{str(path)!r} does not exist; give a folder of pictures or a table of items.")
    items: dict[str, Item] = {}
    for number, row in enumerate(_rows(path)):
        name, item = _item_of(row, number, path)
        if name in items:
            raise ValueError(f"{path}, row {number}: id {name!r} occurs twice. Ids must be unique.")
        items[name] = item
    if not items:
        raise ValueError(f"{path} holds no rows; give a table with the columns id, text and image.")
    return Corpus(path, items)


def encode_corpus(
    encoder: Encoder,
    corpus: Corpus,
    out: str | Path,
    *,
    model: str,
    instruction: str | None = None,
    batch_tokens: int | None = None,
    show_progress: bool = False,
) -> EncodedCorpus:
    """Encode items into a store in ``out``; stopped anywhere and called again, it goes on.

    Pictures that do not open or are too narrow are left out and listed, with the reason, in ``out/quarantine.jsonl``.

    Args:
        model: What the encoder was loaded from, kept for the search.
        instruction: Of all items; candidates have none.
        batch_tokens: As in :func:`umarvel_hf.encoding.encode`.

    Raises:
        ValueError: No item is left; ``out`` holds other vectors.
    """
    out = Path(out)
    bad = dict(_unreadable(corpus))
    kept = {name: item for name, item in corpus.items.items() if name not in bad}
    if not kept:
        name, reason = next(iter(bad.items()))
        raise ValueError(f"none of the {len(bad):,} items of {corpus.source} can be read, {name!r} the first: {reason}")
    store = encode_store(
        encoder,
        out,
        list(kept),
        list(kept.values()),
        instructions=instruction,
        made_by=fingerprint(encoder),
        batch_tokens=batch_tokens,
        show_progress_bar=show_progress,
    )
    columns = {name: [_fields(item).get(name) for item in kept.values()] for name in COLUMNS[1:]}
    with whole_file(out / ITEMS) as file:
        pq.write_table(
            pa.table({"id": list(kept), **columns}, schema=pa.schema([(one, pa.string()) for one in COLUMNS])), file
        )
    _write_quarantine(out / QUARANTINE, bad)
    kinds = {kind_of(item) for item in kept.values()}
    facts = {
        "kinds": sorted(kinds),
        "model": model,
        "instruction": instruction,
        "source": str(corpus.source.absolute()),
        "left_out": len(bad),
    }
    with whole_file(out / FACTS) as file:
        file.write(json.dumps(facts, indent=1, ensure_ascii=False).encode())
    return EncodedCorpus(store, kept, kinds, model, len(bad))


def open_corpus(folder: str | Path, *, made_by: Mapping[str, str] | None = None) -> EncodedCorpus:
    """Open what :func:`encode_corpus` wrote.

    Args:
        made_by: What must have made the vectors; None: whatever did.

    Raises:
        FileNotFoundError: There is no store of items.
        ValueError: It is unfinished or damaged, or something else made it.
    """
    folder = Path(folder)
    if not (folder / FACTS).is_file():
        there = "a store without its items" if (folder / MANIFEST).is_file() else "no store of items"
        raise FileNotFoundError(f"{folder} holds {there}; make one of them: `umarvel encode ITEMS {folder}`.")
    store = VectorStore.open(folder, made_by=made_by)
    facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    table = pq.read_table(folder / ITEMS)
    if not np.array_equal(id_array(table["id"].to_pylist()), store.ids):
        raise ValueError(f"{folder / ITEMS} has other ids than the store. Remove {folder} and encode anew.")
    return EncodedCorpus(store, _StoredItems(table), set(facts["kinds"]), facts["model"], facts["left_out"])


def kind_of(item: Item) -> str:
    """``text``, ``image`` or ``image-text``."""
    return "text" if isinstance(item, str) else "-".join(kind for kind in ("image", "text") if kind in item)


class _StoredItems(Mapping[str, Item]):
    """Items of a table, each made when it is asked for: so millions of them take little memory."""

    def __init__(self, table: pa.Table) -> None:
        self._table, self._ids = table, Ids(id_array(table["id"].to_pylist()))

    def __getitem__(self, name: str) -> Item:
        (at,) = self._ids.positions([name])
        if at < 0:
            raise KeyError(name)
        text, image = (self._table[column][int(at)].as_py() for column in COLUMNS[1:])
        return as_item(text or "", Path(image) if image else None)

    def __iter__(self) -> Iterator[str]:
        yield from (one.as_py() for one in self._table["id"])

    def __len__(self) -> int:
        return self._table.num_rows


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a table, values as they are written; of what was found, as `umarvel search --json` prints it."""
    kind = path.suffix.lower()
    if kind not in (*TABLES, ".json"):
        raise ValueError(f"{path} is no table that can be read; give a folder, or one of {', '.join(TABLES)}.")
    try:
        if kind == ".parquet":
            yield from (row for batch in pq.ParquetFile(path).iter_batches() for row in batch.to_pylist())
            return
        with path.open(encoding="utf-8-sig", newline="") as file:
            if kind == ".csv":
                for number, row in enumerate(csv.DictReader(file, strict=True)):
                    if None in row:  # what stands beyond the last column
                        raise ValueError(f"row {number} has more fields than there are columns")
                    yield {name: value or None for name, value in row.items()}
            elif kind == ".jsonl":
                yield from (_record(json.loads(line)) for line in file if line.strip())
            else:
                yield from map(_record, json.load(file)["found"])
    except (ValueError, TypeError, KeyError, csv.Error, pa.ArrowException) as error:
        what = "what `umarvel search --json` prints" if kind == ".json" else f"a whole {kind[1:]} table"
        raise ValueError(f"{path} is not {what} ({error}).") from error


def _record(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError(f"a row is a {type(value).__name__}, not an object")
    return value


def _item_of(row: Mapping[str, Any], number: int, path: Path) -> tuple[str, Item]:
    text, image = row.get("text"), row.get("image")
    for name, value in (("text", text), ("image", image)):
        if value is not None and not isinstance(value, str):
            raise ValueError(f"{path}, row {number}: {name} is a {type(value).__name__}; give a string.")
    if not text and not image:
        columns = ", ".join(row) or "none"
        raise ValueError(f"{path}, row {number}: neither text nor image; its columns are {columns}.")
    own = row.get("id")
    return str(number if own is None else own), as_item(text or "", (path.parent / image) if image else None)


def _fields(item: Item) -> dict[str, Any]:
    given = item if isinstance(item, dict) else {"text": item}
    return {kind: str(Path(value).absolute()) if kind == "image" else value for kind, value in given.items()}


def _unreadable(corpus: Corpus) -> Iterator[tuple[str, str]]:
    """Ids and reasons of the items whose pictures cannot be used."""
    pictures = {
        name: item["image"] for name, item in corpus.items.items() if isinstance(item, dict) and "image" in item
    }
    for name, problem in zip(pictures, picture_problems(pictures.values()), strict=True):
        if problem is not None:
            yield name, problem


def _write_quarantine(path: Path, bad: Mapping[str, str]) -> None:
    if not bad:
        path.unlink(missing_ok=True)  # of an earlier encoding
        return
    with whole_file(path) as file:
        lines = (json.dumps({"id": name, "reason": reason}, ensure_ascii=False) for name, reason in bad.items())
        file.write("".join(f"{line}\n" for line in lines).encode())
